"""A directory of records, read into the few numbers per response that a report needs.

In: a directory as trainer.evaluation.records writes it. Out: a Run, with one Responses per (benchmark, method):
arrays over responses, the token lists dropped line by line, so that a gigabyte of records takes a few megabytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.evaluation.records import read_records

# The order in which the published tables have them; others follow in the order of their names.
_BENCHMARK_ORDER = ("gsm8k", "math500", "aime24", "aime25")
_METHOD_ORDER = ("thinking", "no_thinking", "cod", "ccot", "cer")
_TITLES = {
    "gsm8k": "GSM8K",
    "math500": "MATH500",
    "aime24": "AIME24",
    "aime25": "AIME25",
    "tiny": "Embedded problems",
    "thinking": "w/ thinking",
    "no_thinking": "w/o thinking",
    "cod": "CoD",
    "ccot": "CCoT",
    "cer": "CER",
}


@dataclass
class Responses:
    """The responses of one method to one benchmark; every array is (N,), one entry per response."""

    problem: list[str] = field(default_factory=list)  # id
    sample: list[int] = field(default_factory=list)
    correct: list[bool] = field(default_factory=list)
    length: list[int] = field(default_factory=list)  # tokens
    clipped: list[bool] = field(default_factory=list)  # finish_reason is "length"
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
        return in_order({method for _, method in self.responses}, _METHOD_ORDER)


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
        pair.teca.append(record["teca"][-1] if record["teca"] else float("nan"))
    if not responses:
        raise ValueError(f"{directory}: its records files are empty")
    settings_path = directory / "settings.json"  # read here: trainer.evaluation.settings would import torch
    settings = json.loads(settings_path.read_text(encoding="utf-8")) if settings_path.is_file() else {}
    return Run(label, directory, settings, responses)


def labelled_directories(arguments: list[str]) -> list[tuple[str, Path]]:
    """`LABEL=DIR` or `DIR`, whose label is the shortest tail of its path that no other directory shares."""
    named: list[tuple[str | None, Path]] = []
    for argument in arguments:
        label, equals, path = argument.partition("=")
        if equals and not Path(argument).exists():
            named.append((label, Path(path)))
        else:
            named.append((None, Path(argument)))
    tails = [path.resolve().parts for _, path in named]
    labels = []
    for index, (label, _) in enumerate(named):
        depth = 1
        while label is None:
            tail = tails[index][-depth:]
            shared = any(other[-depth:] == tail for i, other in enumerate(tails) if i != index)
            if not shared or depth >= len(tails[index]):
                label = "/".join(tail)
            depth += 1
        labels.append(label)
    if len(set(labels)) != len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ValueError(f"two of the directories are called {twice!r}; name them apart as LABEL=DIR")
    return [(label, path) for label, (_, path) in zip(labels, named, strict=True)]


def title(name: str) -> str:
    """How a benchmark or method is written in a table or figure."""
    return _TITLES.get(name, name)


def benchmarks_in_order(names: set[str]) -> list[str]:
    return in_order(names, _BENCHMARK_ORDER)


def in_order(names: set[str], order: tuple[str, ...]) -> list[str]:
    """The names that `order` has, in its order, then the others in alphabetical order."""
    return [name for name in order if name in names] + sorted(names - set(order))


def samples_asked(run: Run) -> int | None:
    """How many samples per problem the run's settings asked for; None where they do not say."""
    asked = run.settings.get("samples")
    return asked if isinstance(asked, int) else None
