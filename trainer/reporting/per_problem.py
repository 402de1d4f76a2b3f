"""Responses summed per problem: the unit that the bootstrap draws.

In: the responses of one method to one benchmark, and the position of every problem of the benchmark's union. Out: sums
over the samples of each problem, (P,) each, 0 where the method lacks the problem.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.reporting.runs import Responses
from trainer.reporting.statistics import Ratio


@dataclass
class PerProblem:
    """Sums over the samples of each problem of a benchmark's union; n = 0 where the row lacks the problem."""

    n: np.ndarray
    right: np.ndarray
    length: np.ndarray
    clipped: np.ndarray
    unanswered: np.ndarray
    teca_right: np.ndarray
    teca_wrong: np.ndarray
    teca_right_n: np.ndarray
    teca_wrong_n: np.ndarray

    @property
    def present(self) -> np.ndarray:
        return self.n > 0

    def mean(self, total: np.ndarray, where: np.ndarray | None = None) -> Ratio:
        """Mean over problems of total / n."""
        where = self.present if where is None else where
        return Ratio(np.where(where, total / np.maximum(self.n, 1), 0.0), where.astype(float))


def per_problem(responses: Responses, index: dict[str, int]) -> PerProblem:
    at = np.array([index[name] for name in responses.problem])
    right = np.array(responses.correct, dtype=bool)
    teca = np.array(responses.teca, dtype=float)
    has_teca = ~np.isnan(teca)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(at, weights=values, minlength=len(index))

    return PerProblem(
        n=total(np.ones(len(at))),
        right=total(right),
        length=total(np.array(responses.length)),
        clipped=total(np.array(responses.clipped)),
        unanswered=total(~np.array(responses.answered, dtype=bool)),
        teca_right=total(np.where(right & has_teca, teca, 0)),
        teca_wrong=total(np.where(~right & has_teca, teca, 0)),
        teca_right_n=total(right & has_teca),
        teca_wrong_n=total(~right & has_teca),
    )


def samples_per_problem(responses: Responses) -> tuple[int, int]:
    """The fewest and the most samples that a problem has."""
    counts = np.unique(np.array(responses.problem), return_counts=True)[1]
    return int(counts.min()), int(counts.max())


def problems_with_fewer(responses: Responses, samples: int) -> int:
    """How many problems have fewer samples than that."""
    return int((np.unique(np.array(responses.problem), return_counts=True)[1] < samples).sum())
