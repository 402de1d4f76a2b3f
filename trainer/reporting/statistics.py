"""Means over problems with bootstrap intervals, and pass@k: plain numpy, no Python loop over replicates.

In: one number per problem (already averaged or summed over its samples). Out: an Estimate: value and interval.

    value = sum_i num_i / sum_i den_i        replicate b: the same with problem i counted w_bi times
    w_b ~ Multinomial(P; 1/P, ..., 1/P)      interval: the 2.5% and 97.5% quantiles over replicates

Problems are drawn with replacement and each brings all of its samples. Drawing the samples anew inside each drawn
problem as well would count their spread twice: the spread of problem means already contains it (Davison & Hinkley,
Bootstrap Methods and their Application, 1997, section 3.8).

The weights belong to problems, not to rows: two methods on the same problems share them, so whatever compares the two
(dLEN, a difference) is a paired comparison. A problem that a method lacks has num = den = 0 there.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np

REPLICATES = 10_000
_Z = 1.959964  # of a normal distribution, 97.5% lie below
_OFTEN_NONE = 1e-3  # share of replicates without any success, or failure: e^-7, so fewer than seven problems hold one
_CHUNK_BYTES = 64 << 20  # weights are made and used in pieces: 10,000 x 1,319 of them would be 100 MB


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval; NaN where it is not defined."""

    value: float
    low: float = float("nan")
    high: float = float("nan")

    @property
    def defined(self) -> bool:
        return not np.isnan(self.value)

    @property
    def has_interval(self) -> bool:
        return not (np.isnan(self.low) or np.isnan(self.high))


UNDEFINED = Estimate(float("nan"))


@dataclass(frozen=True)
class Ratio:
    """A quantity sum(num) / sum(den) over the problems of one benchmark; num and den are (P,)."""

    num: np.ndarray
    den: np.ndarray

    def value(self) -> float:
        den = self.den.sum()
        return float(self.num.sum() / den) if den > 0 else float("nan")

    @staticmethod
    def mean(values: np.ndarray) -> Ratio:
        """The mean over problems of `values` (P,), NaN where a problem is absent."""
        present = ~np.isnan(values)
        return Ratio(np.where(present, values, 0.0), present.astype(float))


def bootstrap(ratios: list[Ratio], *, seed: int, stream: str, replicates: int = REPLICATES) -> np.ndarray:
    """Replicates (R, len(ratios)) of every ratio, all from the same draws of problems.

    Args:
        ratios: quantities over the same P problems, in the same order.
        seed: what makes the draws repeatable.
        stream: a name (the benchmark) that makes the draws of two benchmarks independent.
        replicates: R.

    Returns:
        float64; NaN where none of the drawn problems carries the quantity, and in all of a column whose quantity only
        one problem carries: drawing it again and again says nothing about its spread.
    """
    num = np.stack([ratio.num for ratio in ratios], axis=1)  # (P, M)
    den = np.stack([ratio.den for ratio in ratios], axis=1)
    problems = num.shape[0]
    random = np.random.default_rng([seed, zlib.crc32(stream.encode())])
    out = np.empty((replicates, len(ratios)))
    rows = max(1, _CHUNK_BYTES // (8 * problems))
    for start in range(0, replicates, rows):
        stop = min(start + rows, replicates)
        weights = random.multinomial(problems, np.full(problems, 1 / problems), size=stop - start)  # (rows, P)
        weights = weights.astype(float)
        totals = weights @ den
        with np.errstate(invalid="ignore"):
            out[start:stop] = np.where(totals > 0, (weights @ num) / np.where(totals > 0, totals, 1), np.nan)
    out[:, (den > 0).sum(axis=0) < 2] = np.nan
    return out


def interval(value: float, replicates: np.ndarray) -> Estimate:
    """The percentile interval of one column of replicates (R,) around `value`.

    No interval where fewer than half of the replicates are defined (a handful of wrong answers, say).
    """
    defined = replicates[~np.isnan(replicates)]
    if np.isnan(value) or 2 * len(defined) < len(replicates):
        return Estimate(value)
    low, high = np.quantile(defined, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share, within [0, 1]: right where n is small or the share near 0 or 1.

        (s + z^2/2 +- z sqrt(s (n - s)/n + z^2/4)) / (n + z^2),   z = 1.96

    successes: whole, or the sum over n problems of the share of right samples to each.

    Source: Wilson 1927, Journal of the American Statistical Association 22.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n and n >= 1, got {successes} of {n}")
    centre = successes + _Z * _Z / 2
    spread = _Z * math.sqrt(successes * (n - successes) / n + _Z * _Z / 4)
    low, high = (centre - spread) / (n + _Z * _Z), (centre + spread) / (n + _Z * _Z)
    return 0.0 if successes == 0 else low, 1.0 if successes == n else high  # exact at the ends, where rounding shows


def share_interval(value: float, replicates: np.ndarray, problems: int) -> Estimate:
    """`interval` for a share; Wilson's where resampling now and then loses every success or every failure.

    With k problems that hold one, a replicate has none with probability e^-k. Where that happens, k is small, and
    the bootstrap's interval too narrow: 1 right of 24 would have a lower upper bound than 0 of 24 by Wilson. With
    several samples to a problem Wilson's is on the wide side, as it counts problems. None for a single problem.
    """
    if np.isnan(value) or problems < 2:
        return Estimate(value)
    if np.mean((replicates == 0.0) | (replicates == 1.0)) > _OFTEN_NONE:
        return Estimate(value, *wilson(value * problems, problems))
    return interval(value, replicates)


def pass_at_k(samples: np.ndarray, correct: np.ndarray, k: int) -> np.ndarray:
    """The unbiased estimate of P(at least one of k samples is right), per problem.

        1 - C(n - c, k) / C(n, k) = 1 - prod_{i<k} (n - c - i) / (n - i)

    Args:
        samples: n, (P,) integers; correct: c, (P,) integers <= n; k: at least 1.

    Returns:
        (P,) float64, NaN where n < k: it can't be estimated there.

    Source: Chen et al. 2021, arXiv 2107.03374, equation 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    n, c = np.asarray(samples, dtype=float)[:, None], np.asarray(correct, dtype=float)[:, None]
    steps = np.arange(k)
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = np.clip(n - c - steps, 0, None) / (n - steps)  # (P, k)
    return np.where(n[:, 0] >= k, 1 - np.prod(factors, axis=1), np.nan)
