"""Benchmark name in, problems out: the known data sets (trainer.datasets), local files, the embedded word problems.

a known data set   its test split, from the hub, a directory or a file
a made data set    held-out problems of trainer/arithmetic, made on the spot
tiny               held-out problems of trainer/tiny, made on the spot
any other name     a local file or directory with a question and an answer column
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from trainer.catalogue.data_sets import DATA_SETS, EMBEDDED, MADE

BENCHMARKS = (*DATA_SETS, *MADE, EMBEDDED)
_SPLIT = "test"
_EMBEDDED_PROBLEMS = 256
_EMBEDDED_SEED = 0


@dataclass(frozen=True)
class BenchmarkProblem:
    """One question; the id is unique in its benchmark.

    turns: what the data have before the question, if they have questions as messages.
    """

    id: str
    question: str
    ground_truth: str
    turns: tuple[dict[str, str], ...] = ()


def load_benchmark(
    benchmark: str,
    path: str | None = None,
    data_dir: str | None = None,
    limit: int | None = None,
    bad_rows: list[ValueError] | None = None,
) -> list[BenchmarkProblem]:
    """The first `limit` problems of a benchmark.

    Args:
        benchmark: one of BENCHMARKS, or any name if `path` says where it is.
        path: a json, jsonl or parquet file, or a directory with a test split.
        data_dir: where the known benchmarks lie as <data_dir>/<benchmark>/test.jsonl.
        limit: None for all.
        bad_rows: takes what is wrong with rows without a question or an answer, which are left out; None: it is raised.

    Raises:
        ValueError: an unknown name, missing data (trainer.datasets.DataError is one), or an id that comes twice.
    """
    if path is None and benchmark not in BENCHMARKS:
        raise ValueError(
            f"unknown benchmark {benchmark!r}: expected some of {', '.join(BENCHMARKS)}, or any name with "
            f"--data {benchmark}=PATH"
        )
    if path is None and benchmark == EMBEDDED:
        return _embedded(limit)

    from trainer.datasets import load_problems  # slow to import, and the embedded problems do without

    if path is not None:
        source, split = path, _SPLIT if Path(path).expanduser().is_dir() else None
        data_dir = None
    else:
        source, split = benchmark, _SPLIT
    rows = load_problems(
        source, data_dir=data_dir, split=split, instruction=None, max_samples=limit, name_row=str, bad_rows=bad_rows
    )
    ids = rows["id"]
    doubled = [identity for identity, count in Counter(ids).items() if count > 1]
    if doubled:
        raise ValueError(
            f"{benchmark}: {len(doubled)} ids come more than once in the data, the first is {doubled[0]!r}"
        )
    return [
        BenchmarkProblem(row["id"], row["question"], row["ground_truth"], tuple(row["prompt"][:-1])) for row in rows
    ]


def _embedded(limit: int | None) -> list[BenchmarkProblem]:
    from trainer.tiny.problems import draw_problems

    count = _EMBEDDED_PROBLEMS if limit is None else limit
    drawn = draw_problems(count, seed=_EMBEDDED_SEED, held_out=True)
    return [
        BenchmarkProblem(str(number), problem.question, str(problem.answer)) for number, problem in enumerate(drawn)
    ]
