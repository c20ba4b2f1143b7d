"""How much of the objective space the front covers, over the search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from star.report.style import BLUE, GREY, VERMILION, new_figure

if TYPE_CHECKING:
    from star.run import Run


def hypervolume(run: Run) -> Figure:
    """Hypervolume of all candidates so far over trained candidates, with generations and the level of the initial
    population.
    """
    points = run.hypervolume()
    figure = new_figure(height=3.6)
    axes = figure.subplots()
    axes.set_xlabel("candidates trained")
    axes.set_ylabel("hypervolume\n(1 = the initial bests combined)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not points:
        axes.text(0.5, 0.5, "nothing trained yet", transform=axes.transAxes, ha="center", color=GREY)
        return figure
    x = [p["evaluations"] for p in points]
    y = [p["hypervolume"] for p in points]
    axes.grid(axis="x", visible=False)
    axes.set_xlim(0, max(x) * 1.02)
    axes.set_ylim(0, max(max(y), 1e-9) * 1.17)
    last = {p["generation"]: p["evaluations"] for p in points}  # evaluations at the end of each generation
    start = 0
    widths = [end - begin for begin, end in zip([0, *last.values()], last.values())]
    room = min(widths) / axes.get_xlim()[1] > 0.055  # for a label on every generation
    for count, (generation, end) in enumerate(last.items()):
        axes.axvspan(start, end, color="#EEF2F6" if count % 2 else "white", zorder=0, linewidth=0)
        if room or count % 5 == 0:
            name = "initial" if generation == 0 and room else str(generation)
            axes.text(
                (start + end) / 2,
                0.985,
                name,
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="top",
                fontsize=8,
                color="#555555",
            )
        start = end
    axes.text(0, 1.02, "generation", transform=axes.transAxes, fontsize=8, color="#555555")
    initial = max((p["hypervolume"] for p in points if p["generation"] == 0), default=y[0])
    axes.axhline(
        initial,
        color=VERMILION,
        linewidth=1.1,
        linestyle=(0, (5, 3)),
        zorder=2,
        label=f"initial population: {initial:.3f}",
    )
    axes.plot(
        [0, *x],
        [0, *y],
        drawstyle="steps-post",
        color=BLUE,
        linewidth=1.8,
        zorder=3,
        label=f"front so far: {y[-1]:.3f}",
    )
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, ncols=2
    )  # above: a front may reach any corner
    return figure
