"""A search that ranks by a horizon: what it is learned from, where it cannot be, and that the run keeps it."""

import json

import pytest
from fakes import config, history, run

from star.assess.objectives import load_objectives
from star.config import load_config
from star.engine import InProcess
from star.errors import UserError
from star.evidence.climb import climb
from star.evidence.order import Ladder
from star.refine.coordinator import choose_members, refine
from star.refine.settings import RefineSettings
from star.report.ladder_report import ladder_lines
from star.report.tables import front_notes
from star.run import Run
from star.search.ladders import steps_of, table_of, with_horizon
from star.search.repeats import rescore

FUNCTION = "fakes:attention_is_slow"


@pytest.fixture(scope="module")
def climbed(tmp_path_factory):
    """A run with a ladder of 24 genomes at ten times its budget."""
    path = tmp_path_factory.mktemp("ladders") / "run"
    run(path, config(search__generations=8), FUNCTION)
    climb(path, (10,), width=1, n=24, engine=InProcess(FUNCTION, 2))
    return path


def ranked(climbed, **changes):
    settings = {"search.ladder": str(climbed), "search.horizon": 10, "search.seed": None} | changes
    settings.pop("search.seed")
    return config().replace({"seed": 1, "search.generations": 4} | settings)


def test_a_search_by_the_horizon_of_an_earlier_run(climbed, tmp_path):
    settings = ranked(climbed)
    run(tmp_path / "run", settings, FUNCTION)
    found = Run(tmp_path / "run")
    assert [o.name for o in found.objectives] == ["bpb_horizon", "parameters", "cache"]
    for c in found.candidates():
        assert (
            c.values["bpb_horizon"] == c.metrics["bpb_horizon"] != c.metrics["bpb"] and c.metrics["bpb_horizon_se"] > 0
        )
    assert "standard error of the prediction" in "\n".join(front_notes(found))
    slow = [c for c in found.candidates() if "SA" in " ".join(c.genome.class_names)]
    assert slow and all(c.values["bpb_horizon"] < c.metrics["bpb"] for c in slow)

    climb(tmp_path / "run", (10,), width=1, n=20, engine=InProcess(FUNCTION, 2))
    (row,) = Ladder(Run(tmp_path / "run")).correlations()
    assert row["spearman"] > row["measured"]["spearman"], "it ranks better than what was measured"
    assert "by what was measured at the budget" in "\n".join(ladder_lines(Run(tmp_path / "run")))
    rescore(tmp_path / "run", 1, engine=InProcess(FUNCTION, 1))
    assert all("bpb_horizon" in row for c in found.front() for row in Run(tmp_path / "run").fresh(c.id))


def test_members_of_such_a_front_are_refined(climbed, tmp_path):
    run(tmp_path, ranked(climbed), FUNCTION)
    members = choose_members(Run(tmp_path), "1")
    refine(tmp_path, RefineSettings(members, budget=9.0, policy=False, design=2), engine=InProcess(FUNCTION, 1))
    refined = Run(tmp_path).refinement()
    assert refined.finished and refined.loss.name == "bpb_horizon"
    assert all("bpb_horizon" in result.objectives for _, result in refined.trials if result.objectives)


def test_the_run_keeps_its_ladder_and_goes_on_without_the_other_run(climbed, tmp_path):
    import shutil

    source = shutil.copytree(climbed, tmp_path / "source")
    settings = ranked(source)
    run(tmp_path / "whole", settings, FUNCTION)
    run(tmp_path / "run", settings.replace({"search.generations": 2}), FUNCTION)
    again, _ = with_horizon(settings)
    shutil.rmtree(source)
    run(tmp_path / "run", again, FUNCTION)
    assert history(tmp_path / "run") == history(tmp_path / "whole")


def test_a_ladder_file_is_what_the_verb_prints(climbed, tmp_path):
    table = table_of(Run(climbed))
    assert {row["tokens"] for row in table["rows"]} == {1.0, 10.0} and len(table["rows"]) == 48
    (tmp_path / "ladder.json").write_text(json.dumps(table))
    settings = ranked(climbed, **{"search.ladder": str(tmp_path / "ladder.json")})
    assert steps_of(settings) == steps_of(ranked(climbed)) and len(steps_of(settings)) == 24


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"search.horizon": 0.5}, "search.horizon is 0.5; it must be above 1"),
        ({"search.horizon": 3}, "has 0 genomes at 3 times the budget and a horizon needs 16; it has the budgets 10"),
        ({"training.tokens": 1024}, "was trained with tokens 65536 and this search has 1024"),
        ({"space.d_models": (32, 64)}, "was trained with width 64 and this search has 32, 64"),
        ({"data.tokenizer": "bpe:300"}, "was trained with tokenizer bytes and this search has bpe:300"),
        ({"search.rungs": (0.5,)}, "exclude each other"),
        ({"search.ladder": "nowhere.json"}, "nowhere.json: cannot be read"),
        ({"search.horizon": 0, "objectives.names": ("bpb_horizon",)}, "there is no search.horizon"),
    ],
)
def test_what_does_not_fit_is_one_sentence(climbed, changes, words):
    with pytest.raises(UserError, match=words):
        with_horizon(ranked(climbed, **changes))


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"rows": [], "recipe": {}}', '{"rows": [{"id": 1}], "recipe": {}, "tokenizer": ""}']
)
def test_a_damaged_file_is_one_sentence(climbed, tmp_path, text):
    (tmp_path / "ladder.json").write_text(text)
    with pytest.raises(UserError, match=r"ladder\.json: is no ladder"):
        with_horizon(ranked(climbed, **{"search.ladder": str(tmp_path / "ladder.json")}))


def test_a_run_without_a_ladder_is_one_sentence(tmp_path, climbed):
    run(tmp_path, config(search__generations=1), FUNCTION)
    with pytest.raises(UserError, match="has no ladder; star ladder"):
        with_horizon(ranked(climbed, **{"search.ladder": str(tmp_path)}))


def test_the_default_has_a_horizon_and_says_where_it_cannot():
    settings, said = with_horizon(load_config("laptop"))
    assert settings.objectives.names[0] == "bpb_horizon" and "rank correlation" in said
    assert with_horizon(settings)[0] == settings
    settings, said = with_horizon(load_config("laptop", overrides={"training.tokens": 1024}))
    assert settings.search.horizon == 0 and settings.objectives.names[0] == "bpb"
    assert "no ladder is shipped for tokens 1024 (only for 65536)" in said
    with pytest.raises(UserError, match="no ladder is shipped for"):
        with_horizon(load_config("smoke", overrides={"search.horizon": 10}))
    settings, said = with_horizon(load_config("laptop", overrides={"objectives.names": "loss,cache"}))
    assert (settings.search.horizon, settings.objectives.names, said) == (0, ("loss", "cache"), "")


def test_the_objective_has_its_error():
    (objective,) = load_objectives(("bpb_horizon",))
    assert objective.measure({"bpb_horizon": 2.0}) == 2 and objective.error({"bpb_horizon_se": 0.1}) == 0.1
