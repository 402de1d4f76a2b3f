"""Alarm for a policy that lowers TECA by talking more: a mean entropy is diluted by certain tokens.

In: the run's history of mean TECA and mean completion length, one value per logging step. Out: an alarm, or None.

Let "now" be the last `window` steps. They are compared with every earlier block of `window` steps, so that a run which
first shortens and then pads is caught too. The alarm sounds if, against some block,

    length rose  and  TECA fell,  each by more than `tolerance` of the block's mean and `z` standard errors

of the difference of the two means (Welch); the errors come from the scatter of the steps inside the two blocks. Fewer
than two blocks give no alarm. It keeps no state: a resumed run that has its log gets the same alarm.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PaddingAlarm:
    """TECA and length now, and in the block of steps (first_step, last_step are indices) they are compared with."""

    teca_before: float
    teca_now: float
    length_before: float
    length_now: float
    first_step: int
    last_step: int

    def __str__(self) -> str:
        return (
            f"TECA falls while length rises: TECA {self.teca_before:.4g} -> {self.teca_now:.4g}, length "
            f"{self.length_before:.4g} -> {self.length_now:.4g} tokens since steps {self.first_step}-{self.last_step} "
            "of the log. Certain tokens dilute the mean; the reward total_entropy is not open to that."
        )


def padding_alarm(
    teca: Sequence[float], length: Sequence[float], *, window: int = 8, tolerance: float = 0.05, z: float = 4.0
) -> PaddingAlarm | None:
    """Returns the alarm against the block where the length rose most since, or None.

    Args:
        teca, length: the history, oldest first, one value per logging step; steps with a NaN are left out.
        window: steps per block, at least 2.
        tolerance: the relative change below which nothing is said.
        z: the change, in standard errors, up to which it may be noise.

    Raises:
        ValueError: histories of different lengths, or a window below 2.
    """
    if len(teca) != len(length):
        raise ValueError(f"{len(teca)} values of teca, {len(length)} of length: expected one of each per step")
    if window < 2:
        raise ValueError(f"window is {window}: expected at least 2 steps")
    steps = [i for i in range(len(teca)) if math.isfinite(teca[i]) and math.isfinite(length[i])]
    now, earlier = steps[-window:], steps[:-window]
    alarms = []
    for start in range(len(earlier) % window, len(earlier), window):  # blocks end where "now" begins
        block = earlier[start : start + window]
        length_rose = _rose([length[i] for i in block], [length[i] for i in now], tolerance, z)
        teca_fell = _rose([-teca[i] for i in block], [-teca[i] for i in now], tolerance, z)
        if length_rose and teca_fell:
            mean = [statistics.fmean(series[i] for i in part) for series in (teca, length) for part in (block, now)]
            alarms.append(PaddingAlarm(*mean, first_step=block[0], last_step=block[-1]))
    return min(alarms, key=lambda alarm: alarm.length_before, default=None)


def _rose(before: list[float], now: list[float], tolerance: float, z: float) -> bool:
    rise = statistics.fmean(now) - statistics.fmean(before)
    error = math.sqrt(statistics.variance(before) / len(before) + statistics.variance(now) / len(now))
    return rise > tolerance * abs(statistics.fmean(before)) and rise > z * error
