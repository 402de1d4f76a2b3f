"""The same as teca_processor.py for vLLM's second model runner, the default on GPUs since 0.31.

In: what vllm/v1/worker/gpu/sample/logits_processor/interface.py hands over: requests that get a slot, and each step's
float32 logits with their layout. Out: as there.

Which entropy: of softmax(z / T) with z the logits after logit_bias, penalties, bad_words and grammar, which this runner
applies before: with a penalty it is not the policy's own (CERTrainer's comparison says by how much). Temperature,
top-k, top-p and min-p come after it; vLLM's thinking budget also comes after it and wins.

Traps: a slot is taken over without a notice that its last request is gone; a request that was preempted comes back in
any slot, with its tokens only on the device; rows of a prompt that is not yet read to its end are shown as well. Tokens
are read from the runner's own buffer, without waiting, when a request makes room and when its thinking may be over.

    vllm serve MODEL --logits-processors trainer.sampling.teca_processor_v2:EarlyExitProcessorV2

It has run on a CPU, with the runner's Triton kernels interpreted (tests/with_vllm/test_teca_processor_v2.py), not on a
GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcessor, LogitsProcRequestState

from trainer.sampling.early_exit import CLOSED_PROMPT_TAIL
from trainer.sampling.request_records import Live, RequestRecords
from trainer.sampling.teca_processor import NO_TOKEN, refuse_speculation, text_of_server
from trainer.sampling.teca_requests import Key, check_arguments, key_of, rule_of


class TecaProcessorV2(LogitsProcessor):
    """Records the entropies of requests with a key, and ends the thinking of those with a rule."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        check_arguments(sampling_params.extra_args, max_tokens=sampling_params.max_tokens)

    def __init__(self, vllm_config, req_states: LogitsProcRequestState) -> None:
        refuse_speculation(vllm_config)
        self.engine = req_states
        self.records = RequestRecords(req_states.max_num_reqs, req_states.device)
        self.default_text: tuple[tuple[int, ...], tuple[int, ...]] | None = None  # forced, closing
        self.slots: dict[int, Live] = {}
        self.prompt_lengths: dict[int, int] = {}  # by slot
        self.staged: list[tuple[int, SamplingParams]] = []  # slots whose tokens are not on the device yet

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        last = self.slots.get(req_idx)
        if last is not None:
            self.records.leave(last)  # while the device still holds its tokens
            del self.slots[req_idx]
        arguments = sampling_params.extra_args
        if key_of(arguments) is None and rule_of(arguments, self.default_text) is None:
            return False
        self.staged.append((req_idx, sampling_params))
        return True

    def apply_staged_writes(self) -> None:
        staged, self.staged = self.staged, []
        for slot, params in staged:
            self._occupy(slot, params)

    def _occupy(self, slot: int, params: SamplingParams) -> None:
        key, rule = key_of(params.extra_args), rule_of(params.extra_args, self.default_text)
        if rule is not None and max(rule.forced_ids) >= self.engine.vocab_size:
            rule = None  # no token of this model: vLLM has no way to refuse a request this late
        prompt_length = int(self.engine.prompt_len.np[slot])
        resumed = int(self.engine.prefill_len.np[slot]) > prompt_length
        if resumed:  # what it left behind elsewhere is recorded where it would be looked for
            for other, request in list(self.slots.items()):
                if request.key == key and other != slot:
                    self.records.snapshot(request)
        self.prompt_lengths[slot] = prompt_length
        held = {"tokens": int(self.engine.prefill_len.np[slot]) - prompt_length}

        def text() -> tuple[Tensor, Tensor]:
            request = self.slots.get(slot)
            count = held["tokens"] if request is None else max(request.length, held["tokens"])
            row = self.engine.all_token_ids.gpu[slot, : prompt_length + count].to("cpu", torch.long, non_blocking=True)
            return row[:prompt_length], row[prompt_length:]

        request = self.records.admit(key, text, temperature=params.temperature, rule=rule, resumed=resumed)
        self.slots[slot] = request
        if rule is not None:
            width = len(rule.closing_ids)
            first = max(0, prompt_length - width - CLOSED_PROMPT_TAIL)
            tail = self.engine.all_token_ids.gpu[slot, first:prompt_length].long()
            if len(tail) >= width:
                closing = torch.tensor(rule.closing_ids, device=tail.device)
                self.records.teca.close(request.row, (tail.unfold(0, width, 1) == closing).all(1).any())

    def apply(self, logits: Tensor, ctx: LogitsContext) -> Tensor:
        slots = ctx.idx_mapping_np.tolist()
        if len(slots) != len(logits):
            raise RuntimeError(f"{len(logits)} distributions for {len(slots)} requests: is speculative decoding on?")
        teca, width = self.records.teca, self.records.teca.tail_width
        table, longest = [], 0  # row of the state, place, length of the sequence
        for slot, length in zip(slots, ctx.seq_lens_upper_bound_np.tolist(), strict=True):
            request = self.slots.get(slot)
            if request is None or length < self.engine.prefill_len.np[slot]:
                table.append([self.records.nobody, 0, 0])
                continue
            place = length - self.prompt_lengths[slot]
            request.length = place + 1
            longest = max(longest, request.length)
            table.append([request.row, place, length])
        if not longest:
            return logits
        teca.make_room(longest)
        pin = self.engine.device.type != "cpu"
        numbers = torch.tensor(table, pin_memory=pin).to(self.engine.device, non_blocking=True)  # (b, 3)
        tail = None
        if width:
            back = torch.arange(-width, 0, device=self.engine.device)
            index = numbers[:, 2:] + back  # (b, width)
            tail = self.engine.all_token_ids.gpu[ctx.idx_mapping.long()[:, None], index.clamp(min=0)].long()
            tail = torch.where(numbers[:, 1:2] + back >= 0, tail, NO_TOKEN)
        teca.step(logits, numbers[:, 0], numbers[:, 1], tail)
        return logits

    def take(self, keys: Sequence[Key]) -> list:
        return self.records.take(keys)


class EarlyExitProcessorV2(TecaProcessorV2):
    """For `vllm serve`: as teca_processor.EarlyExitProcessor."""

    def __init__(self, vllm_config, req_states: LogitsProcRequestState) -> None:
        super().__init__(vllm_config, req_states)
        self.default_text = text_of_server(vllm_config)
