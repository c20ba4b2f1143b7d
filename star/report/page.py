"""One self-contained HTML page about a run: pictures are embedded; no scripts, no network."""

from __future__ import annotations

import base64
import functools
import io
import operator
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from star.config import describe
from star.refined import Refined
from star.report.genome_diagram import genome_diagram
from star.report.plots import PLOTS, Plot, shown
from star.report.refinement import REFINEMENT_PLOTS, refinement_lines, refinement_table
from star.report.tables import (
    front_table,
    operator_table,
    rescore_rows,
    rescore_table,
    status_lines,
    summary_lines,
)
from star.report.units import format_objective

if TYPE_CHECKING:
    from star.run import Run

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 920px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ddd; }
img { width: 100%; max-width: 800px; display: block; }
table { border-collapse: collapse; font-size: 13px; width: 100%; }
th { text-align: left; border-bottom: 1px solid #999; } td, th { padding: 3px 10px 3px 0; vertical-align: top; }
th { white-space: pre-line; } td.number, th.number { text-align: right; }
td.number, td:first-child { white-space: nowrap; font-variant-numeric: tabular-nums; }
tr.dim { color: #777; } tr.bold { font-weight: 600; }
code { font-size: 12px; overflow-wrap: anywhere; } summary { cursor: pointer; }
"""
DIAGRAMS = 24  # at most, of front members


def write_page(run: Run, path: Path, plots: tuple[Plot, ...] = PLOTS) -> Path:
    """Write the report. Raises UserError if the run has no finished candidate yet."""
    run.knee()  # raises if there is none
    parts = [
        f"<h1>{escape(str(run.path))}</h1>",
        _paragraphs(status_lines(run)),
        operator_table(run).html(),
        "<h2>The Pareto front</h2>",
        _paragraphs(summary_lines(run)),
        front_table(run).html(),
    ]
    if rescore_rows(run):
        table, lines = rescore_table(run)
        parts += ["<h2>Fresh seeds</h2>", _paragraphs(lines), table.html()]
    for plot in shown(run, plots):
        title, caption = _words(plot)
        parts += [f"<h2>{title}</h2><p>{caption}</p>{_picture(plot(run), title)}"]
    for refined in run.refinements():
        parts += [f"<h2>Refinement {refined.id}</h2>", *_refinement(refined)]
    parts += ["<h2>Members of the front</h2>", *_members(run)]
    parts += ["<h2>Configuration</h2>", _configuration(run)]
    head = f'<meta charset="utf-8"><title>{escape(str(run.path))}</title><style>{STYLE}</style>'
    html = ['<!doctype html>\n<html lang="en">', f"<head>{head}</head><body>", *parts, "</body></html>\n"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(html), encoding="utf-8", errors="replace")
    return path


def _words(plot: Callable[..., Figure]) -> tuple[str, str]:
    """Title and caption of a plot: its name, and the first paragraph of its docstring."""
    caption = (plot.__doc__ or "").strip().split("\n\n")[0]
    return plot.__name__.replace("_", " ").capitalize(), escape(" ".join(caption.split()))


def _paragraphs(lines: Iterable[str]) -> str:
    return "<p>" + "<br>".join(escape(line) for line in lines) + "</p>"


def _refinement(refined: Refined) -> Iterable[str]:
    """The refined front, the results and the plots."""
    yield refinement_table(refined).html()
    yield _paragraphs(line for line in refinement_lines(refined) if line)
    for plot in REFINEMENT_PLOTS:
        title, caption = _words(plot)
        yield f"<h3>{title}</h3><p>{caption}</p>{_picture(plot(refined), title)}"


def _members(run: Run) -> Iterable[str]:
    members = run.front()
    for c in members[:DIAGRAMS]:
        values = ", ".join(f"{o.name} {format_objective(o, c)}" for o in run.objectives)
        figure = genome_diagram(c.genome, seq_len=run.config.objectives.cache_tokens)
        summary = f"<summary><code>{c.id}</code>: {escape(values)}</summary>"
        text = f"<p><code>{escape(c.genome.text)}</code></p>"
        yield f"<details>{summary}{text}{_picture(figure, f'genome {c.id}')}</details>"
    if len(members) > DIAGRAMS:
        command = f"star show {escape(str(run.path))}:ID --diagram FILE"
        yield f"<p>and {len(members) - DIAGRAMS} more; <code>{command}</code> draws any of them.</p>"


def _picture(figure: Figure, words: str) -> str:
    """The figure as an SVG in an img tag, which isolates its ids from the rest of the page."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None})
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(words, quote=True)}" src="data:image/svg+xml;base64,{data}">'


def _configuration(run: Run) -> str:
    settings = run.config.to_json()
    rows = []
    for row in describe():
        value = functools.reduce(operator.getitem, row["key"].split("."), settings)
        cells = (f"<code>{escape(row['key'])}</code>", escape(str(value)), escape(row["doc"]))
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    made = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    head = "<tr><th>setting</th><th>value</th><th>meaning</th></tr>"
    return f"<p>Made with {escape(made)}.</p><table>{head}{''.join(rows)}</table>"
