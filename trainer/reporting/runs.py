"""A directory of records, read into the few numbers per response that a report needs.

In: a directory as trainer.records.record_files writes it. Out: a Run, with one Responses per (benchmark, method):
arrays over responses, the token lists dropped line by line, so that a gigabyte of records takes a few megabytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.records.names import methods_in_order
from trainer.records.record_files import read_records


@dataclass
class Responses:
    """The responses of one method to one benchmark; every array is (N,), one entry per response."""

    problem: list[str] = field(default_factory=list)  # id
    sample: list[int] = field(default_factory=list)
    correct: list[bool] = field(default_factory=list)
    length: list[int] = field(default_factory=list)  # tokens
    clipped: list[bool] = field(default_factory=list)  # finish_reason is "length"
    answered: list[bool] = field(default_factory=list)  # a final answer was found in it
    teca: list[float] = field(default_factory=list)  # nats, at the last token; NaN for an empty response
    doubled: int = 0  # records of an (id, sample) that was there already, left out

    def problems(self) -> list[str]:
        return sorted(set(self.problem))


@dataclass
class Run:
    """What one directory holds."""

    label: str
    directory: Path
    settings: dict[str, Any]
    responses: dict[tuple[str, str], Responses]  # (benchmark, method)

    def methods(self) -> list[str]:
        return methods_in_order({method for _, method in self.responses})


def load_run(label: str, directory: str | Path) -> Run:
    """Read a directory of records.

    Raises:
        FileNotFoundError: no such directory, or no records in it.
        ValueError: a damaged file.
    """
    directory = Path(directory)
    responses: dict[tuple[str, str], Responses] = {}
    seen: set[tuple[str, str, str, int]] = set()
    for record in read_records(directory):
        pair = responses.setdefault((record["benchmark"], record["method"]), Responses())
        key = (record["benchmark"], record["method"], record["id"], record["sample"])
        if key in seen:
            pair.doubled += 1
            continue
        seen.add(key)
        pair.problem.append(record["id"])
        pair.sample.append(record["sample"])
        pair.correct.append(record["is_correct"])
        pair.length.append(record["response_length"])
        pair.clipped.append(record["finish_reason"] == "length")
        pair.answered.append(record["extracted_answer"] is not None)
        pair.teca.append(record["teca"][-1] if record["teca"] else float("nan"))
    if not responses:
        raise ValueError(f"{directory}: its records files are empty")
    settings_path = directory / "settings.json"  # read here: trainer.records.settings would import torch
    settings = json.loads(settings_path.read_text(encoding="utf-8")) if settings_path.is_file() else {}
    return Run(label, directory, settings, responses)


def samples_asked(run: Run) -> int | None:
    """How many samples per problem the run's settings asked for; None where they do not say."""
    asked = run.settings.get("samples")
    return asked if isinstance(asked, int) else None
