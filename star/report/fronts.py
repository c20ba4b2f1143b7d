"""The Pareto front, two objectives at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from star.assess import Objective
from star.report.labels import place_labels
from star.report.style import BLUE, FAINT, VERMILION, axis_label, new_figure, say_nothing_trained, scale_axis
from star.report.units import baseline_name, error_bar

if TYPE_CHECKING:
    from star.run import Candidate, Run

Point = tuple[float, float]


def pareto_fronts(run: Run) -> Figure:
    """One panel for each pair of objectives: all trained candidates, the front, the knee and the baselines. Bars are
    95 % intervals: from the noise between seeds after star rescore, of the evaluation alone before.

    The step line of a panel joins the points that are non-dominated in its two objectives: of all candidates with one
    seed each, or, once there are fresh seeds, of the front with these. Members of the front off the line are
    non-dominated because of the other objectives.
    """
    candidates = [c for c in run.candidates() if c.objectives]
    baselines = [c for c in candidates if c.origin == "baseline"]
    evolved = [c for c in candidates if c.origin != "baseline"]
    front = run.front()
    if run.rescored:
        baselines = [run.as_measured(c) for c in baselines]
    knee = run.knee() if front else None
    pairs = _pairs(run.objectives)
    rows = -(-len(pairs) // 2)
    figure = new_figure(height=3.1 * rows)
    grid = figure.subplots(rows, 2, squeeze=False).flatten()
    for axes, pair in zip(grid, pairs):
        _panel(axes, pair, evolved, front, knee, baselines, run.rescored)
    handles, labels = grid[0].get_legend_handles_labels()
    if len(grid) > len(pairs):
        grid[-1].set_axis_off()
        place = {"loc": "center left", "bbox_to_anchor": (0.05, 0.5), "labelspacing": 0.9, "borderaxespad": 0}
        grid[-1].legend(handles, labels, **place)
    else:
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    for axes, pair in zip(grid, pairs):  # last, because labels are placed in the final layout
        names = [(*_at(c, pair), baseline_name(run, c)) for c in baselines]
        place_labels(axes, names, [_at(c, pair) for c in evolved] + _along(axes))
    return figure


def _pairs(objectives: Sequence[Objective]) -> list[tuple[Objective, Objective]]:
    """(x, y) of every panel. The first objective, quality, is on the y axis of all its panels."""
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
    rescored: bool,
) -> None:
    def scatter(candidates: list[Candidate], size: float, **look: Any) -> None:
        x, y = _columns([_at(c, pair) for c in candidates])
        axes.scatter(x, y, size, **look)

    def bars(candidates: list[Candidate], color: str, **look: Any) -> None:
        x, y = _columns([_at(c, pair) for c in candidates])
        lengths: dict[str, Any] = {}
        for key, o in zip(("xerr", "yerr"), pair, strict=True):
            if not o.cheap:
                lengths[key] = np.array([error_bar(c.measured[o.name]) for c in candidates]).reshape(-1, 2).T
        if lengths:
            axes.errorbar(x, y, **lengths, fmt="none", ecolor=color, elinewidth=0.8, alpha=0.5, zorder=3, **look)

    axes.set_xlabel(axis_label(pair[0]))
    axes.set_ylabel(axis_label(pair[1]))
    with_bars = front + baselines
    if not evolved + with_bars:
        say_nothing_trained(axes)
        return
    for name, o in zip("xy", pair):
        values = [c.values[o.name] for c in evolved + with_bars]
        bars_of = [(c.values[o.name], error_bar(c.measured[o.name])) for c in with_bars if not o.cheap]
        scale_axis(axes, name, o, [*values, *(v - e[0] for v, e in bars_of), *(v + e[1] for v, e in bars_of)])
    members = {c.id for c in front}
    rest = evolved if rescored else [c for c in evolved if c.id not in members]
    label = "one seed each, in the search" if rescored else "dominated"
    scatter(rest, 16, color=FAINT, zorder=2, label=f"{label} ({len(rest)})")
    stairs = attainment([_at(c, pair) for c in (front if rescored else evolved)])
    if stairs:
        line = _columns([(stairs[0][0], axes.get_ylim()[1]), *stairs, (axes.get_xlim()[1], stairs[-1][1])])
        look: dict[str, Any] = {"drawstyle": "steps-post", "color": BLUE, "linewidth": 1.4, "alpha": 0.75, "zorder": 3}
        axes.plot(*line, label="best found in these two objectives", **look)
    known = all(m.low is not None for c in front for m in c.measured.values())
    foreseen = any(o.name == "bpb_horizon" for o in pair)
    source = "between seeds" if known else "of the prediction" if foreseen else "of the evaluation alone"
    bars(front, BLUE, label=f"95 % interval, {source}")
    label = f"Pareto front{', fresh seeds' * rescored} ({len(front)})"
    scatter(front, 30, color=BLUE, edgecolor="white", linewidth=0.6, zorder=4, label=label)
    if baselines:
        look = {"marker": "D", "color": "white", "edgecolor": "#222222", "linewidth": 1.2, "zorder": 4}
        bars(baselines, "#222222")
        scatter(baselines, 38, label="baseline, same recipe", **look)
    if knee is not None:
        look = {"marker": "*", "color": VERMILION, "edgecolor": "white", "linewidth": 0.7, "zorder": 5}
        scatter([knee], 150, label="knee of the front", **look)


def attainment(points: Sequence[Point]) -> list[Point]:
    """The non-dominated points, sorted by x: the corners of the step line."""
    corners: list[Point] = []
    for x, y in sorted(set(points)):
        if not corners or y < corners[-1][1]:
            corners.append((x, y))
    return corners


def _along(axes: Axes) -> list[Point]:
    """Points along the step line, which labels should not cover."""
    points = []
    for line in axes.lines:
        corners = _stairs(np.asarray(line.get_xydata()))
        for start, end in itertools.pairwise(axes.transData.transform(corners)):
            points += [start + (end - start) * n / 12 for n in range(12)]
    return [(x, y) for x, y in axes.transData.inverted().transform(points)] if points else []


def _stairs(corners: np.ndarray) -> np.ndarray:
    """All corners [2 n - 1, 2] of the "steps-post" line through the points [n, 2]."""
    return np.repeat(corners, 2, axis=0)[1:] * [1, 0] + np.repeat(corners, 2, axis=0)[:-1] * [0, 1]


def _at(candidate: Candidate, pair: tuple[Objective, Objective]) -> Point:
    return candidate.values[pair[0].name], candidate.values[pair[1].name]


def _columns(points: Sequence[Point]) -> np.ndarray:
    return np.array(points, dtype=float).reshape(-1, 2).T
