"""Genomes: text and JSON, canonical form, validity, repair, and sharing in the plan."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star.errors import UserError
from star.genome import (
    POOL,
    Gene,
    Genome,
    OperatorSpace,
    Space,
    find_genome,
    from_json,
    gene_table,
    list_genomes,
    load_genome,
    operator,
    parse_text,
    repair,
    resolve,
    space_from_json,
    to_json,
)
from star.genome.classes import FEATURIZERS
from star.genome.genome import _segment
from star.liv import FAMILIES

SPACE = Space(8, (32, 64), head_dim=8, norms=(1, 2, 3, 4), residuals=(1, 2))
IDS = {c.name: i for i, c in enumerate(POOL, start=1)}


def genome(text: str, **kwargs) -> Genome:
    return Genome(parse_text(text), **({"d_model": 64, "head_dim": 16} | kwargs))


def test_the_papers_example_and_its_canonical_form():
    assert genome("21211-31112-21221-32112").text == "21200-30012-21200-30012"


def test_renamed_groups_are_the_same_genome():
    a, b = genome("21200-90000-21200"), genome("27231-90011-27200-00000")
    assert a == b and hash(a) == hash(b) and a.id == b.id
    assert a != genome("21200-90000-20000")


def test_the_id_is_of_the_integers_not_of_the_names():
    pool = (POOL[8], POOL[0])
    assert Genome((Gene(2), Gene(1)), 64, 16, pool=pool) == genome("1-9")
    assert genome("1-9").id != genome("1-9", d_model=128).id


@pytest.mark.parametrize(
    "gene",
    [
        Gene(7),
        Gene(42),
        Gene(99),
        Gene(100),
        Gene(4321),
        Gene(9, 1, 2, 0, 0),
        Gene(100, 1, 1, 0, 0),
        Gene(9, 1, 12, 0, 0),
    ],
)
def test_a_segment_of_text_is_read_back_whatever_its_numbers(gene):
    assert parse_text(_segment(gene)) == (gene,) and parse_text(f"1-{_segment(gene)}-12") == (Gene(1), gene, Gene(12))


@pytest.mark.parametrize("text", ["", "2121", "21211--3", "a-b", "1.2.3-1", "212112", "21211 31112"])
def test_malformed_text_names_the_segment(text):
    with pytest.raises(UserError, match="segment"):
        parse_text(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1-99", "LIV 2: gene 'class' is 99"),
        ("1.0.3.0.0", "LIV 1: gene 'featurizer strategy' is 3; legal is 0 or 1"),
        ("1.0.0.1.9", "LIV 1: gene 'feature strategy' is 9; legal is 0 to 4 for SA-1"),
        ("1.2000.2.0.0", "LIV 1: gene 'featurizer group' is 2000"),
        ("00000-0", "no LIV"),
    ],
)
def test_a_gene_out_of_range_is_named(text, message):
    with pytest.raises(UserError, match=message):
        genome(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "not a genome"),
        ({"version": 7}, "version 7"),
        ({"depth": 3}, "unknown key 'depth'"),
        ({"d_model": "wide"}, "'d_model' is 'wide'"),
        ({"d_model": True}, "'d_model' is True"),
        ({"d_model": 10**9}, "d_model is 1000000000"),
        ({"head_dim": 7}, "head_dim is 7"),
        ({"norm": 9}, "gene 'norm' is 9"),
        ({"rope_theta": 1e30}, "rope_theta"),
        ({"backbone": 7}, "'backbone' is 7"),
        ({"backbone": [[1, 2]]}, "LIV 1 is"),
        ({"backbone": [[1, 0, 0, 0, 0.5]]}, "LIV 1 is"),
        ({"vocab_size": -1}, "'vocab_size' is -1"),
        ({"pool": []}, "'pool'"),
        ({"pool": [{"name": "x"}]}, "pool class 1"),
        ({"pool": [{"name": "x", "operator": [1, 2, 1, 2], "features": {}, "differential": False}]}, "five"),
        ({"pool": [{"name": "x", "operator": [1, 1, 1, 2, 3], "features": {}, "differential": False}]}, "token gene 1"),
    ],
)
def test_bad_json_is_named(change, message):
    data = to_json(genome("1-9")) | change
    with pytest.raises(UserError, match=message) as error:
        from_json(data, "file.json")
    assert str(error.value).startswith("file.json")


def test_files_that_are_no_genome(tmp_path):
    for name, content in (("cut.json", b'{"format": "star-'), ("binary.json", b"\xff\xfe\x00"), ("list.json", b"[1]")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            load_genome(tmp_path / name)
    with pytest.raises(UserError, match="No such file"):
        load_genome(tmp_path / "missing.json")
    big = tmp_path / "big.json"
    big.write_bytes(b" " * 2_000_000)
    with pytest.raises(UserError, match="too large"):
        load_genome(big)


def test_a_genome_file_with_a_byte_order_mark(tmp_path):
    (tmp_path / "g.json").write_text(json.dumps(to_json(genome("1-9"))), encoding="utf-8-sig")
    assert load_genome(tmp_path / "g.json") == genome("1-9")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match="did you mean 'transformer"):
        load_genome("transformer+")


@pytest.mark.parametrize("name", list_genomes())
def test_shipped_genomes_resolve_and_round_trip(name):
    named = find_genome(name)
    assert named.name == name and named.description and named.vocab_size
    resolve(named.genome)
    assert from_json(json.loads(json.dumps(to_json(named.genome)))) == named.genome


def test_a_pool_of_its_own_round_trips():
    g = Genome((Gene(1), Gene(2)), 64, 16, pool=(POOL[2], POOL[8]))
    data = json.loads(json.dumps(to_json(g)))
    assert from_json(data) == g and from_json(data).pool == g.pool


def test_an_illegal_operator_names_the_gene_and_what_is_legal():
    row = (1, 2, 1, 1)
    with pytest.raises(UserError, match=r"nonlinearity gene 1 does not go with featurizer 1 \(attention\).*legal is 2"):
        operator("12113", q=row, k=row, v=row)
    with pytest.raises(UserError, match="repeat gene 7 of feature group 'k'"):
        operator("12123", q=row, k=(1, 2, 1, 7), v=row)
    with pytest.raises(UserError, match="feature group 'v' of attention is missing"):
        operator("12123", q=row, k=row)
    with pytest.raises(UserError, match="unknown feature group 'w'"):
        operator("12123", q=row, k=row, v=row, w=row)


# Sharing, as the plan understands it.


def test_featurizer_sharing_ties_weights_but_never_the_output_map():
    plan = resolve(genome("11200-90000-11200"))
    assert plan.layers[2].weights_from == {"q": 0, "k": 0, "v": 0}
    assert set(plan.layers[2].weights()) == {"out"} and set(plan.layers[0].weights()) == {"q", "k", "v", "out"}


def test_feature_sharing_drops_weights_and_state_at_the_consumer():
    plan = resolve(genome("10014-90000-10014"))
    consumer = plan.layers[2]
    assert consumer.provider == 0 and consumer.given == {"k", "v"} and plan.layers[0].provides
    assert set(consumer.weights()) == {"q", "out"} and consumer.state() == {}


def test_feature_sharing_wins_for_its_tensors_where_both_are_on():
    plan = resolve(genome("11214-11214-11200"))
    assert set(plan.layers[1].weights()) == {"out"}
    assert plan.layers[1].weights_from == {"q": 0}
    # The third shares weights only: k and v are owned by the first, which computes them.
    assert plan.layers[2].weights_from == {"q": 0, "k": 0, "v": 0}


def test_weights_that_the_first_member_does_not_use_are_owned_by_the_first_that_does():
    # LIV 2 takes k and v from LIV 1 and opens the featurizer group; LIV 3 is the first to need its k and v.
    plan = resolve(genome("10014-11214-11200-11200"))
    assert plan.layers[2].weights_from == {"q": 1}
    assert plan.layers[3].weights_from == {"q": 1, "k": 2, "v": 2}


def test_the_poles_of_an_implicit_filter_follow_when_its_state_is_shared():
    g = Genome((Gene(IDS["GConv-2"], 0, 0, 1, 4), Gene(IDS["GConv-2"], 0, 0, 1, 4)), 64, 16)
    consumer = resolve(g).layers[1]
    assert consumer.given == {"b", "h", "poles"} and consumer.state() == {}
    assert "residue_real" in consumer.weights() and "log_rate" not in consumer.weights()


@pytest.mark.parametrize("text", ["11200-21200", "10014-30014", "10014-50014", "10014-10.0.0.1.4", "50012-60012"])
def test_sharing_that_cannot_be_is_refused_by_the_plan_and_mended_by_repair(text):
    g = genome(text)
    with pytest.raises(UserError, match=r"LIVs 1 .* and 2 .* cannot share"):
        resolve(g)
    repaired, changed = repair(g, np.random.default_rng(0))
    assert changed and repaired.depth == 2
    resolve(repaired)


def test_repair_keeps_the_part_of_a_group_that_fits():
    repaired, changed = repair(genome("11200-21200-11200-21200"), np.random.default_rng(0))
    assert changed and repaired.text == "11200-22200-11200-22200"


def test_repair_resamples_a_strategy_that_some_member_cannot():
    # Keys of SA-3 are a quarter as wide as those of SA-1; SA-2's are filtered: nothing in common, so the group goes.
    assert repair(genome("10014-30014"), np.random.default_rng(0))[0].text == "10000-30000"
    # Rec-1 and Rec-2 differ in state size, so B cannot be shared, but the value path can.
    repaired, _ = repair(genome("50018-60018"), np.random.default_rng(0))
    assert repaired.text == "50013-60013"


raw_rows = st.lists(st.integers(-3, 40), min_size=SPACE.n_var, max_size=SPACE.n_var)


@settings(max_examples=300, deadline=None)
@given(raw_rows, st.integers(0, 2**31))
def test_any_integers_repair_to_a_valid_canonical_genome(row, seed):
    rng = np.random.default_rng(seed)
    fixed, _ = SPACE.repair(np.array([row]), rng)
    again, changed = SPACE.repair(fixed, rng)
    assert fixed.dtype == np.int64 and (again == fixed).all() and not changed.any()
    assert all(x in legal for x, legal in zip(fixed[0], SPACE.values))
    g = SPACE.decode(fixed[0])
    resolve(g)
    assert g.canonical().backbone == g.backbone
    assert (SPACE.encode(g) == fixed[0]).all()


def test_samples_are_valid_distinct_and_reproducible():
    X = SPACE.sample(np.random.default_rng(7), 200)
    assert (X == SPACE.sample(np.random.default_rng(7), 200)).all()
    genomes = [SPACE.decode(x) for x in X]
    assert len({g.id for g in genomes}) > 170
    assert {g.depth for g in genomes} == {4, 5, 6, 7, 8}  # class 0 varies the depth
    assert any(layer.provider is not None for g in genomes for layer in resolve(g).layers)
    assert any(layer.weights_from for g in genomes for layer in resolve(g).layers)


def test_a_space_refuses_what_it_cannot_build_and_what_is_not_its_own():
    with pytest.raises(UserError, match=r"SA-3.*width 96"):
        Space(4, (96,), head_dim=32)
    with pytest.raises(UserError, match="classes holds 99"):
        Space(4, (64,), head_dim=8, classes=(0, 99))
    with pytest.raises(UserError, match="only 0"):
        Space(4, (64,), head_dim=8, classes=(0,))
    with pytest.raises(UserError, match="each only once"):
        Space(4, (64, 64), head_dim=8)
    with pytest.raises(UserError, match="9 LIVs and the space 8"):
        SPACE.encode(genome("-".join("1" * 9), head_dim=8))
    with pytest.raises(UserError, match="d_model 48"):
        SPACE.encode(genome("1", d_model=48, head_dim=8))


def test_a_space_survives_json():
    assert space_from_json(json.loads(json.dumps(SPACE.to_json()))) == SPACE


def test_scaling_repeats_or_cuts_the_pattern():
    base = genome("11200-90000-11200-90000")
    assert base.scaled(depth=8).text == "11200-90000-11200-90000-12200-90000-12200-90000"
    assert base.scaled(depth=3).text == "11200-90000-11200"
    assert base.scaled(depth=2).text == "10000-90000"
    wide = load_genome("transformer++", d_model=32, depth=4)
    assert (wide.d_model, wide.depth, wide.head_dim) == (32, 4, 32)
    with pytest.raises(UserError, match="depth is 0"):
        base.scaled(depth=0)


def test_the_gene_table_covers_every_gene_of_every_class():
    rows = {(row["level"], row["gene"]) for row in gene_table()}
    for c in POOL:
        for group, _ in c.operator.features:
            assert (f"featurizer ({c.operator.family})", group) in rows
    assert all(row["values"] for row in gene_table())


def test_genes_that_came_later_are_written_only_where_they_are_used():
    """Old genomes keep their text and id; new genes change both."""
    old = genome("1-9")
    assert not {"embedding", "positions"} & set(to_json(old)) and len(json.loads(old.key)[0]) == 5
    for change in ({"embedding": 2}, {"positions": 128}, {"norm": 4}):
        new = replace(old, **change)
        assert new.id != old.id and from_json(json.loads(json.dumps(to_json(new)))) == new
    with pytest.raises(UserError, match=r"gene 'embedding' is 3; legal is 1 \(tied: the head is the embedding\), 2"):
        replace(old, embedding=3)
    with pytest.raises(UserError, match="positions is -1; legal is 0 to 1048576"):
        replace(old, positions=-1)
    with pytest.raises(UserError, match="positions 128 is not in the space; legal is 0"):
        Space(n_slots=4, d_models=(64,), head_dim=16).encode(replace(old, positions=128))


def test_evolved_classes_keep_their_meaning_when_the_pool_grows():
    """A file of the version whose pool had 56 classes."""
    own = {"name": "own", "operator": [1, 2, 2, 2, 3], "differential": False}
    own["features"] = {"q": [3, 2, 1, 1], "k": [3, 2, 1, 1], "v": [3, 2, 1, 1]}
    data = {"format": "star-genome", "version": 1, "d_model": 64, "head_dim": 16, "backbone": "9-57", "evolved": [own]}
    read = from_json(data)
    assert read.class_names == ("GMemless", "own") and from_json(to_json(read)) == read
    assert to_json(read)["first_evolved"] == len(POOL) + 1
    with pytest.raises(UserError, match="'first_evolved' is 0; it must be an integer from 1"):
        from_json(data | {"first_evolved": 0})


def test_no_search_draws_what_only_named_genomes_use():
    for family in FAMILIES.values():
        rng = np.random.default_rng(0)
        featurizer = next(f for f, name in FEATURIZERS.items() if name == family.name)
        assert all(family.is_searched(family.sample(featurizer, rng)) for _ in range(100))
    named = {c.name for c in POOL if not FAMILIES[c.operator.family].is_searched(c.operator)}
    assert named == {c.name for c in POOL[56:]}
    space = OperatorSpace(n_slots=4, d_models=(64,), head_dim=16, evolved=2)
    with pytest.raises(UserError, match="operator MHA-NoPE-bias has genes that no search draws; allow its class"):
        space.encode(genome("62-9"))
    allowed = replace(space, classes=(0, 9, 62))
    assert allowed.decode(allowed.encode(genome("62-9"))) == genome("62-9")
