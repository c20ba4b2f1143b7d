"""Names beside points, without overlap: each goes to the free place nearest to its point, with a leader line if that is
far.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

NEAR, RINGS = 8.0, (8.0, 16.0, 26.0, 38.0, 52.0)  # points from the marker to the label
DIRECTIONS = [2 * math.pi * n / 12 for n in (0, 1, 11, 3, 9, 2, 10, 5, 7, 4, 8, 6)]  # right first


def place_labels(
    axes: Axes,
    points: Sequence[tuple[float, float, str]],
    obstacles: Sequence[tuple[float, float]],
    color: str = "#222222",
    size: float = 8.0,
) -> None:
    """Write the names of `points` (x, y, name). Call it when the limits of the axes are final.

    obstacles: other points (x, y) that no label should cover.
    """
    figure = axes.figure
    figure.draw_without_rendering()  # so that the layout and the transforms are those of the final picture
    renderer = figure.canvas.get_renderer()
    scale = figure.dpi / 72
    frame = axes.get_window_extent(renderer)
    markers = [_square(axes.transData.transform(xy), 4 * scale) for xy in [*obstacles, *((x, y) for x, y, _ in points)]]
    taken: list[Bbox] = []
    for x, y, name in points:
        text = axes.annotate(
            name, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=size, color=color, zorder=6
        )
        extent = text.get_window_extent(renderer)
        width, height = extent.width / scale, extent.height / scale
        best, best_cost = None, math.inf
        for ring, angle in itertools.product(RINGS, DIRECTIONS):
            dx = ring * math.cos(angle) + (width / 2 + 1) * (math.cos(angle) - 1)
            dy = ring * math.sin(angle) + (height / 2) * (math.sin(angle) - 1) + height * 0.12
            box = Bbox.from_bounds(extent.x0 + dx * scale, extent.y0 + dy * scale, extent.width, extent.height)
            cost = ring / 100 + _outside(box, frame) + 3 * sum(_overlap(box, other) for other in taken)
            cost += sum(_overlap(box, other) for other in markers)
            if cost < best_cost:
                best, best_cost, best_box, best_ring = (dx, dy), cost, box, ring
        text.set_position(best)
        taken.append(best_box)
        if best_ring > NEAR:
            near = (min(max(0, best[0]), best[0] + width), min(max(0, best[1]), best[1] + height))
            axes.annotate(
                "",
                (x, y),
                xytext=near,
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3},
                zorder=5,
            )


def _square(center, half: float) -> Bbox:
    return Bbox.from_extents(center[0] - half, center[1] - half, center[0] + half, center[1] + half)


def _overlap(a: Bbox, b: Bbox) -> float:
    """Shared area as a share of the smaller box."""
    width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
    if width <= 0 or height <= 0:
        return 0.0
    return 0.2 + width * height / max(min(a.width * a.height, b.width * b.height), 1e-9)


def _outside(box: Bbox, frame: Bbox) -> float:
    """Share of the box that lies outside the frame, times ten."""
    width = max(0.0, min(box.x1, frame.x1) - max(box.x0, frame.x0))
    height = max(0.0, min(box.y1, frame.y1) - max(box.y0, frame.y0))
    return 10 * (1 - width * height / (box.width * box.height))
