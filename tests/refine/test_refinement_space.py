"""Settings, edits and encoding of a refinement: every value can be carried out, every edit is valid, equal things are
equal.
"""

import json
import math

import numpy as np
import pytest
import torch

from star.config import load_config
from star.cost import costs
from star.errors import UserError
from star.genome import Genome, OperatorSpace, Space, from_json, load_genome, resolve, to_json
from star.genome.genome import Gene
from star.genome.local_edits import KINDS, edits
from star.model import build
from star.refine.candidates import Encoder, Seen, Setup, around
from star.surrogate.descriptors import SUMMARY, summarise
from star.training.recipe import Recipe
from star.training.recipe_space import RATE_OF_BATCH, recipe_space, settings_text

AROUND = load_config("laptop").training
SPACE = recipe_space(AROUND)
GENOMES = Space(5, (64, 128), 16)


def genomes(n: int, seed: int = 0) -> list[Genome]:
    return [GENOMES.decode(x) for x in GENOMES.sample(np.random.default_rng(seed), n)]


# Recipes.


def test_the_search_s_own_settings_are_its_own_recipe_to_the_last_bit():
    assert SPACE.recipe(SPACE.base) == AROUND
    assert SPACE.changed(SPACE.base) == {}


def test_sampled_and_perturbed_settings_are_in_range_and_can_be_carried_out():
    rng = np.random.default_rng(0)
    found = SPACE.sample(40, rng) + SPACE.sample(10, rng, width=0.3)
    found += [SPACE.perturb(s, rng) for s in found]
    for settings in found:
        recipe = SPACE.recipe(settings)
        assert recipe.micro_batch * recipe.accumulate == settings["batch_tokens"]
        assert recipe.accumulate_max >= recipe.accumulate
        for d in SPACE.open:
            value = settings[d.name]
            assert (
                value in d.choices if d.choices else (d.off and value == 0) or d.low * 0.999 <= value <= d.high * 1.001
            ), d.name
        row = SPACE.encode(settings)
        assert len(row) == len(SPACE.columns) and all(-0.01 <= x <= 1.01 for x in row)
    assert {s["schedule"] for s in found} == {"linear", "wsd", "cosine"} and {s["optimizer"] for s in found} == {
        "adamw",
        "muon",
    }
    assert {s["precision"] > 0 for s in found} == {True, False}


def test_the_portfolio_is_of_recipes_that_can_be_carried_out_within_the_ranges():
    found = SPACE.portfolio()
    assert (
        len(found) >= 5
        and len({json.dumps(s, sort_keys=True) for s in found}) == len(found)
        and SPACE.base not in found
    )
    assert found[0] == SPACE.base | {"learning_rate": 2 * SPACE.base["learning_rate"]} and {
        s["optimizer"] for s in found
    } == {"adamw", "muon"}
    for settings in found:
        SPACE.recipe(settings)
        for d in SPACE.open:
            value = settings[d.name]
            assert value in d.choices if d.choices else value == d.base or d.low <= value <= d.high, d.name
    narrow = recipe_space(
        AROUND, {"learning_rate": "3e-3:6e-3", "optimizer": "adamw", "embedding_multiplier": "1"}
    ).portfolio()
    assert {s["learning_rate"] for s in narrow} == {3e-3, 6e-3} and {s["optimizer"] for s in narrow} == {"adamw"}
    fixed = {d.name: f"{d.base:g}" if not isinstance(d.base, str) else d.base for d in SPACE.open if d.base}
    assert recipe_space(AROUND, fixed).portfolio() == []  # nothing that it would change is open


def test_settings_are_spread_over_their_whole_range_and_a_box_stays_a_box():
    d = next(d for d in SPACE.open if d.name == "learning_rate")
    place = lambda s: d.encode(s["learning_rate"])[0]  # noqa: E731
    wide = sorted(place(s) for s in SPACE.sample(16, np.random.default_rng(1)))
    assert all(i / 16 - 0.01 <= p <= (i + 1) / 16 + 0.01 for i, p in enumerate(wide)), "one in each stratum"
    narrow = [place(s) for s in SPACE.sample(16, np.random.default_rng(1), SPACE.base, 0.2)]
    assert all(abs(p - 0.5) <= 0.11 for p in narrow) and np.ptp(narrow) > 0.15


@pytest.mark.parametrize("batch_size, accumulate", [(2, 1), (8, 4), (3, 1)])
def test_a_batch_keeps_half_lives_and_decay_per_token(batch_size, accumulate):
    around = AROUND.replace(batch_size=batch_size, accumulate=accumulate)
    space = recipe_space(around)
    step = around.micro_batch * accumulate
    twice = space.recipe(space.base | {"batch_tokens": 2 * step})
    assert twice.micro_batch * twice.accumulate == 2 * step
    assert twice.betas == pytest.approx([b**2 for b in around.betas], rel=2e-3)
    assert twice.learning_rate == pytest.approx(around.learning_rate * 2**RATE_OF_BATCH)
    # what weights lose per token: rate x decay / tokens of a step
    assert twice.learning_rate * twice.weight_decay / (2 * step) == pytest.approx(
        around.learning_rate * around.weight_decay / step
    )
    if accumulate > 1:
        assert twice.batch_size <= batch_size, "a micro-batch that needed accumulation is as large as memory lets it be"


def test_a_share_of_the_budget_has_the_rule_s_batch():
    quarter = SPACE.recipe(SPACE.base | {"batch_tokens": 1024}, 0.25)
    assert quarter.tokens == AROUND.tokens // 4 and quarter.micro_batch == 512


def test_ranges_replace_those_of_the_table():
    space = recipe_space(
        AROUND,
        {
            "learning_rate": "1e-3:2e-3",
            "schedule": "wsd",
            "optimizer": "muon,adamw",
            "warmup": "0.1",
            "precision": "off",
            "sparsify": "0.01:0.1",
        },
    )
    rng = np.random.default_rng(0)
    for s in space.sample(20, rng):
        assert (
            1e-3 <= s["learning_rate"] <= 2e-3 and s["schedule"] == "wsd" and s["warmup"] == 0.1 and s["precision"] == 0
        )
        assert s["sparsify"] == 0 or 0.01 <= s["sparsify"] <= 0.1
    names = {d.name for d in space.open}
    assert "sparsify" in names and not names & {"schedule", "warmup", "precision"}
    assert "schedule wsd" in settings_text(space.start()) and "precision off" in settings_text(space.start())


@pytest.mark.parametrize(
    "name, text, match",
    [
        ("learning_rate", "1e-2:1e-3", "inverted"),
        ("learning_rate", "1e-3:1e-3", "empty"),
        ("learning_rate", "0:1e-3", "above 0"),
        ("learning_rate", "", "write LOW:HIGH"),
        ("learning_rate", "1:2:3", "write LOW:HIGH"),
        ("learning_rate", "nan:1", "write LOW:HIGH"),
        ("rate", "1:2", "there is no setting 'rate'"),
        ("schedule", "triangle", "one or more of linear, wsd, cosine"),
        ("warmup", "0.5:2", "warmup is 2"),
        ("sparsify", "0.01:0.95", "sparsify is 0.95"),
    ],
)
def test_a_wrong_range_is_named(name, text, match):
    with pytest.raises(UserError, match=match):
        recipe_space(AROUND, {name: text})


def test_a_recipe_without_decay_or_warmup_has_a_space_too():
    space = recipe_space(Recipe(weight_decay=0.0, warmup=0.0))
    for s in space.sample(8, np.random.default_rng(0)):
        space.recipe(s)
    assert space.recipe(space.base).weight_decay == 0


# Edits.


@pytest.mark.parametrize("genome", genomes(6), ids=lambda g: g.text)
def test_every_edit_is_another_valid_genome_of_the_space(genome):
    found = edits(genome, GENOMES)
    assert len({e.genome.id for e in found} | {genome.id}) == len(found) + 1
    assert found == edits(genome, GENOMES), "the same at every call"
    for edit in found:
        assert edit.kind in KINDS[1:] and edit.text
        resolve(edit.genome)
        assert 1 <= edit.genome.depth <= GENOMES.n_slots and edit.genome.d_model in GENOMES.d_models
        assert from_json(json.loads(json.dumps(to_json(edit.genome)))) == edit.genome


def test_every_kind_of_edit_is_found():
    genome = Genome((Gene(3), Gene(9), Gene(5, 1, 2), Gene(5, 1, 2)), 64, 16)
    found = {e.text: e for e in edits(genome, GENOMES)}
    assert {e.kind for e in found.values()} == set(KINDS[1:])
    assert found["LIV 2: GMemless -> SA-1"].genome.class_names == ("SA-3", "SA-1", "Rec-1", "Rec-1")
    assert (
        found["LIV 1: attention none -> window 16"]
        .genome.operator(found["LIV 1: attention none -> window 16"].genome.backbone[0])
        .window
        == 16
    )
    wider = found["LIV 2: memoryless gate.expansion 32 -> gate.expansion 36"].genome
    assert costs(wider).parameters > costs(genome).parameters
    assert costs(found["LIV 3: weights of its own"].genome).parameters > costs(genome).parameters
    assert costs(found["LIV 1: attention k.repeat 4 -> k.repeat 2"].genome).cache_bytes > costs(genome).cache_bytes
    assert found["width 64 -> 128"].genome.d_model == 128


def test_edits_can_be_built_and_run():
    genome = load_genome("lfm2-350m").scaled(64, 4, 16)
    tokens = torch.randint(0, 50, (1, 8))
    found = edits(genome, Space(5, (64,), 16))
    for edit in found[:: len(found) // 12]:
        model = build(edit.genome, 50)
        assert torch.isfinite(model(tokens)[0]).all()
        assert sum(p.numel() for p in model.parameters()) == costs(edit.genome, 50).parameters


def test_genomes_with_operators_of_their_own_can_be_edited():
    space = OperatorSpace(4, (64,), 16, evolved=2)
    genome = space.decode(space.sample(np.random.default_rng(3), 4)[2])
    found = edits(genome, space)
    assert found and all(from_json(to_json(e.genome)) == e.genome for e in found)


# Candidates.


def encoder(known: list[Genome]) -> Encoder:
    return Encoder(SPACE, 256, 1024, [(g, 2.0 + 1e-6 * costs(g).parameters) for g in known])


def test_a_candidate_is_its_genome_and_settings():
    genome = genomes(1)[0]
    plain = Setup("m", genome, SPACE.base)
    assert plain.id(SPACE.base) == genome.id
    tuned = plain.with_settings(SPACE.base | {"learning_rate": 0.008})
    assert tuned.id(SPACE.base).startswith("r") and tuned.id(SPACE.base) != plain.with_settings(
        SPACE.base | {"learning_rate": 0.009}
    ).id(SPACE.base)
    other = Setup("other", genome, tuned.settings, edits=("something",))
    assert other.id(SPACE.base) == tuned.id(SPACE.base), "however it was reached"


def test_descriptors_tell_genomes_apart_and_the_expected_loss_follows_the_search():
    known = genomes(24)
    enc = encoder(known)
    rows = enc.rows([Setup("", g, SPACE.base) for g in known])
    assert rows.shape == (24, len(enc.columns)) and len(np.unique(rows.round(9), axis=0)) == len({g.id for g in known})
    assert all(len(summarise(g, costs(g))) == len(SUMMARY) for g in known)
    told = np.array([2.0 + 1e-6 * costs(g).parameters for g in known])
    assert np.corrcoef(enc.prior(rows), told)[0, 1] > 0.95
    fresh = genomes(12, seed=9)
    ahead = enc.prior(enc.rows([Setup("", g, SPACE.base) for g in fresh]))
    assert np.corrcoef(ahead, [costs(g).parameters for g in fresh])[0, 1] > 0.8


def test_the_candidates_around_a_member_are_the_same_at_every_call_and_few_edits_away():
    member = Setup("m", genomes(1)[0], SPACE.base)
    edit = edits(member.genome, GENOMES)[5]
    once = member.edited(edit)
    seen = [
        Seen(member, 1.0, 2.0),
        Seen(once, 1.0, 1.9),
        Seen(member.with_settings(SPACE.base | {"learning_rate": 0.01}), 0.25, None),
    ]

    def found(change="both"):
        return around(member, seen, [], SPACE, GENOMES, change, np.random.default_rng(4))

    both = found()
    assert [s.key for s in both] == [s.key for s in found()] and len({s.key for s in both}) == len(both)
    assert {s.key for s in both} >= {x.setup.key for x in seen}, "candidates that were tried may continue"
    assert {len(s.edits) for s in both} == {0, 1, 2}
    assert {s.genome.id for s in found("recipes")} == {member.genome.id, seen[1].setup.genome.id}
    assert all(s.settings in (SPACE.base, seen[2].setup.settings) for s in found("edits"))
    assert math.isclose(np.mean([bool(s.edits) for s in both]), 0.6, abs_tol=0.35)
