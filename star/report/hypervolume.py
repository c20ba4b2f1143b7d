"""Hypervolume of the front over the search."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from star.report.style import BLUE, GREEN, VERMILION, new_figure, say_nothing_trained

if TYPE_CHECKING:
    from star.run import Run


def hypervolume(run: Run) -> Figure:
    """Hypervolume of all candidates so far, one seed each, by generation; the level that the initial population
    reached; and that of the front with fresh seeds, once star rescore has measured it.
    """
    points = run.hypervolume()
    figure = new_figure(height=3.6)
    axes = figure.subplots()
    axes.set_xlabel("candidates trained")
    axes.set_ylabel("hypervolume, one seed each\n(1 = initial best in every objective)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not points:
        say_nothing_trained(axes)
        return figure
    x = [p["evaluations"] for p in points]
    y = [p["hypervolume"] for p in points]
    axes.grid(axis="x", visible=False)
    axes.set_xlim(0, max(x) * 1.02)
    again = run.hypervolume_of(run.front()) if run.rescored else None
    axes.set_ylim(0, max(*y, again or 0.0, 1e-9) * 1.17)
    ends = {p["generation"]: p["evaluations"] for p in points}  # evaluations at the end of each generation
    spans = list(itertools.pairwise([0, *ends.values()]))
    room = min(end - start for start, end in spans) / axes.get_xlim()[1] > 0.055  # for a label on every generation
    small: dict[str, Any] = {"fontsize": 8, "color": "#555555"}
    for count, (generation, (start, end)) in enumerate(zip(ends, spans)):
        axes.axvspan(start, end, color="#EEF2F6" if count % 2 else "white", zorder=0, linewidth=0)
        if room or count % 5 == 0:
            name = "initial" if generation == 0 and room else str(generation)
            place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "top"}
            axes.text((start + end) / 2, 0.985, name, **place, **small)
    axes.text(0, 1.02, "generation", transform=axes.transAxes, **small)
    initial = max((p["hypervolume"] for p in points if p["generation"] == 0), default=y[0])
    look: dict[str, Any] = {"color": VERMILION, "linewidth": 1.1, "linestyle": (0, (5, 3)), "zorder": 2}
    axes.axhline(initial, label=f"initial population: {initial:.3f}", **look)
    look = {"drawstyle": "steps-post", "color": BLUE, "linewidth": 1.8, "zorder": 3}
    axes.plot([0, *x], [0, *y], label=f"front so far: {y[-1]:.3f}", **look)
    if again is not None:
        look = {"color": GREEN, "marker": "D", "linestyle": "", "markersize": 5, "zorder": 4, "clip_on": False}
        axes.plot(x[-1:], [again], label=f"front with fresh seeds: {again:.3f}", **look)
    # Above the axes, because a front may reach any corner.
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, ncols=3)
    return figure
