"""One self-contained, interactive HTML page about a run, drawn by Plotly, which is part of the page: no network needed.

What the page shows is made here and in `page_charts.py`; what it does is in `page.js`, how it looks in `page.css`.
"""

from __future__ import annotations

import base64
import functools
import io
import itertools
import json
import operator
from collections.abc import Callable, Iterable, Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from matplotlib.figure import Figure
from plotly.offline import get_plotlyjs

from star.config import describe
from star.evidence.comparison import Comparison
from star.refined import Refined
from star.report import page_charts as charts
from star.report.capability_report import capability_lines, capability_table, part_tables
from star.report.evidence_report import evidence_figure, evidence_lines, evidence_tables
from star.report.ladder_report import ladder_lines, ladder_table
from star.report.listing import Column, Listing
from star.report.page_data import PageData
from star.report.refinement import REFINEMENT_PLOTS, refinement_lines, refinement_table
from star.report.tables import (
    front_table,
    operator_table,
    rescore_rows,
    rescore_table,
    status_lines,
    summary_lines,
)
from star.report.units import format_count, format_objective, format_seconds, plural

if TYPE_CHECKING:
    from star.run import Candidate, Run

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
MOST_IDS = 12  # of failed candidates that are named in one row


def write_page(run: Run, path: Path, refresh: float | None = None) -> Path:
    """Write the page, also of a run that has not finished. refresh: seconds after which a browser loads it again."""
    data = PageData(run)
    figures = Figures()
    sections = [section for section in _sections(run, data, figures) if section is not None]
    links = "".join(f'<a href="#{section.id}">{section.title}</a>' for section in sections)
    title = escape(str(run.path))
    facts = data.json() | {
        "charts": figures.found,
        "layout": charts.LAYOUT,
        "parallel": charts.parallel_axes(data),
        "refresh": refresh,
    }
    # No text of a run can end the script element.
    text = json.dumps(facts, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    here = Path(__file__).parent
    parts = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{(here / 'page.css').read_text(encoding='utf-8')}</style></head><body>",
        f"<header><h1>{title}</h1>{_tiles(run, data)}</header><nav>{links}</nav><main>",
        *(section.html for section in sections),
        f'</main><script type="application/json" id="data">{text}</script>',
        f"<script>{get_plotlyjs()}</script>",
        f"<script>{(here / 'page.js').read_text(encoding='utf-8')}</script></body></html>\n",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts), encoding="utf-8", errors="replace")
    return path


class Figures:
    """The charts of the page by the id of their element."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def add(self, name: str, figure: go.Figure | None) -> str:
        """The element of a chart; nothing without a figure."""
        if figure is None:
            return ""
        self.found[name] = json.loads(figure.to_json())
        return f'<div class="chart" id="{name}" style="min-height:{figure.layout.height}px"></div>'


class Section:
    """A part of the page with a heading and a link to it. caption: what its charts show, in a sentence."""

    def __init__(self, title: str, caption: str, *parts: str):
        self.title, self.id = title, title.lower().replace(" ", "-")
        lead = f'<p class="caption">{caption}</p>' if caption else ""
        self.html = f'<section id="{self.id}"><h2>{title}</h2>{lead}{"".join(parts)}</section>'


def _sections(run: Run, data: PageData, figures: Figures) -> Iterator[Section | None]:
    """In the order in which a reader needs them."""
    yield _front(run, data)
    yield _selected(data)
    yield _members(run)
    yield _progress(run, data, figures)
    if any(c.objectives for c in data.candidates):
        yield Section(
            "Trade-offs",
            "Every line is a candidate: blue on the front, black a baseline. Drag a box over an axis to pick some, and "
            "with Shift over further axes; they are ringed in the fronts above and listed below.",
            '<div class="chart" id="parallel"></div>',
            '<p class="note"><span id="picked"></span> <button id="unpick" hidden>Clear</button></p>',
            '<div id="picked-table" class="scroll"></div>',
        )
    if data.candidates:
        yield _architectures(run, data, figures)
    yield _certainty(run, data, figures)
    yield _capabilities(run)
    for refined in run.refinements():
        yield _refinement(refined)
    yield _failures(run)
    yield Section("Status and configuration", "", _lines(status_lines(run)), _configuration(run))


def _tiles(run: Run, data: PageData) -> str:
    """The run in numbers."""
    status, volumes = run.status(), run.hypervolume()
    done = f"{status['done']} of {status['total']}"
    state = "finished" if status["finished"] else "running" if status["active"] else "stopped"
    tiles = [("state", state), ("candidates", done), ("on the front", str(len(run.front())))]
    first = [row["hypervolume"] for row in volumes if row["generation"] == 0]
    if first and first[-1] > 0:
        tiles.append(("hypervolume", f"{volumes[-1]['hypervolume'] / first[-1]:.2f} x initial"))
    if volumes:
        tiles.append(("time", format_seconds(volumes[-1]["seconds"])))
    tiles += [("tokens each", format_count(run.config.training.tokens)), ("text", str(status["corpus"]))]
    tiles += [("failed", str(status["failed"]))] if status["failed"] else []
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles)
    return f'<dl class="tiles">{cells}</dl>'


def _front(run: Run, data: PageData) -> Section:
    front = run.front()
    if not any(c.objectives for c in data.candidates):
        bounds = any(c.status == "infeasible" for c in data.candidates)
        why = "every candidate so far breaks a bound of the run" if bounds else "no candidate has finished training"
        return Section("The front", "", f'<p class="empty">There is no front yet: {why}.</p>')
    cards = ""
    if front:
        best, knee = run.best(), run.knee()
        quality = escape(run.objectives[0].name)
        cards = _card(run, data, best, "Best", f"the lowest {quality}: to use, or to train for longer")
        if knee.id != best.id:
            cards += _card(run, data, knee, "Knee", "the member nearest to the best of every objective")
    else:
        cards = '<p class="empty">No candidate of the search has finished yet; only baselines are shown.</p>'
    names = [o.name for o in run.objectives]
    pairs = [(b, a) for a, b in itertools.combinations(range(len(names)), 2)] or [(-1, 0)]
    panels = "".join(
        f'<div class="chart panel" id="front-{n}" data-axes="{x},{y}"></div>' for n, (x, y) in enumerate(pairs)
    )
    if len(names) > 2:
        panels += '<div class="chart panel" id="front-3d" data-axes="1,2,0"></div>'
    slider = (
        '<div class="slider"><label for="generation">after generation</label>'
        f'<input id="generation" type="range" min="0" max="{data.last}" value="{data.last}">'
        '<output id="generation-name" for="generation"></output></div>'
    )
    return Section(
        "The front",
        "Each point is a trained architecture. Click one to see it below; drag the slider to see the search proceed.",
        f'<div class="cards">{cards}</div>{slider}<div class="panels">{panels}</div>',
    )


def _members(run: Run) -> Section | None:
    """The front in numbers."""
    if not run.front():
        return None
    return Section("Members of the front", "", _lines(summary_lines(run)), _table(front_table(run)))


def _card(run: Run, data: PageData, member: Candidate, title: str, why: str) -> str:
    """What is recommended: its objectives, its LIVs as a stripe, and how it compares with the baselines."""
    values = "".join(
        f"<div><dt>{escape(o.name)}</dt><dd>{escape(format_objective(o, member))}</dd></div>" for o in run.objectives
    )
    rows = Listing(Column("against"), *(Column(o.name, right=True) for o in run.objectives))
    for baseline in run.candidates("baseline"):
        if baseline.objectives:
            base = run.as_measured(baseline) if run.rescored else baseline
            cells = []
            for o in run.objectives:
                mine, other = member.values[o.name], base.values[o.name]
                cells.append(f"{mine / other:.2g} x" if o.log_scale and other else f"{mine - other:+.3f}")
            rows.add(data.label(baseline), *cells)
    against = _table(rows) if rows.rows else ""
    number = data.numbers[member.id]
    return (
        f'<article class="card" data-candidate="{number}" tabindex="0">'
        f"<h3>{title} <code>{escape(member.id)}</code></h3>"
        f'<p class="note">{why}</p>{_stripe(data, number)}<dl class="tiles small">{values}</dl>{against}</article>'
    )


def _stripe(data: PageData, number: int) -> str:
    """The LIVs of a candidate as coloured cells with their names."""
    kinds = data.kinds.rows()
    cells = []
    for k in data.layers[number]["kinds"]:
        name = escape(kinds[k]["name"], quote=True)
        look = f"background:{kinds[k]['color']};color:{kinds[k]['ink']}"
        cells.append(f'<span style="{look}" title="{name}">{name}</span>')
    return f'<div class="stripe">{"".join(cells)}</div>'


def _selected(data: PageData) -> Section | None:
    """Filled by the page for the candidate that was clicked."""
    if not data.candidates:
        return None
    columns = (
        '<div><h3>Layers</h3><div class="chart" id="layers"></div></div>'
        '<div><h3>Learning curve</h3><div class="chart" id="curve"></div>'
        '<h3>Lineage</h3><div class="chart" id="lineage"></div></div>'
    )
    return Section(
        "Selected architecture",
        "",
        '<p id="selected-title"></p><div class="stripe" id="selected-stripe"></div>',
        f'<div class="columns">{columns}</div>',
        '<h3>Genes in words</h3><div id="words" class="scroll"></div>',
    )


def _progress(run: Run, data: PageData, figures: Figures) -> Section | None:
    parts = []
    if chart := figures.add("hypervolume", charts.hypervolume_chart(run)):
        caption = "1: a candidate that is as good as the best of the first generation in every objective."
        parts.append(f'<h3>Hypervolume</h3><p class="caption">{caption}</p>{chart}')
    if run.curves():
        caption = (
            "Validation loss of every candidate, one seed each, from dark (initial) to light (last generation); black: "
            "baselines, dotted: n-gram models of the same text. Click a curve to select its candidate."
        )
        parts.append(f'<h3>Learning curves</h3><p class="caption">{caption}</p><div class="chart" id="curves"></div>')
    return Section("Progress", "", *parts) if parts else None


def _architectures(run: Run, data: PageData, figures: Figures) -> Section:
    parts = [
        "<h3>The population</h3>",
        '<p class="caption">Every column is an architecture, from its first LIV at the top to its last; in each '
        "generation the best is on the left. Stars: members of the front. Click one to select it.</p>",
        figures.add("population", charts.population_chart(data)),
    ]
    titles = {"connections": "Which connections become popular", "distances": "Over how many LIVs they reach"}
    shown = charts.popularity_charts(data)
    parts += ["<h3>Which operator classes become popular</h3>", figures.add("classes", shown["classes"])]
    captions = {
        "connections": "LIVs that take weights or features from an earlier one.",
        "distances": "From owner to user.",
    }
    boxes = "".join(
        f'<div><h3>{title}</h3><p class="caption">{captions[name]}</p>{figures.add(name, shown[name])}</div>'
        for name, title in titles.items()
        if name in shown
    )
    parts.append(f'<div class="columns">{boxes}</div>')
    if "connections" not in shown:
        parts.append('<p class="note">No candidate shares weights or features between LIVs.</p>')
    parts += ["<h3>What each variation brought</h3>", _table(operator_table(run))]
    return Section("Architectures", "", *parts)


def _certainty(run: Run, data: PageData, figures: Figures) -> Section | None:
    """Fresh seeds, the ladder and the evidence, where they exist."""
    parts = []
    if rescore_rows(run):
        table, lines = rescore_table(run)
        parts += ["<h3>Fresh seeds</h3>", _lines(lines), _table(table)]
    if run.ladder():
        caption = "The same genomes at several budgets and widths; few crossings mean that the order holds."
        parts += [
            f'<h3>Ladder</h3><p class="caption">{caption}</p>',
            figures.add("ladder", charts.ladder_chart(run, data)),
        ]
        parts += [_lines(ladder_lines(run)), _table(ladder_table(run))]
    if run.protocols():
        parts += ["<h3>Evidence</h3>", *_evidence(run)]
    return Section("How certain it is", "", *parts) if parts else None


def _evidence(run: Run) -> Iterator[str]:
    """The last comparison of `star evidence`."""
    comparison = Comparison(run)
    yield _lines(evidence_lines(comparison))
    for title, table in evidence_tables(comparison):
        yield f'<p class="caption">{escape(title)}</p>{_table(table)}'
    yield _picture(evidence_figure(run), "evidence")


def _capabilities(run: Run) -> Section | None:
    """What `star capabilities` measured, if it did."""
    if not run.capabilities():
        return None
    caption = "Accuracy on tasks with known answers, and the loss beyond the training context."
    parts = (f"<h3>{escape(title)}</h3>{_table(table)}" for title, table in part_tables(run))
    return Section("Capabilities", caption, _lines(capability_lines(run)), _table(capability_table(run)), *parts)


def _refinement(refined: Refined) -> Section:
    pictures = []
    for plot in REFINEMENT_PLOTS:
        title, caption = _words(plot)
        pictures.append(f'<h3>{title}</h3><p class="caption">{caption}</p>{_picture(plot(refined), title)}')
    lines = [line for line in refinement_lines(refined) if line]
    return Section(f"Refinement {escape(refined.id)}", "", _table(refinement_table(refined)), _lines(lines), *pictures)


def _failures(run: Run) -> Section | None:
    """The reasons for which candidates failed, the most frequent first."""
    good = ("ok", "pending", "running")
    reasons: dict[tuple[str, str], list[str]] = {}
    for c in run.candidates():
        if c.status not in good:
            reasons.setdefault((c.status, c.reason), []).append(c.id)
    if not reasons:
        return None
    listing = Listing(Column("outcome"), Column("reason"), Column("candidates", right=True), Column("which"))
    for (status, reason), ids in sorted(reasons.items(), key=lambda row: -len(row[1])):
        more = f" and {len(ids) - MOST_IDS} more" if len(ids) > MOST_IDS else ""
        listing.add(status, reason, str(len(ids)), ", ".join(ids[:MOST_IDS]) + more)
    count = sum(map(len, reasons.values()))
    return Section(
        "Failures", f"{plural(count, 'candidate')} ended without a result, each for a reason.", _table(listing)
    )


def _words(plot: Callable[..., Figure]) -> tuple[str, str]:
    """Title and caption of a plot: its name, and the first paragraph of its docstring."""
    caption = (plot.__doc__ or "").strip().split("\n\n")[0]
    return plot.__name__.replace("_", " ").capitalize(), escape(" ".join(caption.split()))


def _lines(lines: Iterable[str]) -> str:
    return '<ul class="facts">' + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _table(listing: Listing) -> str:
    return f'<div class="scroll">{listing.html()}</div>'


def _picture(figure: Figure, words: str) -> str:
    """The figure as an SVG in an img tag, which isolates its ids from the rest of the page."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None})
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(words, quote=True)}" src="data:image/svg+xml;base64,{data}">'


def _configuration(run: Run) -> str:
    settings = run.config.to_json()
    listing = Listing(Column("setting"), Column("value"), Column("meaning"))
    for row in describe():
        listing.add(row["key"], str(functools.reduce(operator.getitem, row["key"].split("."), settings)), row["doc"])
    made = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    return f"<p>Made with {escape(made)}.</p><details><summary>All settings</summary>{_table(listing)}</details>"
