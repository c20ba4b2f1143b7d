"""Shorter windows in a genome: they obey the rules of sharing, keep the weights and make the cache smaller."""

import json

import numpy as np
import pytest
import torch

import star
from star.genome import POOL, Gene, Genome, OperatorSpace, PoolClass, operator, parse_text, to_json
from star.genome.codec import from_json
from star.genome.edit import edited_genome, together


def genome_of(text: str, pool=POOL) -> Genome:
    return Genome(parse_text(text), d_model=64, head_dim=16, pool=pool)


def windows_of(genome: Genome) -> list[int | None]:
    return [genome.operator(gene).window for gene in genome.canonical().backbone]


def test_edit_uses_the_class_of_the_pool_where_there_is_one_and_else_adds_one():
    edited = edited_genome(genome_of("1-9-3"), {0: 60, 2: 17})
    assert edited.class_names == ("SWA-64", "GMemless", "attention-window-32")
    assert windows_of(edited) == [64, None, 32] and edited.operator(edited.backbone[2]).feature("k").repeat == 4
    again = from_json(json.loads(json.dumps(to_json(edited))))
    assert again == edited and len(to_json(edited)["evolved"]) == 1
    twice = edited_genome(edited, {0: 16, 2: 16})
    assert windows_of(twice) == [16, None, 16] and from_json(to_json(twice)) == twice


def test_nothing_to_edit_gives_the_genome_itself():
    genome = genome_of("1-29-9-5")
    for windows in ({}, {0: None}, {1: 64, 0: None}, {0: 4096}, {2: 16, 3: 16}):
        assert edited_genome(genome, windows) is genome


def test_livs_that_share_keep_one_window():
    # 1 and 3 share keys and values, 3 and 5 share weights, 7 stands alone.
    genome = genome_of("1.0.0.1.4-9-1.1.2.1.4-9-1.1.2.0.0-9-1")
    assert together(genome) == [[0, 2, 4], [1], [3], [5], [6]]
    edited = edited_genome(genome, {0: 16, 2: 100, 4: 16, 6: 16})
    assert windows_of(edited) == [128, None, 128, None, 128, None, 16]
    assert [gene[1:] for gene in edited.backbone] == [gene[1:] for gene in genome.canonical().backbone]
    assert edited_genome(genome, {0: 16, 2: None, 4: 16}) is genome
    before, after = (star.costs(g, seq_len=4096).cache_bytes for g in (genome, edited))
    assert after < before
    star.build(edited)(torch.zeros(1, 5, dtype=torch.int64))


def test_edit_of_a_genome_with_empty_slots_and_a_pool_of_its_own():
    own = (PoolClass("MHA", operator("12123", q=(1, 2, 1, 1), k=(1, 2, 1, 1), v=(1, 2, 1, 1))),)
    genome = Genome((Gene(0), Gene(1), Gene(0), Gene(1)), d_model=64, head_dim=16, pool=own)
    edited = edited_genome(genome, {0: 16, 1: 2048})
    assert windows_of(edited) == [16, 2048] and len(edited.pool) == 3 and from_json(to_json(edited)) == edited


@pytest.mark.parametrize("seed", range(3))
def test_any_edit_of_any_sampled_genome_is_valid_and_never_costs_more(seed):
    rng = np.random.default_rng(seed)
    space = OperatorSpace(n_slots=8, d_models=(64,), head_dim=16)
    shortened = 0
    for row in space.sample(rng, 12):
        genome = space.decode(row)
        windows = {index: rng.choice([None, 5, 16, 200, 2000]) for index in range(genome.depth)}
        edited = edited_genome(genome, windows)
        before, after = (star.costs(g, seq_len=4096) for g in (genome, edited))
        assert after.cache_bytes <= before.cache_bytes and after.parameters == before.parameters
        shapes = [{n: p.shape for n, p in star.build(g).named_parameters()} for g in (genome, edited)]
        assert shapes[0] == shapes[1]
        shortened += edited is not genome
    assert shortened > 0
