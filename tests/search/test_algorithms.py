"""What every search algorithm must do, whichever it is: propose what is new, repeat itself exactly, take results in any
order.
"""

import random

import numpy as np
import pytest
from fakes import config, history, run

from star.run import Run
from star.search.algorithm import Told, load_algorithm
from star.search.evolution import replay
from star.search.spaces import make_space
from star.search.steady_state import Member, places
from star.store import read_events, read_meta

ALGORITHMS = ("nsga2", "ga", "firefly", "aging", "random")


def make(name, **overrides):
    settings = config(search__algorithm=name, **overrides)
    return load_algorithm(make_space(settings), settings), settings


def tell(algorithm, offspring, failing=False):
    told = []
    for child in offspring:
        luck = random.Random(child.id)
        told.append(
            Told(child.id, tuple(luck.random() for _ in range(3)), (1.0 if failing and luck.random() < 0.3 else 0.0,))
        )
    algorithm.tell(told)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_nothing_is_proposed_twice_and_lineage_is_known(name):
    algorithm, _ = make(name)
    seen: set[str] = set()
    for step in range(25):
        batch = algorithm.ask(8 if step == 0 else 5)
        assert len(batch.offspring) == (8 if step == 0 else 5)
        for child in batch.offspring:
            assert child.id == child.genome.id and child.id not in seen and set(child.parents) <= seen
            assert child.genome.canonical() == child.genome
            assert child.origin == ("initial" if step == 0 or name == "random" else "offspring")
            seen.add(child.id)
        assert batch.generated >= len(batch.offspring) and batch.generated >= batch.duplicates
        tell(algorithm, batch.offspring, failing=True)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_same_asks_and_tells_give_the_same_state(name):
    def digests(seed):
        algorithm, _ = make(name, seed=seed)
        rng, pending, found = random.Random(0), [], []
        for step in range(30):
            batch = algorithm.ask(8 if step == 0 else rng.randint(1, 3))
            pending += batch.offspring
            rng.shuffle(pending)  # results arrive in any order, some of them late
            n = rng.randint(1, len(pending))
            tell(algorithm, pending[:n])
            pending = pending[n:]
            found.append(algorithm.digest())
        return found

    first = digests(0)
    assert len(set(first)) == len(first), "the digest sees every step"
    assert first == digests(0) and not set(first) & set(digests(1))


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_whole_runs_resume_and_replay(tmp_path, name, asynchronous):
    settings = config(search__algorithm=name, search__asynchronous=asynchronous)
    run(tmp_path / "plain", settings)
    run(tmp_path / "run", config(search__algorithm=name, search__asynchronous=asynchronous, search__generations=3))
    run(tmp_path / "run", settings)
    assert history(tmp_path / "run") == history(tmp_path / "plain")
    again = load_algorithm(make_space(settings), settings)
    replay(again, read_events(tmp_path / "run"), tmp_path / "run", read_meta(tmp_path / "run"))
    done = Run(tmp_path / "plain")
    assert len(done.candidates()) == 48 and done.front()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_exhausted_space_ends_the_search(tmp_path, name):
    settings = config(
        search__algorithm=name, space__slots=2, space__classes=(1, 9), space__sharing=False, search__generations=30
    )
    assert run(tmp_path, settings).status == "exhausted"
    assert {c.genome.text for c in Run(tmp_path).candidates()} == {
        "-".join(row)
        for row in (
            ["10000"],
            ["90000"],
            ["10000", "10000"],
            ["10000", "90000"],
            ["90000", "10000"],
            ["90000", "90000"],
        )
    }


@pytest.mark.parametrize("name", ALGORITHMS)
def test_seeds_come_first(name):
    algorithm, _ = make(name, search__seeds=("transformer++", "striped-mamba"))
    batch = algorithm.ask(8)
    assert [child.origin for child in batch.offspring] == ["seed"] * 2 + ["initial"] * 6


def hill(x: np.ndarray) -> float:
    """A landscape whose tops have nothing but class 7."""
    return -float((x[3::5] == 7).sum())


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "random"])
def test_algorithms_climb_better_than_chance(name):
    def best(name, seed):
        settings = config(
            search__algorithm=name, search__population=16, search__tournament=3, objectives__names=("bpb",), seed=seed
        )
        algorithm, top = load_algorithm(make_space(settings), settings), 0.0
        for _ in range(20):
            batch = algorithm.ask(16)
            values = [hill(algorithm.space.encode(child.genome)) for child in batch.offspring]
            top = min(top, *values)
            algorithm.tell(
                [Told(child.id, (value,), (0.0,)) for child, value in zip(batch.offspring, values, strict=True)]
            )
        return top

    gains = [best("random", seed) - best(name, seed) for seed in range(3)]
    assert np.mean(gains) > 0.9, gains


def test_places_put_feasible_then_rank_then_uncrowded_first():
    rows = [
        ((0.5, 0.5), 0.0),
        ((0.0, 1.0), 0.0),
        ((1.0, 0.0), 0.0),
        ((0.6, 0.6), 0.0),
        ((0.0, 0.0), 0.3),
        ((0.1, 0.95), 0.0),
    ]
    members = [Member(str(i), np.zeros(1), np.array(F), np.array([g])) for i, (F, g) in enumerate(rows)]
    place = places(members)
    assert sorted(place) == list(range(6)) and place[4] == 5 and place[3] == 4
    assert {place[1], place[2]} == {0, 1}


@pytest.mark.parametrize("name", ["nsga2", "aging", "firefly"])
def test_without_repair_invalid_offspring_are_lost_and_counted(tmp_path, name):
    for repair in (True, False):
        run(
            tmp_path / str(repair),
            config(
                search__algorithm=name,
                search__repair=repair,
                search__link_probability=0.5,
                search__mutation_probability=0.3,
            ),
        )
    mended, free = Run(tmp_path / "True"), Run(tmp_path / "False")
    assert any(c.repaired for c in mended.candidates() if c.origin == "offspring")
    assert not any(c.repaired for c in free.candidates() if c.origin == "offspring")
    lost = sum(row["repaired"] for row in free.statistics()[1:])
    made = sum(row["generated"] for row in free.statistics()[1:])
    assert lost > 0 and made >= lost + 40, "what repair is worth can be read off the statistics"
    rows = {row["operator"]: row for row in free.operators()}
    assert rows["mutation"]["repaired"] > 0
