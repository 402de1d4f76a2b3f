"""Generation with vLLM (0.32), with the entropy of every distribution drawn from.

In: requests. Out: responses (requests.py), as from engine_transformers.py: the same definition of entropy, another way
to draw (vLLM's own sampler and generators), so texts differ between the engines and entropies of equal texts agree.

Entropies come from inside the sampler: a logits processor sees the float32 logits of every step before penalties,
temperature and top-p, hands them to cer_ext.logprobs_and_entropy and returns them untouched. The alternative, scoring
the finished text with a second model, costs a further forward and the memory of the weights, and its numerics are not
those that were sampled from (reading a text in one go rounds otherwise than decoding it).

What this rests on (vLLM's interface of V1, vllm/v1/sample/logits_processor/interface.py):
- the processor's storage must be in this process: VLLM_ENABLE_V1_MULTIPROCESSING=0, one device;
- on a GPU vLLM >= 0.31 may run another model runner, whose processors have another interface:
  VLLM_USE_V2_MODEL_RUNNER=0;
- `output_tok_ids` is the live list of a request's tokens. Its length tells which response token the logits are for;
  that it is up to date when the processor runs needs async_scheduling=False. A prompt read in parts calls the processor
  once per part for token 0, a preempted request is computed again: the last call for a token is the one drawn from;
- slots are reused without a notice of removal: what was added last counts.

Imported only when this engine is asked for, after loading.py has set those variables.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

import cer_ext
from trainer.evaluation.requests import Request, Response, Sampling

_KEY = "cer_ext_request"  # in SamplingParams.extra_args: which request this is


class _Recording:
    """Entropies of one `generate` call. Vectors of a step are kept on their device and read once at the end."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self.steps: list[torch.Tensor] = []  # (rows of the step,)
        self.place: dict[int, dict[int, tuple[int, int]]] = {}  # request -> response token -> (step, row)

    def add(self, logits: torch.Tensor, rows: dict[int, tuple[int, list[int]]]) -> None:
        """logits (B, V); rows: row -> (request, its response tokens so far)."""
        target = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        _, entropy = cer_ext.logprobs_and_entropy(logits, target, temperature=self.temperature)
        for row, (request, tokens) in rows.items():
            self.place.setdefault(request, {})[len(tokens)] = (len(self.steps), row)
        self.steps.append(entropy)

    def entropies(self, request: int, length: int) -> list[float]:
        """The first `length` of a request."""
        place = self.place.get(request, {})
        missing = [token for token in range(length) if token not in place]
        if missing:
            raise RuntimeError(
                f"vLLM drew {length} tokens of request {request} but showed no logits for {len(missing)} of them "
                f"(first: token {missing[0]}); is another model runner in use than the one this engine asks for?"
            )
        return [self.values[step][row] for step, row in (place[token] for token in range(length))]

    def finish(self) -> None:
        self.values = [entropy.tolist() for entropy in self.steps]
        self.steps = []


class EntropyRecorder(LogitsProcessor):
    """Looks at the logits of every step and changes nothing. vLLM makes it, so what it records into is its class's."""

    recording: _Recording | None = None

    def __init__(self, vllm_config, device: torch.device, is_pin_memory: bool) -> None:
        self.slots: dict[int, tuple[int, list[int]]] = {}  # slot -> (request, its response tokens so far)

    def is_argmax_invariant(self) -> bool:
        # True would place it behind temperature and penalties, and skip it where every request is greedy.
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for slot in batch_update.removed:
            self.slots.pop(slot, None)
        for slot, params, _, tokens in batch_update.added:
            key = (params.extra_args or {}).get(_KEY)
            if key is None:
                self.slots.pop(slot, None)  # vLLM's own warm-up
            else:
                self.slots[slot] = (key, tokens)
        for a, b, direction in batch_update.moved:
            first, second = self.slots.pop(a, None), self.slots.pop(b, None)
            if first is not None:
                self.slots[b] = first
            if second is not None and direction == MoveDirectionality.SWAP:
                self.slots[a] = second

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        rows = {slot: content for slot, content in self.slots.items() if slot < len(logits)}
        if self.recording is not None and rows:
            self.recording.add(logits, rows)
        return logits


class VllmEngine:
    """Generation by vLLM in this process.

    Args:
        model: name or path.
        revision: of a name on the hub, or None.
        adapter: path of a LoRA adapter, or None. vLLM serves adapters on linear layers; see Raises.
        dtype: "float32", "bfloat16" or "float16" (vLLM's "auto" would turn float32 into bfloat16).
        sampling: how tokens are drawn.
        stop_ids: tokens that end a response.
        max_model_len: the longest prompt and response together.
        batch_size: sequences at once, at most.
        gpu_memory_utilization: share of a GPU's memory; on a CPU vLLM takes VLLM_CPU_KVCACHE_SPACE GiB.

    Raises:
        ValueError: the adapter changes the head or the embeddings, which vLLM leaves out or refuses.
    """

    def __init__(
        self,
        model: str,
        *,
        revision: str | None,
        adapter: str | None,
        dtype: str,
        sampling: Sampling,
        stop_ids: list[int],
        max_model_len: int,
        batch_size: int,
        gpu_memory_utilization: float = 0.9,
        seed: int = 0,
    ) -> None:
        self.sampling, self.stop_ids = sampling, sorted(stop_ids)
        lora = {}
        self.lora_request = None
        if adapter is not None:
            lora = {"enable_lora": True, "max_lora_rank": _served_rank(Path(adapter))}
            self.lora_request = LoRARequest("adapter", 1, str(Path(adapter).resolve()))
        if current_platform.is_cpu():
            # A seeded request whose prompt is read in parts ends vLLM 0.32 on a CPU: it turns the request's generator
            # back after each part, which CPU generators cannot do ("CPU Generator does not use offset").
            machine = {
                "enforce_eager": True,
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(max_model_len, 2048),
            }
        else:
            machine = {"gpu_memory_utilization": gpu_memory_utilization}
        self.llm = LLM(
            model=model,
            revision=revision,
            dtype=dtype,
            seed=seed,
            max_model_len=max_model_len,
            max_num_seqs=batch_size,
            async_scheduling=False,
            generation_config="vllm",  # the model's own sampling defaults would be mixed into ours
            logits_processors=[EntropyRecorder],
            disable_log_stats=True,
            **lora,
            **machine,
        )

    def generate(self, requests: list[Request], on_step: Callable[[int], None] | None = None) -> list[Response]:
        """`on_step` is not called: vLLM runs its own loop."""
        if not requests:
            return []
        recording = _Recording(self.sampling.entropy_temperature)
        EntropyRecorder.recording = recording
        try:
            outputs = self.llm.generate(
                [{"prompt_token_ids": list(request.prompt_ids)} for request in requests],
                [self._params(number, request) for number, request in enumerate(requests)],
                lora_request=self.lora_request,
                use_tqdm=False,
            )
        finally:
            EntropyRecorder.recording = None
        recording.finish()
        responses = []
        for number, output in enumerate(outputs):
            completion = output.outputs[0]
            token_ids = list(completion.token_ids)
            if completion.finish_reason not in ("stop", "length"):
                raise RuntimeError(
                    f"vLLM ended a request with {completion.finish_reason!r}, expected 'stop' or 'length'"
                )
            responses.append(Response(token_ids, recording.entropies(number, len(token_ids)), completion.finish_reason))
        return responses

    def _params(self, number: int, request: Request) -> SamplingParams:
        sampling = self.sampling
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            max_tokens=sampling.max_new_tokens,
            seed=request.seed,
            stop_token_ids=self.stop_ids,
            detokenize=False,
            extra_args={_KEY: number},
        )


def _served_rank(adapter: Path) -> int:
    """The smallest rank that vLLM can be built for and that holds the adapter."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    targets = config.get("target_modules") or []
    targets = [targets] if isinstance(targets, str) else targets
    outside = [
        name for name in (*targets, *(config.get("modules_to_save") or [])) if "lm_head" in name or "embed" in name
    ]
    if outside:
        raise ValueError(
            f"adapter {adapter} changes {', '.join(sorted(set(outside)))}, which vLLM does not serve as LoRA: "
            "merge it first (python -m trainer.merge_lora) or use --engine transformers"
        )
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    ranks = (1, 8, 16, 32, 64, 128, 256, 320, 512)
    if rank > ranks[-1]:
        raise ValueError(f"adapter {adapter} has rank {rank}; vLLM serves up to {ranks[-1]}: merge it first")
    return next(served for served in ranks if served >= rank)
