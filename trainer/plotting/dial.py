"""The dial of early exits: accuracy against length over a sweep of thresholds, beside simpler ways to be short.

In: evaluations of one model that differ in --early_exit, and baselines without it: other --max_new_tokens, methods that
ask for no or less thinking. Out: a figure, a panel per benchmark; every point with 95% intervals of both numbers.

Better is up and left. Points of a sweep are joined in the order of its setting: thresholds of one
window, and limits of one method. Intervals are those of the tables (bootstrap over problems).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from trainer.plotting.curves import Series
from trainer.plotting.style import COLOURS, figure, label, panel_titles
from trainer.records.names import benchmarks_in_order, title
from trainer.records.settings import read_settings
from trainer.reporting.statistics import Estimate, Ratio, bootstrap, interval, share_interval


@dataclass(frozen=True)
class DialPoint:
    """One evaluation of one method on one benchmark."""

    benchmark: str
    sweep: str  # points of one sweep are joined; it is their name in the legend
    setting: float  # what is swept: nats, or tokens
    name: str  # beside the point
    length: Estimate  # tokens
    accuracy: Estimate  # 0 .. 1


def settings_of(directories: Iterable[tuple[str, Path]]) -> dict[str, dict[str, Any]]:
    """label -> settings of the directories that have them."""
    found = {}
    for name, path in directories:
        try:
            found[name] = read_settings(path)
        except FileNotFoundError:
            continue  # records from elsewhere: how they were made is not known
    return found


def has_sweep(settings: dict[str, dict[str, Any]]) -> bool:
    """Whether any of the evaluations made early exits."""
    return any(one.get("early_exit") for one in settings.values())


def dial_points(series: list[Series], settings: dict[str, dict[str, Any]], *, seed: int = 0) -> list[DialPoint]:
    """The points of every series whose directory has settings."""
    models = {run: _model(one) for run, one in settings.items()}
    several = len(set(models.values())) > 1
    limits: dict[tuple[str, str], set[int]] = {}  # (model, method) -> limits of runs without exits
    for one in series:
        own = settings.get(one.run, {})
        if own and not own.get("early_exit"):
            limits.setdefault((models[one.run], one.method), set()).add(own["max_new_tokens"])
    starts = {one["early_exit"]["min_tokens"] for one in settings.values() if one.get("early_exit")}
    points = []
    for one in series:
        own = settings.get(one.run)
        if own is None:
            continue
        rule, method = own.get("early_exit"), title(one.method)
        if rule:
            window = f", mean of {rule['window']}" if rule["window"] else ""
            start = f", from token {rule['min_tokens']}" if len(starts) > 1 else ""
            sweep, setting = f"{method}, early exit{window}{start}", float(rule["threshold"])
            name = f"{setting:g}"
        else:
            setting = float(own["max_new_tokens"])
            swept = len(limits[models[one.run], one.method]) > 1
            sweep = f"{method}, limit" if swept else method
            name = f"{setting:g} tokens" if swept else ""
        if several:
            sweep = f"{models[one.run]}: {sweep}"
        points.append(DialPoint(one.benchmark, sweep, setting, name, *_estimates(one, seed)))
    return points


def _model(settings: dict[str, Any]) -> str:
    return " + ".join(Path(settings[key]).name for key in ("model", "adapter") if settings.get(key))


def _estimates(series: Series, seed: int) -> tuple[Estimate, Estimate]:
    """Mean length and accuracy over problems, each problem the mean of its samples."""
    _, at, counts = np.unique(series.problem, return_inverse=True, return_counts=True)
    ratios = [
        Ratio.mean(np.bincount(at, weights=values.astype(float)) / counts) for values in (series.length, series.correct)
    ]
    drawn = bootstrap(ratios, seed=seed, stream=series.benchmark)
    length, accuracy = (ratio.value() for ratio in ratios)
    return interval(length, drawn[:, 0]), share_interval(accuracy, drawn[:, 1], len(counts))


def dial(points: list[DialPoint]) -> Figure:
    """A panel per benchmark: accuracy (%) against mean length (tokens)."""
    benchmarks = benchmarks_in_order({point.benchmark for point in points})
    exits_first = sorted(points, key=lambda point: "early exit" not in point.sweep)
    sweeps = list(dict.fromkeys(point.sweep for point in exits_first))
    made = figure(max(4.2 * len(benchmarks), 4.6), 3.6)
    axes = [made.add_subplot(1, len(benchmarks), i + 1) for i in range(len(benchmarks))]
    panel_titles(axes, [title(benchmark) for benchmark in benchmarks])
    for axis, benchmark in zip(axes, benchmarks, strict=True):
        for index, sweep in enumerate(sweeps):
            here = sorted(
                (point for point in points if point.benchmark == benchmark and point.sweep == sweep),
                key=lambda point: point.setting,
            )
            if not here:
                continue
            colour = COLOURS[index % len(COLOURS)]
            length, accuracy = [point.length for point in here], [point.accuracy for point in here]
            axis.errorbar(
                [one.value for one in length],
                [100 * one.value for one in accuracy],
                xerr=_reach(length, 1.0),
                yerr=_reach(accuracy, 100.0),
                color=colour,
                ecolor=colour,
                elinewidth=0.7,
                capsize=1.5,
                marker="o" if "early exit" in sweep else "s",
                markersize=3.5,
                linewidth=1.2,
                label=label(sweep, 60),
            )
            for point in _apart(here):
                at = (point.length.value, 100 * point.accuracy.value)
                axis.annotate(
                    label(point.name), at, xytext=(4, -9), textcoords="offset points", fontsize=6.5, color=colour
                )
        axis.set(xlabel="mean length (tokens)", ylabel="accuracy (%)")
        axis.set_xlim(left=0)
    handles = {}
    for axis in axes:
        handles |= {text: handle for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    names = [label(sweep, 60) for sweep in sweeps]
    made.legend([handles[name] for name in names], names, loc="outside lower center", ncols=len(axes))
    return made


def _apart(points: list[DialPoint]) -> list[DialPoint]:
    """Points far enough from one another to be named; the first of those that coincide stands for them."""
    named: list[DialPoint] = []
    for point in points:
        if all(
            abs(point.length.value - other.length.value) > 0.02 * other.length.value
            or abs(point.accuracy.value - other.accuracy.value) > 0.02
            for other in named
        ):
            named.append(point)
    return named


def _reach(estimates: list[Estimate], unit: float) -> np.ndarray:
    """(2, N): how far the intervals reach below and above their values; 0 where there is none."""
    low = [unit * (one.value - one.low) if one.has_interval else 0.0 for one in estimates]
    high = [unit * (one.high - one.value) if one.has_interval else 0.0 for one in estimates]
    return np.maximum(np.array([low, high]), 0.0)
