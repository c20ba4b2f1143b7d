"""Names beside points without overlap. Each goes to the nearest free place, with a leader line if that is far."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
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
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # fixes the layout and the transforms
    scale = figure.dpi / 72
    frame = axes.get_window_extent()
    markers = [_square(axes.transData.transform(xy), 4 * scale) for xy in [*obstacles, *((x, y) for x, y, _ in points)]]
    taken: list[Bbox] = []
    for x, y, name in points:
        text = axes.annotate(
            name, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=size, color=color, zorder=6
        )
        extent = text.get_window_extent()
        width, height = extent.width / scale, extent.height / scale
        places = []
        for ring, angle in itertools.product(RINGS, DIRECTIONS):
            dx = ring * math.cos(angle) + (width / 2 + 1) * (math.cos(angle) - 1)
            dy = ring * math.sin(angle) + (height / 2) * (math.sin(angle) - 1) + height * 0.12
            box = extent.translated(dx * scale, dy * scale)
            cost = ring / 100 + _outside(box, frame) + 3 * sum(_overlap(box, other) for other in taken)
            places.append((cost + sum(_overlap(box, other) for other in markers), ring, dx, dy, box))
        _, ring, dx, dy, box = min(places, key=lambda place: place[0])
        text.set_position((dx, dy))
        taken.append(box)
        if ring > NEAR:
            axes.annotate(
                "",
                (x, y),
                xytext=(min(max(0, dx), dx + width), min(max(0, dy), dy + height)),
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3},
                zorder=5,
            )


def _square(center: np.ndarray, half: float) -> Bbox:
    return Bbox.from_extents(center[0] - half, center[1] - half, center[0] + half, center[1] + half)


def _shared_area(a: Bbox, b: Bbox) -> float:
    both = Bbox.intersection(a, b)
    return 0.0 if both is None else both.width * both.height


def _overlap(a: Bbox, b: Bbox) -> float:
    """Shared area as a share of the smaller box, plus 0.2 for any overlap at all."""
    area = _shared_area(a, b)
    return 0.2 + area / max(min(a.width * a.height, b.width * b.height), 1e-9) if area > 0 else 0.0


def _outside(box: Bbox, frame: Bbox) -> float:
    """Share of the box that lies outside the frame, times ten."""
    return 10 * (1 - _shared_area(box, frame) / (box.width * box.height))
