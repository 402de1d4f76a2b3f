"""The progress bar of one records file: responses done, running accuracy and mean length."""

from __future__ import annotations

from dataclasses import dataclass

from tqdm.auto import tqdm

from trainer.records.record_files import Record, RecordWriter


@dataclass
class Running:
    """What the bar shows: over all records of a file, those of earlier runs included."""

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


class Progress:
    """The bar of `writer`'s file, which will hold `total` records."""

    def __init__(self, writer: RecordWriter, total: int) -> None:
        self.running = Running()
        for _, _, is_correct, length in writer.written.values():
            self.running.add(is_correct, length)
        self.bar = tqdm(
            total=total,
            initial=len(writer.written),
            desc=f"{writer.benchmark} {writer.method}",
            unit="response",
            dynamic_ncols=True,
        )
        self.bar.set_postfix(self.running.shown())

    def step(self, unfinished: int) -> None:
        """A step of the batch in flight, with so many responses unfinished."""
        self.bar.set_postfix({**self.running.shown(), "generating": unfinished}, refresh=False)
        self.bar.update(0)

    def add(self, records: list[Record]) -> None:
        """Records that were written."""
        for record in records:
            self.running.add(record["is_correct"], record["response_length"])
        self.bar.set_postfix(self.running.shown(), refresh=False)
        self.bar.update(len(records))

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception) -> None:
        self.bar.close()
