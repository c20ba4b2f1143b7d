"""The search: variation stays legal and int64, nothing is asked twice, and the same record gives the same state."""

import math
import random
import time
from itertools import pairwise

import numpy as np
import pytest
from fakes import Shuffled, config, history, run

from star.assess import Frame, Front, load_objectives
from star.assess.evaluations import load_evaluation
from star.config import load_config
from star.cost import population_costs
from star.engine import InProcess, Outcome
from star.errors import RunFailed, UserError
from star.run import Run
from star.search import evolve, outcomes
from star.search.algorithm import Told, load_algorithm
from star.search.spaces import check_bounds, make_space
from star.search.variation import GeneMutation, KPointCrossover, LinkMutation


class Losing(InProcess):
    """Loses every third job at its first attempt, as if its worker had been killed."""

    def __init__(self, function):
        super().__init__(function)
        self.lost = set()

    def poll(self, timeout):
        outcomes = []
        for o in super().poll(timeout):
            if int(o.job_id[0], 16) % 3 == 0 and o.job_id not in self.lost:
                self.lost.add(o.job_id)
                o = Outcome(o.job_id, "lost", reason="its worker was killed by signal 9")
            outcomes.append(o)
        return outcomes


def drive(algorithm, generations: int, fails=lambda id: False, n_objectives: int = 3, n: int = 8):
    """Ask and tell with random numbers as objectives; yields each batch."""
    for _ in range(generations):
        batch = algorithm.ask(n)
        if batch is None:
            return
        yield batch
        told = []
        for child in batch.offspring:
            rng = random.Random(child.id)
            F = tuple(rng.random() for _ in range(n_objectives))
            told.append(Told(child.id, F, (1.0 if fails(child.id) else 0.0,)))
        algorithm.tell(told)


def algorithm_for(settings):
    return load_algorithm(make_space(settings), settings)


# Variation.


def test_mutation_gives_another_legal_value_or_none():
    space = make_space(config())
    rng = np.random.default_rng(0)
    X = np.stack([rng.choice(legal, 400) for legal in space.values], axis=1)
    Y = GeneMutation(space.values, 0.3)._do(None, X, random_state=rng)
    assert Y.dtype == np.int64
    for position, legal in enumerate(space.values):
        assert np.isin(Y[:, position], legal).all(), space.names[position]
        changed = Y[:, position] != X[:, position]
        if len(legal) > 1:
            assert 0.2 < changed.mean() < 0.4, "mutated genes always change"
            assert set(Y[changed, position]) == set(legal), "and may become any other value"
        else:
            assert not changed.any()
    assert np.array_equal(GeneMutation(space.values, 0.0)._do(None, X, random_state=rng), X)


def test_links_make_livs_of_one_class_share():
    space = make_space(config(space__classes=(1, 5, 9)))
    rng = np.random.default_rng(0)
    X = space.sample(rng, 300)
    Y, _ = space.repair(LinkMutation(space, 1.0)._do(None, X, random_state=rng), rng)

    def shares(x):
        genes = space.decode(x).backbone
        return sum(g.shares_weights for g in genes), sum(g.shares_features for g in genes)

    before, after = (np.array([shares(x) for x in rows]) for rows in (X, Y))
    linked = (after > before).any(axis=1)
    assert linked.mean() > 0.6 and (before > 0).any(axis=1).mean() < 0.4
    assert ((after > before) & linked[:, None]).any(axis=0).all(), "of weights, and of features"
    assert np.array_equal(X[:, [s.start for s in space.segments]], Y[:, [s.start for s in space.segments]])


@pytest.mark.parametrize("inside", [False, True])
def test_crossover_swaps_whole_livs_unless_told_otherwise(inside):
    space = make_space(config())
    cuts = np.arange(1, space.n_var) if inside else space.cuts
    rng = np.random.default_rng(0)
    parents = np.stack([np.zeros((300, space.n_var), np.int64), np.ones((300, space.n_var), np.int64)])
    children = KPointCrossover(cuts, n_points=2, prob=0.9)._do(None, parents, random_state=rng)
    assert children.dtype == np.int64 and (children.sum(axis=0) == 1).all(), "each gene goes to one of the two children"
    switches = np.diff(children[0], axis=1) != 0
    assert (switches.sum(axis=1) <= 2).all()
    whole = np.isin(np.flatnonzero(switches.any(axis=0)) + 1, space.cuts).all()
    assert whole != inside


def test_integers_stay_integers_and_nothing_is_asked_twice():
    settings = config(search__population=16, search__mutation_probability=0.05)
    algorithm, seen = algorithm_for(settings), set()
    counts = {"generated": 0, "repaired": 0, "duplicates": 0}
    for batch in drive(algorithm, 60, n=16):
        assert len(batch.offspring) == 16
        for child in batch.offspring:
            assert child.id == child.genome.id and child.id not in seen
            seen.add(child.id)
            if child.origin == "offspring":
                assert (child.parents and set(child.parents) < seen and child.operators) or child.repaired
        for key in counts:
            counts[key] += getattr(batch, key)
        X = algorithm.algorithm.pop.get("X") if algorithm.algorithm.pop is not None else np.empty(0, np.int64)
        assert X.dtype == np.int64 or X.size == 0
    assert len(seen) == 60 * 16
    assert counts["generated"] >= 960 + counts["duplicates"] > 960, "duplicates were found and replaced"
    assert 0 < counts["repaired"] < counts["generated"]


def test_tournaments_prefer_feasible_then_rank_then_crowding():
    from pymoo.core.population import Population

    from star.search.algorithms.nsga2 import by_rank_and_crowding

    pop = Population.new("X", np.zeros((4, 1)))
    facts = [(1.0, None, None), (0.0, 1, 5.0), (0.0, 0, 1.0), (0.0, 0, math.inf)]
    for individual, (violation, rank, crowding) in zip(pop, facts, strict=True):
        individual._CV = np.array([violation])
        individual.set("rank", rank)
        individual.set("crowding", crowding)
    P = np.array([[0, 1, 1], [1, 2, 1], [2, 3, 0], [0, 0, 0]])
    winners = by_rank_and_crowding(pop, P, random_state=np.random.default_rng(0))
    assert winners.tolist() == [[1], [2], [3], [0]]


def test_seeds_are_in_the_first_generation():
    settings = config(search__seeds=("transformer++", "transformer++", "striped-mamba"))
    batch = algorithm_for(settings).ask(8)
    assert [child.origin for child in batch.offspring] == ["seed"] * 2 + ["initial"] * 6
    assert batch.offspring[0].genome.text == "-".join(["10000-90000"] * 3)
    with pytest.raises(UserError, match=r"search.seeds: lfm2-350m: genome .* class"):
        algorithm_for(config(search__seeds=("lfm2-350m",), space__classes=(1, 9)))


# The same asks and tells give the same state.


def test_same_seed_same_search_and_other_seed_another():
    def ids(**overrides):
        return [c.id for batch in drive(algorithm_for(config(**overrides)), 5) for c in batch.offspring]

    np.random.seed(1)
    first = ids()
    np.random.seed(2)
    assert first == ids(), "numpy's global generator has no part in it"
    assert not set(first) & set(ids(seed=1))


def test_digest_sees_population_generator_and_pending():
    algorithms = [algorithm_for(config()) for _ in range(2)]
    digests = set()
    for step, (a, b) in enumerate(zip(*(drive(x, 4) for x in algorithms), strict=True)):
        assert a == b
        pair = {x.digest() for x in algorithms}
        assert len(pair) == 1 and not pair & digests, step
        digests |= pair
    algorithms[0].algorithm.random_state.random()
    assert algorithms[0].digest() != algorithms[1].digest()


@pytest.mark.parametrize("function", ["star.assess.evaluations.tabular:assess", "fakes:unreliable"])
def test_the_order_of_completion_changes_nothing(tmp_path, function):
    settings = config(search__baselines=("transformer++",))
    run(tmp_path / "plain", settings, function)
    for seed in range(3):
        evolve(tmp_path / str(seed), settings, engine=Shuffled(function, 5, seed))
        assert history(tmp_path / str(seed)) == history(tmp_path / "plain")
        front = [(c.id, c.objectives) for c in Run(tmp_path / str(seed)).front()]
        assert front == [(c.id, c.objectives) for c in Run(tmp_path / "plain").front()]


def test_other_software_is_noticed_on_replay(tmp_path, monkeypatch):
    settings = config(search__generations=3)
    run(tmp_path / "run", settings)
    monkeypatch.setattr(GeneMutation, "_do", lambda self, problem, X, random_state=None, **_: X)
    with pytest.raises(UserError, match=r"cannot be continued: its event \d+ \(ask\) does not repeat .* pymoo 0.6"):
        run(tmp_path / "run", config(search__generations=4))


# Failures.


def test_failures_are_recorded_never_on_the_front_and_cost_only_themselves(tmp_path):
    settings = config(search__population=16, search__generations=10)
    run(tmp_path, settings, "fakes:unreliable", slots=4)
    done = Run(tmp_path)
    statuses = {c.status for c in done.candidates()}
    assert statuses == {"ok", "failed", "oom", "diverged", "timeout"} and len(done.candidates()) == 160
    for c in done.candidates():
        assert (c.objectives is not None) == (c.status == "ok")
        assert c.status == "ok" or c.reason
    front = done.front()
    assert front and all(c.status == "ok" and all(map(math.isfinite, c.objectives.values())) for c in front)
    for event in done._record.results.values():
        assert event.attempt == {"failed": 1}.get(event.status, 0), "one more attempt where it may help"
    assert all(math.isfinite(f) for _, _, told, _ in history(tmp_path) for f in _numbers(told))


def _numbers(told: str) -> list[float]:
    return [x for _, F, G, *_ in (eval(told) or []) for x in (*F, *G)]


def test_retry_policy():
    assert outcomes.settles("ok", []) and outcomes.settles("diverged", []) and outcomes.settles("timeout", [])
    assert not outcomes.settles("failed", []) and outcomes.settles("failed", ["failed"])
    assert not outcomes.settles("lost", ["lost", "lost"]) and outcomes.settles("lost", ["lost"] * 3)
    assert outcomes.attempt_number(["lost", "failed", "lost"]) == 1
    seeds = {outcomes.candidate_seed(seed, id, attempt) for seed in (0, 1) for id in ("ab", "cd") for attempt in (0, 1)}
    assert len(seeds) == 8 and all(0 <= seed < 2**63 for seed in seeds)


def test_lost_workers_change_nothing(tmp_path):
    run(tmp_path / "plain", config())
    engine = Losing("star.assess.evaluations.tabular:assess")
    evolve(tmp_path / "losing", config(), engine=engine)
    assert engine.lost and history(tmp_path / "losing") == history(tmp_path / "plain")


def test_out_of_memory_costs_the_candidate_and_nothing_else(tmp_path, monkeypatch):
    """Training has halved its micro-batch by then, see test_techniques.py."""
    tries = []

    def assess(job, report):
        tries.append(job["id"])
        if job["id"][0] in "01234567":
            raise MemoryError("12 GiB wanted")
        return {"metrics": {"bpb": 2.0}}

    monkeypatch.setattr("fakes.hopeless", assess)
    run(tmp_path, config(training__batch_size=8, search__generations=2), "fakes:hopeless")
    assert len(tries) == len(set(tries))
    for c in Run(tmp_path).candidates():
        assert (c.status, "12 GiB wanted" in c.reason) == (("oom", True) if c.id[0] in "01234567" else ("ok", False))


def test_a_first_generation_of_failures_ends_the_run_and_can_be_tried_again(tmp_path):
    with pytest.raises(RunFailed) as error:
        run(tmp_path, config(), "fakes:hopeless")
    text = str(error.value)
    assert "All 8 candidates of the first generation failed" in text and "no candidate can work here" in text
    assert "Traceback" in text
    assert run(tmp_path, config()).status == "finished"
    assert {c.status for c in Run(tmp_path).candidates()} == {"ok"} and len(Run(tmp_path).candidates()) == 48


def test_a_run_that_only_fails_gives_up_and_goes_on_when_called_again(tmp_path):
    events = []
    settings = config(search__generations=12)

    def broken(event):
        events.append(event)
        if sum(e["kind"] == "candidate_end" for e in events) == 20:
            engine.function = "fakes:hopeless"  # say, a driver that broke in the middle of the run

    engine = InProcess("star.assess.evaluations.tabular:assess")
    with pytest.raises(
        RunFailed, match=r"All 2\d candidates in a row failed; 2\d of them: failed \(RuntimeError: no candidate"
    ):
        evolve(tmp_path, settings, engine=engine, callbacks=[broken])
    assert 20 + 24 <= len([c for c in Run(tmp_path).candidates() if c.order is not None]) < 20 + 24 + 8
    assert run(tmp_path, settings).status == "finished" and len(Run(tmp_path).candidates()) == 96


def test_a_failing_display_does_not_end_the_run(tmp_path):
    def broken(event):
        raise KeyError("no such column")

    with pytest.warns(UserWarning, match="a display of the run was switched off: KeyError"):
        assert run(tmp_path, config(search__generations=2), callbacks=[broken]).status == "finished"


# Constraints, budgets, exhausted spaces.


def test_bounds_are_checked_before_anything_is_trained(tmp_path):
    free = config()
    run(tmp_path / "free", free)
    sizes = sorted(c.costs["parameters"] for c in Run(tmp_path / "free").candidates())
    bound = int(sizes[len(sizes) // 3])
    events = []
    run(
        tmp_path / "bound",
        config(objectives__max_parameters=bound, objectives__max_flops=10**9),
        callbacks=[events.append],
    )
    bounded = Run(tmp_path / "bound")
    infeasible = [c for c in bounded.candidates() if c.status == "infeasible"]
    assert infeasible and all(c.costs["parameters"] > bound and c.objectives is None for c in infeasible)
    assert f"parameters is {infeasible[0].costs['parameters']:,.0f}" in infeasible[0].reason
    started = {event["id"] for event in events if event["kind"] == "candidate_start"}
    assert started == {c.id for c in bounded.candidates()} - {c.id for c in infeasible}
    assert bounded.front() and all(c.objectives["parameters"] <= bound for c in bounded.front())
    last = [c for c in bounded.candidates() if c.generation == 5]
    first = [c for c in bounded.candidates() if c.generation == 0]
    share = [sum(c.status == "infeasible" for c in generation) for generation in (first, last)]
    assert share[1] < share[0], "the population moves into the bounds"


def test_a_bound_that_nothing_can_meet_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(
        UserError, match=r"objectives.max_parameters is 10 and the smallest genome of this space has [\d,]+; raise"
    ):
        run(tmp_path / "run", config(objectives__max_parameters=10))
    assert not (tmp_path / "run").exists()
    space = make_space(config())
    X = space.sample(np.random.default_rng(0), 300)
    with pytest.raises(UserError, match=r"smallest genome of this space has ([\d,]+)") as refusal:
        check_bounds(space, config(objectives__max_flops=10), 256)
    smallest = int(str(refusal.value).split(" has ")[1].split(";")[0].replace(",", ""))
    assert (population_costs(space, X).train_flops_per_token >= smallest - 1).all()


def test_an_exhausted_space_is_reported_and_ends_the_run(tmp_path):
    messages = []
    settings = config(space__slots=2, space__classes=(1, 9), search__generations=30)
    ending = run(tmp_path, settings, callbacks=[lambda e: e["kind"] == "message" and messages.append(e["text"])])
    assert ending.status == "exhausted" and any("exhausted" in text for text in messages)
    ids = [c.id for c in Run(tmp_path).candidates()]
    assert len(ids) == len(set(ids)) >= 6
    assert run(tmp_path, settings).status == "exhausted", "and again when called again"
    assert len(Run(tmp_path).candidates()) == len(ids) and Run(tmp_path).status()["finished"]


def test_a_baseline_that_the_search_finds_too_is_assessed_once(tmp_path):
    events = []
    settings = config(
        space__slots=2, space__classes=(1, 9), search__baselines=("transformer++",), search__generations=30
    )
    run(tmp_path, settings, callbacks=[events.append])
    found = Run(tmp_path)
    (baseline,) = found.candidates("baseline")
    twins = [c for c in found.candidates() if c.id == baseline.id]
    assert [c.origin for c in twins] == ["baseline", twins[1].origin] and twins[0].objectives == twins[1].objectives
    assert sum(e["kind"] == "candidate_start" and e["id"] == baseline.id for e in events) == 1


@pytest.mark.parametrize("key", ["search__algorithm", "evaluation", "objectives__names", "search__baselines"])
def test_unknown_names_are_errors_before_anything_is_created(tmp_path, key):
    with pytest.raises(UserError, match="nonsense"):
        evolve(tmp_path / "run", config(**{key: "nonsense"}))
    assert not (tmp_path / "run").exists()


# Objectives and fronts.


def test_front_is_what_brute_force_says():
    objectives = load_objectives(("bpb", "parameters", "cache"))
    rng = np.random.default_rng(0)
    values = [
        dict(zip(("bpb", "parameters", "cache"), rng.integers(0, 6, 3).tolist(), strict=True)) for _ in range(200)
    ]
    front = Front(objectives)
    for i, v in enumerate(values):
        front.add(str(i), v)

    def dominates(a, b):
        return all(a[k] <= b[k] for k in a) and a != b

    assert set(front.ids) == {str(i) for i, v in enumerate(values) if not any(dominates(w, v) for w in values)}
    assert not front.add("nan", {"bpb": math.nan, "parameters": 0, "cache": 0})


def test_hypervolume_is_in_units_of_the_first_generations_box():
    objectives = load_objectives(("bpb", "parameters"))
    frame = Frame.of([{"bpb": 2.0, "parameters": 99}, {"bpb": 3.0, "parameters": 9}], objectives)
    assert frame.reference == pytest.approx({"bpb": 3.1, "parameters": 2.1}) and frame.ideal["parameters"] == 1.0
    front = Front(objectives)
    assert frame.hypervolume(front) == 0.0
    front.add("ideal", {"bpb": 2.0, "parameters": 9})
    assert frame.hypervolume(front) == pytest.approx(1.0)
    outside = Front(objectives)
    outside.add("beyond", {"bpb": 4.0, "parameters": 1})
    assert frame.hypervolume(outside) == 0.0
    assert objectives[1].unscaled(objectives[1].scaled(12345)) == pytest.approx(12345)


def test_selection_pays(tmp_path):
    """On a landscape with structure the search covers clearly more than its first generation, for every seed."""
    for seed in range(3):
        run(tmp_path / str(seed), config(seed=seed, search__population=12, search__generations=12), slots=12)
        volumes = Run(tmp_path / str(seed)).hypervolume()
        assert volumes[-1]["hypervolume"] > 1.3 * volumes[11]["hypervolume"]
        assert [v["evaluations"] for v in volumes] == list(range(1, 145))
        assert all(a["hypervolume"] <= b["hypervolume"] for a, b in pairwise(volumes))


def test_overhead_is_small(tmp_path):
    """1,000 free evaluations at population 100 with everything recorded: far below what any training costs."""
    start = time.monotonic()
    run(tmp_path, config(search__population=100, search__generations=10, space__slots=8), slots=100)
    assert time.monotonic() - start < 12
    assert len(Run(tmp_path).candidates()) == 1000


def test_the_tabular_evaluation_is_deterministic():
    job = {"id": "0123456789ab", "costs": {"parameters": 1e5, "cache": 1e4}}
    assess = load_evaluation("tabular").assess
    assert assess(job, print) == assess(job, lambda _: None)
    assert load_config("laptop").evaluation == "training"
