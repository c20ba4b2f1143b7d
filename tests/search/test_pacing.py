"""When the algorithm is told and asked, and which candidates train on: by generations or one by one, with rungs or
without.
"""

import itertools

import pytest
from fakes import TABULAR, Interrupted, Shuffled, config, history, run

from star.engine import InProcess
from star.errors import UserError
from star.report.tables import status_lines
from star.run import Run
from star.search import evolve, outcomes
from star.search.algorithm import load_algorithm
from star.search.evolution import replay
from star.search.spaces import make_space
from star.store import Store, read_events, read_meta
from star.surrogate.screening import Surrogate

RUNGS = {"search__rungs": (0.125, 0.5), "search__promote": 0.5}


def trained(path) -> dict[str, list[int]]:
    """By candidate, the rungs that it was trained up to, in order; the last one of each is its end."""
    rungs: dict[str, list[int]] = {}
    for event in read_events(path):
        if event.kind in ("rung", "finish") and event.data["status" if event.kind == "finish" else "rung"] not in (
            "stopped",
            "infeasible",
        ):
            rungs.setdefault(event.data["id"], []).append(event.data.get("rung", "end"))
    return rungs


# Rungs.


@pytest.mark.parametrize("asynchronous", [False, True])
def test_only_the_best_of_a_rung_go_on(tmp_path, asynchronous):
    settings = config(search__asynchronous=asynchronous, search__baselines=("transformer++",), **RUNGS)
    run(tmp_path, settings, slots=3)
    done = Run(tmp_path)
    (baseline,) = done.candidates("baseline")
    by_path: dict[tuple, list[str]] = {}
    for id, rungs in trained(tmp_path).items():
        by_path.setdefault(tuple(rungs), []).append(id)
    assert by_path.pop(("end",)) == [baseline.id], "baselines train to the end at once"
    assert set(by_path) == {(0,), (0, 1), (0, 1, "end")}
    status = {c.id: c for c in done.candidates()}
    for path, ids in by_path.items():
        for id in ids:
            assert status[id].status == ("ok" if path[-1] == "end" else "stopped")
            assert (status[id].objectives is not None) == (path[-1] == "end")
    assert {c.id for c in done.front()} <= set(by_path[0, 1, "end"]), "losses of different budgets are never compared"
    full = len(by_path[0, 1, "end"])
    if not asynchronous:
        assert full == 6 * 2 and len(by_path[0, 1]) == 6 * 2 and len(by_path[(0,)]) == 6 * 4
    spent = sum(c.metrics["tokens"] for c in done.candidates() if c.origin != "baseline")
    assert spent < 0.6 * 48 * settings.training.tokens
    assert done.hypervolume()[-1]["tokens"] == spent


def test_the_best_are_those_of_least_rank_then_least_crowded():
    F = {"a": (0, 4), "b": (1, 1), "c": (1.1, 0.9), "d": (4, 0), "e": (2, 2), "f": (5, 5)}
    assert outcomes.promoted(list("abcdef"), [], F, 1.0) == list("abcdef")
    assert set(outcomes.promoted(list("abcdef"), [], F, 1 / 3)) == {"a", "d"}, "the ends of the front are least crowded"
    assert set(outcomes.promoted(list("abcdef"), [], F, 0.8)) == set("abcde")
    assert outcomes.promoted(["f"], [], F, 0.5) == ["f"], "alone, it is the best there is"
    assert outcomes.promoted(["e"], list("ab"), F, 0.5) == []
    assert outcomes.promoted(["b"], list("ef"), F, 0.5) == ["b"]
    same = {name: (1, 1) for name in "xyz"}
    assert outcomes.promoted(list("zyx"), [], same, 0.3) == ["x"], "equals are told apart by id, not by order"


@pytest.mark.parametrize("rungs", [{}, RUNGS])
def test_order_of_completion_changes_nothing_with_rungs(tmp_path, rungs):
    settings = config(**rungs)
    run(tmp_path / "plain", settings)
    for seed in range(3):
        evolve(tmp_path / str(seed), settings, engine=Shuffled(TABULAR, 5, seed))
        assert history(tmp_path / str(seed)) == history(tmp_path / "plain")


@pytest.mark.parametrize("rungs", ["0.5,0.25", "0.5,0.5"])
def test_rungs_must_rise(rungs):
    with pytest.raises(UserError, match=r"search.rungs is .* it must rise"):
        config(search__rungs=rungs)


# Asynchronous.


@pytest.mark.parametrize("rungs", [{}, RUNGS])
@pytest.mark.parametrize("slots", [1, 3, 8, 20])
def test_no_worker_idles_while_there_is_work(tmp_path, slots, rungs):
    settings = config(search__asynchronous=True, **rungs)
    engine, idle = Shuffled(TABULAR, slots, seed=slots), []
    submitted, poll = engine.submit, engine.poll
    running: set[str] = set()
    engine.submit = lambda id, job: (running.add(id), submitted(id, job))

    def watch(timeout):
        idle.append(slots - len(running))
        outcomes = poll(timeout)
        running.difference_update(o.job_id for o in outcomes)
        return outcomes

    engine.poll = watch
    evolve(tmp_path, settings, engine=engine)
    done = Run(tmp_path)
    ids = [c.id for c in done.candidates()]
    assert len(ids) == len(set(ids)) == settings.candidates == 48
    begun = idle[len(idle) // 4 : len(idle) // 2]
    assert set(begun) <= {0} or slots > 8, "after the initial population, every worker has a job at every moment"
    assert [c.generation for c in done.candidates()] == [g for g in range(6) for _ in range(8)]
    assert done.status()["finished"]


class OneByOne(InProcess):
    """Returns one outcome at a time."""

    def poll(self, timeout):
        return super().poll(0.0)


@pytest.mark.parametrize("slots", [1, 2, 4, 8])
def test_the_algorithm_works_while_all_workers_train(tmp_path, monkeypatch, slots):
    """A genome asked for in advance takes the place of one that ended; with a single worker there is none."""
    engine, at_work = OneByOne(TABULAR, slots), []
    ask = Surrogate.choose

    def watched(*args):
        at_work.append(len(engine.waiting))
        return ask(*args)

    monkeypatch.setattr(Surrogate, "choose", watched)
    settings = config(search__asynchronous=True, search__screen=4, search__population=12)
    evolve(tmp_path, settings, engine=engine)
    assert len(at_work) > 40 and set(at_work) == {slots if slots > 1 else 0}
    assert Run(tmp_path).status()["finished"] and len(Run(tmp_path).candidates()) == settings.candidates


def test_tells_are_recorded_in_order_of_arrival_and_replayed(tmp_path):
    settings = config(search__asynchronous=True, **RUNGS)
    evolve(tmp_path, settings, engine=Shuffled(TABULAR, 4, seed=1))
    events = read_events(tmp_path)
    told = [id for e in events if e.kind == "tell" for id, *_ in e.data["told"]]
    ended = [e.data["id"] for e in events if e.kind == "finish" and e.data["final"]]
    assert told == ended and told != [c.id for c in Run(tmp_path).candidates()]
    assert [e.data["generation"] for e in events if e.kind == "tell" and e.data["generation"] is not None] == list(
        range(6)
    )
    again = load_algorithm(make_space(settings), settings)
    replay(again, events, tmp_path, read_meta(tmp_path))
    assert again.digest() == [e.data["digest"] for e in events if e.kind in ("ask", "tell") and e.data["digest"]][-1]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_interrupted_anywhere_with_rungs(tmp_path, asynchronous):
    settings = config(search__asynchronous=asynchronous, search__generations=4, **RUNGS)
    run(tmp_path / "plain", settings)
    for left in (0, 1, 5, 8, 9, 13, 21, 34):
        path = tmp_path / str(left)
        for _attempt in range(200):
            try:
                evolve(path, settings, engine=Interrupted(TABULAR, 3, left, left + 1))
                break
            except ConnectionError:
                pass
        else:
            pytest.fail("made no progress")
        ids = [c.id for c in Run(path).candidates()]
        assert len(ids) == len(set(ids)) == settings.candidates
        counts = [len(rungs) == len(set(rungs)) for rungs in trained(path).values()]
        assert all(counts), "no rung is trained twice once its result is recorded"
        if not asynchronous:
            assert history(path) == history(tmp_path / "plain")
        if left == 0:
            assert _attempt > 10


@pytest.mark.parametrize("settings", [{}, {"search__asynchronous": True}], ids=["generations", "steady state"])
def test_one_transaction_for_each_candidate(tmp_path, monkeypatch, settings):
    """Its result, what the algorithm makes of it, and the next start: each transaction waits for the disk."""
    transaction, count = Store._transaction, itertools.count()

    def counted(store):
        next(count)
        return transaction(store)

    monkeypatch.setattr(Store, "_transaction", counted)
    run(tmp_path, config(**settings))
    n = len(Run(tmp_path).candidates())
    assert n < next(count) < n + 8


def test_what_operators_brought(tmp_path):
    run(tmp_path, config(search__generations=10))
    done = Run(tmp_path)
    rows = {row["operator"]: row for row in done.operators()}
    assert rows["initial"]["assessed"] == 8 and rows["initial"]["improved"] >= 1
    offspring = [c for c in done.candidates() if c.operators]
    for name in ("crossover", "mutation"):
        assert rows[name]["assessed"] == sum(name in c.operators for c in offspring) > 0
        assert rows[name]["improved"] <= rows[name]["ok"] <= rows[name]["assessed"]
    assert any(rows[name]["improved"] for name in ("crossover", "mutation"))
    assert 0 <= done.status()["idle"] <= 1


def test_status_says_how_well_the_surrogate_foretold(tmp_path):
    run(tmp_path, config(search__screen=4, search__generations=8, search__rungs=(0.5,)))
    done = Run(tmp_path)
    (found,) = done.surrogate().values()
    chosen = [c for c in done.candidates() if c.generation > 0 and c.objectives]
    assert 5 <= found["n"] <= len(chosen) and -1 <= found["spearman"] <= 1 and 0 <= found["coverage_90"] <= 1
    assert any("surrogate of bpb" in line and "size alone" in line for line in status_lines(done))
    run(tmp_path / "plain", config())
    assert Run(tmp_path / "plain").surrogate() == {}
