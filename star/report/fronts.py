"""The Pareto front, two objectives at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from star.assess import Objective
from star.report.labels import place_labels
from star.report.style import BLUE, FAINT, GREY, VERMILION, axis_label, new_figure, scale_axis

if TYPE_CHECKING:
    from star.run import Candidate, Run

Point = tuple[float, float]


def pareto_fronts(run: Run) -> Figure:
    """One panel for each pair of objectives: all trained candidates, the front, the knee and the baselines.

    The step line of a panel joins what is best in its two objectives alone; other members of the front are best in
    the objectives that the panel does not show.
    """
    candidates = [c for c in run.candidates() if c.objectives]
    baselines = [c for c in candidates if c.origin == "baseline"]
    evolved = [c for c in candidates if c.origin != "baseline"]
    front = run.front()
    knee = run.knee() if front else None
    pairs = _pairs(run.objectives)
    rows = -(-len(pairs) // 2)
    figure = new_figure(height=3.1 * rows)
    grid = figure.subplots(rows, 2, squeeze=False).flatten()
    for axes, pair in zip(grid, pairs):
        _panel(axes, pair, evolved, front, knee, baselines)
    handles, labels = grid[0].get_legend_handles_labels()
    if len(grid) > len(pairs):
        grid[-1].set_axis_off()
        grid[-1].legend(
            handles, labels, loc="center left", bbox_to_anchor=(0.05, 0.5), labelspacing=0.9, borderaxespad=0
        )
    else:
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    for axes, pair in zip(grid, pairs):
        _name_baselines(axes, pair, evolved, baselines)
    return figure


def _pairs(objectives: Sequence[Objective]) -> list[tuple[Objective, Objective]]:
    """(x, y) of every panel. The first objective, quality, stands on the y axis wherever it takes part."""
    if len(objectives) == 1:
        return [(objectives[0], objectives[0])]
    return [(b, a) for a, b in itertools.combinations(objectives, 2)]


def _panel(
    axes: Axes,
    pair: tuple[Objective, Objective],
    evolved: list[Candidate],
    front: list[Candidate],
    knee: Candidate | None,
    baselines: list[Candidate],
) -> None:
    x, y = pair
    members = {c.id for c in front}
    rest = [_at(c, pair) for c in evolved if c.id not in members]
    best = [_at(c, pair) for c in front]
    everything = [_at(c, pair) for c in evolved + baselines]
    axes.set_xlabel(axis_label(x))
    axes.set_ylabel(axis_label(y))
    if not everything:
        axes.text(0.5, 0.5, "nothing trained yet", transform=axes.transAxes, ha="center", color=GREY)
        return
    scale_axis(axes, "x", x, [p[0] for p in everything])
    scale_axis(axes, "y", y, [p[1] for p in everything])
    stairs = attainment([_at(c, pair) for c in evolved])
    axes.scatter(*_columns(rest), s=16, color=FAINT, zorder=2, label=f"dominated ({len(rest)})")
    if stairs:
        line = [(stairs[0][0], axes.get_ylim()[1]), *stairs, (axes.get_xlim()[1], stairs[-1][1])]
        axes.plot(
            *_columns(line),
            drawstyle="steps-post",
            color=BLUE,
            linewidth=1.4,
            alpha=0.75,
            zorder=3,
            label="best found in these two objectives",
        )
    axes.scatter(
        *_columns(best),
        s=30,
        color=BLUE,
        edgecolor="white",
        linewidth=0.6,
        zorder=4,
        label=f"Pareto front ({len(best)})",
    )
    if baselines:
        marks = [_at(c, pair) for c in baselines]
        axes.scatter(
            *_columns(marks),
            s=38,
            marker="D",
            color="white",
            edgecolor="#222222",
            linewidth=1.2,
            zorder=4,
            label="baseline, same recipe",
        )
    if knee is not None:
        axes.scatter(
            *_columns([_at(knee, pair)]),
            s=150,
            marker="*",
            color=VERMILION,
            edgecolor="white",
            linewidth=0.7,
            zorder=5,
            label="knee of the front",
        )


def _name_baselines(
    axes: Axes, pair: tuple[Objective, Objective], evolved: list[Candidate], baselines: list[Candidate]
) -> None:
    names = [(*_at(c, pair), c.name or c.id[:6]) for c in baselines]
    place_labels(axes, names, [_at(c, pair) for c in evolved] + _along(axes))


def attainment(points: Sequence[Point]) -> list[Point]:
    """The points that no other is at least as good as in both, by x: the corners of the step line."""
    corners: list[Point] = []
    for x, y in sorted(set(points)):
        if not corners or y < corners[-1][1]:
            corners.append((x, y))
    return corners


def _along(axes: Axes) -> list[Point]:
    """Points of the step line, for labels to keep off."""
    points = []
    for line in axes.lines:
        for corners in itertools.pairwise(axes.transData.transform(_stairs(line.get_xydata()))):
            points += [start + (end - start) * n / 12 for (start, end) in [corners] for n in range(12)]
    return [tuple(point) for point in axes.transData.inverted().transform(points)] if points else []


def _stairs(corners: np.ndarray) -> np.ndarray:
    """The corners of a "steps-post" line with the inner ones too."""
    return np.repeat(corners, 2, axis=0)[1:] * [1, 0] + np.repeat(corners, 2, axis=0)[:-1] * [0, 1]


def _at(candidate: Candidate, pair: tuple[Objective, Objective]) -> Point:
    return candidate.objectives[pair[0].name], candidate.objectives[pair[1].name]


def _columns(points: Sequence[Point]) -> np.ndarray:
    return np.array(points, dtype=float).reshape(-1, 2).T
