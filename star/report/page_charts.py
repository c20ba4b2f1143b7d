"""Charts of the interactive page that do not follow its slider or the selected candidate, as Plotly figures; `page.js`
fills the others.

Texts of a run go through `escape`: Plotly reads some HTML in texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from html import escape
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from star.evidence.order import Ladder
from star.report.ladder_report import rung_name
from star.report.page_data import PageData
from star.report.style import BLUE, FAINT, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, YELLOW

if TYPE_CHECKING:
    from star.run import Candidate, Run

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
GRID: dict[str, Any] = {
    "title": {"standoff": 8},
    "gridcolor": "#ECEFF3",
    "zerolinecolor": "#ECEFF3",
    "linecolor": "#C5CCD6",
    "automargin": True,
}
LAYOUT: dict[str, Any] = {  # of all charts
    "font": {"family": FONT, "size": 12, "color": "#28323F"},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#9AA5B1", "activecolor": "#0072B2"},  # where it always shows
    "plot_bgcolor": "rgba(0,0,0,0)",
    "xaxis": {**GRID, "showline": True},
    "yaxis": {**GRID, "showline": True},
    "margin": {"l": 60, "r": 16, "t": 12, "b": 48},
    "hoverlabel": {"bgcolor": "white", "bordercolor": "#C5CCD6", "align": "left", "font": {"family": FONT}},
    "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
}
STEPS = ("#0B3C5D", "#1F6E9C", "#56A3CC", "#9CCBE3", "#CFE3EE", "#E8EDF1")  # distances, from 1
STACK = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW, GREY)
FAR = "6 or more"
MOST = 12  # series of a stacked chart; the rest are one more
MOST_LINES = 60  # generations between which there are lines


def _figure(traces: Iterable[Any], height: int, **layout: Any) -> go.Figure:
    return go.Figure(list(traces), {"template": None, **layout, "height": height})


def hypervolume_chart(run: Run) -> go.Figure | None:
    """Hypervolume of all candidates so far, one seed each, over evaluations, training tokens or time."""
    rows = run.hypervolume()
    if not rows:
        return None
    ways = (
        ("evaluations", "candidates trained", [row["evaluations"] for row in rows]),
        ("tokens", "training tokens", [row["tokens"] for row in rows]),
        ("time", "minutes of the search, without interruptions", [row["seconds"] / 60 for row in rows]),
    )
    volumes = [row["hypervolume"] for row in rows]
    ends = {row["generation"]: n for n, row in enumerate(rows)}
    first = volumes[ends[0]] if 0 in ends else volumes[0]
    about = [[row["generation"], row["evaluations"]] for row in rows]
    hover = "hypervolume %{y:.3f}<br>generation %{customdata[0]}, candidate %{customdata[1]}<extra></extra>"
    line = {"shape": "hv", "color": BLUE, "width": 2.4}
    trace = go.Scatter(x=ways[0][2], y=volumes, mode="lines", name="front so far", line=line, customdata=about)
    trace.update(hovertemplate=hover, fill="tozeroy", fillcolor="rgba(0,114,178,0.07)")
    traces = [trace]
    if (again := run.hypervolume_of(run.front())) is not None and run.rescored:
        marker = {"symbol": "diamond", "size": 10, "color": GREEN}
        name = f"front with fresh seeds: {again:.3f}"
        traces.append(go.Scatter(x=ways[0][2][-1:], y=[again], mode="markers", name=name, marker=marker))
    buttons = []
    for label, title, x in ways:
        change = {"x": [x, x[-1:]][: len(traces)]}
        buttons.append({"label": label, "method": "update", "args": [change, {"xaxis.title.text": title}]})
    menu = {"type": "buttons", "direction": "right", "buttons": buttons, "x": 1, "xanchor": "right", "y": 1.02}
    level = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": first, "y1": first}
    level |= {"line": {"color": VERMILION, "width": 1.2, "dash": "dash"}}
    level |= {"label": {"text": f"initial population {first:.3f}", "textposition": "end", "yanchor": "bottom"}}
    axes = {
        "xaxis": {"title": {"text": ways[0][1]}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "hypervolume"}},
    }
    return _figure(traces, 340, shapes=[level], updatemenus=[menu | {"yanchor": "bottom"}], **axes)


def population_chart(data: PageData) -> go.Figure:
    """Every candidate as a column of coloured LIVs, by generation, and in it the best quality first.

    meta of the first trace: numbers of the candidates, from which the page makes the texts.
    """
    first = data.run.objectives[0]

    def place(c: Candidate) -> tuple:
        return c.generation, not c.objectives, first.scaled(c.values[first.name]) if c.objectives else 0.0

    shown = sorted((c for c in data.candidates if c.origin != "baseline"), key=place)
    numbers = [data.numbers[c.id] for c in shown]
    kinds = data.kinds.rows()
    columns = [data.layers[n]["kinds"] for n in numbers]
    depth = max(map(len, columns), default=1)
    z = [[column[row] if row < len(column) else None for column in columns] for row in range(depth)]
    colors, n = [kind["color"] for kind in kinds], max(len(kinds), 1)
    scale = [[at / n, color] for k, color in enumerate(colors) for at in (k, k + 1)]
    names = [escape(kind["name"]) for kind in kinds]
    bar = {"tickvals": list(range(len(kinds))), "ticktext": names, "outlinewidth": 0, "thickness": 14, "ypad": 0}
    heat = go.Heatmap(z=z, y=list(range(1, depth + 1)), meta=numbers, colorscale=scale, colorbar=bar)
    heat.update(zmin=-0.5, zmax=n - 0.5, xgap=1 if len(shown) <= 200 else 0, ygap=1)
    members = {c.id for c in data.run.front()}
    marks = [x for x, c in enumerate(shown) if c.id in members]
    star = {"symbol": "star", "color": VERMILION, "size": 9}
    ids = [escape(shown[x].id) for x in marks]
    front = go.Scatter(x=marks, y=[0] * len(marks), mode="markers", marker=star, text=ids, hoverinfo="text")
    front.update(customdata=[numbers[x] for x in marks])
    ends = Counter(c.generation for c in shown)
    edges, middles, labels, x = [], [], [], -0.5
    for generation, count in sorted(ends.items()):
        edges.append(x)
        middles.append(x + count / 2)
        labels.append("initial" if generation == 0 else str(generation))
        x += count
    every = max(1, len(labels) // 25)
    look = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "line": {"color": "#28323F", "width": 1}}
    lines = [{**look, "x0": edge, "x1": edge} for edge in edges[1:]] if len(edges) <= MOST_LINES else []
    axis = {
        "title": {"text": "generation"},
        "tickvals": middles[::every],
        "ticktext": labels[::every],
        "showgrid": False,
    }
    livs = {
        "title": {"text": "LIV, from input to output"},
        "autorange": "reversed",
        "showgrid": False,
        "zeroline": False,
    }
    livs |= {"tickvals": list(range(1, depth + 1, max(1, depth // 12)))}
    height = max(320, 130 + 20 * min(depth, 30), 60 + 19 * len(kinds))
    return _figure([heat, front], height, xaxis=axis, yaxis=livs, shapes=lines, showlegend=False)


def popularity_charts(data: PageData) -> dict[str, go.Figure]:
    """Shares over generations: of operator classes, of kinds of connections among LIVs, of their distances."""
    kinds = data.kinds.rows()
    colors = {kind["name"]: kind["color"] for kind in kinds}

    def classes(layers: dict) -> list[str]:
        return [kinds[k]["name"] for k in layers["kinds"]]

    def connections(layers: dict) -> list[str]:
        words: dict[int, list[str]] = {}
        for kind, _, consumer, _, groups in layers["links"]:
            words.setdefault(consumer, []).append("weights" if kind == "weights" else f"features {groups}")
        return ["; ".join(sorted(set(words.get(n, [])))) for n in range(len(layers["kinds"]))]

    def distances(layers: dict) -> list[str]:
        away = [consumer - owner for _, owner, consumer, _, _ in layers["links"]]
        return [FAR if n > 5 else str(n) for n in away]

    charts = {
        "classes": _shares(data, classes, "share of LIVs", colors),
        "connections": _shares(data, connections, "share of LIVs", {}),
        "distances": _shares(data, distances, "share of connections", dict(zip(("1", "2", "3", "4", "5", FAR), STEPS))),
    }
    return {name: chart for name, chart in charts.items() if chart is not None}


def _shares(
    data: PageData, things: Callable[[dict], list[str]], title: str, colors: dict[str, str]
) -> go.Figure | None:
    """Stacked shares of named things by generation, among what was trained in it or on the front after it.

    Nameless things count only for the total. None if nothing has a name.
    """
    stays = data.front_stays
    generations = range(data.last + 1)
    trained: dict[int, Counter] = {g: Counter() for g in generations}
    front: dict[int, Counter] = {g: Counter() for g in generations}
    for c, layers in zip(data.candidates, data.layers, strict=True):
        if c.origin == "baseline":
            continue
        found = things(layers)
        trained[c.generation].update(found)
        for g in range(*stays.get(c.id, (0, 0))):
            front[g].update(found)
    total: Counter = sum(trained.values(), Counter())
    names = [name for name, _ in total.most_common() if name]
    if not names:
        return None
    if FAR in colors:
        names.sort()
    rest = names[MOST:]
    names = names[:MOST] + (["others"] if rest else [])
    traces = []
    for shown, counts in ((True, trained), (False, front)):
        for k, name in enumerate(names):
            of = rest if name == "others" else [name]
            y = [sum(counts[g][n] for n in of) / max(counts[g].total(), 1) for g in generations]
            color = FAINT if name == "others" else colors.get(name, STACK[k % len(STACK)])
            look: dict[str, Any] = {"marker": {"color": color, "line": {"width": 0}}, "visible": shown}
            hover = f"{escape(name)}: %{{y:.0%}}<br>generation %{{x}}<extra></extra>"
            traces.append(go.Bar(x=list(generations), y=y, name=escape(name), hovertemplate=hover, **look))
    buttons = [
        {"label": label, "method": "restyle", "args": ["visible", [which == s for s in (0, 1) for _ in names]]}
        for which, label in enumerate(("trained in it", "on the front after it"))
    ]
    menu = {"type": "buttons", "direction": "right", "buttons": buttons, "x": 0, "xanchor": "left", "y": 1.02}
    axes: dict[str, Any] = {
        "xaxis": {
            "title": {"text": "generation"},
            "dtick": max(1, (data.last + 1) // 10),
            "showgrid": False,
            "zeroline": False,
        },
        "yaxis": {"title": {"text": title}, "tickformat": ".0%"},
        "legend": {
            "orientation": "v",
            "x": 1.01,
            "y": 1,
            "yanchor": "top",
            "traceorder": "reversed",
            "font": {"size": 11},
        },
    }
    return _figure(traces, 380, barmode="stack", bargap=0.08, updatemenus=[menu | {"yanchor": "bottom"}], **axes)


def parallel_axes(data: PageData) -> dict[str, Any]:
    """Axes of the parallel coordinates: objectives, depth, classes, connections and generation of what was trained.

    numbers: of the candidates; kinds: 0 dominated, 1 on the front, 2 baseline; axes: label, values, tickvals?,
    ticktext?.
    """
    shown = [c for c in data.candidates if c.objectives]
    members = {c.id for c in data.run.front()}
    layers = [data.layers[data.numbers[c.id]] for c in shown]
    dimensions: list[dict[str, Any]] = [
        {
            "label": axis.objective.name,
            "values": [axis.place(c.values[axis.objective.name]) for c in shown],
            **axis.ticks(),
        }
        for axis in data.axes
    ]
    counts = {
        "LIVs": [len(layer["kinds"]) for layer in layers],
        "different classes": [len(set(layer["kinds"])) for layer in layers],
        "connections": [len(layer["links"]) for layer in layers],
        "generation": [c.generation for c in shown],
    }
    dimensions += [{"label": label, "values": values} for label, values in counts.items() if len(set(values)) > 1]
    kinds = [2 if c.origin == "baseline" else int(c.id in members) for c in shown]
    return {"numbers": [data.numbers[c.id] for c in shown], "kinds": kinds, "axes": dimensions}


def ladder_chart(run: Run, data: PageData) -> go.Figure | None:
    """Place of each genome of the ladder at every budget and width, joined by lines; few crossings: the order holds."""
    ladder = Ladder(run)
    rungs = [(tokens, 1.0) for tokens in ladder.budgets] + [rung for rung in ladder.rungs if rung[1] != 1]
    ids = [id for id in ladder.genomes if all(id in ladder.values[rung] for rung in rungs)]
    if len(rungs) < 2 or not ids:
        return None
    orders = [sorted(ids, key=ladder.values[rung].__getitem__) for rung in rungs]
    names = [rung_name(run, rung).replace(", ", "<br>") for rung in rungs]
    traces = []
    for id in ids:
        baseline, front = ladder.origins[id] == "baseline", id in ladder.front
        color = ORANGE if baseline else BLUE if front else FAINT
        values = [f"{ladder.values[rung][id]:.3f}" for rung in rungs]
        label = next((data.label(c) for c in data.candidates if c.id == id), id)
        trace = go.Scatter(x=names, y=[order.index(id) + 1 for order in orders], text=values, name=escape(label))
        trace.update(line={"color": color, "width": 2.2 if front else 1.2}, mode="lines+markers", showlegend=False)
        trace.update(hovertemplate=f"{escape(label)}<br>%{{text}}, place %{{y}}<extra></extra>")
        traces.append(trace)
    axis = {"title": {"text": f"place by {escape(ladder.quality.name)}"}, "autorange": "reversed"}
    for name, color in (("front", BLUE), ("baseline", ORANGE), ("dominated or random", FAINT)):
        traces.append(go.Scatter(x=[None], y=[None], mode="lines", name=name, line={"color": color, "width": 2.2}))
    return _figure(traces, max(320, 100 + 16 * len(ids)), yaxis=axis, xaxis={"showgrid": False})
