"""Training curves from the log of a run: length (mean, min, max), clipped share, TECA, accuracy, reward.

In: records of trainer.training.run_log. Out: a figure with a panel per quantity that any run has logged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.plotting.style import COLOURS, figure, label, legend_below, whole_steps

_ALARM = "padding_alarm"
_ALARM_NAME = "alarm: TECA falls, length rises"


@dataclass(frozen=True)
class Panel:
    """A quantity, and the names it may be logged under: the first that is there counts."""

    title: str
    unit: str
    names: tuple[str, ...]
    percent: bool = False


LENGTH = Panel("Mean length", "tokens", ("completions/mean_length",))
TECA = Panel("TECA at the last token", "nats", ("teca",))
TOTAL_ENTROPY = Panel("Total entropy", "nats", ("entropy_sum",))
ACCURACY = Panel("Accuracy", "", ("accuracy", "rewards/accuracy_reward/mean"), percent=True)
PANELS = (
    LENGTH,
    Panel("Shortest, longest (dashed)", "tokens", ("completions/min_length",)),
    Panel("Clipped responses", "", ("completions/clipped_ratio",), percent=True),
    TECA,
    ACCURACY,
    Panel("Reward", "", ("reward",)),
)


def series_of(log: list[dict], names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of the first name that the log has; records without it (an evaluation) are passed over."""
    for name in names:
        found = [(record["step"], record[name]) for record in log if record.get(name) is not None]
        if found:
            steps, values = zip(*found, strict=True)
            return np.array(steps, dtype=float), np.array(values, dtype=float)
    return np.array([]), np.array([])


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Centred moving mean over `window` (odd) entries, over fewer at the ends."""
    if window <= 1:
        return values
    half = window // 2
    padded = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (padded[high] - padded[low]) / (high - low)


def training(
    logs: list[tuple[str, list[dict]]], *, order: list[str] | None = None, panels: tuple[Panel, ...] = PANELS
) -> tuple[Figure, list[str]]:
    """Curves of one or several runs over the optimizer's steps.

    Args:
        logs: name and log of each run.
        order: names in the order that gives the colours, so that a run has the colour of its evaluation, also where it
            is called "NAME, training" beside the evaluation NAME; default: logs.
        panels: the quantities.

    Returns:
        The figure, and the titles of the panels that no log has numbers for.

    Raises:
        ValueError: no log has any of the quantities.
    """
    shown = [panel for panel in panels if any(len(series_of(log, panel.names)[0]) for _, log in logs)]
    absent = [panel.title for panel in panels if panel not in shown]
    if not shown:
        raise ValueError("the log holds none of: " + ", ".join(name for panel in panels for name in panel.names))
    columns = min(len(shown), 3)
    rows = -(-len(shown) // columns)
    made = figure(2.55 * columns, 1.95 * rows + 0.4)
    points = max(len(series_of(log, panel.names)[0]) for _, log in logs for panel in shown)
    window = 2 * (points // 20) + 1 if points >= 20 else 1
    order = order or [name for name, _ in logs]
    for index, panel in enumerate(shown):
        axis = made.add_subplot(rows, columns, index + 1)
        for name, log in logs:
            _draw(axis, panel, log, _colour(name, order), label(name), window)
        axis.set_title(panel.title, loc="left", fontweight="bold")
        axis.set_ylabel(panel.unit)
        axis.margins(x=0.02)
        whole_steps(axis)
        if panel.names[0].startswith("completions/"):
            axis.set_ylim(bottom=0)
        if panel.percent:
            axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
        axis.set_xlabel("step")
    names = {name for axis in made.axes for name in axis.get_legend_handles_labels()[1]}
    if len(names) > 1:
        legend_below(made, made.axes)
    if window > 1:
        made.supxlabel(f"thin: as logged; thick: mean over {window} neighbours", x=0.995, ha="right", size=6.5)
    return made, absent


def _colour(name: str, order: list[str]) -> str:
    evaluated = name.removesuffix(", training")
    return COLOURS[order.index(evaluated if evaluated in order else name) % len(COLOURS)]


def _draw(axis: Axes, panel: Panel, log: list[dict], colour: str, name: str, window: int) -> None:
    steps, values = series_of(log, panel.names)
    if not len(steps):
        return
    if window > 1:
        axis.plot(steps, values, color=colour, linewidth=0.6, alpha=0.45)
    axis.plot(steps, smoothed(values, window), color=colour, label=name, marker="o" if len(steps) == 1 else None)
    if panel.names == ("completions/min_length",):
        longest_steps, longest = series_of(log, ("completions/max_length",))
        if len(longest_steps):
            if window > 1:
                axis.plot(longest_steps, longest, color=colour, linewidth=0.6, alpha=0.45)
            axis.plot(longest_steps, smoothed(longest, window), color=colour, linestyle=(0, (4, 2)))
    if panel.names == ("teca",):
        alarms = [record["step"] for record in log if record.get(_ALARM)]
        heights = np.interp(alarms, steps, values) if alarms else []
        if alarms:
            axis.plot(alarms, heights, linestyle="none", marker="v", color="black", markersize=3.5, label=_ALARM_NAME)
