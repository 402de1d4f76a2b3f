"""How figures look and are saved: fonts that come with matplotlib, colours that colour-blind readers can tell apart.

In: figures. Out: files. The style is a context manager, and pyplot is not used: no global state changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator
from PIL import Image

FORMATS = ("png", "svg", "pdf")
# Okabe & Ito's palette without its yellow, which is too light for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
RIGHT, WRONG, NEUTRAL = "#0072B2", "#D55E00", "#7F7F7F"

_STYLE = {
    "font.family": "DejaVu Sans",  # part of matplotlib
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "legend.fontsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
    "text.parse_math": False,  # names come from outside and may hold a $
    "pdf.fonttype": 42,  # TrueType, so that text stays text
    "svg.fonttype": "path",  # glyphs as outlines: no font is asked of the reader
    "svg.hashsalt": "trainer.plots",
    "figure.constrained_layout.use": True,
}
_NO_DATES = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's settings for the figures here, and the caller's again afterwards."""
    with matplotlib.rc_context(_STYLE):
        yield


def figure(width: float, height: float) -> Figure:
    """A figure of that size in inches, on the Agg canvas."""
    made = Figure(figsize=(width, height))
    FigureCanvasAgg(made)
    return made


def save(made: Figure, directory: Path, name: str, formats: tuple[str, ...]) -> list[Path]:
    """Write the figure in every format; the same figure gives the same bytes."""
    made.draw_without_rendering()  # the layout is worked out once, not once per format
    made.set_layout_engine("none")
    paths = []
    for extension in formats:
        path = directory / f"{name}.{extension}"
        made.savefig(path, dpi=150, metadata=_NO_DATES[extension])
        if extension == "png":  # 256 colours are enough for lines and bands, and a third of the bytes
            with Image.open(path) as drawn:
                drawn.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
        paths.append(path)
    return paths


def label(text: str, limit: int = 40) -> str:
    """A name from outside as it may stand in a figure: one line, not too long, with glyphs that the font has."""
    font = get_font(findfont(FontProperties(family="DejaVu Sans")))
    shown = "".join(
        c if c.isprintable() and font.get_char_index(ord(c)) else c.encode("unicode_escape").decode() for c in text
    )
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def panel_titles(axes, titles: list[str]) -> None:
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(label(title, 60), loc="left", fontweight="bold")


def whole_steps(axis: Axes) -> None:
    """Ticks at whole numbers: there is no step or token 2.5."""
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins="auto"))


def legend_below(made: Figure, axes: Iterable[Axes]) -> None:
    """One legend of all that the axes name, below the figure, in as many columns as its width holds."""
    found = {}
    for axis in axes:
        found |= {text: handle for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    if not found:
        return
    entry_inches = 0.065 * max(len(text) for text in found) + 0.6  # DejaVu Sans at the legend's 7.5 points
    columns = max(1, min(len(found), int(made.get_figwidth() / entry_inches)))
    made.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns)
