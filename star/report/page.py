"""One HTML page about a run that needs nothing beside it: pictures are inside, no script, no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from star.config import describe
from star.refine.recipe_space import settings_text
from star.refined import Refined
from star.report.genome_diagram import genome_diagram
from star.report.plots import PLOTS, Plot
from star.report.refinement import REFINEMENT_PLOTS, refinement_lines
from star.report.tables import status_lines, summary_lines
from star.report.units import format_value, heading

if TYPE_CHECKING:
    from star.run import Run

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 920px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ddd; }
img { width: 100%; max-width: 800px; display: block; }
table { border-collapse: collapse; font-size: 13px; width: 100%; }
th { text-align: left; border-bottom: 1px solid #999; } td, th { padding: 3px 10px 3px 0; vertical-align: top; }
td.number, th.number { text-align: right; } tr.baseline { color: #777; } tr.knee { font-weight: 600; }
code { font-size: 12px; overflow-wrap: anywhere; } summary { cursor: pointer; }
"""
DIAGRAMS = 24  # the most genomes that are drawn


def write_page(run: Run, path: Path, plots: tuple[Plot, ...] = PLOTS) -> Path:
    """Write the report. Raises UserError if the run has no finished candidate yet."""
    knee = run.knee().id
    parts = [
        f"<h1>{escape(str(run.path))}</h1>",
        _paragraphs(status_lines(run) + summary_lines(run)),
        "<h2>The Pareto front</h2>",
        _front(run, knee),
    ]
    for plot in plots:
        words = plot.__name__.replace("_", " ").capitalize()
        parts += [
            f"<h2>{words}</h2>",
            f"<p>{escape((plot.__doc__ or '').strip().splitlines()[0])}</p>",
            _picture(plot(run), words),
        ]
    for refined in run.refinements():
        parts += [f"<h2>Refinement {refined.id}</h2>", *_refinement(refined)]
    parts += ["<h2>Members of the front</h2>", *_members(run)]
    parts += ["<h2>Configuration</h2>", _configuration(run)]
    html = (
        '<!doctype html>\n<html lang="en"><head><meta '
        f'charset="utf-8"><title>{escape(str(run.path))}</title><style>{STYLE}</style></head><body>\n'
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html + "\n".join(parts) + "\n</body></html>\n", encoding="utf-8")
    return path


def _paragraphs(lines: Iterable[str]) -> str:
    return "<p>" + "<br>".join(escape(line) for line in lines) + "</p>"


def _front(run: Run, knee: str) -> str:
    heads = ["<th>id</th>"] + [f'<th class="number">{escape(heading(o))}</th>' for o in run.objectives]
    rows = []
    for kind, candidates in (("", run.front()), ("baseline", run.candidates("baseline"))):
        for c in candidates:
            if not c.objectives:
                continue
            values = "".join(
                f'<td class="number">{escape(format_value(o, c.objectives[o.name]))}</td>' for o in run.objectives
            )
            name, style = escape((c.name if kind else c.genome.text) or ""), "knee" if c.id == knee else kind
            row = f"<td><code>{c.id}</code></td>{values}<td><code>{name}</code></td>"
            rows.append(f'<tr class="{style}">{row}</tr>')
    return (
        f"<table><tr>{''.join(heads)}<th>genome; the knee in bold, baselines in grey</th></tr>{''.join(rows)}</table>"
    )


def _refinement(refined: Refined) -> Iterable[str]:
    """The refined front, the results and the plots."""
    run, rows = refined.run, []
    heads = "".join(f'<th class="number">{escape(heading(o))}</th>' for o in run.objectives)
    trials = {t.candidate: t for t, _ in reversed(refined.trials)}
    for c in refined.front():
        values = "".join(
            f'<td class="number">{escape(format_value(o, c.objectives[o.name]))}</td>' for o in run.objectives
        )
        trial = trials.get(c.id) if c.recipe is not None else None
        made = "as searched"
        if trial is not None:
            changed = settings_text(refined.space.changed(trial.settings))
            made = "; ".join([f"from {trial.member}", *trial.edits, changed]).strip("; ")
        row = f"<td><code>{c.id}</code></td>{values}<td>{escape(made)}</td>"
        rows.append(f'<tr class="{"" if trial else "baseline"}">{row}</tr>')
    yield f"<table><tr><th>id</th>{heads}<th>what was changed</th></tr>{''.join(rows)}</table>"
    yield _paragraphs(line for line in refinement_lines(refined) if line)
    for plot in REFINEMENT_PLOTS:
        words = plot.__name__.replace("_", " ").capitalize()
        summary = escape((plot.__doc__ or "").strip().splitlines()[0])
        yield f"<h3>{words}</h3><p>{summary}</p>{_picture(plot(refined), words)}"


def _members(run: Run) -> Iterable[str]:
    members = run.front()
    for c in members[:DIAGRAMS]:
        values = ", ".join(f"{o.name} {format_value(o, c.objectives[o.name])}" for o in run.objectives)
        figure = genome_diagram(c.genome, seq_len=run.config.objectives.cache_tokens)
        yield (
            f"<details><summary><code>{c.id}</code>: "
            f"{escape(values)}</summary>{_picture(figure, f'genome {c.id}')}</details>"
        )
    if len(members) > DIAGRAMS:
        yield f"<p>and {len(members) - DIAGRAMS} more; star show {escape(str(run.path))}:ID draws any of them.</p>"


def _picture(figure: Figure, words: str) -> str:
    """The figure as an SVG inside an img tag, where its scripts and ids could touch nothing else."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None})
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(words, quote=True)}" src="data:image/svg+xml;base64,{data}">'


def _configuration(run: Run) -> str:
    settings = run.config.to_json()
    rows = []
    for row in describe():
        value = settings
        for key in row["key"].split("."):
            value = value[key]
        rows.append(
            f"<tr><td><code>{escape(row['key'])}</code></td><td>{escape(str(value))}</td><td>{escape(row['doc'])}</td></tr>"
        )
    made = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    head = "<tr><th>setting</th><th>value</th><th>meaning</th></tr>"
    return f"<p>Made with {escape(made)}.</p><table>{head}{''.join(rows)}</table>"
