"""The operator level: operators evolve with the backbone, and every vector is a legal genome that all code reads."""

import io

import numpy as np
import pytest
import torch
from fakes import config, history, run
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import star
from star.cost import population_costs
from star.errors import UserError
from star.genome import POOL, OperatorSpace, Space, find_genome, from_json, space_from_json, to_json
from star.genome.classes import random_operator
from star.genome.operator_space import WIDTH, from_integers, to_integers
from star.liv import FAMILIES
from star.run import Run
from star.search.slots import AlignedCrossover
from star.search.variation import GeneMutation, KPointCrossover, Mutations

SPACE = OperatorSpace(n_slots=6, d_models=(64, 128), head_dim=16, evolved=3)
ONLY_OWN = OperatorSpace(n_slots=4, d_models=(64,), head_dim=16, classes=(0,), evolved=2)


def check(space: OperatorSpace, X: np.ndarray) -> None:
    """Every row is canonical, has legal operators, and survives decoding and encoding."""
    for x in X:
        genome = space.decode(x)
        for c in {gene.class_id for gene in genome.backbone}:
            operator = genome.pool[c - 1].operator
            FAMILIES[operator.family].validate(operator)
        assert genome.fits and genome.canonical() == genome and 1 <= genome.depth <= space.n_slots
        assert np.array_equal(space.encode(genome), x)
        assert all(np.isin(v, legal) for v, legal in zip(x, space.values, strict=True))
    again, changed = space.repair(X, np.random.default_rng(7))
    assert np.array_equal(again, X) and not changed.any(), "repair is idempotent"


@pytest.mark.parametrize("space", [SPACE, ONLY_OWN], ids=["mixed", "own"])
def test_samples_are_legal_and_use_operators_of_their_own(space):
    X = space.sample(np.random.default_rng(0), 120)
    check(space, X)
    own = [sum(gene.class_id > len(POOL) for gene in space.decode(x).backbone) / space.decode(x).depth for x in X]
    assert np.mean(own) == 1 if space is ONLY_OWN else 0.3 < np.mean(own) < 0.7
    assert len({space.decode(x).id for x in X}) == len({x.tobytes() for x in X}), "equal architectures are equal rows"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_anything_can_be_repaired(seed):
    rng = np.random.default_rng(seed)
    X = np.stack([rng.choice(legal, 16) for legal in SPACE.values], axis=1)
    repaired, changed = SPACE.repair(X, rng)
    check(SPACE, repaired)
    assert changed.any()  # a random row is valid one time in ten or so


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_operators_round_trip_through_integers(seed):
    operator = random_operator(np.random.default_rng(seed))
    integers = to_integers(operator)
    assert len(integers) == WIDTH and from_integers(np.array(integers)) == operator


def test_variation_reaches_other_legal_operators():
    rng = np.random.default_rng(0)
    X = SPACE.sample(rng, 200)
    for operate in (
        lambda rows: GeneMutation(SPACE.values, 0.1)._do(None, rows, random_state=rng),
        lambda rows: KPointCrossover(SPACE.cuts, 2, 1.0)._do(None, np.stack([rows, rows[::-1]]), random_state=rng)[0],
        lambda rows: AlignedCrossover(SPACE, 2, 1.0)._do(None, np.stack([rows, rows[::-1]]), random_state=rng)[0],
    ):
        Y, repaired = SPACE.repair(operate(X), rng)
        check(SPACE, Y)
        assert 0.5 < (Y != X).any(axis=1).mean() and 0 < repaired.mean()
    mutated = GeneMutation(SPACE.values, 0.03, range(SPACE.sections[0].start, SPACE.sections[0].stop))._do(
        None, X, random_state=rng
    )
    Y, _ = SPACE.repair(mutated, rng)
    first = SPACE.sections[0]
    used = X[:, first.start] > 0
    changed = (Y[:, first] != X[:, first]).any(axis=1) & used
    same_family = Y[:, first.start] == X[:, first.start]
    assert changed.sum() > 0.1 * used.sum() and (changed & same_family).sum() > 0.5 * changed.sum(), (
        "most mutants stay near their parent"
    )


def test_a_pool_class_is_recognised_and_too_many_operators_are_refused():
    striped = SPACE.fit(find_genome("striped-mamba").genome)
    x = SPACE.encode(striped)
    assert SPACE.decode(x) == striped and not x[SPACE.sections[0]].any()
    few = OperatorSpace(n_slots=8, d_models=(64,), head_dim=16, classes=(0, 1), evolved=1)
    with pytest.raises(
        UserError, match=r"has \d operators beyond the fixed classes and the space holds 1; raise evolved"
    ):
        few.encode(few.fit(find_genome("striped-mamba").genome))
    with pytest.raises(UserError, match="evolved is 0; legal is 1 to 64"):
        OperatorSpace(n_slots=4, d_models=(64,), evolved=0)
    with pytest.raises(ValueError, match="operator level"):
        population_costs(SPACE, SPACE.sample(np.random.default_rng(0), 2))


def test_json_keeps_operators_and_spaces(tmp_path):
    for x in SPACE.sample(np.random.default_rng(1), 30):
        genome = SPACE.decode(x)
        data = to_json(genome)
        assert from_json(data) == genome and len(data.get("evolved", [])) <= SPACE.evolved and "pool" not in data
    assert space_from_json(SPACE.to_json()) == SPACE and isinstance(space_from_json(SPACE.to_json()), OperatorSpace)
    plain = Space(n_slots=4, d_models=(64,), head_dim=16)
    assert type(space_from_json(plain.to_json())) is Space


@pytest.mark.parametrize("seed", range(12))
def test_models_are_built_and_cost_what_the_plan_says(seed):
    torch.manual_seed(0)
    space = OperatorSpace(n_slots=4, d_models=(32,), head_dim=8, evolved=3)
    for x in space.sample(np.random.default_rng(seed), 4):
        genome = space.decode(x)
        model = star.build(genome, vocab_size=31, seed=0)
        assert sum(p.numel() for p in model.parameters()) == star.costs(genome, vocab_size=31).parameters
        tokens = torch.randint(31, (2, 9))
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        assert torch.isfinite(loss)
        whole, _ = model(tokens)
        first, state = model(tokens[:, :4])
        rest, _ = model(tokens[:, 4:], state)
        assert torch.allclose(torch.cat([first, rest], 1), whole, atol=2e-4), genome.key


def test_a_model_of_evolved_operators_is_exported_and_shown(tmp_path):
    from star.export import export_model
    from star.report.show import show_genome

    space = ONLY_OWN
    genome = space.decode(space.sample(np.random.default_rng(3), 1)[0])
    model = star.build(genome, vocab_size=64, seed=0).eval()
    export_model(model, genome, tmp_path / "out")
    loaded = star.load(tmp_path / "out")
    tokens = torch.randint(64, (1, 12))
    assert torch.allclose(model(tokens)[0], loaded(tokens)[0], atol=1e-6)
    printed = Console(record=True, width=200, file=io.StringIO())
    for part in show_genome(genome):
        printed.print(part)
    assert f"{genome.class_names[0]}" in printed.export_text()


@pytest.mark.parametrize("algorithm", ["nsga2", "ga", "firefly", "aging", "random"])
def test_whole_runs_resume(tmp_path, algorithm):
    level = {
        "space__level": "operator",
        "space__slots": 4,
        "search__algorithm": algorithm,
        "search__baselines": ("transformer++",),
    }
    run(tmp_path / "plain", config(**level))
    run(tmp_path / "run", config(search__generations=2, **level))
    run(tmp_path / "run", config(**level))
    assert history(tmp_path / "run") == history(tmp_path / "plain")
    done = Run(tmp_path / "plain")
    assert len({c.id for c in done.candidates()}) == 49 and done.front()
    assert any(gene.class_id > len(POOL) for c in done.front() for gene in c.genome.backbone)


def test_operators_first_then_backbones():
    settings = config(space__level="operator", search__operator_generations=3)
    space = SPACE
    stages = Mutations(space, settings.search)
    rng = np.random.default_rng(0)
    X = space.sample(rng, 50)
    operators = np.zeros(space.n_var, bool)
    operators[space.sections[0].start : space.offset] = True
    for asked, level in ((0, True), (23, True), (24, False), (1000, False)):
        rows = X
        for mutation in stages.now(asked).values():
            rows = mutation._do(None, rows, random_state=rng)
        changed = (rows != X).any(axis=0)
        assert changed[operators].any() == level and changed[~operators].any() != level
