"""Fresh seeds: once the front is measured with them, everything that shows it shows them, and nothing mixes the two."""

import csv
import io
import math
import re

import numpy as np
import pytest
from fakes import config, run
from matplotlib.collections import PathCollection
from rich.console import Console

from star.assess.evaluations import tabular
from star.assess.noise import measured, noise_sd
from star.assess.objectives import Objective
from star.engine import InProcess
from star.report.fronts import pareto_fronts
from star.report.hypervolume import hypervolume
from star.report.page import write_page
from star.report.tables import front_csv, front_rows, front_table, rescore_rows, rescore_table, summary_lines
from star.run import Run
from star.search.repeats import rescore

NOISE = 0.2


def noisy(job: dict, report) -> dict:
    """The tabular loss and noise that depends on the seed alone; the evaluation has an error of its own."""
    result = tabular.assess(job, report)
    result["metrics"]["bpb"] += NOISE * float(np.random.default_rng(job["seed"]).standard_normal())
    result["metrics"]["bpb_se"] = 0.05
    return result


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    path = tmp_path_factory.mktemp("fresh") / "run"
    run(path, config(search__baselines=("lfm2-350m",)), "test_fresh_seeds:noisy")
    return path


@pytest.fixture
def path(searched, tmp_path):
    import shutil

    return shutil.copytree(searched, tmp_path / "run")


def measure(path, seeds=2, ids=()) -> Run:
    rescore(path, seeds, ids=ids, engine=InProcess("test_fresh_seeds:noisy"))
    return Run(path)


def printed(part, width=120) -> str:
    out = Console(file=io.StringIO(), width=width, markup=False, highlight=False)
    out.print(part)
    return out.file.getvalue()


def test_the_front_its_hypervolume_and_its_exports_are_those_of_the_fresh_seeds(path):
    before = Run(path)
    searched = {c.id: c.objectives["bpb"] for c in before.front()}
    assert not before.rescored and all(not c.measured["bpb"].fresh for c in before.front())
    after = measure(path)
    assert after.rescored and {c.id: c.objectives["bpb"] for c in after.front(searched=True)} == searched
    fresh = {id: np.mean([row["bpb"] for row in after.fresh(id)]) for id in searched}
    assert set(fresh) > {c.id for c in after.front()}, "with so much noise some were only lucky"
    for c in after.front():
        assert c.objectives["bpb"] == pytest.approx(fresh[c.id]) and c.measured["bpb"].n == 2
        others = [(loss, after.candidate(id).costs) for id, loss in fresh.items() if id != c.id]
        assert not any(
            loss <= fresh[c.id] and all(costs[k] <= c.costs[k] for k in ("parameters", "cache"))
            for loss, costs in others
        )
    assert after.best().id == after.front()[0].id and after.knee() in after.front()
    volume = after.hypervolume_of(after.front())
    assert volume != pytest.approx(before.hypervolume()[-1]["hypervolume"])
    assert f"one seed each; with fresh seeds {volume:.3f}" in "\n".join(summary_lines(after))
    table = printed(front_table(after))
    rows = front_rows(after)
    lines = csv.DictReader(io.StringIO(front_csv(after)))
    for c, row, line in zip(after.front(), rows, lines, strict=True):
        m = c.measured["bpb"]
        assert f"{c.objectives['bpb']:.3f} [{m.low:.3f}, {m.high:.3f}]" in table
        assert row["id"] == c.id and row["objectives"]["bpb"] == m.mean and row["searched"]["bpb"] == searched[c.id]
        assert row["measured"]["bpb"] == {k: getattr(m, k) for k in ("mean", "se", "n", "fresh", "low", "high")}
        assert float(line["bpb"]) == m.mean and int(line["bpb_seeds"]) == 2
    assert [row["knee"] for row in rows].count(True) == 1


def test_a_front_is_never_half_by_one_seed_and_half_by_fresh_seeds(path):
    front = Run(path).front()
    some = measure(path, ids=[front[0].id, front[1].id])
    assert not some.rescored
    assert [(c.id, c.objectives) for c in some.front()] == [(c.id, c.objectives) for c in front]
    text = "\n".join(summary_lines(some))
    assert f"2 of {len(front)} have them" in text
    table = printed(front_table(some), 150)
    for id in (front[0].id, front[1].id):
        mean = np.mean([row["bpb"] for row in some.fresh(id)])
        assert re.search(rf"{id}.*{mean:.3f} \[.*\] \(2\)", table)


def test_the_sign_of_a_change_is_that_of_the_numbers_beside_it(path):
    after = measure(path)
    for row in rescore_rows(after):
        assert row["change"]["bpb"] == pytest.approx(row["fresh"]["bpb"] - row["searched"]["bpb"])
    table, lines = rescore_table(after)
    for line in printed(table).splitlines()[2:]:
        was, now, change = re.search(r"(\d\.\d+) +(\d\.\d+) \[.*\] +([+-]\d\.\d+)", line).groups()
        assert float(now) - float(was) == pytest.approx(float(change), abs=0.002)
    mean = np.mean([row["change"]["bpb"] for row in rescore_rows(after)])
    assert f"{abs(mean):.4f} bits/byte {'worse' if mean > 0 else 'better'}" in "\n".join(lines)


def test_every_loss_has_its_error(path):
    opened = Run(path)
    assert all(f"{c.objectives['bpb']:.3f} +- 0.050" in printed(front_table(opened)) for c in opened.front())
    figure = pareto_fronts(opened)
    assert all(len(axes.containers) == 2 for axes in figure.axes[:2]), "error bars of the front and of the baseline"
    after = measure(path)
    assert after.candidates("baseline")[0].measured["bpb"].low is not None, "the noise is that of one seed too"


def test_the_plots_join_only_points_of_one_kind(path):
    after = measure(path)
    loss = {c.id: c.objectives["bpb"] for c in after.front()}
    axes = pareto_fronts(after).axes[0]
    assert set(axes.lines[0].get_ydata()[1:-1]) <= set(loss.values())
    shown = {c.get_label(): c for c in axes.collections if isinstance(c, PathCollection)}
    evolved = [c for c in after.candidates() if c.objectives and c.origin != "baseline"]
    assert f"one seed each, in the search ({len(evolved)})" in shown
    assert set(shown[f"Pareto front, fresh seeds ({len(loss)})"].get_offsets()[:, 1]) == set(loss.values())
    lines = hypervolume(after).axes[0].lines
    assert lines[1].get_ydata()[-1] == after.hypervolume()[-1]["hypervolume"], "one seed each"
    assert lines[2].get_ydata()[-1] == after.hypervolume_of(after.front()) and len(lines[2].get_ydata()) == 1
    assert "Fresh seeds" in write_page(after, path / "report.html").read_text()


def test_intervals_hold_the_truth_as_often_as_they_say():
    objective, rng, held = Objective("bpb", "nats/byte", "", lambda metrics: 0.0), np.random.default_rng(0), []
    for _ in range(2000):
        groups = rng.standard_normal((4, 3))
        found = measured(objective, groups[0], True, noise_sd(list(groups)))
        held.append(found.low <= 0.0 <= found.high)
    assert abs(np.mean(held) - 0.95) < 3 * math.sqrt(0.95 * 0.05 / len(held))


def test_the_interval_of_a_maximised_objective_is_the_right_way_round():
    skill = Objective("skill", "share", "", lambda metrics: 0.0, direction="max")
    found = measured(skill, [0.5, 0.7], True, noise_sd([[-0.5, -0.7]]))
    assert found.low < found.mean < found.high and found.mean == pytest.approx(0.6)
