"""Entropies and early exit of a batch that is decoded together, by a loop that knows every token it drew.

In: prompts, and each step's logits and tokens. Out: per response its entropies and where it left its thinking.

RunningTeca (running_teca.py) does the work; this keeps the tokens that its rule looks back at.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.sampling.early_exit import EarlyExit, closed_by_prompt
from trainer.sampling.running_teca import RunningTeca
from trainer.sampling.teca_requests import Decoded

_NO_TOKEN = -2


class BatchTeca:
    """State of one batch.

    Args:
        prompts: token ids, one response each.
        temperature: that tokens are drawn at; 0: the likeliest, entropies at 1.
        limit: most tokens of a response.
        device: of the logits.
        rule: when to leave the thinking, or None.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        temperature: float,
        limit: int,
        device: torch.device,
        rule: EarlyExit | None = None,
    ) -> None:
        self.rule, self._temperature = rule, temperature
        self._teca = RunningTeca(len(prompts), device, capacity=limit)
        for row, prompt in enumerate(prompts):
            self._start(row, prompt)
        width = self._teca.tail_width
        self._tail = torch.full((len(prompts), width), _NO_TOKEN, dtype=torch.long, device=device)

    def _start(self, row: int, prompt: Sequence[int]) -> None:
        self._teca.begin(row, temperature=self._temperature, rule=self.rule)
        if self.rule is not None and closed_by_prompt(self.rule, prompt):
            self._teca.close(row)

    def begin(self, row: int, prompt: Sequence[int]) -> None:
        """The row's response is over (`decoded_row` was asked for it): the next one begins there, after `prompt`."""
        self._start(row, prompt)
        self._tail[row] = _NO_TOKEN

    def step(self, logits: Tensor, rows: Tensor, step: Tensor | int) -> None:
        """Before tokens are drawn: logits (b, V) of the responses `rows` (b,); changed where a token is forced.

        step: which token of its response each row draws, (b,) or the same for all.
        """
        positions = step if isinstance(step, Tensor) else torch.full_like(rows, step)
        self._teca.step(logits, rows, positions, self._tail[rows] if self.rule is not None else None)

    def wrote(self, rows: Tensor, tokens: Tensor) -> None:
        """What was drawn: tokens (b,) of the responses `rows` (b,)."""
        if self._tail.shape[1]:
            self._tail[rows] = torch.cat([self._tail[rows, 1:], tokens[:, None]], dim=1)

    def decoded_row(self, row: int, length: int) -> Decoded:
        """The response of `row`, of `length` tokens."""
        place = self._teca.fired(row)
        place = None if place is None else int(place)
        fired = place if place is not None and 0 <= place < length else None
        return Decoded(self._teca.entropies(row, length).tolist(), fired)

    def decoded(self, lengths: Sequence[int]) -> list[Decoded]:
        """One entry per response; lengths: its tokens."""
        entropies = self._teca.entropy.tolist()
        fired = self._teca.all_fired()
        return [
            Decoded(row[:length], place if place is not None and place < length else None)
            for row, place, length in zip(entropies, fired, lengths, strict=True)
        ]
