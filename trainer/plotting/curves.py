"""The numbers behind the figures: TECA curves on a common scale, one row per response, read a record at a time.

In: directories of records. Out: per (run, benchmark, method) a Series: lengths, last TECA, right or wrong, and TECA at
101 points from the first token to the last. The tokens are not kept; `find_case` reads those of one response.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.records.names import benchmarks_in_order, methods_in_order, title
from trainer.records.record_files import Record, read_records
from trainer.reporting.statistics import Ratio, bootstrap

GRID = np.linspace(0.0, 1.0, 101)


@dataclass
class Series:
    """The responses of one method of one run to one benchmark; arrays over responses (N,), curves (N, 101)."""

    run: str
    benchmark: str
    method: str
    problem: np.ndarray
    sample: np.ndarray
    correct: np.ndarray
    length: np.ndarray
    curves: np.ndarray  # nats; NaN rows for responses without a token

    @property
    def teca(self) -> np.ndarray:
        """TECA at the last token."""
        return self.curves[:, -1]


def normalised(teca: Iterable[float]) -> np.ndarray:
    """TECA at GRID, where 0 is the first token and 1 the last; linear in between. NaN without tokens."""
    values = np.asarray(list(teca), dtype=float)
    if values.size == 0:
        return np.full(GRID.shape, np.nan)
    return np.interp(GRID * (values.size - 1), np.arange(values.size), values)


def read_series(runs: list[tuple[str, Path]]) -> list[Series]:
    """Every pair of every run, in the order of the tables."""
    made = []
    for label, directory in runs:
        rows: dict[tuple[str, str], list[tuple]] = {}
        for record in read_records(directory):
            rows.setdefault((record["benchmark"], record["method"]), []).append(
                (
                    record["id"],
                    record["sample"],
                    record["is_correct"],
                    record["response_length"],
                    normalised(record["teca"]).astype(np.float32),
                )
            )
        benchmarks = benchmarks_in_order({benchmark for benchmark, _ in rows})
        methods = methods_in_order({method for _, method in rows})
        for key in ((b, m) for b in benchmarks for m in methods if (b, m) in rows):
            problem, sample, correct, length, curves = zip(*rows[key], strict=True)
            made.append(
                Series(
                    label,
                    *key,
                    np.array(problem),
                    np.array(sample),
                    np.array(correct),
                    np.array(length),
                    np.stack(curves).astype(float),
                )
            )
    return made


def mean_curve(series: Series, which: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean TECA over the chosen responses and its 95% interval over problems, three arrays (101,).

    Bootstrap over problems with all their responses, as in the tables; NaN limits with fewer than three problems.
    """
    chosen = which & ~np.isnan(series.curves[:, 0])
    curves = series.curves[chosen]
    if len(curves) == 0:
        return (np.full(GRID.shape, np.nan),) * 3
    _, at = np.unique(series.problem[chosen], return_inverse=True)
    problems = at.max() + 1
    totals = np.zeros((problems, GRID.size))
    np.add.at(totals, at, curves)
    counts = np.bincount(at).astype(float)
    mean = curves.mean(axis=0)
    if problems < 3:
        return mean, np.full(GRID.shape, np.nan), np.full(GRID.shape, np.nan)
    ratios = [Ratio(totals[:, point], counts) for point in range(GRID.size)]
    drawn = bootstrap(ratios, seed=seed, stream=series.benchmark, replicates=2000)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return mean, low, high


def typical(series: Series) -> tuple[str, int]:
    """(id, sample) of the response whose length is the median of the right ones (of all, if none is right)."""
    candidates = np.flatnonzero(series.correct & (series.length > 0))
    if candidates.size == 0:
        candidates = np.flatnonzero(series.length > 0)
    if candidates.size == 0:
        raise ValueError(f"{title(series.benchmark)}, {title(series.method)} of {series.run}: no response has a token")
    order = sorted(candidates, key=lambda i: (series.length[i], str(series.problem[i]), int(series.sample[i])))
    chosen = order[(len(order) - 1) // 2]
    return str(series.problem[chosen]), int(series.sample[chosen])


def find_case(directory: Path, benchmark: str, method: str, problem: str, sample: int) -> Record | None:
    """The whole record of one response; None if the run lacks it."""
    wanted = (benchmark, method, problem, sample)
    for record in read_records(directory):
        if (record["benchmark"], record["method"], record["id"], record["sample"]) == wanted:
            return record
    return None
