"""Figures of evaluations: mean TECA over the response, right against wrong, histograms of length and of TECA.

In: Series. Out: figures. One run: a panel per benchmark, a colour per method. Several runs: a colour per run, a column
of panels per benchmark and a row per method.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from trainer.plotting.curves import GRID, Series, mean_curve
from trainer.plotting.style import COLOURS, NEUTRAL, RIGHT, WRONG, figure, label, legend_below, panel_titles
from trainer.records.names import benchmarks_in_order, title

_PERCENT = 100 * GRID


@dataclass
class _Layout:
    """Where each series is drawn and how it looks."""

    figure: Figure
    panels: dict[tuple[str, str], Axes]  # (benchmark, method)
    looks: dict[tuple[str, str], tuple[str, str]]  # (run, method) -> colour, name in the legend

    @property
    def axes(self) -> list[Axes]:
        return list(dict.fromkeys(self.panels.values()))

    def legend(self) -> None:
        """One legend for all panels: below several, inside a lone one."""
        names = {name for axis in self.axes for name in axis.get_legend_handles_labels()[1]}
        if len(self.axes) > 1 or len(names) > 3:
            legend_below(self.figure, self.axes)
        elif len(names) > 1:
            self.axes[0].legend()


def _layout(series: list[Series]) -> _Layout:
    benchmarks = benchmarks_in_order({one.benchmark for one in series})
    runs = list(dict.fromkeys(one.run for one in series))
    methods = list(dict.fromkeys(one.method for one in series))
    if len(runs) == 1:
        columns = min(len(benchmarks), 2)
        rows = -(-len(benchmarks) // columns)
        made = figure(3.25 * columns + 0.5 * (columns == 1), 2.4 * rows + 0.2)
        axes = [made.add_subplot(rows, columns, i + 1) for i in range(len(benchmarks))]
        panel_titles(axes, [title(benchmark) for benchmark in benchmarks])
        panels = {(b, m): axis for b, axis in zip(benchmarks, axes, strict=True) for m in methods}
        looks = {(runs[0], m): (COLOURS[i % len(COLOURS)], label(title(m))) for i, m in enumerate(methods)}
        return _Layout(made, panels, looks)
    present = {(one.benchmark, one.method) for one in series}
    made = figure(max(2.5 * len(benchmarks), 3.75), 2.1 * len(methods) + 0.4)
    panels = {}
    for row, method in enumerate(methods):
        for column, benchmark in enumerate(benchmarks):
            if (benchmark, method) in present:
                axis = made.add_subplot(len(methods), len(benchmarks), row * len(benchmarks) + column + 1)
                panel_titles([axis], [f"{title(benchmark)}, {title(method)}"])
                panels[benchmark, method] = axis
    looks = {(run, m): (COLOURS[i % len(COLOURS)], label(run)) for i, run in enumerate(runs) for m in methods}
    return _Layout(made, panels, looks)


def _curve(
    axis: Axes, series: Series, which: np.ndarray, colour: str, name: str, seed: int, dashes: object = "-"
) -> None:
    mean, low, high = mean_curve(series, which, seed=seed)
    axis.plot(_PERCENT, mean, color=colour, linestyle=dashes, label=name)
    axis.fill_between(_PERCENT, low, high, color=colour, alpha=0.18, linewidth=0)


def mean_teca(series: list[Series], *, seed: int = 0) -> Figure:
    """TECA over length-normalised responses: mean, and the 95% interval of the mean as a band."""
    layout = _layout(series)
    for one in series:
        colour, name = layout.looks[one.run, one.method]
        axis = layout.panels[one.benchmark, one.method]
        _curve(axis, one, np.full(len(one.length), True), colour, name, seed)
    for axis in layout.axes:
        axis.set(xlim=(0, 100), xlabel="position in the response (%)", ylabel="TECA (nats)")
        axis.set_ylim(bottom=0)
    layout.legend()
    return layout.figure


def right_against_wrong(series: list[Series], *, seed: int = 0) -> Figure:
    """As `mean_teca`, right and wrong answers apart, a panel per series.

    A row per (run, method) and a column per benchmark; with one benchmark, the panels fill rows of up to three.
    """
    benchmarks = benchmarks_in_order({one.benchmark for one in series})
    lines = list(dict.fromkeys((one.run, one.method) for one in series))
    rows, columns = len(lines), len(benchmarks)
    if columns == 1:
        columns = min(len(lines), 3)
        rows = -(-len(lines) // columns)
    made = figure(max(2.3 * columns, 3.6), 2.1 * rows + 0.35)
    grid = made.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axis in grid.flat:
        axis.set_visible(False)
    for one in series:
        line = lines.index((one.run, one.method))
        row, column = divmod(line, columns) if len(benchmarks) == 1 else (line, benchmarks.index(one.benchmark))
        axis = grid[row, column]
        axis.set(visible=True, xlim=(0, 100))
        _curve(axis, one, one.correct, RIGHT, "right", seed)
        _curve(axis, one, ~one.correct, WRONG, "wrong", seed, dashes=(0, (5, 2)))
        counts = f"{int(one.correct.sum())} right, {int((~one.correct).sum())} wrong"
        axis.set_title(f"{label(_name_apart(one, series), 36)}\n{counts}", loc="left", size=7.5)
        if column == 0:
            axis.set_ylabel("TECA (nats)")
        if row == rows - 1:
            axis.set_xlabel("position in the response (%)")
    grid[0, 0].set_ylim(bottom=0)
    if len(benchmarks) == 1:
        made.suptitle(label(title(benchmarks[0])), x=0.01, ha="left", size=9, fontweight="bold")
    handles, names = next(axis.get_legend_handles_labels() for axis in grid.flat if axis.lines)
    made.legend(handles, names, loc="outside lower center", ncols=2, handlelength=2.4)
    return made


def _name_apart(one: Series, series: list[Series]) -> str:
    """Benchmark, run and method, as far as the figure holds several of each."""
    parts = {key: len({getattr(other, key) for other in series}) > 1 for key in ("benchmark", "run", "method")}
    shown = [one.run if key == "run" else title(getattr(one, key)) for key, several in parts.items() if several]
    return ", ".join(shown) or title(one.method)


def _bins(values: np.ndarray, *, logarithmic: bool, count: int = 30) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.array([low - 0.5, low + 0.5])
    if logarithmic:
        return np.geomspace(low, high * 1.0001, count + 1)
    return np.linspace(low, high, count + 1)


def histogram(series: list[Series], quantity: str, *, limits: dict[str, int] | None = None) -> Figure:
    """Shares of responses by "length" or by last "teca"; a dashed line marks each mean.

    Lengths that span more than a factor of 30 get a logarithmic axis. Bins are the same for all in a panel. More than
    three series in a panel are drawn one above the other, each on a line of its own, as they would hide each other.

    Args:
        limits: run -> the most tokens a response could have; drawn as a dotted line where responses reach it.
    """
    layout = _layout(series)
    for axis in layout.axes:
        here = [one for one in series if layout.panels[one.benchmark, one.method] is axis]
        data = [one.length[one.length > 0] if quantity == "length" else one.teca[~np.isnan(one.teca)] for one in here]
        pooled = np.concatenate(data)
        unit = "response length (tokens" if quantity == "length" else "TECA at the last token (nats"
        reached = {limits[one.run] for one in here if limits and one.run in limits} if quantity == "length" else set()
        reached &= set(pooled.tolist())
        axis.set_xlabel(f"{unit}; dashed: mean{'; dotted: limit' if reached else ''})")
        if pooled.size == 0:
            axis.text(0.5, 0.5, "no tokens", transform=axis.transAxes, ha="center")
            continue
        logarithmic = quantity == "length" and pooled.max() > 30 * pooled.min()
        edges = _bins(pooled, logarithmic=logarithmic)
        shares = [np.histogram(values, edges)[0] / max(values.size, 1) for values in data]
        apart = 1.1 * max(share.max() for share in shares) if len(here) > 3 else 0.0
        for index, (one, values, share) in enumerate(zip(here, data, shares, strict=True)):
            if values.size == 0:
                continue
            base = apart * (len(here) - 1 - index)  # the first on top
            colour, name = layout.looks[one.run, one.method]
            axis.stairs(base + share, edges, baseline=base, color=colour, linewidth=1.3, label=name)
            axis.stairs(base + share, edges, baseline=base, color=colour, fill=True, alpha=0.15)
            top = base + (apart / 1.1 if apart else 1.05 * max(map(np.max, shares)))
            axis.vlines(values.mean(), base, top, color=colour, linestyle=(0, (4, 2)), linewidth=1)
        for limit in reached:
            axis.axvline(limit, color=NEUTRAL, linestyle=":", linewidth=1)
        if logarithmic:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(lambda tokens, _: f"{tokens:g}")
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
        if apart:
            axis.set_yticks([apart * index for index in range(len(here))], labels=[""] * len(here))
            axis.set_ylabel(f"share (a line: {100 * apart:.0f}%)")
        else:
            axis.set_ylabel("share of responses")
    layout.legend()
    return layout.figure
