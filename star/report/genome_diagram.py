"""A picture of one genome: its LIVs from input to output, what they share, and what each of them costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path

from star.cost import costs
from star.genome import Genome, resolve
from star.liv import FAMILIES
from star.report.sharing import FEATURES, WEIGHTS, Link, layer_cache, layer_parameters, n_lanes, sharing_links
from star.report.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, WIDTH, YELLOW, new_figure
from star.report.units import format_bytes, format_count, plural

# All lengths are inches.
HEADER, FOOTER, MARGIN = 1.2, 0.25, 0.12
LANE, BOX, NUMBER = 0.15, 1.25, 0.3
LETTER = 0.058  # width of one letter of a link's label
FAMILY_COLORS = (SKY, GREEN, ORANGE, PURPLE, YELLOW, GREY, "#332288", "#882255")
LINK_COLORS = {WEIGHTS: VERMILION, FEATURES: BLUE}


def genome_diagram(genome: Genome, vocab_size: int = 256, seq_len: int = 4096, name: str = "") -> Figure:
    """One row per LIV: shared featurizer weights on its left, shared features on its right, then parameters and cache.

    Args: vocab_size, seq_len (tokens): for the totals and the cache; name: the title, by default the genome's id.
    """
    plan = resolve(genome)
    links = sharing_links(plan)
    depth = len(plan.layers)
    ends = _ends(links)
    crowd = max((len(here) for here in ends.values()), default=1)
    row = (0.27 if depth <= 32 else 0.22) + 0.13 * (crowd - 1)
    header = HEADER if links else HEADER - 0.2  # the legend of links has a line of its own
    height = header + depth * row + FOOTER
    figure = new_figure(height, constrained=False)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))

    sides = {kind: _side(links, kind) for kind in (WEIGHTS, FEATURES)}
    left = MARGIN + NUMBER + sides[WEIGHTS][0]  # left edge of the boxes
    bars = left + BOX + sides[FEATURES][0] + 0.2  # left edge of the bars
    _title(axes, genome, name, vocab_size, seq_len, links)
    middles = [header + (index + 0.5) * row for index in range(depth)]
    colors = _family_colors(genome)
    for gene, layer, y in zip(genome.canonical().backbone, plan.layers, middles):
        color = colors[genome.family(gene).name]
        look: dict[str, Any] = {"facecolor": color + "66", "edgecolor": color, "linewidth": 1}
        style = "round,pad=0,rounding_size=0.05"
        axes.add_patch(FancyBboxPatch((left, y - 0.4 * row), BOX, 0.8 * row, boxstyle=style, **look))
        axes.text(left + BOX / 2, y, layer.name, ha="center", va="center", fontsize=8.5)
        axes.text(MARGIN + NUMBER - 0.08, y, str(layer.index + 1), ha="right", va="center", fontsize=8, color="#555555")
    for link in links:
        edge, direction = (left, -1) if link.kind == WEIGHTS else (left + BOX, 1)
        _, text_width, spacing = sides[link.kind]
        lane = edge + direction * (text_width + (link.lane + 0.5) * spacing)
        heights = {}
        for index in (link.owner, *link.consumers):
            here = ends[link.kind, index]
            heights[index] = middles[index] + 0.65 * row * ((here.index(link) + 0.5) / len(here) - 0.5)
        _draw_link(axes, link, edge, lane, heights)
    half = (WIDTH - MARGIN - bars) / 2
    columns = (
        ("parameters", [layer_parameters(layer) for layer in plan.layers], format_count),
        (f"cache at {seq_len:,} tokens", [layer_cache(layer, seq_len) for layer in plan.layers], format_bytes),
    )
    for n, (title, values, form) in enumerate(columns):
        _bars(axes, bars + n * half, half - 0.1, row, title, values, form, middles)
    return figure


def _side(links: list[Link], kind: str) -> tuple[float, float, float]:
    """Widths for the links of one kind: in total, of their labels, and of one lane."""
    lanes = n_lanes(links, kind)
    if not lanes:
        return 0.0, 0.0, LANE
    labels = [_label(groups) for link in links if link.kind == kind for groups in link.consumers.values()]
    text = LETTER * max(map(len, labels)) + 0.16
    spacing = min(LANE, 1.6 / lanes)
    return text + lanes * spacing, text, spacing


def _label(groups: tuple[str, ...]) -> str:
    return " ".join(groups)


def _ends(links: list[Link]) -> dict[tuple[str, int], list[Link]]:
    """Links that end on one side of one LIV, from top to bottom in the order with the fewest crossings."""
    ends: dict[tuple[str, int], list[Link]] = {}
    for link in links:
        for index in (link.owner, *link.consumers):
            ends.setdefault((link.kind, index), []).append(link)
    for (_, index), here in ends.items():
        # Consumed links first, the inner lane on top; then owned ones.
        here.sort(key=lambda link: (1, -link.lane) if link.owner == index else (0, link.lane))
    return ends


def _draw_link(axes: Axes, link: Link, edge: float, lane: float, heights: dict[int, float]) -> None:
    """A rounded bracket: a dot at the owner, an arrowhead at every consumer."""
    color = LINK_COLORS[link.kind]
    top, bottom = heights[link.owner], heights[link.last]
    outward = 1 if lane > edge else -1
    near, turn = lane - 0.06 * outward, min(0.06, (bottom - top) / 3)
    upper = [(edge, top), (near, top), (lane, top), (lane, top + turn)]
    vertices = [*upper, (lane, bottom - turn), (lane, bottom), (near, bottom), (edge, bottom)]
    codes = [Path.MOVETO, Path.LINETO, Path.CURVE3, Path.CURVE3, Path.LINETO, Path.CURVE3, Path.CURVE3, Path.LINETO]
    axes.add_patch(PathPatch(Path(vertices, codes), facecolor="none", edgecolor=color, linewidth=1.1, capstyle="round"))
    axes.plot([edge], [top], marker="o", markersize=3.6, color=color, clip_on=False, zorder=5)
    head, side = ("<", "left") if outward == 1 else (">", "right")
    for index, groups in link.consumers.items():
        y = heights[index]
        if index != link.last:
            axes.plot([edge, lane], [y, y], color=color, linewidth=1.1, zorder=1)
        axes.plot([edge + 0.035 * outward], [y], marker=head, markersize=4.2, color=color, zorder=5)
        axes.text(edge + 0.09 * outward, y - 0.012, _label(groups), fontsize=6.5, color=color, va="bottom", ha=side)


def _bars(
    axes: Axes,
    x: float,
    width: float,
    row: float,
    title: str,
    values: list[int],
    form: Callable[[float], str],
    middles: list[float],
) -> None:
    text, top = 0.62, middles[0] - row / 2  # room for the number right of the longest bar
    axes.text(x, top - 0.08, title, fontsize=8, color="#333333", va="bottom")
    axes.plot([x, x], [top, middles[-1] + row / 2], color="#BBBBBB", linewidth=0.8)
    for value, y in zip(values, middles):
        length = (width - text) * value / (max(values) or 1)
        axes.add_patch(Rectangle((x, y - 0.27 * row), length, 0.54 * row, facecolor="#B8C4CE", linewidth=0))
        axes.text(x + length + 0.05, y, form(value) if value else "–", fontsize=7.5, va="center", color="#222222")


def _family_colors(genome: Genome) -> dict[str, str]:
    """Colours of the families that occur, in the order of `FAMILIES`."""
    used = {genome.family(gene).name for gene in genome.canonical().backbone}
    return {family: FAMILY_COLORS[n % len(FAMILY_COLORS)] for n, family in enumerate(FAMILIES) if family in used}


def _title(axes: Axes, genome: Genome, name: str, vocab_size: int, seq_len: int, links: list[Link]) -> None:
    total = costs(genome, vocab_size, seq_len)
    axes.text(MARGIN, 0.2, name or f"genome {genome.id}", fontsize=10.5, fontweight="bold", va="center")
    size = f"{plural(genome.depth, 'LIV')}, width {genome.d_model}"
    count = f"{format_count(total.parameters)} parameters with embedding"
    facts = f"{size}: {count}, {format_bytes(total.cache_bytes)} cache"
    axes.text(MARGIN, 0.4, facts, fontsize=8.5, va="center", color="#333333")
    x = MARGIN
    for family, color in _family_colors(genome).items():
        axes.add_patch(Rectangle((x, 0.57), 0.14, 0.1, facecolor=color + "66", edgecolor=color, linewidth=1))
        x = _legend_text(axes, x + 0.2, 0.62, family)
    x = MARGIN
    for kind, text in ((WEIGHTS, "shared featurizer weights"), (FEATURES, "shared features")):
        if any(link.kind == kind for link in links):
            axes.plot([x, x + 0.22], [0.83, 0.83], color=LINK_COLORS[kind], linewidth=1.3)
            axes.plot([x], [0.83], marker="o", markersize=3.6, color=LINK_COLORS[kind])
            x = _legend_text(axes, x + 0.3, 0.83, text)


def _legend_text(axes: Axes, x: float, y: float, words: str) -> float:
    """Write an entry of the legend; returns the x of the next one."""
    text = axes.text(x, y, words, fontsize=8, va="center")
    return x + text.get_window_extent().width / axes.figure.dpi + 0.22
