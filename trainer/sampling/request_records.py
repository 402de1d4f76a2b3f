"""Which of an engine's requests has which row of RunningTeca, and the entropies of those that have none any more.

In: requests that come, go, and come back. Out: their entropies, by the key that each carries.

An engine does not say whether a request that leaves its batch is finished, put off, or only not scheduled this step.
So whatever leaves is kept on the host (its copy is not waited for), and a request that comes back with tokens takes up
where the record with the same tokens ends. Kept are the records of a key until they are taken, at most `KEPT` in all,
and of requests without a key the last few, as long as they may still come back.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.sampling.early_exit import EarlyExit, closes_at
from trainer.sampling.running_teca import RunningTeca
from trainer.sampling.teca_requests import Key

log = logging.getLogger(__name__)

KEPT = 1 << 16  # records that nobody has taken


@dataclass
class Live:
    """A request in the batch."""

    row: int
    key: Key | None
    prompt: Sequence[int]
    tokens: list[int]  # the engine's own list, which grows; -1 stands for tokens it does not know yet
    rule: EarlyExit | None
    length: int = 0  # places whose entropy is recorded
    taken: bool = False


@dataclass
class _Record:
    """A request that left the batch."""

    prompt: Sequence[int]
    tokens: list[int]
    entropies: Tensor  # (length,) on the host
    fired: Tensor | None

    @property
    def known(self) -> list[int]:
        """The tokens up to the first that the engine does not know."""
        return self.tokens[: self.tokens.index(-1)] if -1 in self.tokens else self.tokens

    def continues_as(self, prompt: Sequence[int], tokens: list[int]) -> bool:
        known = self.known
        return (
            len(self.entropies) >= len(tokens) and known == tokens[: len(known)] and list(self.prompt) == list(prompt)
        )


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
        prompt: Sequence[int],
        tokens: list[int],
        *,
        temperature: float,
        rule: EarlyExit | None,
        closed: bool,
    ) -> Live:
        """A request enters the batch, for the first time or again."""
        request = Live(self._free.pop(), key, prompt, tokens, rule)
        self.teca.begin(request.row, temperature=temperature, rule=rule, closed=closed)
        if tokens:
            record = self._pop(key, prompt, tokens)
            if record is not None:
                if self.teca.device.type != "cpu":
                    torch.accelerator.synchronize(self.teca.device)  # its copy; requests seldom come back
                fired = None if record.fired is None or record.fired < 0 else int(record.fired)
                ends = None if rule is None or closed else closes_at(rule, tokens)
                self.teca.restore(request.row, record.entropies[: len(tokens)], fired=fired, closed=ends)
                request.length = len(tokens)
        self.live[request.row] = request
        return request

    def leave(self, request: Live) -> None:
        """A request leaves the batch: finished, put off, or not scheduled."""
        del self.live[request.row]
        self._free.append(request.row)
        # Before its first token there is nothing that will not be computed again.
        if not request.taken and request.tokens and request.length:
            self._keep(request.key, self._record(request))

    def take(self, keys: Sequence[Key]) -> list[list[tuple[list[int], bytes, int]]]:
        """The records of each key, which are then forgotten; see teca_requests.decoded."""
        wanted = set(keys)
        for request in list(self.live.values()):  # the engine removes what finished only in its next step
            if request.key in wanted and request.key is not None and request.tokens and not request.taken:
                self._keep(request.key, self._record(request))
                request.taken = True
        if self.teca.device.type != "cpu":
            torch.accelerator.synchronize(self.teca.device)
        return [[_portable(record) for record in self._pop_all(key)] for key in keys]

    def _record(self, request: Live) -> _Record:
        teca, row, length = self.teca, request.row, request.length
        fired = None if request.rule is None else teca.fired(row)
        return _Record(request.prompt, request.tokens, teca.entropies(row, length), fired)

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

    def _candidates(self, key: Key | None) -> list[_Record] | deque[_Record]:
        return self._without_key if key is None else self._by_key.get(key, [])

    def _pop(self, key: Key | None, prompt: Sequence[int], tokens: list[int]) -> _Record | None:
        candidates = self._candidates(key)
        found = _the_same(candidates, tokens) or next((r for r in candidates if r.continues_as(prompt, tokens)), None)
        if found is None:
            return None
        position = next(i for i, record in enumerate(candidates) if record is found)
        del candidates[position]
        if key is not None:
            self._kept -= 1
            if not candidates:
                del self._by_key[key]
        return found

    def _pop_all(self, key: Key) -> list[_Record]:
        records = self._by_key.pop(key, [])
        self._kept -= len(records)
        return records


def _the_same(records: Iterator[_Record], tokens: list[int]) -> _Record | None:
    """The record of the very list, which the engine hands over again where it can."""
    return next((record for record in records if record.tokens is tokens), None)


def _portable(record: _Record) -> tuple[list[int], bytes, int]:
    fired = -1 if record.fired is None else int(record.fired)
    return list(record.known), record.entropies.numpy().tobytes(), fired
