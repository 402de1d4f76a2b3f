"""python -m bench.plots FILE [FILE ...] --output DIR: JSON of the benchmarks in, figures (PNG) out.

Of each FILE, which `pytest bench --benchmark-json=FILE` or bench.gpu.prove wrote:

    FILE-time-OPERATION.png     time of every variant per case, with the physical limit of the same run as a line
    FILE-share.png              share of the physical limit that each operation reaches, where work and not the fixed
                                cost of a call decides
    FILE-memory-OPERATION.png   peak memory of every variant per case, where it was measured
    FILE-entropy-error.png      largest relative entropy error of every variant, where it was measured
    FILE-steps.png              one GRPO step beside TRL: memory and time, where whole steps were timed

    share = seconds that the limit's rate needs for the same work / seconds of ours

All bars are drawn by one function from panels; a panel is made from records (bench/records.py).
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.records import Record, Results, Variant, read

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    from trainer.plotting.style import COLOURS, NEUTRAL, figure, label, save, style
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"bench.plots: {str(missing.name).partition('.')[0]} is not installed: pip install '.[train]'",
        name=missing.name,
    ) from missing

OURS, ALSO_OURS, LIMIT = COLOURS[0], COLOURS[5], COLOURS[1]
ENTROPY_BOUND = 1e-5  # the relative error that the package promises
# Panels side by side; bars and marks in one figure at most, and bars with long names: a file stays below 150 KB.
COLUMNS, ROWS, LONG_ROWS = 2, 60, 24


@dataclass(frozen=True)
class Bar:
    name: str
    value: float | None  # None: nothing to draw, the text says why
    text: str
    colour: str
    spread: tuple[float, float] | None = None


@dataclass(frozen=True)
class Mark:
    """A vertical line, and what stands beside it."""

    value: float
    text: str
    dashes: str = "--"


@dataclass(frozen=True)
class Panel:
    title: str
    bars: list[Bar]
    marks: list[Mark] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return len(self.bars) + len(self.marks)


# Numbers as text ------------------------------------------------------------------------------------------------------
Text = Callable[[float], str]


def seconds_text(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def bytes_text(size: float) -> str:
    for unit, unit_size in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= unit_size:
            return f"{size / unit_size:.3g} {unit}"
    return f"{size / 2**10:.3g} KiB"


def rate_text(per_second: float, unit: str) -> str:
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if per_second >= size and not (unit == "B" and prefix == "T"):
            return f"{per_second / size:.3g} {prefix}{unit}/s"
    return f"{per_second:.3g} {unit}/s"


# Records to panels ----------------------------------------------------------------------------------------------------
def colour_of(variant: Variant, record: Record) -> str:
    if variant is record.ours:
        return OURS
    return ALSO_OURS if variant.name.startswith("cer_ext") else NEUTRAL


def time_panel(record: Record) -> Panel:
    """Every variant with its time and how many times ours it is; the limit, and the limit times the GEMMs needed."""
    mine, bars = record.ours.seconds, []
    for variant in record.variants:
        text = f"failed: {label(variant.failure or 'no time', 34)}"
        if variant.seconds is not None:
            text = seconds_text(variant.seconds)
            if variant is not record.ours and mine is not None:
                text += f", {variant.seconds / mine:.3g}x ours"
        bars.append(Bar(variant.name, variant.seconds, text, colour_of(variant, record), variant.spread_s))
    marks, limit = [], record.limit
    if limit is not None:
        ratio = "" if mine is None else f"; ours {mine / limit.seconds:.2f}x"
        marks.append(Mark(limit.seconds, f"{limit.name} {seconds_text(limit.seconds)}{ratio}"))
        if limit.times not in (None, 1.0):
            ratio = "" if mine is None else f"; ours {mine / limit.needed_s:.2f}x"
            text = f"{limit.times:g} times that {seconds_text(limit.needed_s)}{ratio}"
            marks.append(Mark(limit.needed_s, text, ":"))
    heading = record.case or record.operation
    if record.head_ratio is not None:
        heading += f" (head alone: {record.head_ratio:.2f}x as fast as TRL)"
    return Panel(heading, bars, marks)


def measured_panel(title: str, record: Record, value_of: Callable[[Variant], float | None], text_of: Text) -> Panel:
    """A bar for each variant that has the value; its text alone where a logarithm cannot show it (0, NaN)."""
    bars = []
    for variant in record.variants:
        value = value_of(variant)
        if value is not None:
            drawn = value if math.isfinite(value) and value > 0 else None
            bars.append(Bar(variant.name, drawn, text_of(value), colour_of(variant, record)))
    return Panel(title, bars)


def memory_panels(records: list[Record]) -> list[Panel]:
    measured = [record for record in records if any(variant.peak_bytes is not None for variant in record.variants)]
    return [measured_panel(record.case, record, lambda v: v.peak_bytes, bytes_text) for record in measured]


def error_panels(records: tuple[Record, ...]) -> list[Panel]:
    """Once for the operations that share one measurement: those of a case with the same errors."""
    found: dict[tuple, Record] = {}
    for record in records:
        errors = {v.name: v.entropy_error for v in record.peers if v.entropy_error is not None}
        if record.ours.entropy_error is not None:
            found.setdefault((record.case, record.ours.entropy_error, *errors), record)
    bound = [Mark(ENTROPY_BOUND, "promised: 1e-5 at most")]
    made = []
    for record in found.values():
        panel = measured_panel(f"{record.operation}, {record.case}", record, lambda v: v.entropy_error, "{:.1e}".format)
        made.append(Panel(panel.title, panel.bars, bound))
    return made


def fixed_cost_decides(records: tuple[Record, ...]) -> list[Record]:
    """Records in which the limit itself ran at less than half the best rate that the same limit reached in this file.

    A limit is the same by its name and the type of the numbers. What little work such a record has is over before its
    limit is up to speed: a share of that limit says nothing of the operation.
    """
    best: dict[tuple[str, str], float] = {}
    rates = []
    for record in records:
        if record.share is not None and record.work:
            dtype = next(iter(re.findall(r"float\d+|bfloat\d+", record.case)), "")
            key, rate = (record.limit.name, dtype), record.work / record.limit.needed_s
            best[key] = max(best.get(key, 0.0), rate)
            rates.append((record, key, rate))
    return [record for record, key, rate in rates if rate < best[key] / 2]


def share_panels(records: tuple[Record, ...]) -> list[Panel]:
    bars, left_out = [], fixed_cost_decides(records)
    for record in records:
        if record.share is None or record in left_out:
            continue
        text = f"{record.share:.0%}"
        if record.work:
            ours, limit = record.work / record.ours.seconds, record.work / record.limit.needed_s
            text += f"  {rate_text(ours, record.unit)} of {rate_text(limit, record.unit)}"
        name = ", ".join(filter(None, (record.operation, record.case)))
        bars.append(Bar(name, record.share, text, OURS))
    marks = [Mark(1.0, "limit of the same run")]
    parts = [bars[start : start + LONG_ROWS] for start in range(0, len(bars), LONG_ROWS)]
    return [Panel("Share of the physical limit reached", part, marks) for part in parts]


def step_panels(records: tuple[Record, ...]) -> list[Panel]:
    """Memory and time of whole GRPO steps, cer_ext and TRL side by side."""
    memory, time = [], []
    for record in records:
        for variant in record.variants if record.operation.startswith("one GRPO step") else ():
            who = "CERTrainer" if variant is record.ours else variant.name
            name = f"{record.case.replace('-', ', ').replace('lora', 'LoRA')}: {who}"
            colour = colour_of(variant, record)
            if variant.peak_bytes is not None:
                memory.append(Bar(name, variant.peak_bytes / 2**20, f"{variant.peak_bytes / 2**20:.0f} MiB", colour))
            if variant.seconds is not None:
                time.append(Bar(name, variant.seconds, seconds_text(variant.seconds), colour))
    panels = (Panel("Memory added at the peak (MiB)", memory), Panel("Time of a step (s)", time))
    return [panel for panel in panels if panel.bars]


# Panels to figures ----------------------------------------------------------------------------------------------------
def draw_panel(axis: Axes, panel: Panel, tick: Text, *, log: bool, base: int = 10) -> None:
    """Bars from the top down, their texts beside them, and below them a line of text for every mark."""
    values = [bar.value for bar in panel.bars if bar.value is not None] + [mark.value for mark in panel.marks]
    low, high = min(values, default=1.0), max(values, default=1.0)
    if log:  # room for the text behind the longest bar
        low = low / 2
        axis.set_xscale("log", base=base)
        axis.set_xlim(low, high * (2 * high / low) ** 0.75)
        axis.xaxis.set_major_locator(LogLocator(base=base, numticks=6))
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        low = 0.0
        axis.set_xlim(low, 1.9 * high)
    axis.xaxis.set_major_formatter(lambda value, _: tick(value))

    def write(text: str, end: float, row: int, **options) -> None:
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        options |= {"textcoords": "offset points", "va": "center", "size": 7, "bbox": box}
        axis.annotate(text, (end, row), (4, 0), **options)

    for row, bar in enumerate(panel.bars):
        end = low
        if bar.value is not None:
            axis.barh(row, bar.value - low, left=low, height=0.72, color=bar.colour)
            end = bar.value
            if bar.spread is not None:
                axis.plot(bar.spread, (row, row), color="black", linewidth=0.8)
                end = max(end, bar.spread[1])
        write(bar.text, end, row, weight="bold" if bar.colour == OURS and log else "normal")
    for row, mark in enumerate(panel.marks, start=len(panel.bars)):
        axis.axvline(mark.value, color=LIMIT, linestyle=mark.dashes, linewidth=1)
        write(mark.text, mark.value, row, color=LIMIT)
    axis.set_yticks(range(len(panel.bars)), [label(bar.name, 110) for bar in panel.bars], size=7.5)
    axis.set_ylim(panel.rows - 0.4, -0.6)
    axis.grid(visible=False, axis="y")
    axis.set_title(label(panel.title, 80), loc="left", fontweight="bold")


def bars_figure(title: str, where: str, panels: list[Panel], tick: Text, *, log: bool = True, base: int = 10) -> Figure:
    """The panels in columns under a title that names machine and versions."""
    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    tallest = max(panel.rows for panel in panels)
    width = 4.9 * columns if columns > 1 else 9.8
    made = figure(width, lines * (0.19 * tallest + 0.7) + 0.6)
    made.set_dpi(150)  # as it is saved: widths of text, and so the layout, depend on it
    made.suptitle(f"{title}\n" + textwrap.fill(where, int(15 * width)), size=9)
    for number, panel in enumerate(panels, start=1):
        draw_panel(made.add_subplot(lines, columns, number), panel, tick, log=log, base=base)
    return made


def figures(results: Results) -> dict[str, Figure]:
    """Every figure that the file has numbers for, by the name of its file."""
    made: dict[str, Figure] = {}

    def add(
        name: str, title: str, panels: list[Panel], tick: Text, *, rows: int = ROWS, log: bool = True, base: int = 10
    ) -> None:
        name = f"{results.name}-{re.sub(r'[^A-Za-z0-9_]+', '-', name).strip('-')}"
        many = max(1, rows // max((panel.rows for panel in panels), default=1))
        for start in range(0, len(panels), many):
            part = f"-{start // many + 1}" if start else ""
            shown = panels[start : start + many]
            made[name + part] = bars_figure(title, results.where, shown, tick, log=log, base=base)

    for operation, records in results.operations().items():
        medians = f"{operation}: medians of interleaved rounds"
        add(f"time-{operation}", medians, [time_panel(record) for record in records], seconds_text)
        add(f"memory-{operation}", f"{operation}: memory added at the peak", memory_panels(records), bytes_text, base=2)
    shares = share_panels(results.records)
    title = "cer_ext beside the limits of the machine"
    if small := fixed_cost_decides(results.records):
        title += f" (left out: {len(small)} small cases, where the fixed cost of a call decides)"
    add("share", title, shares, "{:.0%}".format, rows=1, log=False)
    add(
        "entropy-error", "Entropy: largest relative error against float64", error_panels(results.records), "{:g}".format
    )
    steps = step_panels(results.records)
    add("steps", "One GRPO step, CERTrainer beside TRL's trainer", steps, "{:g}".format, log=False)
    return made


def main(arguments: list[str] | None = None) -> int | str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSON of pytest bench or bench.gpu.prove")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the figures go")
    args = parser.parse_args(arguments)
    try:
        for path in write([read(path) for path in args.files], args.output):
            print(path)
    except (ValueError, OSError) as error:
        return f"bench.plots: {error}"
    return 0


def write(files: list[Results], output: Path) -> list[Path]:
    """All figures, drawn elsewhere first: each is whole under its name, or as it was."""
    names = [results.name for results in files]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two files are called {', '.join(sorted(twice))}: their figures would have the same names")
    output.mkdir(parents=True, exist_ok=True)
    with style(), TemporaryDirectory(prefix=".plots-", dir=output) as temporary:
        drawn = [
            path
            for results in files
            for name, made in figures(results).items()
            for path in save(made, Path(temporary), name, ("png",))
        ]
        return [path.replace(output / path.name) for path in drawn]


if __name__ == "__main__":
    sys.exit(main())
