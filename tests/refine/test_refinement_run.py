"""Refinement of a run end to end, on losses that are known: it improves, resumes to the same trials, records forecasts,
refuses bad use.
"""

import contextlib
import itertools
import json
import math
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
from fakes import config, history, run
from kills import child

import star
from star.cli import app
from star.cost import costs
from star.engine import InProcess
from star.errors import RunFailed, UserError
from star.genome import from_json
from star.refine.coordinator import choose_members, refine
from star.refine.settings import RefineSettings
from star.report.page import write_page
from star.report.refinement import refinement_json, refinement_lines, refinement_table
from star.report.setting_effects import everything_seen, ols_hc3, planner_of, regression
from star.run import Run
from star.search.repeats import rescore
from star.store import CandidateFiles, RunLock, Store, read_events
from star.store.files import WEIGHTS, write_atomically

BEST_RATE = 0.009  # of the landscape; the run's recipe has 0.004


def landscape(job: dict, report) -> dict:
    """A bowl in the learning rate, a bonus for Muon, a loss that falls with size and tokens, and seed noise."""
    recipe, cost = job["recipe"], costs(from_json(job["genome"]), 256, 4096)
    loss = 3.0 - 0.1 * math.log10(1 + cost.backbone_parameters) - 0.05 * math.log10(1 + cost.cache_bytes)
    loss += 0.04 * math.log2(recipe["learning_rate"] / BEST_RATE) ** 2 - 0.05 * (recipe["optimizer"] == "muon")
    loss += 0.05 * math.log2(65_536 / recipe["tokens"]) + 0.002 * ((job["seed"] % 1000) / 500 - 1)
    status = "diverged" if recipe["learning_rate"] > 0.03 else "ok"
    return {"status": status, "metrics": {"bpb": loss, "val_loss": loss, "tokens": recipe["tokens"]}, "curve": []}


def kept(job: dict, report) -> dict:
    """The landscape, and weights on the disk as training leaves them."""
    result = landscape(job, report)
    if job["keep_weights"]:
        write_atomically(Path(job["directory"]) / WEIGHTS, lambda path: path.write_bytes(b"0" * 10))
    return result


def hopeless(job: dict, report) -> dict:
    return {"status": "diverged", "reason": "the loss is not finite", "metrics": {}}


def sometimes(job: dict, report) -> dict:
    """A third of the trials fail, each in its own way; those without a change work."""
    luck = job["seed"] % 6
    if job["id"].startswith("r") and luck == 0:
        raise MemoryError
    if job["id"].startswith("r") and luck == 1:
        return {"status": "diverged", "reason": "the loss is not finite", "metrics": {"bpb": float("nan")}}
    return landscape(job, report)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A finished search on the landscape."""
    path = tmp_path_factory.mktemp("searched") / "run"
    run(path, config(search__generations=3, training__tokens=65_536), "test_refinement_run:landscape")
    return path


@pytest.fixture
def fresh(searched, tmp_path):
    import shutil

    return Path(shutil.copytree(searched, tmp_path / "run"))


def small(path: Path, **changes) -> RefineSettings:
    given = {"budget": 8.0, "policy": False, "design": 2, "confirm": 2, "fidelities": (0.25, 1.0)} | changes
    members = given.pop("members", "1")
    return RefineSettings(choose_members(Run(path), members), **given)


def tune(path: Path, settings: RefineSettings, function: str = "landscape", slots: int = 1, callbacks=()):
    return refine(path, settings, engine=InProcess(f"test_refinement_run:{function}", slots), callbacks=callbacks)


def trials(path: Path) -> list[tuple]:
    """Everything that was decided and what came of it, to the last bit."""
    refined = Run(path).refinement()
    return [(t, r and (r.status, r.objectives)) for t, r in refined.trials]


# What it brings.


def test_recipes_are_improved_and_the_search_is_untouched(fresh):
    before, front, events = history(fresh), [(c.id, c.objectives) for c in Run(fresh).front()], []
    settings = small(
        fresh,
        members="2",
        change="recipes",
        budget=24,
        design=4,
        ranges={"learning_rate": "1e-3:2e-2", "batch_tokens": "256"},
    )
    ending = tune(fresh, settings, callbacks=[events.append])
    assert ending.status == "finished" and history(fresh) == before
    found = Run(fresh)
    assert [(c.id, c.objectives) for c in found.front(searched=True)] == front
    refined = found.refinement()
    assert refined.finished and 21 < refined.spent <= 24
    for row in refined.members():
        # the bowl is worth 0.055 nats, Muon 0.05
        assert (
            row.difference < -0.05
            and row.low <= row.difference <= row.high < 0
            and row.refined.fresh
            and row.refined.n == 2
        )
        assert row.perplexity == pytest.approx(math.exp(row.difference * math.log(2)))
    was, now = refined.hypervolume()
    assert now > was > 0
    assert {e["kind"] for e in events} == {"refine_start", "trial_start", "trial_end", "refine_end"}
    assert [e["spent"] for e in events if e["kind"] == "trial_end"] == sorted(
        e["spent"] for e in events if e["kind"] == "trial_end"
    )
    # forecasts were there before their results, and are as wide as they should be
    predicted, actual = refined.forecasts()
    assert len(predicted) == len(actual) >= 12
    z = (np.array(actual) - np.array(predicted)[:, 0]) / np.array(predicted)[:, 1]
    assert 0.2 < np.sqrt((z**2).mean()) < 4
    order = [e.kind for e in read_events(fresh) if e.kind in ("trial", "trial_end")]
    assert order[0] == "trial" and order.count("trial") == order.count("trial_end") == len(refined.trials)
    decisions = refined.decisions()
    assert decisions and all(row["source"] == "bayes" for row in decisions)
    # what mattered
    found = regression(refined, planner_of(refined))
    rate = next(c for c in found.coefficients if c.name == "tokens, per doubling")
    assert rate.high < 0 and found.n > 15
    text = "\n".join(refinement_lines(refined, analysis=True))
    assert "regression of the loss" in text and "what the process listens to" in text and "perplexity -" in text
    json.dumps(refinement_json(refined, analysis=True), allow_nan=False)
    assert len(refinement_table(refined).rows) == len(refined.front()) + len(refined.unmeasured())


def test_one_seed_and_fresh_seeds_are_never_in_one_front_or_curve(fresh):
    one_seed = Run(fresh).hypervolume()[-1]["hypervolume"]
    tune(fresh, small(fresh, members="2", change="recipes", budget=24, design=4))
    found = Run(fresh)
    refined = found.refinement()
    assert all(c.measured["bpb"].fresh for c in refined.front())
    assert {c.id for c in refined.unmeasured()} == {c.id for c in found.front()} - set(refined.settings.members)
    rows = refined.progress()
    assert rows[0]["purpose"] == "member" and rows[0]["hypervolume"] == pytest.approx(one_seed)
    measured_twice = [row for row in rows if row["purpose"] in ("member", "confirm")]
    assert all(
        row["hypervolume"] == before["hypervolume"]
        for before, row in itertools.pairwise(rows)
        if row["purpose"] == "confirm"
    ), "a further seed of a candidate is no new candidate"
    assert measured_twice
    rescore(fresh, 2, engine=InProcess("test_refinement_run:landscape"))
    found = Run(fresh)
    refined = found.refinement()
    assert found.rescored and not refined.unmeasured()
    assert refined.hypervolume()[0] == found.hypervolume_of(found.front())
    member = refined.settings.members[0]
    assert refined.measured(member).n == len(found.fresh(member)) == 4, "by star refine and by star rescore"
    assert choose_members(found, "2") == refined.settings.members, "the same command still resumes"


def test_only_members_that_were_asked_for_are_trained_unless_the_front_is_the_aim(fresh):
    tune(fresh, small(fresh, change="recipes", budget=14))
    one = Run(fresh).refinement()
    assert {t.member for t, _ in one.trials} == set(one.settings.members)
    tune(fresh, small(fresh, change="recipes", budget=24, aim="front"))
    assert {t.member for t, _ in Run(fresh).refinement().trials} > set(one.settings.members)


def test_edits_stay_local_and_valid_and_settings_as_they_were(fresh):
    tune(fresh, small(fresh, change="edits"))
    refined = Run(fresh).refinement()
    assert all(t.settings == refined.space.base for t, _ in refined.trials)
    assert {len(t.edits) for t, _ in refined.trials} >= {0, 1} and max(len(t.edits) for t, _ in refined.trials) <= 3
    for t, _ in refined.trials:
        genome = from_json(t.genome)
        assert star.costs(genome, 256, 4096).cache_bytes == t.costs["cache"]
    known = {id for id, _ in refined.state.evidence}
    assert not [t for t, _ in refined.trials if t.candidate in known and t.share == 1 and t.purpose == "proposal"], (
        "the search knows those"
    )


def test_one_fidelity_and_one_objective(tmp_path):
    run(tmp_path / "run", config(search__generations=2, objectives__names="loss"), "test_refinement_run:landscape")
    tune(tmp_path / "run", small(tmp_path / "run", fidelities=(1.0,), budget=9, change="recipes"))
    refined = Run(tmp_path / "run").refinement()
    assert {t.share for t, _ in refined.trials} == {1.0} and refined.finished and len(refined.members()) == 1


def test_failures_cost_only_themselves(fresh):
    events = []
    tune(fresh, small(fresh, change="recipes", budget=12), "sometimes", callbacks=[events.append])
    refined = Run(fresh).refinement()
    status = [r.status for _, r in refined.trials]
    assert refined.finished and {"ok", "diverged", "oom"} & set(status) and status.count("ok") > len(status) / 2
    again = [e for e in events if e["kind"] == "trial_end" and not e["final"]]
    assert all(e["status"] == "oom" for e in again)
    assert all(row.refined is None or math.isfinite(row.refined.mean) for row in refined.members())


def test_refined_candidates_are_candidates_of_the_run_and_their_weights_are_kept(fresh):
    tune(fresh, small(fresh, change="recipes"), "kept")
    found = Run(fresh)
    refined = found.refinement()
    best = next(c for c in refined.front() if c.recipe is not None)
    again = found.candidate(best.id)
    assert again.genome == best.genome and again.origin == "refined" and again.recipe != found.config.training
    assert found.weights(best.id) is not None
    n_weights = len(list((fresh / "refined").glob(f"*/{WEIGHTS}")))
    assert 0 < n_weights < len(refined.trials), "not those of all"
    with pytest.raises(UserError, match="no candidate"):
        found.candidate("rffffffffff")


# Going on.


def test_the_same_call_does_nothing_twice_and_a_larger_budget_goes_on(fresh):
    tune(fresh, small(fresh))
    first = trials(fresh)
    tune(fresh, small(fresh), "hopeless")
    assert trials(fresh) == first
    tune(fresh, small(fresh, budget=14))
    more = trials(fresh)
    assert more[: len(first)] == first and len(more) > len(first) and len(Run(fresh).refinements()) == 1
    assert len({t.id for t, _ in more}) == len(more), "nothing is trained twice"


def test_another_refinement_takes_what_an_earlier_one_trained(fresh):
    tune(fresh, small(fresh))
    tune(fresh, small(fresh, change="recipes"))
    one, two = Run(fresh).refinements()
    both = {t.id for t, _ in one.trials} & {t.id for t, _ in two.trials}
    assert both and all(one.state.results[id].objectives == two.state.results[id].objectives for id in both)
    assert all(two.state.results[id].seconds == 0 for id in both)
    assert Run(fresh).refinement().id == two.id and Run(fresh).refinement(one.id).id == one.id


def test_a_refinement_begins_with_what_earlier_ones_have_learnt(fresh):
    first, second = (c.id for c in Run(fresh).front()[:2])
    tune(fresh, small(fresh, members=first, change="recipes", design=7, budget=20))
    early = Run(fresh).refinement()
    settings = small(fresh, members=second, change="recipes", design=7, budget=14, fidelities=(1.0,))
    tune(fresh, settings)
    late = Run(fresh).refinement()
    assert [t.id for t, _ in late.state.earlier] == [
        t.id for t, r in early.trials if r.objectives
    ] and not early.state.earlier
    assert [t.purpose for t, _ in late.trials if t.purpose != "confirm"][:3] == [
        "member",
        "member",
        "proposal",
    ]  # no design
    member, proposal = late.value(late.trials[0][1]), late.value(late.trials[2][1])
    assert proposal < member - 0.05  # at once: the bowl and Muon are known
    tune(
        fresh, small(fresh, members=first, change="recipes", design=7, budget=20, seed=1)
    )  # of what was refined already
    again = Run(fresh).refinement()
    fresh_ones = {t.id for t, _ in again.trials if t.purpose == "confirm"}
    assert fresh_ones and not fresh_ones & {t.id for t, _ in again.state.earlier}


def test_time_runs_out(fresh):
    tune(fresh, small(fresh, budget=200, minutes=1e-4))
    refined = Run(fresh).refinement()
    assert "minutes" in refined.state.closed and refined.finished and not refined.decisions()


class Fuse:
    """Kills its process at the k-th boundary around records, submissions, polls and removals."""

    def __init__(self, k: int):
        self.k = k

    def __call__(self) -> None:
        if self.k == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.k -= 1

    def install(self) -> None:
        transaction = Store._transaction

        @contextlib.contextmanager
        def killed_inside(store):
            with transaction(store):
                yield
                self()

        Store._transaction = killed_inside
        for owner, name in ((Store, "record"), (InProcess, "submit"), (InProcess, "poll"), (CandidateFiles, "clean")):
            original = getattr(owner, name)

            def wrapped(*args, original=original, **kwargs):
                self()
                result = original(*args, **kwargs)
                self()
                return result

            setattr(owner, name, wrapped)


def session(path: Path, settings: RefineSettings, slots: int, k: int) -> None:
    Fuse(k).install()
    tune(path, settings, "kept", slots)


@pytest.mark.parametrize("slots, policy", [(1, True), (2, False)])
def test_killed_again_and_again_it_comes_to_the_same(searched, tmp_path, slots, policy):
    import shutil

    undisturbed, path = (Path(shutil.copytree(searched, tmp_path / name)) for name in ("undisturbed", "killed"))
    settings = small(searched, policy=policy, parallel=slots, design=1, budget=7.0)
    assert child(session, undisturbed, settings, slots, 10**9) == 0
    rng, kills = random.Random(slots), 0
    while (code := child(session, path, settings, slots, rng.randint(8, 30))) != 0:
        assert code == -signal.SIGKILL
        kills += 1
        assert kills < 60
    assert kills >= 3 and trials(path) == trials(undisturbed)
    refined = Run(path).refinement()
    assert refined.finished and all(("entropy" in row) == policy for row in refined.decisions()) and refined.decisions()
    assert sorted(p.parent.name for p in path.glob(f"refined/*/{WEIGHTS}")) == sorted(
        p.parent.name for p in undisturbed.glob(f"refined/*/{WEIGHTS}")
    )


def test_the_number_of_workers_changes_nothing(searched, tmp_path):
    import shutil

    settings = small(searched, parallel=2, design=1, budget=7.0)
    found = []
    for slots in (1, 2, 3):
        path = Path(shutil.copytree(searched, tmp_path / str(slots)))
        tune(path, settings, slots=slots)
        found.append(trials(path))
    assert found[0] == found[1] == found[2]


# Bad use.


def test_bad_use_is_refused_in_one_sentence(fresh, tmp_path):
    with pytest.raises(UserError, match="there is no run at"):
        refine(tmp_path / "none", small(fresh))
    with pytest.raises(
        UserError, match="budget of 5 full trainings is too small: the initial design of 2 members takes"
    ):
        tune(fresh, small(fresh, members="2", budget=5))
    with pytest.raises(UserError, match="inverted"):
        tune(fresh, small(fresh, ranges={"warmup": "0.1:0.01"}))
    with pytest.raises(UserError, match="no candidate with an id that begins with 'zz'"):
        small(fresh, members="zz")
    with pytest.raises(UserError, match="at least one"):
        small(fresh, members="0")
    with pytest.raises(UserError, match="rising shares"):
        small(fresh, fidelities=(0.5, 0.25, 1))
    with pytest.raises(UserError, match="must be one of both, recipes, edits"):
        small(fresh, change="nothing")
    lock = RunLock(fresh)
    with pytest.raises(UserError, match="is being evolved"):
        tune(fresh, small(fresh))
    lock.release()


def test_a_run_without_a_front_and_members_that_cannot_be_refined(tmp_path, fresh, monkeypatch):
    with contextlib.suppress(RunFailed):
        run(tmp_path / "failed", config(search__generations=1), "fakes:hopeless")
    with pytest.raises(UserError, match="has no front to refine"):
        choose_members(Run(tmp_path / "failed"))
    bad = Run(tmp_path / "failed").candidates()[0]
    with pytest.raises(UserError, match="there is nothing to refine"):
        refine(tmp_path / "failed", RefineSettings((bad.id,)), engine=InProcess("test_refinement_run:landscape"))
    with pytest.raises(UserError, match="no longer builds"):

        def broken(genome):
            raise UserError("width 64 is no multiple of something")

        monkeypatch.setattr("star.refine.coordinator.resolve", broken)
        tune(fresh, small(fresh))


def test_where_all_trials_diverge_it_says_so_and_says_so_again(fresh):
    for _ in range(2):
        with pytest.raises(
            RunFailed, match=r"All \d+ trials of the refinement failed; the last one ended as 'diverged'"
        ):
            tune(fresh, small(fresh), "hopeless")


def test_the_command(fresh, monkeypatch):
    from typer.testing import CliRunner

    monkeypatch.setattr("star.assess.evaluations.tabular.assess", landscape)
    call = lambda *words: CliRunner().invoke(app, ["refine", str(fresh), *words])  # noqa: E731
    done = call("--members", "1", "--budget", "13", "--seeds", "2", "--no-policy", "--range", "schedule=linear")
    assert done.exit_code == 0, done.output
    assert "starting; refinement" in done.output and "with fresh seeds" in done.output and "plots:" in done.output
    assert all(
        (fresh / "plots" / f"{name}.png").stat().st_size > 5000
        for name in ("refinement_progress", "calibration_panels", "convergence")
    )
    found = Run(fresh).status()["refinements"]
    assert [(row["finished"], row["budget"]) for row in found] == [(True, 13.0)] and next(
        iter(found[0]["perplexity"].values())
    ) < 1.0
    invoked = CliRunner().invoke(app, ["status", str(fresh)])
    assert (
        f"refinement {found[0]['id']}: finished" in invoked.output
        and " of 13 full trainings; perplexity " in invoked.output
    )
    page = write_page(Run(fresh), fresh / "report.html").read_text()
    assert f"<h2>Refinement {found[0]['id']}</h2>" in page and "perplexity -" in page and page.count("<img") == 3
    told = call("--report", "--json")
    data = json.loads(told.stdout)
    assert data["finished"] and data["spent"] <= 13 and data["members"][0]["refined"] and data["importances"]
    assert "learning_rate" in call("--settings").output
    for words, text in (
        (["--range", "warmup"], "write NAME=LOW:HIGH"),
        (["--fidelities", "a"], "write shares"),
        (["--budget", "1"], "too small"),
    ):
        refused = call(*words)
        assert refused.exit_code == 2 and text in refused.output, refused.output
    assert CliRunner().invoke(app, ["refine", str(fresh / "none")]).exit_code == 2


def test_hc3_is_that_of_statsmodels():
    statsmodels = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(0)
    X = np.column_stack([np.ones(40), rng.standard_normal((40, 3))])
    y = X @ [1.0, 0.5, 0.0, -2.0] + rng.standard_normal(40) * (1 + abs(X[:, 1]))
    beta, covariance, r2, sd = ols_hc3(X, y)
    other = statsmodels.OLS(y, X).fit(cov_type="HC3")
    np.testing.assert_allclose(beta, other.params, rtol=1e-9)
    np.testing.assert_allclose(covariance, other.cov_params(), rtol=1e-9)
    assert r2 == pytest.approx(other.rsquared) and sd == pytest.approx(math.sqrt(other.scale))


def test_everything_that_was_told_is_in_the_observations(fresh):
    tune(fresh, small(fresh))
    refined = Run(fresh).refinement()
    planner = planner_of(refined)
    seen = planner.observations(everything_seen(refined, planner))
    assert len(seen.y) == len(refined.trials) and 0 < seen.seed_sd < 0.01
    assert seen.X.shape[1] == len(planner.encoder.columns) + 1
