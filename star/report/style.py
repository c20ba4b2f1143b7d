"""The look of all plots: colours that colour-blind readers can tell apart, numbers with units, and image files.

Figures are 8 inches wide: legible at the 800 pixels that a README gives them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from star.assess import Objective
from star.errors import UserError
from star.report.units import format_value

WIDTH = 8.0  # inches
DPI = 200  # of PNG files

# Okabe and Ito, "Color universal design" (2008).
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
GREY, FAINT, NGRAM_GREY = "#8C8C8C", "#C9CDD2", "#444444"

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so pictures are the same on every machine
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E8E8E8",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "star",  # equal figures make equal files
}


def new_figure(height: float, constrained: bool = True) -> Figure:
    """An empty figure without a window; height in inches. constrained: matplotlib lays out the axes."""
    matplotlib.rcParams.update(RC)
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)  # keeps one renderer for measuring text, instead of a new one each time
    if constrained:
        figure.set_layout_engine("constrained", w_pad=0.07, h_pad=0.07, wspace=0.03, hspace=0.03)
    return figure


def say_nothing_trained(axes: Axes) -> None:
    """The text of a plot that has no data yet."""
    axes.text(0.5, 0.5, "nothing trained yet", transform=axes.transAxes, ha="center", color=GREY)


UNDATED = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}  # equal figures make equal files


def save_figure(figure: Figure, stem: Path, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Write STEM.png and STEM.svg, or other formats (also pdf)."""
    return [save_one(figure, stem.with_name(f"{stem.name}.{kind}")) for kind in formats]


def save_one(figure: Figure, path: Path) -> Path:
    """Write a figure to a PNG, SVG or PDF file. Raises UserError for any other suffix."""
    kind = path.suffix.lower()
    if kind not in (".png", ".svg", ".pdf"):
        raise UserError(f"{path}: the picture must be a .png, .svg or .pdf file; change the suffix")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, facecolor="white", metadata=UNDATED.get(kind))
    return path


def axis_label(objective: Objective) -> str:
    """Name and unit of an objective."""
    return f"{objective.doc.removesuffix(' after training')} ({objective.unit})"


def scale_axis(axes: Axes, which: str, objective: Objective, values: list[float]) -> None:
    """Set limits, scale and a few legible ticks of axis "x" or "y", which shows `values`; zero stays visible."""
    axis = getattr(axes, f"{which}axis")
    low, high = min(values), max(values)
    if not objective.log_scale:
        margin = 0.07 * (high - low) or 0.05 * abs(high) or 1.0
        getattr(axes, f"set_{which}lim")(low - margin, high + margin)
        axis.set_major_locator(MaxNLocator(5))
        return
    least = min((value for value in values if value > 0), default=1.0)
    most = max(high, least)
    base = 2 if objective.unit == "bytes" else 10
    margin = (most / least) ** 0.08 if most > least else 1.2
    if low <= 0:
        getattr(axes, f"set_{which}scale")("symlog", linthresh=least, base=base, linscale=0.5)
        bottom = -0.25 * least
    else:
        getattr(axes, f"set_{which}scale")("log", base=base)
        bottom = least / margin
    gap = 0.19 if which == "x" else 0.1
    ticks = log_ticks(least / margin, most * margin, base, gap)
    if low <= 0:  # zero has a label too, half a power of the base below the least positive value
        ticks = [t for t in ticks if math.log(t / least) + 0.5 * math.log(base) >= 0.5 * gap * math.log(most / least)]
    axis.set_major_locator(FixedLocator(([0.0] if low <= 0 else []) + ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_value(objective, value)))
    getattr(axes, f"set_{which}lim")(bottom, most * margin)


def log_ticks(low: float, high: float, base: int, gap: float) -> list[float]:
    """Round numbers from low to high, as many as fit with `gap` (a share of the axis) between neighbours."""
    dense: list[list[float]]  # multiples of the powers of the base, the densest first
    if base == 2:
        dense = [[1 + n / 8 for n in range(8)], [1, 1.25, 1.5, 1.75], [1, 1.5], [1]]
    else:
        dense = [[1 + 0.1 * n for n in range(90)], [1 + 0.5 * n for n in range(18)], [*range(1, 10)]]
        dense += [[1, 1.5, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]]
    powers = range(math.floor(math.log(low, base)), math.ceil(math.log(high, base)) + 1)
    room = gap * math.log(high / low)
    choices = [
        [round(m * base**p, 12) for p in powers for m in multiples if low <= m * base**p <= high] for multiples in dense
    ]
    apart = [ticks for ticks in choices if all(math.log(b / a) >= room for a, b in itertools.pairwise(ticks))]
    return max(apart, key=len) if apart else choices[-1][:: max(1, math.ceil(room / math.log(base)))]
