"""Fresh measurements of front members: beside the search's results, resumable, and with seeds of their own."""

import time

import pytest
from fakes import TABULAR, Interrupted, config, history, run

from star.assess.evaluations import tabular
from star.engine import InProcess
from star.errors import UserError
from star.refine.coordinator import refine
from star.refine.settings import RefineSettings
from star.run import Run
from star.search import evolve
from star.search.repeats import rescore
from star.store import RunLock

SEEN: list[dict] = []


def noisy(job: dict, report) -> dict:
    """The tabular loss and noise that depends on the seed alone."""
    SEEN.append(job)
    result = tabular.assess(job, report)
    result["metrics"]["bpb"] += (job["seed"] % 1000) / 1e5
    return result


def test_every_member_is_measured_with_fresh_seeds_and_the_search_is_untouched(tmp_path):
    settings = config(search__rungs=(0.5,), search__baselines=("transformer++",))
    SEEN.clear()
    run(tmp_path, settings, "test_rescore:noisy")
    before, front = history(tmp_path), [(c.id, c.objectives) for c in Run(tmp_path).front()]
    searched = {job["seed"] for job in SEEN}
    SEEN.clear()
    events = []
    assert rescore(tmp_path, 3, engine=InProcess("test_rescore:noisy", 2), callbacks=[events.append]) == 3 * len(front)
    assert [e["done"] for e in events] == list(range(1, 3 * len(front) + 1)) and events[-1]["total"] == len(events)
    fresh = [job["seed"] for job in SEEN]
    assert len(set(fresh)) == len(fresh) and not searched & set(fresh)
    assert all(job["stop_tokens"] is None and job["directory"] is None and not job["keep_weights"] for job in SEEN)
    again = Run(tmp_path)
    assert history(tmp_path) == before and [(c.id, c.objectives) for c in again.front(searched=True)] == front
    for id, objectives in front:
        rows = again.repeats()[id]
        assert sorted(row["repeat"] for row in rows) == [0, 1, 2]
        assert all(abs(row["objectives"]["bpb"] - objectives["bpb"]) < 0.01 for row in rows)
        assert all(row["objectives"]["parameters"] == objectives["parameters"] for row in rows)
    assert rescore(tmp_path, 3, engine=InProcess(TABULAR)) == 0, "they are there already"
    assert rescore(tmp_path, 4, engine=InProcess(TABULAR)) == len(front)
    (baseline,) = again.candidates("baseline")
    assert rescore(tmp_path, 2, ids=[baseline.id[:6]], engine=InProcess(TABULAR)) == 2


def slow(job: dict, report) -> dict:
    time.sleep(0.01)
    return tabular.assess(job, report)


def test_statistics_of_a_finished_search_do_not_change(tmp_path):
    """By measuring again, refining, or repeating the command; in a stopped search, the time left does not either."""
    settings = config(search__population=4, search__generations=3)
    run(tmp_path, settings, "test_rescore:slow", slots=2)
    before = Run(tmp_path).status()
    assert 0 < before["idle"] < 1 and before["workers"] == 2
    rescore(tmp_path, 2, engine=InProcess("test_rescore:slow", 3))
    refine(tmp_path, RefineSettings((Run(tmp_path).best().id,), budget=14), engine=InProcess("test_rescore:slow", 4))
    run(tmp_path, settings, slots=5)
    assert Run(tmp_path).status() | {"refinements": []} == before

    stopped = tmp_path / "stopped"
    with pytest.raises(ConnectionError):
        evolve(stopped, settings, engine=Interrupted("test_rescore:slow", 2, seed=0, left=6))
    before = Run(stopped).status()
    rescore(stopped, 2, engine=InProcess("test_rescore:slow", 3))
    assert Run(stopped).status() == before and before["eta_seconds"] > 0


def test_a_killed_rescore_goes_on(tmp_path):
    run(tmp_path, config())
    for _ in range(100):
        try:
            rescore(tmp_path, 2, engine=Interrupted(TABULAR, 2, seed=0, left=3))
            break
        except ConnectionError:
            pass
    counts = {id: sorted(row["repeat"] for row in rows) for id, rows in Run(tmp_path).repeats().items()}
    assert counts == {c.id: [0, 1] for c in Run(tmp_path).front(searched=True)} and _ > 0


def test_a_search_goes_on_after_a_rescore(tmp_path):
    run(tmp_path / "plain", config(search__generations=6))
    run(tmp_path / "run", config(search__generations=3))
    rescore(tmp_path / "run", 1, engine=InProcess(TABULAR))
    run(tmp_path / "run", config(search__generations=6))
    assert history(tmp_path / "run") == history(tmp_path / "plain")


def test_failures_are_recorded_and_bad_use_is_refused(tmp_path):
    run(tmp_path / "run", config())
    member = Run(tmp_path / "run").front()[0]
    rescore(tmp_path / "run", 1, ids=[member.id], engine=InProcess("fakes:hopeless"))
    (row,) = Run(tmp_path / "run").repeats()[member.id]
    assert row["status"] == "failed" and row["objectives"] is None and "no candidate can work here" in row["reason"]
    with pytest.raises(UserError, match="no candidate with an id that begins with 'zz'"):
        rescore(tmp_path / "run", ids=["zz"], engine=InProcess(TABULAR))
    with pytest.raises(UserError, match="there is no run at"):
        rescore(tmp_path / "none", engine=InProcess(TABULAR))
    lock = RunLock(tmp_path / "run")
    with pytest.raises(UserError, match="is being evolved"):
        rescore(tmp_path / "run", engine=InProcess(TABULAR))
    lock.release()
