"""A picture of one genome: its LIVs from input to output, who shares what with whom, and what each of them costs."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path

from star.cost import costs
from star.genome import Genome, resolve
from star.liv import FAMILIES
from star.report.sharing import FEATURES, WEIGHTS, Link, layer_cache, layer_parameters, n_lanes, sharing_links
from star.report.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, WIDTH, YELLOW, new_figure
from star.report.units import format_bytes, format_count

# All lengths are inches.
HEADER, FOOTER, MARGIN = 1.2, 0.25, 0.12
LANE, BOX, NUMBER = 0.15, 1.25, 0.3
LETTER = 0.058  # width of one letter of a link's label
FAMILY_COLORS = (SKY, GREEN, ORANGE, PURPLE, YELLOW, GREY, "#332288", "#882255")
LINK_COLORS = {WEIGHTS: VERMILION, FEATURES: BLUE}


def genome_diagram(genome: Genome, vocab_size: int = 256, seq_len: int = 4096, name: str = "") -> Figure:
    """One row per LIV: shared featurizer weights on its left, shared features on its right, then parameters and cache.

    Args: vocab_size, seq_len: of the totals and of the cache; name: for the title, by default the genome's id.
    """
    plan = resolve(genome)
    links = sharing_links(plan)
    depth = len(plan.layers)
    ends = _ends(links)
    crowd = max((len(here) for here in ends.values()), default=1)
    row = (0.27 if depth <= 32 else 0.22) + 0.13 * (crowd - 1)
    header = HEADER if links else HEADER - 0.2  # the legend of links has a line of its own
    height = header + depth * row + FOOTER
    figure = new_figure(height, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))

    sides = {kind: _side(links, kind) for kind in (WEIGHTS, FEATURES)}
    left = MARGIN + NUMBER + sides[WEIGHTS][0]  # left edge of the boxes
    bars = left + BOX + sides[FEATURES][0] + 0.2  # left edge of the bars
    _title(
        axes,
        genome,
        name,
        vocab_size,
        seq_len,
        {genome.family(gene).name for gene in genome.canonical().backbone},
        links,
    )
    middles = [header + (index + 0.5) * row for index in range(depth)]
    families = list(FAMILIES)
    for gene, layer, y in zip(genome.canonical().backbone, plan.layers, middles):
        color = FAMILY_COLORS[families.index(genome.family(gene).name) % len(FAMILY_COLORS)]
        shape = FancyBboxPatch(
            (left, y - 0.4 * row),
            BOX,
            0.8 * row,
            boxstyle="round,pad=0,rounding_size=0.05",
            facecolor=color + "66",
            edgecolor=color,
            linewidth=1,
        )
        axes.add_patch(shape)
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
    """Room for the links of one kind: total, for their labels, and for one lane."""
    lanes = n_lanes(links, kind)
    if not lanes:
        return 0.0, 0.0, LANE
    text = (
        LETTER * max(len(_label(groups)) for link in links if link.kind == kind for groups in link.consumers.values())
        + 0.16
    )
    spacing = min(LANE, 1.6 / lanes)
    return text + lanes * spacing, text, spacing


def _label(groups: tuple[str, ...]) -> str:
    return " ".join(groups)


def _ends(links: list[Link]) -> dict[tuple[str, int], list[Link]]:
    """Links that end on one side of one LIV, from top to bottom so that they cross least: consumed ones, inner lane
    first, then owned ones.
    """
    ends: dict[tuple[str, int], list[Link]] = {}
    for link in links:
        for index in (link.owner, *link.consumers):
            ends.setdefault((link.kind, index), []).append(link)
    for (_, index), here in ends.items():
        here.sort(key=lambda link: (1, -link.lane) if link.owner == index else (0, link.lane))
    return ends


def _draw_link(axes: Axes, link: Link, edge: float, lane: float, heights: dict[int, float]) -> None:
    """A rounded bracket: a dot at the owner, an arrowhead at every consumer."""
    color = LINK_COLORS[link.kind]
    top, bottom = heights[link.owner], heights[link.last]
    radius = 0.06 if lane > edge else -0.06
    turn = min(abs(radius), (bottom - top) / 3)
    vertices = [
        (edge, top),
        (lane - radius, top),
        (lane, top),
        (lane, top + turn),
        (lane, bottom - turn),
        (lane, bottom),
        (lane - radius, bottom),
        (edge, bottom),
    ]
    codes = [Path.MOVETO, Path.LINETO, Path.CURVE3, Path.CURVE3, Path.LINETO, Path.CURVE3, Path.CURVE3, Path.LINETO]
    axes.add_patch(PathPatch(Path(vertices, codes), facecolor="none", edgecolor=color, linewidth=1.1, capstyle="round"))
    axes.plot([edge], [top], marker="o", markersize=3.6, color=color, clip_on=False, zorder=5)
    head = "<" if lane > edge else ">"
    for index, groups in link.consumers.items():
        y = heights[index]
        if index != link.last:
            axes.plot([edge, lane], [y, y], color=color, linewidth=1.1, zorder=1)
        tip = edge + (0.035 if lane > edge else -0.035)
        axes.plot([tip], [y], marker=head, markersize=4.2, color=color, zorder=5)
        x = edge + (0.09 if lane > edge else -0.09)
        axes.text(
            x, y - 0.012, _label(groups), fontsize=6.5, color=color, va="bottom", ha="left" if lane > edge else "right"
        )


def _bars(
    axes: Axes, x: float, width: float, row: float, title: str, values: list[int], form, middles: list[float]
) -> None:
    text, top = 0.62, middles[0] - row / 2  # room for the number right of the longest bar
    axes.text(x, top - 0.08, title, fontsize=8, color="#333333", va="bottom")
    axes.plot([x, x], [top, middles[-1] + row / 2], color="#BBBBBB", linewidth=0.8)
    for value, y in zip(values, middles):
        length = (width - text) * value / (max(values) or 1)
        axes.add_patch(Rectangle((x, y - 0.27 * row), length, 0.54 * row, facecolor="#B8C4CE", linewidth=0))
        axes.text(x + length + 0.05, y, form(value) if value else "–", fontsize=7.5, va="center", color="#222222")


def _title(
    axes: Axes, genome: Genome, name: str, vocab_size: int, seq_len: int, families: set[str], links: list[Link]
) -> None:
    total = costs(genome, vocab_size, seq_len)
    axes.text(MARGIN, 0.2, name or f"genome {genome.id}", fontsize=10.5, fontweight="bold", va="center")
    facts = (
        f"{genome.depth} LIVs, width {genome.d_model}: {format_count(total.parameters)} parameters with "
        f"embedding, {format_bytes(total.cache_bytes)} cache"
    )
    axes.text(MARGIN, 0.4, facts, fontsize=8.5, va="center", color="#333333")
    x = MARGIN
    for index, family in enumerate(FAMILIES):
        if family in families:
            color = FAMILY_COLORS[index % len(FAMILY_COLORS)]
            axes.add_patch(Rectangle((x, 0.57), 0.14, 0.1, facecolor=color + "66", edgecolor=color, linewidth=1))
            x = _legend_text(axes, x + 0.2, 0.62, family)
    x = MARGIN
    for kind, text in ((WEIGHTS, "same featurizer weights"), (FEATURES, "same computed features")):
        if any(link.kind == kind for link in links):
            axes.plot([x, x + 0.22], [0.83, 0.83], color=LINK_COLORS[kind], linewidth=1.3)
            axes.plot([x], [0.83], marker="o", markersize=3.6, color=LINK_COLORS[kind])
            x = _legend_text(axes, x + 0.3, 0.83, text)


def _legend_text(axes: Axes, x: float, y: float, words: str) -> float:
    """Write an entry of the legend; returns where the next one begins."""
    text = axes.text(x, y, words, fontsize=8, va="center")
    return x + text.get_window_extent().width / axes.figure.dpi + 0.22
