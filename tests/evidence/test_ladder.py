"""A ladder: a sample of all kinds trained at larger budgets, what it says, and that the search does not change."""

import json

import pytest
from fakes import SEEN, Interrupted, config, history, run
from scipy.stats import spearmanr
from typer.testing import CliRunner

from star.cli import app
from star.engine import InProcess
from star.errors import UserError
from star.evidence.climb import climb
from star.evidence.order import Ladder
from star.evidence.sampling import sample
from star.genome import from_json
from star.report.ladder_report import ladder_figure, ladder_lines, ladder_table
from star.report.tables import summary_lines
from star.run import Run

SETTINGS = config(search__generations=8, search__baselines=("transformer++",))
BUDGET = SETTINGS.training.tokens
FUNCTION = "fakes:attention_is_slow"


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    path = tmp_path_factory.mktemp("ladder") / "run"
    SEEN.clear()
    run(path, SETTINGS, FUNCTION)
    return path


@pytest.fixture(scope="module")
def climbed(searched):
    climb(searched, (3, 10), n=24, engine=InProcess(FUNCTION, 2))
    return Run(searched)


def test_the_sample_has_all_kinds_over_the_whole_range(searched):
    found = Run(searched)
    members, genomes = sample(found, 24)
    assert len(members) + len(genomes) == 24 and len(genomes) >= 4
    front, ids = {c.id for c in found.front()}, {c.id for c in members}
    assert ids & front and {c.id for c in members if c.origin == "baseline"} and ids - front
    values = [c.values["bpb"] for c in found.candidates() if c.objectives and c.id not in front]
    chosen = [c.values["bpb"] for c in members if c.id not in front]
    assert min(chosen) == min(values) and max(chosen) == max(values)
    assert not {g.id for g in genomes} & {c.id for c in found.candidates()}
    assert [g.id for g in sample(found, 24)[1]] == [g.id for g in genomes]


def test_every_rung_is_trained_with_its_budget_and_width_and_the_search_is_untouched(searched, climbed):
    rows = climbed.ladder()
    rungs = {(row["tokens"], row["width"]) for row in rows}
    assert rungs == {(1.0, 1.0), (3.0, 1.0), (10.0, 1.0), (1.0, 2.0)}
    for rung in rungs - {(1.0, 1.0)}:
        assert len({row["id"] for row in rows if (row["tokens"], row["width"]) == rung}) == 24
    assert all(row["origin"] == "random" for row in rows if row["tokens"] == row["width"] == 1)
    trained = [job for job in SEEN if job["directory"] is None]
    assert {round(job["recipe"]["tokens"] / BUDGET) for job in trained} == {1, 3, 10}
    assert {from_json(job["genome"]).d_model for job in trained} == {64, 128}
    assert not {job["seed"] for job in trained} & {job["seed"] for job in SEEN if job["directory"]}
    assert not any(job["keep_weights"] for job in trained)
    fresh = Run(searched)
    assert fresh.status()["done"] == len(fresh.candidates()) and history(searched)


def test_it_says_whether_the_order_holds_and_who_gains(climbed):
    ladder = Ladder(climbed)
    top = {row["id"]: row["bpb"] for row in climbed.ladder() if row["tokens"] == 10}
    row = next(row for row in ladder.correlations() if row["tokens"] == 10)
    base = ladder.values[1.0, 1.0]
    assert row["n"] == len(base) == 24
    assert row["spearman"] == pytest.approx(spearmanr([base[i] for i in top], list(top.values())).statistic)
    assert row["spearman_low"] < row["spearman"] < row["spearman_high"]
    gains = {row["family"]: row["gain"] for row in ladder.families()}
    assert max(gains, key=gains.__getitem__) == "attention"
    assert ladder.smallest(holds=-1.0) == 1 and ladder.smallest(holds=1.1) is None
    text = "\n".join(ladder_lines(climbed))
    assert f"rank correlation {row['spearman']:.2f}" in text and "attention +" in text
    assert text in "\n".join(summary_lines(climbed))
    assert len(ladder_table(climbed).rows) == 24
    labels = {text.get_text() for text in ladder_figure(climbed).axes[0].texts}
    assert "transformer++ layout" in labels


def test_it_goes_on_after_a_kill_and_adds_what_is_new(tmp_path):
    run(tmp_path, SETTINGS, FUNCTION)
    assert "star ladder" in "\n".join(summary_lines(Run(tmp_path)))
    with pytest.raises(ConnectionError, match="killed"):
        climb(tmp_path, (2,), n=8, engine=Interrupted(FUNCTION, 1, seed=0, left=5))
    done = len(Run(tmp_path).ladder())
    left = climb(tmp_path, (2,), n=8, engine=InProcess(FUNCTION, 1))
    rows = Run(tmp_path).ladder()
    assert 0 < done < done + left == len(rows) == len({(r["id"], r["tokens"], r["width"]) for r in rows})
    assert climb(tmp_path, (2,), n=8, engine=InProcess(FUNCTION, 1)) == 0
    assert climb(tmp_path, (2, 4), width=1, n=8, engine=InProcess(FUNCTION, 1)) == 8


def test_a_failure_costs_only_itself(tmp_path):
    run(tmp_path, SETTINGS, FUNCTION)
    climb(tmp_path, (2,), n=12, engine=InProcess("fakes:unreliable", 2))
    rows = Run(tmp_path).ladder()
    assert {row["status"] for row in rows} > {"ok"} and len(rows) >= 24
    assert all((row["bpb"] is None) == (row["status"] != "ok") for row in rows)
    ladder_lines(Run(tmp_path))


def test_bad_use_is_one_sentence(tmp_path, searched):
    with pytest.raises(UserError, match=r"budgets are 0\.5; each must be above 1"):
        climb(searched, (0.5,))
    run(tmp_path, config(search__generations=1, search__population=4), FUNCTION)
    with pytest.raises(UserError, match="has trained 4 candidates and a ladder needs 8"):
        climb(tmp_path)
    for arguments, words in (
        (["--budgets", "3,x"], "write budgets of the search, such as 3,10"),
        (["--genomes", "2"], "8"),
    ):
        result = CliRunner().invoke(app, ["ladder", str(searched), *arguments])
        assert result.exit_code == 2 and words in result.output


def test_as_json_and_as_a_table_from_the_command_line(tmp_path):
    run(tmp_path, SETTINGS, FUNCTION)
    climb(tmp_path, (2,), width=1, n=8, engine=InProcess(FUNCTION, 1))  # so that the verb has nothing left to train
    arguments = ["ladder", str(tmp_path), "--budgets", "2", "--width", "1", "--genomes", "8"]
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)
    assert [r["id"] for r in found["rows"] if r["tokens"] == 2] == [
        r["id"] for r in Run(tmp_path).ladder() if r["tokens"] == 2
    ] and found["correlations"][0]["tokens"] == 2
    text = CliRunner().invoke(app, arguments).output
    assert "rank correlation" in text and all(row["id"] in text for row in found["rows"])
