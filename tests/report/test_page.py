"""The interactive page in a browser: it loads without network and errors, and slider, hover, click and brush do what
they say. Without a Chromium on this machine these tests are skipped.
"""

import json
import shutil
import time

import numpy as np
import plotly.graph_objects as go
import pytest
from fakes import config, large, run
from playwright.sync_api import sync_playwright
from typer.testing import CliRunner

from star.assess import Front
from star.cli import app
from star.genome import to_json
from star.report import page_charts
from star.report.page import write_page
from star.report.page_data import PageData
from star.run import Run
from star.store import Store

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
LIMIT = 90  # seconds in which a page of 5,000 candidates is ready, on one busy core


OPTIONS = {"plain": ["--disable-3d-apis"], "webgl": ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]}


@pytest.fixture(scope="module")
def start():
    """Starts a browser, with WebGL or without it, once."""
    with sync_playwright() as playwright:
        started = {}

        def start(name):
            if name not in started:
                options = ["--no-sandbox", *OPTIONS[name]]
                started[name] = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
            return started[name]

        yield start
        for browser in started.values():
            browser.close()


class Viewer:
    """Opens files in a browser, and keeps what went wrong: errors, and requests for anything but the file."""

    def __init__(self, start):
        self.start, self.problems = start, []

    def __call__(self, path, browser="plain", hash=""):
        page = self.start(browser).new_page(viewport={"width": 1280, "height": 900})
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda said: self.problems.append(said.text) if said.type == "error" else None)
        page.on("request", lambda request: self._check(request.url))
        page.goto(path.absolute().as_uri() + hash, wait_until="commit")
        page.wait_for_selector("body[data-ready=yes]", timeout=1000 * LIMIT)
        return page

    def _check(self, url):
        if not url.startswith(("file:", "data:", "blob:")):
            self.problems.append(f"request for {url}")


@pytest.fixture(scope="module")
def viewer(start):
    return Viewer(start)


@pytest.fixture
def show(viewer):
    yield viewer
    assert viewer.problems == []


@pytest.fixture(scope="module")
def opened(viewer, html):
    return viewer(html)


@pytest.fixture
def page(opened, show):
    """The page of `searched` as it is when it has been loaded."""
    opened.evaluate("step = D.generations - 1; element('generation').value = step; pick([]); select(D.best)")
    opened.evaluate("window.scrollTo(0, 0)")
    return opened


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Run:
    """60 random candidates in 5 generations after 8 of a search."""
    path = tmp_path_factory.mktemp("searched") / "run"
    large(path, 60, 5)
    return Run(path)


@pytest.fixture(scope="module")
def html(searched):
    return write_page(searched, searched.path / "report.html")


def points(page, panel, trace):
    """Candidates that a trace of a chart shows."""
    name = json.dumps(trace)
    return page.evaluate(
        f"document.getElementById('{panel}').data.find((t) => t.name === {name}).customdata.map((i) => D.ids[i])"
    )


# Without a browser.


def test_all_charts_are_plotly_figures_of_the_run(searched):
    data = PageData(searched)
    figures = [page_charts.hypervolume_chart(searched), page_charts.population_chart(data)]
    figures += page_charts.popularity_charts(data).values()
    assert len(figures) == 5 and all(isinstance(figure, go.Figure) for figure in figures)
    volume, matrix, classes, connections, _ = figures
    assert list(volume.data[0].y) == [row["hypervolume"] for row in searched.hypervolume()]
    assert volume.data[0].x[-1] == 68
    columns = list(zip(*matrix.data[0].z, strict=True))
    assert len(columns) == 68
    kinds, genomes = data.kinds.rows(), {c.id: c.genome for c in data.candidates}
    for number, column in zip(matrix.data[0].meta, columns, strict=True):
        names = tuple(kinds[k]["name"] for k in column if k is not None)
        assert names == genomes[data.candidates[number].id].class_names
    shares = np.array([trace.y for trace in classes.data if trace.visible])
    assert np.allclose(shares.sum(0), 1)
    livs = [gene for c in data.candidates if c.generation == 1 for gene in c.genome.backbone if gene.class_id]
    takers = sum(
        len({link[2] for link in layers["links"]})
        for c, layers in zip(data.candidates, data.layers)
        if c.generation == 1
    )
    assert sum(trace.y[1] for trace in connections.data if trace.visible) == pytest.approx(takers / len(livs))


def test_hypervolume_has_the_time_of_the_search(tmp_path):
    run(tmp_path / "run", config(search__generations=2), "fakes:slow")
    seconds = [row["seconds"] for row in Run(tmp_path / "run").hypervolume()]
    assert seconds == sorted(seconds) and 0 < seconds[0] < seconds[-1] < 60


def test_the_front_of_every_generation_is_that_of_all_until_it(searched):
    data = PageData(searched)
    for generation in range(data.last + 1):
        front = Front(searched.objectives)
        for c in searched.settled():
            if c.generation <= generation:
                front.add(c.id, c.values)
        shown = {id for id, (first, end) in data.front_stays.items() if first <= generation < end}
        assert shown == set(front.ids)


def test_star_report_writes_where_it_is_told(searched, tmp_path):
    result = CliRunner().invoke(app, ["report", str(searched.path), "--out", str(tmp_path / "a" / "x.html")])
    assert result.exit_code == 0 and f"report: {tmp_path / 'a' / 'x.html'}" in result.output
    assert (tmp_path / "a" / "x.html").read_text().startswith("<!doctype html>")


# In a browser.


@needs_browser
def test_everything_is_drawn_and_tables_are_tables(page, searched):
    drawn = page.evaluate("[...document.querySelectorAll('.js-plotly-plot')].map((chart) => chart.id)")
    for name in (
        "front-0",
        "front-1",
        "front-2",
        "layers",
        "curve",
        "lineage",
        "hypervolume",
        "curves",
        "parallel",
        "population",
    ):
        assert name in drawn
    heads = page.locator("th").all_text_contents()
    assert {"variation", "assessed", "setting", "genome"} <= {head.strip() for head in heads}
    rows = page.locator("#members-of-the-front tbody tr").count()
    assert rows == len(searched.front())
    cards = page.locator(".card").all_inner_texts()
    assert searched.best().id in cards[0] and searched.knee().id in cards[1]


@needs_browser
def test_the_slider_shows_the_front_of_a_generation(page, searched):
    assert set(points(page, "front-0", "Pareto front")) == {c.id for c in searched.front()}
    page.locator("#generation").focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#generation-name:has-text('1 of 5')")
    page.wait_for_timeout(300)
    front = Front(searched.objectives)
    early = [c for c in searched.settled() if c.generation <= 1]
    for c in early:
        front.add(c.id, c.values)
    for panel in ("front-0", "front-1", "front-2"):
        assert set(points(page, panel, "Pareto front")) == set(front.ids)
        assert set(points(page, panel, "dominated")) == {c.id for c in early} - set(front.ids)


@needs_browser
def test_hover_names_genome_and_costs_and_click_selects(page, searched):
    ids = points(page, "front-0", "Pareto front")
    best = searched.best().id
    member = next(c for c in searched.front() if c.id not in (best, searched.knee().id) and c.parents)
    dots = page.locator("#front-0 .trace").nth(2).locator(".point")
    assert dots.count() == len(ids)
    dots.nth(ids.index(member.id)).hover(force=True)
    page.wait_for_selector("#front-0 .hovertext")
    text = page.locator("#front-0 .hovertext").text_content()
    for word in (member.id, "bpb", "parameters", "cache", member.genome.class_names[0]):
        assert word in text
    box = dots.nth(ids.index(member.id)).bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector(f"#selected-title strong:has-text('{member.id}')")
    title = page.locator("#selected-title").inner_text()
    assert (
        all(parent in title for parent in member.parents) and member.genome.text in title and "at 128 K tokens" in title
    )
    assert page.locator("#words tbody tr").count() == member.genome.depth
    assert page.evaluate("element('layers').data[0].text") == list(member.genome.class_names)
    assert page.evaluate("element('curve').data[0].x.length") == 8
    assert set(member.parents) <= set(points(page, "lineage", "ancestors"))
    assert points(page, "front-2", "selected") == [member.id]
    page.locator(f"#members-of-the-front tr:has-text('{best}')").click()
    page.wait_for_selector(f"#selected-title strong:has-text('{best}')")
    assert f"id={best}" in page.url


@needs_browser
def test_brushing_an_axis_picks_candidates(page, searched):
    page.locator("#parallel").scroll_into_view_if_needed()
    place = "(x, y) => { const c = element('parallel'), l = c._fullLayout, b = c.getBoundingClientRect();"
    place += " return [b.x + l.xaxis._offset + l.xaxis.l2p(x), b.y + l.yaxis._offset + l.yaxis.l2p(y)]; }"

    def drag(axis, low, high):
        start = page.evaluate(f"({place})({axis - 0.1}, {low})")
        end = page.evaluate(f"({place})({axis + 0.1}, {high})")
        page.mouse.move(*start)
        page.mouse.down()
        page.mouse.move(*end, steps=4)
        page.mouse.up()
        page.wait_for_timeout(200)

    values = {c.id: c.values for c in searched.candidates() if c.objectives}
    spread = [row["bpb"] for row in values.values()]
    height = {id: (row["bpb"] - min(spread)) / (max(spread) - min(spread)) for id, row in values.items()}
    drag(0, -0.04, 0.3)
    found = set(points(page, "front-0", "picked"))
    assert {id for id, at in height.items() if at < 0.28} <= found <= {id for id, at in height.items() if at < 0.32}
    assert page.locator("#picked").inner_text().startswith(f"{len(found)} of {len(values)} candidates picked")
    assert page.locator("#picked-table tbody tr").count() == min(10, len(found))
    last = page.evaluate("D.parallel.axes.findIndex((a) => a.label === 'generation')")
    page.keyboard.down("Shift")
    drag(last, 0.9, 1.04)
    page.keyboard.up("Shift")
    assert set(points(page, "front-0", "picked")) == {id for id in found if searched.candidate(id).generation == 5}
    page.locator("#unpick").click()
    page.wait_for_timeout(200)
    assert page.locator("#picked").inner_text() == "" and points(page, "front-0", "picked") == []


@needs_browser
def test_buttons_show_hypervolume_over_tokens_and_what_is_on_the_front(page, searched):
    page.locator("#hypervolume .updatemenu-button", has_text="tokens").click()
    x = page.evaluate("[...element('hypervolume').data[0].x]")
    assert x == [row["tokens"] for row in searched.hypervolume()]
    before = page.evaluate("element('classes').data.filter((t) => t.visible !== false).map((t) => t.y)")
    page.locator("#classes .updatemenu-button", has_text="on the front").click()
    assert page.evaluate("element('classes').data.filter((t) => t.visible !== false).map((t) => t.y)") != before


@needs_browser
def test_the_3d_view_is_a_sentence_without_webgl(page, show, html, searched):
    assert "needs WebGL" in page.locator("#front-3d").inner_text()
    page = show(html, "webgl")
    assert page.locator("#front-3d canvas").count() and page.evaluate("element('front-3d').data[0].type") == "scatter3d"
    assert set(points(page, "front-3d", "Pareto front")) == {c.id for c in searched.front()}


EVIL = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'><b>bold</b>"


@needs_browser
def test_texts_of_a_run_stay_texts(show, tmp_path):
    path = tmp_path / "<b>run<script>window.hacked = 3<script>"
    large(path, 8, 1)
    first = Run(path).candidates()[0]
    operator = {"operator": [1, 2, 1, 2, 3], "features": {g: [1, 2, 1, 1] for g in "qkv"}, "differential": False}
    genome = to_json(first.genome) | {"backbone": "1-1", "pool": [{"name": EVIL, **operator}]}
    about = {
        "id": "e1e1e1e1",
        "genome": genome,
        "generation": 1,
        "costs": first.costs,
        "violations": {},
        "predicted": None,
    }
    about |= {"origin": "offspring", "name": EVIL, "parents": [], "operators": [EVIL], "repaired": False}
    named = about | {"id": "e2e2e2e2", "origin": "baseline", "genome": to_json(first.genome)}
    broken = about | {"id": "e3e3e3e3"}
    store = Store(path)
    counts = {"wanted": 3, "duplicates": 0, "generated": 3, "repaired": 0, "by_operator": {}, "digest": None}
    events = [("ask", {"generation": 1, "proposals": [about, named, broken]} | counts)]
    for id, values in (
        ("e1e1e1e1", {"bpb": 0.1} | first.costs),
        ("e2e2e2e2", {"bpb": 0.2} | first.costs),
        ("e3e3e3e3", None),
    ):
        result = {
            "id": id,
            "attempt": 0,
            "status": "ok" if values else "failed",
            "reason": EVIL,
            "seconds": 1.0,
            "worker": EVIL,
        }
        events.append(("finish", result | {"metrics": {"bpb": 0.1}, "objectives": values, "final": True}))
    store.record(events)
    store.close()
    page = show(write_page(Run(path), tmp_path / "page.html"))
    for id in ("e1e1e1e1", "e2e2e2e2", "e3e3e3e3"):
        page.evaluate(f"select(D.ids.indexOf('{id}'))")
        page.evaluate("Plotly.Fx.hover('lineage', [{curveNumber: 3, pointNumber: 0}])")
    page.wait_for_timeout(300)
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.scripts.length") == 3 and page.locator("img").count() == 0
    assert page.locator("main b").count() == 0 and EVIL in page.locator("#failures").inner_text()
    assert "<b>bold</b>" in page.locator("#layers .bartext").first.text_content()


@needs_browser
def test_a_run_without_a_front_says_so_and_a_watched_page_loads_itself_again(show, tmp_path):
    def stop(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", config(), callbacks=[stop])
    opened = Run(tmp_path / "run")
    id = opened.candidates()[3].id
    page = show(write_page(opened, tmp_path / "page.html", refresh=3), hash=f"#id={id}")
    assert "There is no front yet: no candidate has finished training." in page.locator("#the-front").inner_text()
    assert page.locator("#population .heatmaplayer image").count() == 1, "what there is"
    page.evaluate("document.body.dataset.old = 'yes'")
    page.wait_for_selector("body:not([data-old])[data-ready=yes]")
    assert page.locator("#selected-title strong").inner_text() == id


@needs_browser
def test_five_thousand_candidates_stay_usable(show, tmp_path):
    large(tmp_path / "run", 5000, 40)
    path = write_page(Run(tmp_path / "run"), tmp_path / "page.html")
    assert path.stat().st_size < 15e6
    began = time.monotonic()
    page = show(path)
    assert time.monotonic() - began < LIMIT
    taken = page.evaluate(
        "(() => { const t = performance.now(); step = 20; drawFronts(); return performance.now() - t; })()"
    )
    assert taken < 10_000, "milliseconds of one step of the slider"
    assert len(points(page, "front-0", "dominated")) > 2000
