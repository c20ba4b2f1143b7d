"""Plots show all data and their labels do not overlap; tables agree with the run."""

import csv
import io
import itertools
import json
import re

import numpy as np
import pytest
from fakes import config, run
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import PathCollection
from matplotlib.patches import FancyBboxPatch, PathPatch
from rich.console import Console

from star.config import load_config
from star.cost import costs
from star.errors import UserError
from star.genome import Gene, Genome, Space, from_json, gene_table, layout_name, load_genome, resolve
from star.report.curves import learning_curves
from star.report.fronts import attainment, pareto_fronts
from star.report.genome_diagram import genome_diagram
from star.report.hypervolume import hypervolume
from star.report.listing import Column, Listing
from star.report.plots import PLOTS, write_plots
from star.report.sharing import FEATURES, WEIGHTS, layer_cache, layer_parameters, sharing_links
from star.report.show import gene_reference, show_difference, show_genome
from star.report.style import log_ticks, save_figure, save_one
from star.report.tables import front_csv, front_rows, front_table, operator_table, status_lines, summary_lines
from star.report.units import baseline_name, format_bytes, format_count, format_seconds
from star.run import Run
from star.search import evolve

# Every kind of sharing: chains of owners, features with a state, and a LIV that is both owner and consumer.
GENES = [(5, 0, 0, 1, 2), (5, 1, 2, 1, 2), (5, 1, 2), (5, 1, 2, 2, 3), (6, 0, 0, 2, 3), *2 * [(9, 2, 2, 3, 2)]]
SHARED = Genome(tuple(Gene(*genes) for genes in GENES), d_model=64, head_dim=16)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Run:
    """A real run of 2 generations x 3, trained on a little text."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "text").mkdir()
    for n in range(12):
        (folder / "text" / f"{n}.py").write_text(f"def function_{n}(x):\n    return x * {n} + sum(range({n}))\n" * 40)
    settings = {
        "data.corpus": str(folder / "text"),
        "search.population": 3,
        "search.offspring": 3,
        "search.generations": 2,
        "engine.kind": "inprocess",
    }
    budget = {"training.tokens": 1024, "training.eval_tokens": 512}
    evolve(folder / "run", load_config("smoke", overrides=settings | budget))
    return Run(folder / "run")


@pytest.fixture(scope="module")
def failing(tmp_path_factory) -> Run:
    """Many free candidates, a third of which fail."""
    path = tmp_path_factory.mktemp("failing") / "run"
    run(path, config(search__population=12, search__baselines=("transformer++", "lfm2-350m")), "fakes:unreliable")
    return Run(path)


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")) if text.get_text()]


def printed(*parts, width=150) -> str:
    out = Console(file=io.StringIO(), width=width, markup=False, highlight=False)
    for part in parts:
        out.print(part)
    return out.file.getvalue()


# Plots of a run.


def test_pareto_fronts_show_every_candidate_in_every_pair(trained):
    figure = pareto_fronts(trained)
    panels = [axes for axes in figure.axes if axes.axison]
    assert len(panels) == 3
    candidates = [c for c in trained.candidates() if c.objectives]
    evolved = [c for c in candidates if c.origin != "baseline"]
    for axes in panels:
        shown = sum(len(c.get_offsets()) for c in axes.collections if isinstance(c, PathCollection))
        assert shown == len(candidates) + 1  # the knee is marked on top
        assert len(axes.lines) == 1 and len(axes.lines[0].get_xdata()) >= 3
        assert re.search(r"\((nats/byte|parameters|bytes)\)", axes.get_xlabel()) and axes.get_ylabel()
    words = texts(figure)
    assert sum(word.startswith("transformer++ layout, ") for word in words) == 3
    members = len(trained.front())
    assert {f"Pareto front ({members})", f"dominated ({len(evolved) - members})"} <= set(words)


def test_baseline_labels_cover_no_point_and_no_label(failing):
    figure = pareto_fronts(failing)
    figure.canvas.draw()
    for axes in (axes for axes in figure.axes if axes.axison):
        labels = [text.get_window_extent() for text in axes.texts if text.get_text()]
        assert len(labels) == 2
        assert not labels[0].overlaps(labels[1])
        frame = axes.get_window_extent()
        assert all(box.x0 >= frame.x0 - 2 and box.x1 <= frame.x1 + 2 for box in labels)


def test_hypervolume_marks_generations_and_the_initial_level(trained):
    figure = hypervolume(trained)
    rows = trained.hypervolume()
    initial, line = figure.axes[0].lines
    assert initial.get_ydata()[0] == [r["hypervolume"] for r in rows if r["generation"] == 0][-1]
    assert line.get_ydata()[-1] == rows[-1]["hypervolume"] and line.get_xdata()[-1] == len(rows)
    assert {"initial", "1", "generation"} <= set(texts(figure))


def test_learning_curves_show_all_candidates_and_both_references(trained):
    figure = learning_curves(trained)
    axes = figure.axes[0]
    curves = [line for line in axes.lines if len(line.get_xdata()) > 2]
    assert len(curves) == len([c for c in trained.candidates() if c.objectives])
    references = trained.references
    assert {f"byte {name} {loss:.2f}" for name, loss in references.items()} <= set(texts(figure))
    low, high = axes.get_ylim()
    assert all(low < loss < high for loss in references.values())
    assert {"initial", "generation 1"} <= set(texts(figure))
    assert any(word.startswith("transformer++ layout, ") for word in texts(figure))


def test_plots_are_written_as_png_and_svg(trained, tmp_path):
    paths = write_plots(trained, tmp_path / "plots")
    assert len(paths) == 2 * len(PLOTS)
    begins = {".png": b"\x89PNG", ".svg": b"<?xml"}
    for path in paths:
        data = path.read_bytes()
        assert len(data) > 5000 and data.startswith(begins[path.suffix])


def test_the_same_figure_is_the_same_file(trained, tmp_path):
    first, second = (save_figure(hypervolume(trained), tmp_path / name, ("png", "svg", "pdf")) for name in "ab")
    assert first[2].read_bytes().startswith(b"%PDF")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_failures_and_missing_curves_can_be_plotted(failing):
    assert {c.status for c in failing.candidates()} >= {"ok", "failed", "diverged"}
    for plot in PLOTS:
        plot(failing)
    assert "nothing trained yet" in texts(learning_curves(failing))


def test_one_and_four_objectives(tmp_path):
    for names, panels in ((("bpb",), 1), (("bpb", "parameters", "cache", "flops"), 6)):
        path = tmp_path / str(panels)
        run(path, config(objectives__names=names, search__generations=2))
        figure = pareto_fronts(Run(path))
        assert sum(axes.axison for axes in figure.axes) == panels


def test_a_cache_of_zero_bytes_is_shown(tmp_path):
    run(tmp_path / "run", config(space__classes=(0, 1, 9), search__seeds=("9-9",), search__generations=2))
    opened = Run(tmp_path / "run")
    assert 0 in [c.objectives["cache"] for c in opened.candidates() if c.objectives]
    figure = pareto_fronts(opened)
    figure.canvas.draw()
    ticks = [label.get_text() for axes in figure.axes for label in axes.get_xticklabels()]
    assert "0 B" in ticks


def test_a_picture_of_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"genome\.doc.*\.png, \.svg or \.pdf"):
        save_one(genome_diagram(SHARED), tmp_path / "genome.doc")


# The diagram of one genome.


@settings(max_examples=25, deadline=None)
@given(slots=st.sampled_from((4, 8, 16, 32)), seed=st.integers(0, 2**32))
def test_links_of_random_genomes_are_those_of_the_plan_and_never_overlap(slots, seed):
    space = Space(slots, (64,), 16, classes=(1, 2, 5, 6, 7, 9, 10), max_groups=max(1, slots // 8))
    plan = resolve(space.decode(space.sample(np.random.default_rng(seed), 1)[0]))
    links = sharing_links(plan)
    taken = {(kind, layer.index): set() for layer in plan.layers for kind in (WEIGHTS, FEATURES)}
    for link in links:
        for index, groups in link.consumers.items():
            taken[link.kind, index] |= set(groups)
    for layer in plan.layers:
        assert taken[FEATURES, layer.index] == layer.given
        assert taken[WEIGHTS, layer.index] == set(layer.weights_from)
    for a in links:
        for b in links:
            if a is not b and (a.kind, a.lane) == (b.kind, b.lane):
                assert a.last < b.owner or b.last < a.owner


@pytest.mark.parametrize(
    "genome",
    [SHARED, load_genome("lfm2-350m"), load_genome("transformer++", 64, 4, 16)],
    ids=["shared", "lfm2", "small"],
)
def test_diagram_has_a_box_a_name_and_costs_for_every_liv(genome):
    figure = genome_diagram(genome, seq_len=4096)
    axes = figure.axes[0]
    boxes = [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    assert len(boxes) == genome.depth
    words = texts(figure)
    for layer in resolve(genome).layers:
        assert layer.name in words and format_count(layer_parameters(layer)) in words
    assert sum(isinstance(patch, PathPatch) for patch in axes.patches) == len(sharing_links(resolve(genome)))
    extents = [box.get_window_extent() for box in boxes]
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(extents))
    assert all(0 <= t.get_window_extent().x0 and t.get_window_extent().x1 <= figure.bbox.x1 + 1 for t in axes.texts)


def test_diagram_of_64_livs_that_all_share_stays_inside_its_columns():
    genes = tuple(Gene(1, min(i, 63 - i) + 1, 2, i % 32 + 1, 4) for i in range(64))
    figure = genome_diagram(Genome(genes, 64, 16))
    axes = figure.axes[0]
    boxes = [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    links = [patch for patch in axes.patches if isinstance(patch, PathPatch)]
    assert len(boxes) == 64 and len(links) == 64
    numbers = [text for text in axes.texts if text.get_text().isdigit()]
    titles = ("parameters", "cache at 4,096 tokens")
    bars = min(text.get_position()[0] for text in axes.texts if text.get_text() in titles)
    columns = [patch.get_path().vertices[:, 0] for patch in links]
    assert min(x.min() for x in columns) > max(text.get_position()[0] for text in numbers)
    assert max(x.max() for x in columns) < bars
    assert max(text.get_window_extent().x1 for text in axes.texts) <= figure.bbox.x1 + 1


def test_layer_costs_add_up_to_the_costs_of_the_genome():
    layers = resolve(SHARED).layers
    total = costs(SHARED, seq_len=100)
    assert sum(map(layer_parameters, layers)) == total.backbone_parameters
    assert sum(layer_cache(layer, 100) for layer in layers) == total.cache_bytes


# Text.


def test_front_table_marks_the_knee_and_lists_baselines(trained):
    text = printed(front_table(trained))
    for member in trained.front():
        assert member.id in text
    assert re.search(rf"{trained.knee().id} knee", text)
    assert "transformer++ layout" in text and "(bits/byte)" in text


@pytest.mark.parametrize("width", (50, 80, 100, 120))
def test_a_table_fits_the_terminal_and_breaks_no_class_name(failing, width):
    text = printed(front_table(failing), width=width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    names = {name for c in failing.front() for name in c.genome.class_names}
    ids = tuple(c.id for c in failing.front())
    lines = list(itertools.dropwhile(lambda line: not line.startswith(ids), text.splitlines()))[: len(ids)]
    assert all(map(str.startswith, lines, ids)), "one line a member"
    for line in lines if "genome" in text.splitlines()[1] else ():
        assert re.sub(r"\(x\d+\)$", "", re.sub(r" \+\d+$", "", line.rstrip()).split()[-1]) in names
    for head in ("generation", "genome"):
        assert head in text, "shown, or said to be left out"


def test_columns_are_left_out_in_order_and_named():
    listing = Listing(Column("id"), Column("a", spare=2), Column("b", right=True, spare=1), Column("words", 0, 3, True))
    listing.add("one", "aaaaaaaaaa", "bbbbbbbbbb", "some long words")
    listing.add("two", "a", "b", "word", style="dim")
    assert "no room" not in printed(listing, width=60)
    assert re.search("for b$", printed(listing, width=25).strip())
    assert "aaaaaaaaaa" not in printed(listing, width=15) and "for a, b" in " ".join(printed(listing, width=15).split())
    assert listing.html().count("<td") == 8 and '<td class="number">b</td>' in listing.html()


def test_a_baseline_is_named_for_what_it_is(failing, trained):
    names = {baseline_name(failing, c) for c in failing.candidates("baseline")}
    assert len(names) == 2 and all(re.fullmatch(r"(transformer\+\+|lfm2) layout, [\d.]+ K", name) for name in names)
    shown = [printed(front_table(failing)), *texts(pareto_fronts(failing)), *texts(learning_curves(trained))]
    assert not any("lfm2-350m" in text for text in shown)
    assert [layout_name(name) for name in ("lfm2-350m", "llama-3.2-1b", "samba-hybrid")] == [
        "lfm2 layout",
        "llama-3.2 layout",
        "samba-hybrid layout",
    ]


def test_front_for_programs_is_the_front(trained):
    rows = json.loads(json.dumps(front_rows(trained)))
    keys = {"id", "name", "origin", "generation", "knee", "genome", "objectives", "searched", "measured"}
    assert [set(row) for row in rows] == [keys] * len(rows)
    assert [row["id"] for row in rows if row["knee"]] == [trained.knee().id]
    assert all(row["measured"]["bpb"]["se"] > 0 and row["measured"]["bpb"]["n"] == 1 for row in rows)
    ids = [c.id for c in trained.front()]
    assert [from_json(row["genome"]).id for row in rows] == [row["id"] for row in rows] == ids
    table = list(csv.DictReader(io.StringIO(front_csv(trained))))
    more = front_rows(trained, baselines=True)
    assert more[: len(rows)] == rows and [row["name"] for row in more[len(rows) :]] == ["transformer++"]
    assert front_csv(trained, baselines=True).splitlines()[-1].split(",")[1] == "baseline"
    assert [float(row["bpb"]) for row in table] == [row["objectives"]["bpb"] for row in rows]
    assert [load_genome(row["genome"], head_dim=8, d_model=32).id for row in table] == [row["id"] for row in rows]


def test_status_says_how_far_and_how_good(trained, failing):
    text = "\n".join(status_lines(trained) + summary_lines(trained))
    assert "finished" in text and "7 of 7 candidates done" in text
    assert "byte unigram" in text and "byte bigram" in text and "hypervolume: initial population" in text
    table = printed(operator_table(trained))
    assert "joined the front" in table and "mutation" in table
    text = "\n".join(status_lines(failing))
    assert "this genome never works" in text and "failed" in text


def test_show_explains_every_gene_of_the_genome():
    text = printed(*show_genome(SHARED, name="a name"))
    sharing = ("feature group 1: b from LIV 1", "featurizer group 1: from LIV 2, 3")
    for part in ("a name", SHARED.id, "d_model", "pre: x + f(norm(x))", *sharing):
        assert part in text
    for gene in SHARED.backbone:
        assert SHARED.family(gene).equation in text
    assert f"{costs(SHARED).parameters:,}" in text
    assert text.count("╮") == len(sharing_links(resolve(SHARED)))


def test_show_prints_a_name_from_a_file_as_plain_text():
    assert "\x1b" not in printed(*show_genome(SHARED, name="[red]x\x1b[2J", description="\x1b]0;title\x07"))


def test_show_says_the_cache_at_three_lengths():
    rows = dict(
        re.findall(r"^cache( at \d+ K)? +([\d.]+ \w+)", printed(*show_genome(SHARED, seq_len=4096)), flags=re.M)
    )
    assert rows == {"": bytes_at(4096), " at 32 K": bytes_at(32_768), " at 128 K": bytes_at(131_072)}


def bytes_at(length: int) -> str:
    return format_bytes(costs(SHARED, seq_len=length).cache_bytes)


def test_a_difference_aligns_equal_livs_and_compares_costs():
    genes = tuple(Gene(*row) for row in GENES)
    other = Genome((*genes[:5], Gene(1), *genes[5:]), d_model=96, head_dim=16)
    text = printed(*show_difference(SHARED, other, ("a", "b")))
    changed = re.findall(r"^([-+]) +(\d+) +(\S+)", text, flags=re.M)
    assert changed == [("+", "6", "SA-1")]
    assert re.search(r"^ +6 +7 +GMemless", text, flags=re.M) and re.search(r"d_model +64 +96", text)
    sizes = [costs(genome).parameters for genome in (SHARED, other)]
    ratio = f"{sizes[1] / sizes[0]:.2f} x"
    assert re.search(rf"parameters +{format_count(sizes[0])} +{format_count(sizes[1])} +{ratio}", text)
    assert "are the same architecture" in printed(*show_difference(SHARED, SHARED, ("a", "b")))


def test_gene_reference_lists_the_whole_gene_table():
    text = re.sub(r"\s+", " ", printed(gene_reference()))
    for row in gene_table():
        assert row["gene"].split()[0] in text


def test_an_empty_run_says_that_there_is_nothing_yet(trained, tmp_path):
    stopped = config(search__generations=2)

    def stop(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", stopped, callbacks=[stop])
    opened = Run(tmp_path / "run")
    for plot in PLOTS[:3]:
        assert "nothing trained yet" in texts(plot(opened))
    with pytest.raises(UserError, match="star status"):
        write_plots(opened, tmp_path / "plots")
    assert "stopped" in "\n".join(status_lines(opened)) and summary_lines(opened) == []


# Numbers.


def test_numbers_have_three_digits_and_a_prefix():
    cases = {0: "0", 7: "7", 999: "999", 1000: "1 K", 12_345: "12.3 K", 999_600: "1 M", 354_483_968: "354 M"}
    assert {value: format_count(value) for value in cases} == cases
    cases = {0: "0 B", 1023: "1023 B", 1024: "1 KiB", 3200: "3.12 KiB", 12 * 2**20: "12 MiB"}
    assert {value: format_bytes(value) for value in cases} == cases
    assert [format_seconds(s) for s in (0.4, 59.6, 95, 7260)] == ["0 s", "1 min 00 s", "1 min 35 s", "2 h 01 min"]


@given(low=st.floats(1e-3, 1e9), ratio=st.floats(1.2, 1e6), base=st.sampled_from((2, 10)))
def test_ticks_are_apart_and_inside(low, ratio, base):
    ticks = log_ticks(low, low * ratio, base, gap=0.19)
    assert len(ticks) <= 6 and all(low <= tick <= low * ratio for tick in ticks)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30))
def test_the_step_line_joins_what_nothing_beats(points):
    corners = attainment(points)
    assert set(corners) == {p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
    assert corners == sorted(corners)
