"""star capabilities: measured on the front and the baselines, beside the search, with what is there already."""

import json
import shutil

import pytest
from fakes import Interrupted, config, history
from fakes import run as search
from typer.testing import CliRunner

from star.assess import skill_tests
from star.assess.skill_tests import NAMES
from star.cli import app
from star.cli.capabilities import TASKS
from star.config import load_config
from star.engine import InProcess
from star.errors import UserError
from star.evidence.suite import FUNCTION, capability_rows, chosen, examine
from star.report.capability_report import capability_lines, capability_table, part_tables
from star.report.page import write_page
from star.run import Run
from star.search import evolve
from star.search.session import open_run

TINY = {"tokens": 256, "tasks": ("parity", "needle")}


def call(*arguments: object):
    return CliRunner().invoke(app, ["capabilities", *(str(argument) for argument in arguments)])


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(skill_tests, "TEST_SEQUENCES", 16)
    monkeypatch.setattr(skill_tests, "POSITION_TOKENS", 1024)
    monkeypatch.setattr(skill_tests, "LEAST_BLOCKS", 4)


@pytest.fixture(scope="module")
def tabular(tmp_path_factory):
    """A run whose search trained nothing."""
    path = tmp_path_factory.mktemp("capabilities") / "run"
    small = {"search__generations": 1, "search__population": 4, "space__d_models": (16,), "space__head_dim": 4}
    search(path, config(search__baselines=("transformer++",), space__slots=2, **small))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with weights."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text("".join(f"the star {n} evolves {n * n} times. " for n in range(4000)))
    small = {"data.corpus": str(folder / "text.txt"), "engine.kind": "inprocess", "search.baselines": ("lfm2-350m",)}
    small |= {"search.population": 2, "search.offspring": 1, "search.generations": 1, "search.screen": 1}
    small |= {"training.tokens": 512, "training.seq_len": 16, "training.eval_tokens": 256, "training.device": "cpu"}
    evolve(folder / "run", load_config("smoke", overrides=small))
    return folder / "run"


def copied(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def test_the_front_and_the_baselines_are_measured_and_the_search_is_untouched(tabular, tmp_path):
    path = copied(tabular, tmp_path)
    before = history(path)
    front = [c.id for c in Run(path).front()] + [c.id for c in Run(path).candidates("baseline")]
    assert examine(path, engine=InProcess(FUNCTION, 1), **TINY) == 2 * len(front)
    run = Run(path)
    assert history(path) == before and run.status()["done"] == len(run.candidates())
    rows = capability_rows(run)
    assert {(row["id"], row["task"]) for row in rows} == {(id, task) for id in front for task in TINY["tasks"]}
    for row in rows:
        assert row["seeds"] == 1 and row["tokens"] == 256 and 0 <= row["value"] <= 1
        assert row["chance"] == {"parity": 0.5, "needle": 0.125}[row["task"]]
        assert row["value"] == pytest.approx(sum(row["parts"].values()) / len(row["parts"]))
    assert [cells[0] for cells, _ in capability_table(run).rows] == front
    assert [title.split(" ")[0] for title, _ in part_tables(run)] == ["needle", "parity"]
    lines = capability_lines(run)
    assert [line.split(" (")[0] for line in lines[:2]] == ["needle", "parity"] and "near chance" in lines[0]
    assert "<h2>Capabilities</h2>" in write_page(run, tmp_path / "page.html").read_text()
    assert len(chosen(run, ("all",))) == len([c for c in run.candidates() if c.objectives])


def test_it_says_whether_the_loss_shows_a_capability(tabular, tmp_path):
    path = copied(tabular, tmp_path)
    ended = sorted((c for c in Run(path).candidates() if c.objectives), key=lambda c: c.values["bpb"])
    with open_run(path) as session:
        for n, c in enumerate(ended):
            facts = {"id": c.id, "sizes": {}, "number": 0, "status": "ok", "reason": ""}
            for task, error in (("mqar", n / 10), ("s5", 0.8), ("extrapolation", -n / 10)):
                session.store.record([("capability", facts | {"task": task, "tokens": 9, "metrics": {task: error}})])
    mqar, s5, extrapolation, *rest = capability_lines(Run(path))
    assert f"best 1.000 ({ended[0].id}); 0 of 5 near chance; rank correlation with bpb +1.00" in mqar
    assert s5.endswith("5 of 5 near chance") and "rank correlation with bpb -1.00" in extrapolation
    assert rest == ["rank correlation above 0: a lower bpb goes with a better score"]


def test_it_goes_on_after_a_kill_and_adds_what_is_new(tabular, tmp_path):
    path = copied(tabular, tmp_path)
    with pytest.raises(ConnectionError, match="killed"):
        examine(path, engine=Interrupted(FUNCTION, 1, seed=0, left=3), **TINY)
    half = Run(path).capabilities()
    left = examine(path, engine=InProcess(FUNCTION, 1), **TINY)
    rows = Run(path).capabilities()
    assert rows[: len(half)] == half and 0 < len(half) < len(half) + left == len(rows)
    assert examine(path, engine=InProcess(FUNCTION, 1), **TINY) == 0
    whole = copied(tabular, tmp_path / "other")
    examine(whole, engine=InProcess(FUNCTION, 1), **TINY)
    assert [row["value"] for row in capability_rows(Run(whole))] == [r["value"] for r in capability_rows(Run(path))]
    knee = {"members": ("knee",), "tasks": ("needle",), "engine": InProcess(FUNCTION, 1)}
    assert examine(path, seeds=2, tokens=256, **knee) == 1
    assert examine(path, sizes={"needle": {"length": 16}}, tokens=256, **knee) == 1
    assert examine(path, tokens=512, **knee) == 1
    heads = [column.head for column in capability_table(Run(path), {Run(path).knee().id}, ("needle",)).columns]
    assert "needle\n256 tokens\n(chance 0.125)" in heads and "needle\nlength 16\n256 tokens\n(chance 0.125)" in heads


def test_loss_by_position_is_of_the_kept_weights_or_of_a_model_trained_again(trained, tmp_path):
    path = copied(trained, tmp_path)
    run = Run(path)
    kept, bare = run.front()[0], run.candidates("baseline")[0]
    assert run.weights(kept.id) and run.weights(bare.id) is None
    ids = ("--members", f"{kept.id},{bare.id}", "--tasks", "extrapolation")
    result = call(path, *ids)
    assert result.exit_code == 0, result.output
    assert f"without kept weights, so trained first for extrapolation: {bare.id}" in result.output
    assert "bits per byte by position, up to so many training contexts" in result.output
    rows = {row["id"]: row for row in Run(path).capabilities()}
    assert rows[kept.id]["weights"] and not rows[bare.id]["weights"]
    assert {row["status"] for row in rows.values()} == {"ok"} and rows[kept.id]["tokens"] is None
    assert rows[bare.id]["metrics"]["bpb"] != bare.metrics["bpb"]  # another seed
    for row in json.loads(call(path, *ids, "--json").output):
        assert row["chance"] is None and list(row["parts"]) == ["1x", "2x", "4x", "8x"]
    run.weights(kept.id).write_bytes(b"damaged")
    assert call(path, *ids).exit_code == 0  # nothing is left to measure
    examine(path, (kept.id,), ("extrapolation",), seeds=2, engine=InProcess(FUNCTION, 1))
    assert [row["status"] for row in Run(path).capabilities()] == ["ok"] * 3


def test_damaged_weights_cost_only_themselves(trained, tmp_path):
    path = copied(trained, tmp_path)
    kept = Run(path).front()[0]
    Run(path).weights(kept.id).write_bytes(b"damaged")
    examine(path, ("front",), ("extrapolation",), engine=InProcess(FUNCTION, 1))
    rows = {row["id"]: row for row in capability_rows(Run(path))}
    assert rows[kept.id]["value"] is None and "is damaged or of another model" in rows[kept.id]["reason"]
    assert all(row["value"] is not None for id, row in rows.items() if id != kept.id)
    assert "1 measurement failed" in "\n".join(capability_lines(Run(path)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "mqar,reading"], "there is no task 'reading'; tasks are mqar, needle, parity, s5, copying, extra"),
        (["--tasks", ""], "no task is given"),
        (["--members", "zzz"], "no candidate with an id that begins with 'zzz'"),
        (["--size", "mqar.length=5"], "4 pairs and their queries need at least 12"),
        (["--size", "needle.length=1e9"], "must have at most 65536"),
        (["--size", "needle=3"], "--size 'needle=3': write TASK.NAME=N"),
        (["--size", "needle.length=long"], "write TASK.NAME=N"),
        (["--size", "extrapolation.length=8"], "extrapolation has no sizes"),
        (["--size", "s5.cups=8"], "task s5 has no size 'cups'; it has length"),
    ],
)
def test_bad_use_is_one_sentence(tabular, arguments, message):
    result = call(tabular, *arguments)
    text = " ".join(result.output.replace("│", " ").split())
    assert result.exit_code == 2 and message in text and "Traceback" not in text


def test_a_run_that_trains_no_models_or_on_too_little_text_has_no_loss_by_position(tabular, trained):
    result = call(tabular, "--tasks", "extrapolation")
    assert result.exit_code == 2 and "needs trained models" in result.output
    with pytest.raises(UserError, match="--tasks"):
        examine(tabular)
    assert Run(tabular).capabilities() == []


def test_what_is_there_is_shown_without_training(tabular):
    result = call(tabular, "--show")
    assert result.exit_code == 0 and "has no capabilities yet" in result.output
    assert json.loads(call(tabular, "--show", "--json").output) == []
    assert TASKS == NAMES
