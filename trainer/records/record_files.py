"""Records of an evaluation: one JSON object per line, one file per (benchmark, method).

In: records. Out: `records-{benchmark}-{method}.jsonl` in a directory, and the records again.

A record is a dict with these keys:

    id, benchmark, method   str
    sample                  int, 0 .. samples-1; (id, sample) is unique in a file
    question, ground_truth  str
    prompt                  str, as the model read it (chat template applied)
    response                str, special tokens left out
    extracted_answer        str or None
    is_correct              bool
    response_length         int, tokens; the end-of-sequence token is one of them
    finish_reason           "stop" or "length"
    tokens                  [str], the text each response token adds; joined: the response with its special tokens
    token_ids               [int]
    token_entropies         [float] nats; [i] is the entropy of the distribution that response token i was drawn from
    teca                    [float] nats; TECA_i = mean of token_entropies[0..i]

The last four have length response_length. Floats have six significant digits; NaN and infinity never occur.

A response whose thinking an early exit ended (trainer/sampling/early_exit.py) has one key more:

    early_exit              int, the place of the first token that was forced rather than drawn; the entropy there is
                            the model's all the same

Survival: a batch is appended by one write and flushed to the disk, so a kill leaves whole records and at most one torn
last line. Readers pass over a torn last line; the writer cuts it off before it appends. A broken line
anywhere else raises.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]

PER_TOKEN = ("tokens", "token_ids", "token_entropies", "teca")
_TYPES: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "benchmark": str,
    "method": str,
    "sample": int,
    "question": str,
    "ground_truth": str,
    "prompt": str,
    "response": str,
    "extracted_answer": (str, type(None)),
    "is_correct": bool,
    "response_length": int,
    "finish_reason": str,
    **dict.fromkeys(PER_TOKEN, list),
}
_NAME = re.compile(r"[A-Za-z0-9_.]+")  # no "-": it separates benchmark and method in a file's name
_SIGNIFICANT_DIGITS = 6


def record_path(directory: str | Path, benchmark: str, method: str) -> Path:
    """Where the records of (benchmark, method) are kept."""
    for kind, name in (("benchmark", benchmark), ("method", method)):
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{kind} name {name!r}: expected letters, digits, '_' and '.' only, it becomes a file's name"
            )
    return Path(directory) / f"records-{benchmark}-{method}.jsonl"


def rounded(values: Iterable[float]) -> list[float]:
    """The values with six significant digits: what a record stores."""
    return [float(f"{value:.{_SIGNIFICANT_DIGITS}g}") for value in values]


def check_record(record: Record) -> None:
    """Raise ValueError unless the record is as this file's header says."""
    name = f"record {record.get('id')!r}, sample {record.get('sample')!r}"
    if missing := _TYPES.keys() - record.keys():
        raise ValueError(f"{name} lacks {', '.join(sorted(missing))}")
    for key, kind in _TYPES.items():
        if not isinstance(record[key], kind) or (kind is int and isinstance(record[key], bool)):
            raise ValueError(f"{name}: {key} is a {type(record[key]).__name__}, expected {kind}")
    if record["finish_reason"] not in ("stop", "length"):
        raise ValueError(f"{name}: finish_reason is {record['finish_reason']!r}, expected 'stop' or 'length'")
    for key in PER_TOKEN:
        if len(record[key]) != record["response_length"]:
            raise ValueError(f"{name}: {len(record[key])} {key} for response_length {record['response_length']}")


def encode(record: Record) -> bytes:
    """The record's line, newline included. Raises ValueError for NaN and infinity, which JSON does not have."""
    check_record(record)
    return json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8") + b"\n"


def _scan(path: Path) -> Iterator[tuple[int, Record]]:
    """Every whole record with the offset of its end; a torn last line is passed over."""
    end = 0
    broken: str | None = None
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if broken is not None:
                raise ValueError(broken)
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("no newline at its end")
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("not a JSON object")
            except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
                broken = f"{path}: line {number} is broken ({error}) and not the last one; the file was damaged"
                continue
            end += len(line)
            yield end, record


def read_records(directory: str | Path) -> Iterator[Record]:
    """Every record of a directory, file by file in the order of their names.

    Raises:
        FileNotFoundError: there is no such directory, or no records file in it.
        ValueError: a line that is not the last one of its file is no JSON object.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such directory")
    paths = sorted(directory.glob("records-*.jsonl"))
    if not paths:
        raise FileNotFoundError(f"{directory}: no records-*.jsonl in it")
    for path in paths:
        for _, record in _scan(path):
            yield record


class RecordWriter:
    """Appends records of one (benchmark, method); knows which are there already.

    Args:
        directory: an existing directory.
        benchmark, method: of every record that is written.

    Attributes:
        written: (id, sample) -> (question, ground_truth, is_correct, response_length) of every record in the file.

    Raises:
        ValueError: the file holds a record twice, or is damaged.
        BlockingIOError: another process is writing the same file.
    """

    def __init__(self, directory: str | Path, benchmark: str, method: str) -> None:
        self.benchmark, self.method = benchmark, method
        self.path = record_path(directory, benchmark, method)
        self.written: dict[tuple[str, int], tuple[str, str, bool, int]] = {}
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            whole = 0
            for end, record in _scan(self.path):
                self._remember(record)
                whole = end
            os.ftruncate(self._descriptor, whole)  # without a torn last line
        except BaseException:
            os.close(self._descriptor)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel frees it when the process ends
        except BlockingIOError:
            raise BlockingIOError(f"{self.path} is being written by another process; wait for it or end it") from None

    def _remember(self, record: Record) -> None:
        key = (record["id"], record["sample"])
        if key in self.written:
            raise ValueError(f"{self.path} holds id {key[0]!r}, sample {key[1]} twice")
        self.written[key] = tuple(record[k] for k in ("question", "ground_truth", "is_correct", "response_length"))

    def append(self, records: Iterable[Record]) -> None:
        """Append a batch: one write, on the disk when this returns."""
        records = list(records)
        for record in records:
            if (record["benchmark"], record["method"]) != (self.benchmark, self.method):
                raise ValueError(
                    f"record of {record['benchmark']}-{record['method']} does not belong in {self.path.name}"
                )
        data = b"".join(encode(record) for record in records)
        for record in records:
            self._remember(record)
        view = memoryview(data)
        while view:  # a write may be short (a full disk: the next one raises)
            view = view[os.write(self._descriptor, view) :]
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, *exception) -> None:
        self.close()
