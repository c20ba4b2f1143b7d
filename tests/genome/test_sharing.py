"""What the plan lets two LIVs share, works: it runs, in chunks and as a whole, and costs what the module has."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

import star
from star.errors import UserError
from star.genome import POOL, Gene, Genome
from star.genome.classes import random_operator
from star.genome.edit import with_operators
from star.genome.plan import resolve, share_signature
from star.genome.repair import repair
from star.liv import FAMILIES

VOCAB = 31


def accepted(genome: Genome) -> bool:
    try:
        resolve(genome)
    except UserError:
        return False
    return True


def check(genome: Genome) -> None:
    """Runs, costs exactly, steps as a whole, and every parameter gets a gradient."""
    model = star.build(genome, VOCAB, seed=0).double()
    costs = star.costs(genome, VOCAB, seq_len=21)
    assert costs.parameters == sum(p.numel() for p in model.parameters())
    state = model.init_state(1, 21, dtype=torch.bfloat16)
    assert costs.cache_bytes_exact == state.nbytes
    tokens = torch.randint(VOCAB, (1, 21), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, _ = model(tokens)
        first, state = model(tokens[:, :9])
        parts = [first]
        for t in range(9, 21):
            logits, state = model(tokens[:, t : t + 1], state)
            parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-9)
    model.loss(tokens, tokens).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None], genome.text


def pair(a: int, b: int, strategy: int, pool=POOL, width: int = 32) -> Genome:
    genes = (Gene(a, 0, 0, 1, strategy), Gene(b, 0, 0, 1, strategy))
    return Genome(genes, d_model=width, head_dim=8, pool=pool)


def families_of(pool) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for number, row in enumerate(pool, 1):
        rows.setdefault(row.operator.family, []).append(number)
    return rows


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_rows_of_the_pool_share_only_what_has_one_shape(family):
    """All pairs of different rows under all strategies: a refused pair is repaired, a few accepted ones are run."""
    rng = np.random.default_rng(0)
    numbers, strategies = families_of(POOL)[family], range(2, FAMILIES[family].n_strategies + 1)
    good = []
    for a, b, strategy in itertools.product(numbers, numbers, strategies):
        genome = pair(a, b, strategy)
        try:
            for number in (a, b):
                POOL[number - 1].config(32, 8, 1e4)
        except UserError:
            continue
        if accepted(genome):
            good.append(genome)
        else:
            assert accepted(repair(genome, rng)[0])
    for index in rng.permutation(len(good))[:25]:
        check(good[index])


def test_a_joint_state_of_two_sizes_is_refused_and_repaired():
    by_name = {row.name: number for number, row in enumerate(POOL, 1)}
    for names in (("Hyena", "Hyena-32"), ("GConv-1", "GConv-k7")):
        a, b = (by_name[name] for name in names)
        for strategy in (4, 8):
            with pytest.raises(UserError, match="the shape of every shared tensor must be equal"):
                star.build(pair(a, b, strategy))
        mended, changed = repair(pair(a, b, 4), np.random.default_rng(0))
        assert changed and mended.backbone[0].shares_features
        check(mended)


@pytest.mark.parametrize("seed", range(6))
def test_random_operators_share_only_what_has_one_shape(seed):
    rng = np.random.default_rng(seed)
    genome = Genome((Gene(1), Gene(1)), d_model=32, head_dim=8)
    checked = 0
    while checked < 12:
        first = random_operator(rng)
        family = FAMILIES[first.family]
        second = family.sample(first.genes.featurizer, rng)
        strategy = int(rng.integers(2, family.n_strategies + 1))
        try:
            both = with_operators(genome, [first, second])  # one of them may not fit the width
        except UserError:
            continue
        genes = tuple(g._replace(feature_group=1, feature_strategy=strategy) for g in both.backbone)
        shared = replace(both, backbone=genes)
        if accepted(shared) and share_signature(shared, genes[0], strategy) is not None:
            check(shared)
            checked += 1


def test_a_liv_that_takes_everything_from_its_provider_has_no_norm_of_its_input():
    by_name = {row.name: number for number, row in enumerate(POOL, 1)}
    for name in ("GMemless", "Rec-1", "GConv-1", "GConv-2", "RG-LRU"):
        family = FAMILIES[POOL[by_name[name] - 1].operator.family]
        genome = pair(by_name[name], by_name[name], family.n_strategies)
        plan = resolve(genome)
        assert [layer.reads_input for layer in plan.layers] == [True, False]
        model = star.build(genome, VOCAB)
        assert [block.norm_in is None for block in model.blocks] == [False, True]
        check(genome)


def test_the_sizes_know_whether_a_liv_reads_its_input():
    rng = np.random.default_rng(0)
    for op in [row.operator for row in POOL] + [random_operator(rng) for _ in range(200)]:
        family = FAMILIES[op.family]
        try:
            config = family.configure(op, 64, 8, 1e4)
        except UserError:
            continue
        for strategy in range(1, family.n_strategies + 1):
            given = family.shared_groups(op, strategy)
            assert config.reads_input(given) == bool(config.build(given).maps)
