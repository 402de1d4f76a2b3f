"""Benchmark name or local file in, problems out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

BENCHMARKS = ("gsm8k", "math500", "aime24", "aime25")


@dataclass(frozen=True)
class Problem:
    """One question; the id is unique in its benchmark."""

    id: str
    question: str
    ground_truth: str


def load_problems(benchmark: str, path: str | None, limit: int | None) -> list[Problem]:
    """The first `limit` problems of a benchmark."""
    if path is None:
        raise ValueError(f"unknown benchmark {benchmark!r}: expected {', '.join(BENCHMARKS)} with --data")
    problems = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n")[:-1]):
        row = json.loads(line)
        identity = str(row.get("unique_id", row.get("id", number)))
        question = row.get("question") or row["problem"]
        problems.append(Problem(identity, question, str(row["answer"]).split("####")[-1].strip()))
    return problems[:limit]
