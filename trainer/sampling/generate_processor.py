"""Entropies and early exit inside `model.generate` of transformers.

In: what generate shows a LogitsProcessor: all tokens so far and the next scores. Out: the scores, with one choice left
where a response leaves its thinking; entropies per response (BatchTeca.decoded).

Which entropy: generate calls processors of a caller after penalties and before temperature, top-k, top-p and min-p; so
it is that of softmax(z / T) over the whole vocabulary, z after the penalties, if there are any.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from trainer.sampling.batch_teca import BatchTeca


class TecaLogitsProcessor(LogitsProcessor):
    """Hands each step's scores to a BatchTeca."""

    supports_continuous_batching = False  # its rows are those of one call

    def __init__(self, teca: BatchTeca) -> None:
        self.teca, self.step = teca, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = torch.arange(len(scores), device=scores.device)
        if self.step:
            self.teca.wrote(rows, input_ids[:, -1])
        scores = scores.clone() if self.teca.rule is not None else scores  # the caller's may be logits it keeps
        self.teca.step(scores, rows, self.step)
        self.step += 1
        return scores


@contextmanager
def recorded_generate(model: PreTrainedModel, teca: BatchTeca) -> Iterator[None]:
    """While it lasts, `model.generate` records into `teca`; for callers that leave no room for a processor."""
    processors = LogitsProcessorList([TecaLogitsProcessor(teca)])
    own = vars(model).get("generate")  # FSDP2 puts one into the instance, which gathers the weights
    model.generate = functools.partial(model.generate, logits_processor=processors)
    try:
        yield
    finally:
        if own is None:
            del model.generate  # the class's shows again
        else:
            model.generate = own
