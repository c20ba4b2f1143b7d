"""Learning curves of all candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from star.report.style import NGRAM_GREY, VERMILION, new_figure, say_nothing_trained
from star.report.units import baseline_name, error_bar, format_count

if TYPE_CHECKING:
    from star.run import Candidate, Run

NGRAMS: dict[str, Any] = {"unigram": (0, (4, 2)), "bigram": (0, (1, 1.5))}  # line styles
DASHES: tuple[Any, ...] = ("-.", (0, (6, 2)), (0, (3, 1, 1, 1, 1, 1)), "-")  # of baselines
MOST_LEGEND = 8  # generations; more are shown as a colour bar


def learning_curves(run: Run) -> Figure:
    """Validation loss over training tokens, one seed each, coloured by generation, with n-gram baselines of the same
    text. Bars at the ends are 95 % intervals: from the noise between seeds if star rescore has measured it, otherwise
    of the evaluation alone.
    """
    figure = new_figure(height=4.2)
    axes = figure.subplots()
    axes.set_xlabel("training tokens (bytes)" if run.token == "byte" else "training tokens")
    axes.set_ylabel("validation loss (bits/byte)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    candidates = run.candidates()
    curves = {c.id: [p for p in run.curve(c.id) if p.get("val_loss") is not None] for c in candidates}
    shown = [c for c in candidates if curves[c.id]]
    if not shown:
        say_nothing_trained(axes)
        return figure
    colors = generation_colors(max(c.generation for c in candidates if c.origin != "baseline") + 1)
    baselines = {c.id: DASHES[n % len(DASHES)] for n, c in enumerate(c for c in shown if c.origin == "baseline")}

    def look(c: Candidate) -> dict[str, Any]:
        if c.id in baselines:
            return {"color": "black", "linestyle": baselines[c.id], "linewidth": 1.3, "zorder": 4}
        return {"color": colors(c.generation), "linewidth": 1.1, "alpha": 0.85, "zorder": 2 + c.generation / 1000}

    for c in shown:
        x, y = [p["tokens"] for p in curves[c.id]], [p["val_loss"] * run.bits_per_nat for p in curves[c.id]]
        axes.plot(x, y, **look(c))
        if c.status == "ok":
            end = {"marker": "o", "markersize": 2.5, "color": look(c)["color"], "zorder": 4, "elinewidth": 0.4}
            name = next((name for name in ("bpb", "loss") if name in c.measured), None)
            unit = run.bits_per_nat if name == "loss" else 1.0
            error = [unit * end for end in error_bar(c.measured[name])] if name else (0.0, 0.0)
            axes.errorbar(x[-1:], y[-1:], yerr=[[error[0]], [error[1]]], **end)
        else:
            axes.plot(x[-1], y[-1], marker="x", markersize=6, color=VERMILION, zorder=5)
    references = run.references
    bpb = [[p["val_loss"] * run.bits_per_nat for p in curves[c.id]] for c in shown]
    _limits(axes, [value for curve in bpb for value in curve], [curve[-1] for curve in bpb], references)
    _references(axes, references)
    handles = []
    if colors.N <= MOST_LEGEND:
        names = ["initial", *(f"generation {n}" for n in range(1, colors.N))]
        handles += [Line2D([], [], color=colors(n), linewidth=1.6, label=name) for n, name in enumerate(names)]
    else:
        norm = BoundaryNorm([n - 0.5 for n in range(colors.N + 1)], colors.N)
        bar = figure.colorbar(ScalarMappable(norm, colors), ax=axes, pad=0.02, label="generation")
        bar.ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        bar.ax.minorticks_off()
    handles += [Line2D([], [], label=baseline_name(run, c), **look(c)) for c in shown if c.id in baselines]
    if any(c.status != "ok" for c in shown):
        handles.append(Line2D([], [], color=VERMILION, linestyle="", marker="x", label="stopped early"))
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def generation_colors(n: int) -> ListedColormap:
    """Dark to light in even steps of viridis, without its faint yellow end."""
    return ListedColormap([matplotlib.colormaps["viridis"](0.88 * k / max(n - 1, 1)) for k in range(n)])


def _limits(axes: Axes, losses: list[float], ends: list[float], references: dict[str, float]) -> None:
    """Show every final loss and every reference; losses far above the unigram baseline are cut off."""
    top = 1.1 * max([*references.values(), *ends]) if references else max(losses)
    low = min([*losses, *references.values()])
    axes.set_ylim(low - 0.06 * (top - low), min(top, 1.1 * max([*losses, *references.values()]) - 0.1 * low))
    axes.set_xlim(left=0)


def _references(axes: Axes, references: dict[str, float]) -> None:
    place: dict[str, Any] = {"xytext": (4, 2.5), "textcoords": "offset points", "ha": "left", "va": "bottom"}
    for name, loss in references.items():
        axes.axhline(loss, color=NGRAM_GREY, linewidth=1.1, linestyle=NGRAMS.get(name, "--"), zorder=1)
        where = axes.get_yaxis_transform()
        text = f"byte {name} {loss:.2f}"
        axes.annotate(text, (0, loss), xycoords=where, fontsize=8, color=NGRAM_GREY, zorder=6, **place)
