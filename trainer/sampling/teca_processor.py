"""vLLM's logits processor (interface of the V1 model runner) that records entropies and makes early exits.

In: what vllm/v1/sample/logits_processor/interface.py hands over: requests that enter, leave and move between the slots
of the batch, and each step's float32 logits. Out: the logits, with one choice left where a request leaves its thinking;
entropies, taken by key with `take_entropies`.

Which entropy: of softmax(z / T) over the whole vocabulary with z the logits before penalties, temperature, top-k, top-p
and min-p, which vLLM applies afterwards. A grammar, allowed_token_ids, bad_words, logit_bias and min_tokens act before:
what they rule out counts as probability zero.

    llm = LLM(model, logits_processors=[PROCESSOR], worker_extension_cls=WORKER)
    outputs = llm.generate(prompts, SamplingParams(..., extra_args=request_arguments(key=17)))
    records = take_entropies(llm, [17])

    vllm serve MODEL --logits-processors trainer.sampling.teca_processor:EarlyExitProcessor

Traps of this interface that the code below is made for. Slots are reused without a notice of removal. A prompt read in
parts calls `apply` once per part, each time for token 0. A request that was preempted, or not scheduled in a step,
comes back as a new one with its tokens. Under async scheduling the last token is a placeholder until the next `apply`,
and a finished request may be computed for one token more. What is asked here is the length of the live list of tokens,
which is right in every case.

Bytes moved a step: one read of the logits (4 b V), and a few numbers per row.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from trainer.sampling.early_exit import DEFAULT_TEXT, closed_by_prompt, end_tokens
from trainer.sampling.request_records import Live, RequestRecords
from trainer.sampling.teca_requests import Key, check_arguments, key_of, rule_of

PROCESSOR = "trainer.sampling.teca_processor:TecaProcessor"
WORKER = "trainer.sampling.teca_processor.TecaWorker"
NO_TOKEN = -2  # in a tail, before a response's first token
TEXT_OPTION = "early_exit_text"  # in vLLM's --additional-config


def refuse_speculation(vllm_config) -> None:
    if vllm_config.speculative_config is not None:
        raise ValueError(
            "entropies and early exit need one distribution per token; speculative decoding draws several at once: "
            "start vLLM without a speculative config"
        )


class TecaProcessor(LogitsProcessor):
    """Records the entropies of requests with a key, and ends the thinking of those with a rule."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        check_arguments(sampling_params.extra_args, max_tokens=sampling_params.max_tokens)

    def __init__(self, vllm_config, device: torch.device, is_pin_memory: bool) -> None:
        refuse_speculation(vllm_config)
        self.device, self.pin = device, is_pin_memory
        self.vocabulary = vllm_config.model_config.get_vocab_size()
        self.records = RequestRecords(vllm_config.scheduler_config.max_num_seqs, device)
        self.default_text: tuple[tuple[int, ...], tuple[int, ...]] | None = None  # forced, closing
        self.slots: dict[int, Live] = {}

    def is_argmax_invariant(self) -> bool:
        # True would place it behind temperature and penalties, and skip it where every request is greedy.
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for slot in batch_update.removed:
            self._vacate(slot)
        for slot, params, prompt, tokens in batch_update.added:
            self._vacate(slot)
            self._occupy(slot, params, prompt or (), tokens)
        for a, b, direction in batch_update.moved:
            first, second = self.slots.pop(a, None), self.slots.pop(b, None)
            if first is not None:
                self.slots[b] = first
            if second is not None:
                if direction == MoveDirectionality.SWAP:
                    self.slots[a] = second
                else:
                    self.records.leave(second)

    def _vacate(self, slot: int) -> None:
        request = self.slots.pop(slot, None)
        if request is not None:
            self.records.leave(request)

    def _occupy(self, slot: int, params: SamplingParams, prompt: Sequence[int], tokens: list[int]) -> None:
        arguments = params.extra_args
        key, rule = key_of(arguments), rule_of(arguments, self.default_text)
        if rule is not None and max(rule.forced_ids) >= self.vocabulary:
            rule = None  # no token of this model: vLLM has no way to refuse a request this late
        if key is None and rule is None:
            return
        request = self.records.admit(
            key, lambda: (prompt, tokens), temperature=params.temperature, rule=rule, resumed=bool(tokens)
        )
        if rule is not None and closed_by_prompt(rule, prompt):
            self.records.teca.close(request.row)
        self.slots[slot] = request

    def apply(self, logits: Tensor) -> Tensor:
        count = len(logits)
        slots = [self.slots.get(slot) for slot in range(count)]
        if not any(slots):
            return logits
        teca, width = self.records.teca, self.records.teca.tail_width
        rows, places, tails = [], [], []  # per row of the logits: row of the state, place, last tokens
        for request in slots:
            if request is None:
                rows.append(self.records.nobody)
                places.append(0)
                tails += [NO_TOKEN] * width
                continue
            tokens = request.text()[1]
            place = len(tokens)
            request.length = place + 1
            rows.append(request.row)
            places.append(place)
            if width:
                last = tokens[-width:]
                tails += [NO_TOKEN] * (width - len(last)) + last
        teca.make_room(1 + max(places))
        # One copy to the device; an array becomes a tensor ten times as fast as lists of lists do.
        numbers = torch.frombuffer(array("q", rows + places + tails), dtype=torch.long)
        if self.pin and self.device.type != "cpu":
            numbers = numbers.pin_memory()
        numbers = numbers.to(self.device, non_blocking=True)
        teca.step(logits, numbers[:count], numbers[count : 2 * count], numbers[2 * count :].view(count, width))
        return logits

    def take(self, keys: Sequence[Key]) -> list:
        return self.records.take(keys)


class EarlyExitProcessor(TecaProcessor):
    """For `vllm serve`: requests give a threshold, the text to write is the server's.

    Raises:
        ValueError: as the server starts, if the model has no such token (see early_exit.end_tokens).
    """

    def __init__(self, vllm_config, device: torch.device, is_pin_memory: bool) -> None:
        super().__init__(vllm_config, device, is_pin_memory)
        self.default_text = text_of_server(vllm_config)


def text_of_server(vllm_config) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(forced_ids, closing_ids) of `--additional-config '{"early_exit_text": "..."}'`, or of </think>."""
    from transformers import AutoTokenizer

    model = vllm_config.model_config
    tokenizer = AutoTokenizer.from_pretrained(
        model.tokenizer, revision=model.tokenizer_revision, trust_remote_code=model.trust_remote_code
    )
    additional = vllm_config.additional_config
    text = additional.get(TEXT_OPTION) if isinstance(additional, dict) else None
    try:
        return end_tokens(tokenizer, DEFAULT_TEXT if text is None else text)
    except ValueError as error:
        raise ValueError(f'{error} (--additional-config \'{{"{TEXT_OPTION}": "..."}}\')') from error


class TecaWorker:
    """vLLM's worker extension: what `collective_rpc` can call in the process that decodes."""

    def load_weights_on_cpu(self, weights_iterator: Iterable[tuple[str, Tensor]]) -> None:
        """See cpu_weights.load; for an engine in the process of the trainer."""
        from trainer.sampling import cpu_weights

        cpu_weights.load(self, weights_iterator)

    def take_entropies(self, keys: list[Key]) -> list:
        """See request_records.RequestRecords.take; nothing on ranks that draw no tokens."""
        runner = self.model_runner
        processors = getattr(getattr(runner, "sampler", None), "logits_processors", None)  # the second model runner's
        if processors is None:
            processors = runner.input_batch.logitsprocs.all
        for processor in processors:
            if hasattr(processor, "take"):
                return processor.take(keys)
        raise RuntimeError("vLLM was started without the processor that records entropies (logits_processors=[...])")

    def take_entropies_as_lists(self, keys: list[Key]) -> list:
        """The same with entropies as lists: for the server's remote call over HTTP, which speaks JSON."""
        return [
            [(tokens, array("f", data).tolist(), fired) for tokens, data, fired in records]
            for records in self.take_entropies(keys)
        ]


def take_entropies(llm, keys: Sequence[Key]) -> list[list]:
    """For each key the records of its responses (teca_requests.decoded reads them); each can be taken once."""
    by_worker = llm.collective_rpc("take_entropies", args=(list(keys),))
    return max(by_worker, key=lambda records: sum(map(len, records)))  # ranks that draw hold the same
