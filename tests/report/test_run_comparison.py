"""Runs are compared in one frame, and what each owns of the joint front adds up."""

import json

import numpy as np
import pytest
from fakes import config, run
from typer.testing import CliRunner

from star.assess import Front
from star.cli import app
from star.errors import UserError
from star.report.run_comparison import RunComparison
from star.run import Run


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Two seeds of one search, and one seed of another."""
    folder = tmp_path_factory.mktemp("compared")
    for name, settings in {"a": {"seed": 0}, "b": {"seed": 1}, "c": {"seed": 0, "search__population": 12}}.items():
        run(folder / name, config(search__generations=3, **settings))
    return [folder / name for name in "abc"]


def test_the_joint_front_is_what_no_run_beats(paths):
    found = RunComparison(paths)
    front = Front(found.objectives)
    for n, path in enumerate(paths):
        for c in Run(path).front():
            front.add(f"{n} {c.id}", c.values)
    assert {f"{n} {c.id}" for n, c in found.joint} == set(front.ids)
    assert found.total == found.frame.hypervolume(front)
    for n in range(3):
        others = Front(found.objectives)
        for k, path in enumerate(paths):
            for c in Run(path).front() if k != n else ():
                others.add(f"{k} {c.id}", c.values)
        assert found.alone(n) == pytest.approx(found.total - found.frame.hypervolume(others)) and found.alone(n) >= 0
        assert found.hypervolume(n) <= found.total
        assert (
            found.progress(n)[-1] == pytest.approx(found.hypervolume(n)) and len(found.progress(n)) == (24, 24, 36)[n]
        )


def test_runs_that_differ_in_the_seed_alone_are_one_group(paths):
    found = RunComparison(paths)
    assert found.groups == [[0, 1], [2]]
    band, alone = (found.band(group) for group in found.groups)
    values = [found.hypervolume(n) for n in (0, 1)]
    half = 12.706 * abs(values[0] - values[1]) / 2  # Student's t of one degree of freedom
    assert band["hypervolume"] == pytest.approx(np.mean(values))
    assert band["high"] - band["low"] == pytest.approx(2 * half, rel=1e-3) and alone["low"] is None


def test_all_frames_fit_in_the_common_one(paths):
    found = RunComparison(paths)
    for path in paths:
        frame = Run(path).frame
        for o in found.objectives:
            assert found.frame.reference[o.name] >= frame.reference[o.name]
            assert found.frame.ideal[o.name] <= frame.ideal[o.name]


def test_star_compare_prints_a_table_json_and_a_picture(paths, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # so that no path is broken

    def call(*words):
        result = CliRunner().invoke(app, ["compare", *map(str, words)])
        assert result.exit_code == 0, result.output
        return result.output

    text = call(*paths, "--plot", tmp_path / "compared.pdf")
    assert all(str(path) in text for path in paths) and "one group, seeds 0, 1, mean hypervolume" in text
    assert (tmp_path / "compared.pdf").read_bytes().startswith(b"%PDF")
    data = json.loads(call(*paths, "--json"))
    assert sum(1 for row in data["joint"] if row["run"] == str(paths[0])) <= len(data["runs"][0]["front"])
    assert data["hypervolume"] == RunComparison(paths).total and len(data["groups"]) == 2


def test_the_picture_has_all_members_and_fills_those_of_the_joint_front(paths):
    found = RunComparison(paths)
    panels = [axes for axes in found.figure().axes if axes.axison]
    assert len(panels) == 4
    for axes in panels[:3]:
        assert [len(c.get_offsets()) for c in axes.collections] == [len(front) for front in found.fronts]
        filled = sum((c.get_facecolors().min(axis=1) < 1).sum() for c in axes.collections)
        assert filled == len(found.joint)
    assert len(panels[3].lines) >= 2 and len(panels[3].collections) == 1, "two curves, one band"


def test_what_cannot_be_compared_is_refused(paths, tmp_path):
    with pytest.raises(UserError, match="two different runs"):
        RunComparison([paths[0], paths[0]])
    run(tmp_path / "two", config(objectives__names=("bpb", "parameters"), search__generations=2))
    with pytest.raises(UserError, match="compare runs with the same objectives"):
        RunComparison([paths[0], tmp_path / "two"])
    with pytest.raises(UserError, match="there is no run at"):
        RunComparison([paths[0], tmp_path / "none"])
