"""What a ladder found, as a table, as sentences and as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from star.evidence.order import HOLDS, Ladder, Rung
from star.genome import layout_name
from star.report.listing import Column, Listing
from star.report.style import BLUE, ORANGE, new_figure
from star.report.units import format_count, plural

if TYPE_CHECKING:
    from star.run import Run

ORIGINS = {"baseline": "baseline", "random": "random"}  # all others were proposed by the search


def rung_name(run: Run, rung: Rung) -> str:
    """ "655 K tokens", or "twice the width" for another width."""
    tokens, width = rung
    text = f"{format_count(round(tokens * run.config.training.tokens))} tokens"
    return text if width == 1 else f"{text}, {width:g} x the width"


def ladder_table(run: Run) -> Listing:
    """One row for each genome, best at the largest budget first: its values and places at all rungs."""
    ladder = Ladder(run)
    quality = ladder.quality
    listing = Listing(
        Column("genome"),
        *(
            Column(f"{quality.name if rung == (1.0, 1.0) else 'bpb'}, {rung_name(run, rung)}\n(place)", right=True)
            for rung in ladder.rungs
        ),
        Column("of"),
    )
    places = {
        rung: {id: k for k, id in enumerate(sorted(values, key=values.__getitem__), 1)}
        for rung, values in ladder.values.items()
    }
    names = {c.id: layout_name(c.name) for c in run.candidates("baseline") if c.name}
    last: Rung = (ladder.budgets[-1], 1.0) if ladder.budgets else (1.0, 1.0)
    order = ladder.values.get(last, {})
    for id in sorted(ladder.genomes, key=lambda id: (id not in order, order.get(id, 0.0), id)):
        cells = [
            f"{ladder.values[rung][id]:.3f} ({places[rung][id]})" if id in ladder.values[rung] else ""
            for rung in ladder.rungs
        ]
        kind = names.get(id) or ORIGINS.get(ladder.origins[id]) or ("front" if id in ladder.front else "dominated")
        listing.add(id, *cells, kind)
    return listing


def ladder_lines(run: Run) -> list[str]:
    """Whether the order holds, at which budget it does, and which kinds of operator gain or lose."""
    ladder = Ladder(run)
    if len(ladder.rungs) < 2:
        return [f"{run.path} has no ladder yet: star ladder {run.path} measures whether its order holds"]
    lines = []
    for row in ladder.correlations():
        where = rung_name(run, (row["tokens"], row["width"]))
        lines.append(
            f"order of the search ({rung_name(run, (1.0, 1.0))}) against {where}: rank correlation {_spearman(row)} of "
            f"{plural(row['n'], 'genome')}; {_spearman(row['front'])} of the front and the baselines alone "
            f"({row['front']['n']})"
            + (f"; {_spearman(row['measured'])} by what was measured at the budget" if row["measured"] else "")
        )
    top, smallest = ladder.budgets[-1], ladder.smallest()
    if top > 1:
        what = (
            f"no budget below it has an order that holds there (rank correlation at least {HOLDS})"
            if smallest is None
            else f"the smallest budget whose order holds there (rank correlation at least {HOLDS}) is "
            f"{rung_name(run, (smallest, 1.0))}"
        )
        lines.append(f"at {rung_name(run, (top, 1.0))}: {what}")
    if found := ladder.families():
        gains = ", ".join(f"{r['family']} {r['gain']:+.0f} [{r['low']:+.0f}, {r['high']:+.0f}]" for r in found)
        lines.append(f"places that a genome of one kind of operator alone gains with the largest budget: {gains}")
    return lines


def ladder_figure(run: Run) -> Figure:
    """Place of every genome at each rung, joined by lines; the front and the baselines in colour."""
    ladder = Ladder(run)
    figure = new_figure(height=4.6)
    axes = figure.subplots()
    rungs = [(tokens, 1.0) for tokens in ladder.budgets] + [rung for rung in ladder.rungs if rung[1] != 1]
    ids = [id for id in ladder.genomes if all(id in ladder.values[rung] for rung in rungs)]
    places = {
        rung: {id: k for k, id in enumerate(sorted(ids, key=ladder.values[rung].__getitem__), 1)} for rung in rungs
    }
    names = {c.id: layout_name(c.name) for c in run.candidates("baseline") if c.name}
    for id in ids:
        baseline, front = ladder.origins[id] == "baseline", id in ladder.front
        color = ORANGE if baseline else BLUE if front else "0.75"
        style: dict = {"color": color, "linewidth": 1.8 if front else 1.0, "zorder": 3 if front else 2}
        axes.plot(range(len(rungs)), [places[rung][id] for rung in rungs], marker="o", markersize=3.5, **style)
        if front:
            text = names.get(id, id[:6])
            axes.annotate(
                text,
                (len(rungs) - 1, places[rungs[-1]][id]),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
                color=color,
            )
    axes.set_xticks(range(len(rungs)), [rung_name(run, rung).replace(", ", "\n") for rung in rungs])
    axes.set_xlim(-0.2, len(rungs) - 1 + 0.6)
    axes.set_ylabel(f"place by {ladder.quality.name}, best first")
    axes.invert_yaxis()
    handles = [
        axes.plot([], [], color=color, marker="o", markersize=3.5, label=label)[0]
        for color, label in ((BLUE, "front"), (ORANGE, "baseline"), ("0.75", "dominated or random"))
    ]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, fontsize=7, frameon=False)
    return figure


def _spearman(row: dict) -> str:
    if row["spearman"] is None:
        return "unknown"
    return f"{row['spearman']:.2f} [{row['spearman_low']:.2f}, {row['spearman_high']:.2f}]"
