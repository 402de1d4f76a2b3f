"""Generation with vLLM (0.32), with the entropy of every distribution drawn from.

In: requests. Out: responses (requests.py), as from engine_transformers.py: the same definition of entropy, but
vLLM's own sampler and generators. So texts differ between the engines, and entropies of equal texts agree.

Entropies come from inside the sampler: the logits processor of trainer/sampling/teca_processor.py sees the float32
logits of every step before penalties, temperature and top-p, and makes the early exits. The alternative, scoring the
finished text with a second model, costs a further forward and the memory of the weights, and its numerics are not those
that were sampled from (a forward pass over a whole text rounds differently from decoding it).

Imported only when this engine is asked for, after loading.py has prepared the environment.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform

from trainer.evaluation.requests import Request, Response, Sampling
from trainer.sampling.early_exit import EarlyExit
from trainer.sampling.teca_processor import take_entropies
from trainer.sampling.teca_requests import decoded, request_arguments
from trainer.sampling.vllm_processors import engine_options


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
        early_exit: when to end a response's thinking, or None.

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
        early_exit: EarlyExit | None = None,
    ) -> None:
        self.sampling, self.stop_ids, self.early_exit = sampling, sorted(stop_ids), early_exit
        self._keys = itertools.count()
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
            generation_config="vllm",  # the model's own sampling defaults would be mixed into ours
            disable_log_stats=True,
            **engine_options(),
            **lora,
            **machine,
        )

    tells_steps = False  # vLLM runs its own loop

    def stream(
        self, requests: list[Request], *, slots: int, on_step: Callable[[int], None] | None = None
    ) -> Iterator[tuple[int, Response]]:
        """By `slots` at a time, each time all of them: vLLM's call returns when the last has ended."""
        for start in range(0, len(requests), slots):
            yield from enumerate(self.generate(requests[start : start + slots], on_step), start=start)

    def generate(self, requests: list[Request], on_step: Callable[[int], None] | None = None) -> list[Response]:
        """`on_step` is not called: vLLM runs its own loop."""
        if not requests:
            return []
        keys = [next(self._keys) for _ in requests]
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(request.prompt_ids)} for request in requests],
            [self._params(key, request) for key, request in zip(keys, requests, strict=True)],
            lora_request=self.lora_request,
            use_tqdm=False,
        )
        responses = []
        for key, records, output in zip(keys, take_entropies(self.llm, keys), outputs, strict=True):
            completion = output.outputs[0]
            if completion.finish_reason not in ("stop", "length"):
                raise RuntimeError(
                    f"vLLM ended a request with {completion.finish_reason!r}, expected 'stop' or 'length'"
                )
            known = decoded(records, completion.token_ids, key)
            responses.append(
                Response(list(completion.token_ids), known.entropies, completion.finish_reason, known.fired)
            )
        return responses

    def _params(self, key: int, request: Request) -> SamplingParams:
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
            extra_args=request_arguments(key=key, rule=self.early_exit),
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
