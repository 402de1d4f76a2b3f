"""Which request of an engine has which row of RunningTeca, and the entropies of requests that have left the batch.

In: requests that come, go, and come back. Out: their entropies, by the key that each carries.

An engine does not say whether a request that leaves its batch is finished, preempted, or only not scheduled this step.
So its record is kept on the host (without waiting for the copy), and a request that comes back with tokens takes up
where the record with the same tokens ends. Kept are the records of a key until they are taken, at most `KEPT` in all,
and of requests without a key the last few, as long as they may still come back.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.sampling.early_exit import EarlyExit, closes_at
from trainer.sampling.running_teca import RunningTeca
from trainer.sampling.teca_requests import Key

log = logging.getLogger(__name__)

KEPT = 1 << 16  # records that nobody has taken

Tokens = Sequence[int] | Tensor


@dataclass
class Live:
    """A request in the batch."""

    row: int
    key: Key | None
    # (prompt, tokens) as the engine has them now: lists that grow, where -1 stands for tokens that it does not know
    # yet, or copies to the host that are on their way.
    text: Callable[[], tuple[Tokens, Tokens]]
    rule: EarlyExit | None
    length: int = 0  # places whose entropy is recorded
    taken: bool = False


@dataclass
class _Record:
    """A request that left the batch, as it was then."""

    prompt: Tokens
    tokens: Tokens
    entropies: Tensor  # (length,) on the host
    fired: Tensor | None

    @property
    def known(self) -> list[int]:
        """The tokens up to the first that the engine does not know."""
        tokens = _as_list(self.tokens)
        return tokens[: tokens.index(-1)] if -1 in tokens else tokens

    def continues_as(self, prompt: Tokens, tokens: list[int]) -> bool:
        known = self.known
        if len(self.entropies) < len(tokens) or known[: len(tokens)] != tokens[: len(known)]:
            return False
        return _as_list(self.prompt) == _as_list(prompt)


class RequestRecords:
    """Rows and records of an engine.

    Args:
        max_requests: in the batch at once.
        device: of the logits.
    """

    def __init__(self, max_requests: int, device: torch.device) -> None:
        # One row more: rows of the batch that belong to no request of ours write there.
        self.teca = RunningTeca(max_requests + 1, device)
        self.nobody = max_requests
        self._free = list(range(max_requests))
        self._by_key: OrderedDict[Key, list[_Record]] = OrderedDict()
        self._kept = 0
        self._without_key: deque[_Record] = deque(maxlen=4 * max_requests)
        self.live: dict[int, Live] = {}  # row -> request

    def __len__(self) -> int:
        """How many records are kept."""
        return self._kept + len(self._without_key)

    def admit(
        self,
        key: Key | None,
        text: Callable[[], tuple[Tokens, Tokens]],
        *,
        temperature: float,
        rule: EarlyExit | None,
        resumed: bool,
    ) -> Live:
        """A request enters the batch, for the first time or, `resumed`, again with the tokens it has."""
        request = Live(self._free.pop(), key, text, rule)
        self.teca.begin(request.row, temperature=temperature, rule=rule)
        if resumed:
            self._resume(request)
        self.live[request.row] = request
        return request

    def _resume(self, request: Live) -> None:
        """Give a request what the record with its tokens holds; waits for the device, which is rarely needed."""
        prompt, tokens = request.text()
        self._synchronise()
        record = self._pop(request.key, prompt, tokens)
        if record is None:
            return
        tokens = _as_list(tokens)
        fired = None if record.fired is None or record.fired < 0 else int(record.fired)
        closed = None if request.rule is None else closes_at(request.rule, tokens)
        self.teca.restore(request.row, record.entropies[: len(tokens)], fired=fired, closed=closed)
        request.length = len(tokens)

    def _synchronise(self) -> None:
        if self.teca.device.type != "cpu":
            torch.accelerator.synchronize(self.teca.device)

    def leave(self, request: Live) -> None:
        """A request leaves the batch: finished, preempted, or not scheduled."""
        if not request.taken and request.length:
            record = self._record(request)
            if len(record.tokens):  # before its first token there is nothing that will not be computed again
                self._keep(request.key, record)
        del self.live[request.row]
        self._free.append(request.row)

    def snapshot(self, request: Live) -> None:
        """Keep what a request has by now, for an engine that may have preempted it without notice."""
        if request.length and not request.taken:
            self._keep(request.key, self._record(request))

    def take(self, keys: Sequence[Key]) -> list[list[tuple[list[int], bytes, int]]]:
        """The records of each key, which are then forgotten; see teca_requests.decoded."""
        wanted = set(keys)
        for request in self.live.values():  # the engine removes what finished only in its next step
            if request.key is not None and request.key in wanted and request.length and not request.taken:
                record = self._record(request)
                if len(record.tokens):
                    self._keep(request.key, record)
                    request.taken = True
        self._synchronise()
        return [[_portable(record) for record in self._pop_all(key)] for key in keys]

    def _record(self, request: Live) -> _Record:
        prompt, tokens = request.text()
        fired = None if request.rule is None else self.teca.fired(request.row)
        return _Record(prompt, tokens, self.teca.entropies(request.row, request.length), fired)

    def _keep(self, key: Key | None, record: _Record) -> None:
        if key is None:
            self._without_key.append(record)
            return
        self._by_key.setdefault(key, []).append(record)
        self._kept += 1
        if self._kept > KEPT:
            oldest = next(iter(self._by_key))
            log.warning("entropies of request %r are dropped: %d records were never taken", oldest, KEPT)
            self._pop_all(oldest)

    def _pop(self, key: Key | None, prompt: Tokens, tokens: Tokens) -> _Record | None:
        candidates = self._without_key if key is None else self._by_key.get(key, [])
        # The engine hands over the very list again where it can; one to compare otherwise.
        found = next((place for place, record in enumerate(candidates) if record.tokens is tokens), None)
        if found is None:
            wanted = _as_list(tokens)
            places = (place for place, record in enumerate(candidates) if record.continues_as(prompt, wanted))
            found = next(places, None)
        if found is None:
            return None
        record = candidates[found]
        del candidates[found]
        if key is not None:
            self._kept -= 1
            if not candidates:
                del self._by_key[key]
        return record

    def _pop_all(self, key: Key) -> list[_Record]:
        records = self._by_key.pop(key, [])
        self._kept -= len(records)
        return records


def _as_list(tokens: Tokens) -> list[int]:
    return tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)


def _portable(record: _Record) -> tuple[list[int], bytes, int]:
    fired = -1 if record.fired is None else int(record.fired)
    return list(record.known), record.entropies.numpy().tobytes(), fired
