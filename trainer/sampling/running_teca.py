"""Entropies of a batch while it is decoded, and the early exit, on the device of the logits.

In, each step: logits (b, V), and for every row of them which response it continues and at which token. Out: the entropy
of every distribution drawn from, kept per response; logits in which a row that leaves its thinking has one choice left.

    H = entropy of softmax(logits / T)       cer_ext.logprobs_and_entropy: one read of the logits, 4 bytes kept a token

Nothing here waits for the device: the rule (early_exit.py) is decided in tensors, and a forced token is one element of
the logits raised to 1e9, not a rewrite of the row. So a step reads the logits once more than without, and that is all.

Engines may call twice for one token: a prompt that is read in parts is shown at token 0 once per part, and a preempted
request is computed again. So everything is stored by place and computed from the places before it: the last
call for a token is the one that counts, and what a discarded call decided is undone by the next.

Used by trainer/sampling/decode.py's callers, generate_processor.py (transformers) and the vLLM processors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cer_ext import logprobs_and_entropy
from trainer.sampling.early_exit import EarlyExit

FORCED_LOGIT = 1e9  # softmax of it is exactly 1 whatever the other logits and the temperature are, and stays finite
_NO_TOKEN = -3  # equal to no token: closing tokens of a response without a rule
_ANY_TOKEN = -1
_ALL = 1 << 40  # a window longer than every response


class RunningTeca:
    """State of up to `rows` responses.

    Args:
        rows: responses at once.
        device: of the logits.
        capacity: tokens per response to begin with; it grows as responses do.
    """

    def __init__(self, rows: int, device: torch.device | str, *, capacity: int = 256) -> None:
        self.device = torch.device(device)
        self.entropy = torch.zeros((rows, capacity), device=self.device)  # (R, C), nats
        self.temperature = torch.ones(rows, device=self.device)  # (R,)
        # One number is cheaper than one per row, and nearly every batch has one: true while no response had another.
        self._one_temperature: float | None = None
        self._temperatures_differ = False
        self._targets = torch.zeros(rows, dtype=torch.long, device=self.device)  # any token: entropies need none
        self._rules: _Rules | None = None  # only once a response has a rule

    @torch.inference_mode()
    def begin(self, row: int, *, temperature: float, rule: EarlyExit | None = None) -> None:
        """A response begins in `row`. temperature 0 (the likeliest token): entropies at 1."""
        temperature = temperature or 1.0
        self.temperature[row] = temperature
        self._temperatures_differ |= self._one_temperature not in (None, temperature)
        self._one_temperature = temperature
        if rule is not None and self._rules is None:
            self._rules = _Rules(*self.entropy.shape, self.device)
        if self._rules is not None:
            self._rules.begin(row, rule)

    @torch.inference_mode()
    def close(self, row: int, where: Tensor | None = None) -> None:
        """The prompt has ended the thinking of `row` already: no exit for it. where: () bool, or always."""
        closed = self._rules.closed
        closed[row] = 0 if where is None else torch.where(where, 0, closed[row])

    @torch.inference_mode()
    def restore(self, row: int, entropies: Tensor, *, fired: int | None, closed: int | None) -> None:
        """Give `row`, after `begin`, what a response had in another.

        Args:
            entropies: (t,) of its tokens so far.
            fired: the place of its first forced token.
            closed: the place after its closing tokens (early_exit.closes_at).
        """
        length = len(entropies)
        self.make_room(length)
        self.entropy[row, :length] = entropies.to(self.device)
        if self._rules is not None:
            self._rules.running[row, 1 : length + 1] = entropies.to(self.device).double().cumsum(0)
            if fired is not None:
                self._rules.fired[row] = fired
            if closed is not None:
                self._rules.closed[row] = closed

    @property
    def tail_width(self) -> int:
        """How many of a response's last tokens `step` must see; 0: none."""
        return 0 if self._rules is None else self._rules.closing.shape[1]

    @torch.inference_mode()
    def make_room(self, length: int) -> None:
        """Grow to responses of `length` tokens."""
        capacity = self.entropy.shape[1]
        if length <= capacity:
            return
        capacity = max(length, 2 * capacity)
        self.entropy = _wider(self.entropy, capacity)
        if self._rules is not None:
            self._rules.running = _wider(self._rules.running, capacity + 1)

    @torch.inference_mode()
    def step(self, logits: Tensor, rows: Tensor, positions: Tensor, tail: Tensor | None = None) -> Tensor:
        """Record the entropies of one step and force what the rule forces, in place.

        Args:
            logits: (b, V), before temperature and truncation; modified where a token is forced.
            rows: (b,) int64, the response that each row continues.
            positions: (b,) int64, which of its tokens is drawn; the caller has made room (`make_room`).
            tail: (b, `tail_width`) int64, the response's last tokens, right-aligned, -2 before its first.

        Returns:
            (b,) entropies, nats.
        """
        temperature = self.temperature[rows] if self._temperatures_differ else self._one_temperature or 1.0
        target = self._targets[: len(rows)]
        _, entropy = logprobs_and_entropy(logits, target, temperature=temperature, validate=False)
        entropy = entropy.float()
        self.entropy[rows, positions] = entropy
        if self._rules is not None:
            self._rules.step(logits, rows, positions, entropy, tail)
        return entropy

    @torch.inference_mode()
    def fired(self, row: int) -> Tensor | None:
        """() int64 on the host, not waited for: where the response left its thinking, or -1. None: no rule anywhere."""
        return None if self._rules is None else _to_host(self._rules.fired[row])

    def all_fired(self) -> list[int | None]:
        """`fired` of every row, waited for."""
        if self._rules is None:
            return [None] * len(self.entropy)
        return [None if place < 0 else place for place in self._rules.fired.tolist()]

    @torch.inference_mode()
    def entropies(self, row: int, length: int) -> Tensor:
        """(length,) float32 on the host, not waited for: on a GPU synchronise before reading."""
        return _to_host(self.entropy[row, :length])


class _Rules:
    """The rules of the responses, in tensors over rows (R,)."""

    def __init__(self, rows: int, capacity: int, device: torch.device) -> None:
        # [r, t] = H_0 + ... + H_{t-1}; the first column stays 0
        self.running = torch.zeros((rows, capacity + 1), dtype=torch.float64, device=device)
        self.threshold = torch.full((rows,), -1.0, dtype=torch.float64, device=device)  # -1: no rule
        self.window = torch.full((rows,), _ALL, dtype=torch.long, device=device)
        self.first = torch.zeros(rows, dtype=torch.long, device=device)  # EarlyExit.first_token
        self.forced = torch.zeros((rows, 1), dtype=torch.long, device=device)
        self.forced_length = torch.zeros(rows, dtype=torch.long, device=device)
        self.closing = torch.full((rows, 1), _NO_TOKEN, dtype=torch.long, device=device)  # right-aligned
        self.fired = torch.full((rows,), -1, dtype=torch.long, device=device)  # where the first forced token stands
        self.closed = torch.full((rows,), -1, dtype=torch.long, device=device)  # the first token after the closing ones

    def begin(self, row: int, rule: EarlyExit | None) -> None:
        self.fired[row] = -1
        self.closed[row] = -1
        self.closing[row] = _NO_TOKEN
        if rule is None:
            self.threshold[row] = -1.0
            return
        self.threshold[row], self.first[row] = rule.threshold, rule.first_token
        self.window[row] = rule.window or _ALL
        self.forced_length[row] = len(rule.forced_ids)
        self.forced = _wider(self.forced, len(rule.forced_ids))
        self.forced[row, : len(rule.forced_ids)] = torch.tensor(rule.forced_ids, device=self.forced.device)
        width = len(rule.closing_ids)
        if width > self.closing.shape[1]:
            more = torch.full(
                (len(self.closing), width - self.closing.shape[1]), _ANY_TOKEN, device=self.closing.device
            )
            self.closing = torch.cat([more, self.closing], dim=1)
        self.closing[row] = _ANY_TOKEN
        self.closing[row, -width:] = torch.tensor(rule.closing_ids, device=self.closing.device)

    def step(self, logits: Tensor, rows: Tensor, at: Tensor, entropy: Tensor, tail: Tensor) -> None:
        after = at + 1
        total = self.running[rows, at] + entropy
        self.running[rows, after] = total
        count = torch.minimum(self.window[rows], after)
        mean = (total - self.running[rows, after - count]) / count

        closing = self.closing[rows]
        ends = ((closing == _ANY_TOKEN) | (closing == tail)).all(1)
        closed = self.closed[rows]
        closed = torch.where(closed > at, -1, closed)  # decided in a call that was discarded
        closed = torch.where((closed < 0) & ends, at, closed)
        self.closed[rows] = closed

        fired = self.fired[rows]
        fired = torch.where(fired >= at, -1, fired)
        # A grammar or a list of forbidden words takes precedence: a token that it rules out is not forced.
        allowed = logits.gather(1, self.forced[rows, :1])[:, 0] > -torch.inf
        fires = (fired < 0) & (closed < 0) & (mean < self.threshold[rows]) & (at >= self.first[rows]) & allowed
        fired = torch.where(fires, at, fired)
        self.fired[rows] = fired

        place = at - fired
        force = (fired >= 0) & (place < self.forced_length[rows])
        token = self.forced[rows, place.clamp(0, self.forced.shape[1] - 1)][:, None]  # (b, 1)
        logit = logits.gather(1, token)
        logits.scatter_(1, token, torch.where(force[:, None] & (logit > -torch.inf), FORCED_LOGIT, logit))


def _wider(matrix: Tensor, columns: int) -> Tensor:
    """The matrix with at least so many columns, zeros in the new ones."""
    if columns <= matrix.shape[1]:
        return matrix
    return torch.cat([matrix, matrix.new_zeros((len(matrix), columns - matrix.shape[1]))], dim=1)


def _to_host(tensor: Tensor) -> Tensor:
    """A copy on the host; from a GPU into pinned memory, on the stream."""
    return tensor.clone() if tensor.device.type == "cpu" else tensor.to("cpu", non_blocking=True)
