"""A run made by version 0.3.0 (smoke preset, rescored and refined) still opens, plots and exports."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import star
from star.cli import app

OLD = Path(__file__).parent / "run-0.3.0"
KNEE, BEST_REFINED = "924564792ecf", "rbc955326e8f"


@pytest.fixture
def run(tmp_path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def call(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output or result.exception
    return result.output


def test_the_front_and_the_repeated_measurements_are_the_recorded_ones(run):
    rows = json.loads(call("front", run, "--json"))
    members = {row["id"]: row["objectives"]["loss"] for row in rows}
    assert set(members) == {KNEE, "b089d02312b3", "85afb847394a", "a28cec51f444"}
    assert next(row for row in rows if row["id"] == KNEE)["searched"]["loss"] == pytest.approx(2.6927, abs=1e-4)
    fresh = [row["loss"] for row in star.Run(run).fresh(KNEE)]
    assert len(fresh) == 3 and members[KNEE] == pytest.approx(sum(fresh) / 3), (
        "rescored once and refined with two seeds"
    )
    repeats = star.Run(run).repeats()
    assert repeats[KNEE][0]["objectives"]["loss"] == pytest.approx(2.7319, abs=1e-4)
    assert star.Run(run).status()["finished"]
    call("status", run)


def test_a_record_without_checksums_is_read_without_warnings(run):
    with warnings.catch_warnings(action="error"):
        assert star.Run(run).front() and star.Run(run).curve(KNEE)


def test_the_refinement_is_the_recorded_one(run):
    refined = star.Run(run).refinement()
    (row,) = refined.members()
    assert (row.member, row.candidate) == (KNEE, BEST_REFINED) and refined.finished
    assert row.difference == pytest.approx(-0.2963, abs=1e-4)
    assert BEST_REFINED in call("refine", run, "--report")


def test_it_plots_and_explains(run):
    call("plot", run)
    assert (run / "plots" / "pareto_fronts.png").stat().st_size > 10_000
    call("report", run)
    assert KNEE in (run / "report.html").read_text()
    assert "LIV" in call("show", f"{run}:{KNEE}")


@pytest.mark.parametrize("id", [KNEE, BEST_REFINED])
def test_it_exports_the_stored_weights(run, tmp_path, id):
    call("export", f"{run}:{id}", "--out", tmp_path / "model")
    model = star.load(tmp_path / "model")
    tokens = torch.frombuffer(bytearray(b"def main(argument):\n    return "), dtype=torch.uint8).long()[None]
    with torch.no_grad():
        loss = model.loss(tokens[:, :-1], tokens[:, 1:]).item()
    assert loss < 3.5, "untrained weights would give 5.5 nats/byte"


def test_continuing_asks_for_the_version_that_made_it(run):
    for command in (["evolve", run], ["rescore", run, "--seeds", 9], ["refine", run, "--budget", 99]):
        assert "0.3.0" in call(*command, code=2)
