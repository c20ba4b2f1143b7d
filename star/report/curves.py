"""Learning curves of every candidate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from star.report.style import GREY, VERMILION, new_figure
from star.report.units import format_count

if TYPE_CHECKING:
    from star.run import Run

NGRAMS = {"unigram": (0, (4, 2)), "bigram": (0, (1, 1.5))}  # line styles
DASHES = ("-.", (0, (6, 2)), (0, (3, 1, 1, 1, 1, 1)), "-")  # of baselines


def learning_curves(run: Run) -> Figure:
    """Validation loss over training tokens, coloured by generation, with counting models of the same text for scale."""
    figure = new_figure(height=4.2)
    axes = figure.subplots()
    axes.set_xlabel("training tokens (bytes)")
    axes.set_ylabel("validation loss (nats/byte)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    candidates = run.candidates()
    curves = {c.id: [p for p in run.curve(c.id) if p.get("val_loss") is not None] for c in candidates}
    shown = [c for c in candidates if curves[c.id]]
    references = run.status()["baselines"]
    if not shown:
        axes.text(0.5, 0.5, "nothing trained yet", transform=axes.transAxes, ha="center", color=GREY)
        return figure
    colors = generation_colors(max(c.generation for c in candidates if c.origin != "baseline") + 1)
    baselines = [c for c in shown if c.origin == "baseline"]
    ends = []
    for c in shown:
        x, y = ([p[key] for p in curves[c.id]] for key in ("tokens", "val_loss"))
        ends.append(y[-1])
        if c.origin == "baseline":
            axes.plot(x, y, color="black", linewidth=1.3, linestyle=DASHES[baselines.index(c) % len(DASHES)], zorder=4)
        else:
            axes.plot(x, y, color=colors(c.generation), linewidth=1.1, alpha=0.85, zorder=2 + c.generation / 1000)
        if c.status == "ok":
            axes.plot(
                x[-1:],
                y[-1:],
                marker="o",
                markersize=2.5,
                color="black" if c.origin == "baseline" else colors(c.generation),
                zorder=4,
            )
        else:
            axes.plot(x[-1:], y[-1:], marker="x", markersize=6, color=VERMILION, zorder=5)
    _limits(axes, [p["val_loss"] for points in curves.values() for p in points], ends, references)
    _references(axes, references)
    handles = (
        [Line2D([], [], color=colors(n), linewidth=1.6, label=_generation(n)) for n in range(colors.N)]
        if colors.N <= 8
        else []
    )
    handles += [
        Line2D([], [], color="black", linestyle=DASHES[n % len(DASHES)], linewidth=1.3, label=c.name)
        for n, c in enumerate(baselines)
    ]
    if any(c.status != "ok" for c in shown):
        handles.append(Line2D([], [], color=VERMILION, linestyle="", marker="x", label="stopped early"))
    if colors.N > 8:
        norm = BoundaryNorm([n - 0.5 for n in range(colors.N + 1)], colors.N)
        bar = figure.colorbar(ScalarMappable(norm, colors), ax=axes, pad=0.02, label="generation")
        bar.ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        bar.ax.minorticks_off()
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def generation_colors(n: int) -> ListedColormap:
    """Dark to light in even steps of viridis, without its faint yellow end."""
    return ListedColormap([matplotlib.colormaps["viridis"](0.88 * k / max(n - 1, 1)) for k in range(n)])


def _generation(n: int) -> str:
    return "initial" if n == 0 else f"generation {n}"


def _limits(axes, losses: list[float], ends: list[float], references: dict[str, float]) -> None:
    """Room for everything that says something: a loss far above the unigram level is off the scale."""
    top = 1.1 * max([*references.values(), *ends]) if references else max(losses)
    low = min([*losses, *references.values()])
    axes.set_ylim(low - 0.06 * (top - low), min(top, 1.1 * max([*losses, *references.values()]) - 0.1 * low))
    axes.set_xlim(left=0)


def _references(axes, references: dict[str, float]) -> None:
    for name, loss in references.items():
        axes.axhline(loss, color="#444444", linewidth=1.1, linestyle=NGRAMS.get(name, "--"), zorder=1)
        axes.annotate(
            f"byte {name} {loss:.2f}",
            (0, loss),
            xycoords=axes.get_yaxis_transform(),
            xytext=(4, 2.5),
            textcoords="offset points",
            ha="left",
            va="bottom",
            fontsize=8,
            color="#444444",
            zorder=6,
        )
