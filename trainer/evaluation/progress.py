"""The progress bar of a run: responses done, running accuracy and mean length, tokens a second, time left.

    rest = (responses to come * mean length so far - tokens of those under way) / tokens a second of this run

A bar that counts responses alone must wait for the first ones to end, which are the short ones: its estimate was off by
an order of magnitude. So tokens are counted as they are drawn: in a step, one for each response that is not finished,
and the last token of each that has finished.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from trainer.console.progress_bar import ProgressBar
from trainer.records.record_files import Record, RecordWriter

_FORM = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


@dataclass
class Running:
    """Over all records, those of earlier runs included."""

    records: int = 0
    correct: int = 0
    tokens: int = 0

    def add(self, is_correct: bool, length: int) -> None:
        self.records += 1
        self.correct += is_correct
        self.tokens += length

    def shown(self) -> dict[str, str]:
        if not self.records:
            return {}
        return {"acc": f"{self.correct / self.records:.3f}", "len": f"{self.tokens / self.records:.0f}"}


@dataclass
class Pace:
    """Tokens of this run, and what they say about the rest of it."""

    drawn: int = 0  # of ended responses and those under way
    ended: int = 0  # of ended ones alone
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.drawn / self.seconds if self.seconds > 0 else 0.0

    def rest_seconds(self, responses_to_come: int, mean_length: float) -> float | None:
        """None while nothing is known. responses_to_come: those under way among them."""
        if not self.tokens_per_second or not mean_length:
            return None
        left = responses_to_come * mean_length - (self.drawn - self.ended)
        return max(left, 0.0) / self.tokens_per_second


class Progress:
    """A bar over `total` responses, of which `writers` hold some already."""

    def __init__(self, description: str, total: int, writers: Iterable[RecordWriter]) -> None:
        self.running, self.pace = Running(), Pace()
        for writer in writers:
            for _, _, is_correct, length in writer.written.values():
                self.running.add(is_correct, length)
        self.total = total
        self._started = time.monotonic()
        self.bar = ProgressBar(
            total=total,
            initial=self.running.records,
            desc=description,
            unit="response",
            dynamic_ncols=True,
            bar_format=_FORM,
        )
        self._show()

    def step(self, unfinished: int) -> None:
        """A step was made; so many responses go on."""
        self.pace.drawn += unfinished
        self._show({"generating": unfinished})

    def add(self, records: list[Record], *, last_tokens_only: bool = False) -> None:
        """Records that were written. last_tokens_only: the other tokens were counted by `step`."""
        for record in records:
            self.running.add(record["is_correct"], record["response_length"])
            self.pace.ended += record["response_length"]
            self.pace.drawn += 1 if last_tokens_only else record["response_length"]
        self.bar.update(len(records))
        self._show()

    def _show(self, more: dict | None = None) -> None:
        self.pace.seconds = time.monotonic() - self._started
        shown = {**self.running.shown(), **(more or {})}
        if self.pace.drawn:
            shown["tokens"] = f"{self.pace.drawn}"
            shown["tok/s"] = f"{self.pace.tokens_per_second:.0f}"
        mean_length = self.running.tokens / self.running.records if self.running.records else 0.0
        rest = self.pace.rest_seconds(self.total - self.running.records, mean_length)
        if rest is not None:
            shown["rest"] = ProgressBar.format_interval(rest)
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(0)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception) -> None:
        self.bar.refresh()
        self.bar.close()
