"""Variation that sees whole LIVs: alignment, crossover between parents of different depth, insertion, deletion,
exchange.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star.genome import Space
from star.search.slots import GAP, MATCH, MISMATCH, AlignedCrossover, SlotMutation, align, livs

SPACE = Space(n_slots=8, d_models=(64,), head_dim=16)


def score(a, b, columns) -> float:
    return sum(GAP if None in (i, j) else MATCH if a[i] == b[j] else MISMATCH for i, j in columns)


def every_alignment(n, m):
    """All monotone sets of pairs, as columns."""
    for k in range(min(n, m) + 1):
        for left, right in itertools.product(itertools.combinations(range(n), k), itertools.combinations(range(m), k)):
            pairs = list(zip(left, right, strict=True))
            yield (
                pairs + [(i, None) for i in range(n) if i not in left] + [(None, j) for j in range(m) if j not in right]
            )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 3), max_size=5), st.lists(st.integers(1, 3), max_size=5))
def test_alignment_is_a_best_one(a, b):
    columns = align(a, b)
    assert [i for i, _ in columns if i is not None] == list(range(len(a)))
    assert [j for _, j in columns if j is not None] == list(range(len(b)))
    assert np.isclose(score(a, b, columns), max(score(a, b, other) for other in every_alignment(len(a), len(b))))


def classes(x):
    return [int(row[0]) for row in livs(SPACE, x)]


def vector(*names):
    x = SPACE.sample(np.random.default_rng(0), 1)[0]
    x[SPACE.offset :] = 0
    for segment, c in zip(SPACE.segments, names, strict=False):
        x[segment.start] = c
    return x


def test_a_shifted_copy_exchanges_nothing_but_the_shift():
    """By position the parents agree nowhere; aligned they agree everywhere, so children are one parent or the other."""
    a, b = vector(1, 9, 7, 9, 5, 9), vector(8, 1, 9, 7, 9, 5, 9)
    rng, found = np.random.default_rng(0), set()
    for _ in range(50):
        children = AlignedCrossover(SPACE, 2, 1.0)._do(None, np.stack([a[None], b[None]]), random_state=rng)[:, 0]
        found |= {tuple(classes(child)) for child in children}
    assert found == {(1, 9, 7, 9, 5, 9), (8, 1, 9, 7, 9, 5, 9)}


def test_children_take_livs_of_both_parents_in_order_and_no_link_is_made_between_them():
    rng = np.random.default_rng(1)
    X = SPACE.sample(rng, 200)
    other = X[::-1].copy()
    children = AlignedCrossover(SPACE, 2, 1.0)._do(None, np.stack([X, other]), random_state=rng)
    assert children.dtype == np.int64 and children.shape == (2, 200, SPACE.n_var)
    mixed = 0
    for x, y, pair in zip(X, other, children.swapaxes(0, 1), strict=True):
        a, b = classes(x), classes(y)
        total = sum(len(classes(child)) for child in pair)
        assert total == len(a) + len(b) or max(len(classes(child)) for child in pair) == SPACE.n_slots, (
            "every LIV goes to one child"
        )
        mixed += not any(np.array_equal(child, parent) for child in pair for parent in (x, y))
        for child in pair:
            for g in (1, 3):
                groups = [int(row[g]) for row in livs(SPACE, child) if row[g]]
                assert all(
                    groups.count(k)
                    <= max(sum(int(r[g]) == q for r in livs(SPACE, p)) for p in (x, y) for q in range(9))
                    for k in groups
                )
    assert mixed > 100
    repaired, _ = SPACE.repair(children.reshape(-1, SPACE.n_var), rng)
    assert all(np.array_equal(SPACE.encode(SPACE.decode(row)), row) for row in repaired)


@pytest.mark.parametrize(("kind", "step"), [("insert", 1), ("delete", -1), ("swap", 0)])
def test_depth_and_order_change_by_one_step(kind, step):
    rng = np.random.default_rng(2)
    X = SPACE.sample(rng, 300)
    Y = SlotMutation(SPACE, kind, 0.5)._do(None, X, random_state=rng)
    changed = (X != Y).any(axis=1)
    assert 0.25 < changed.mean() < 0.6
    for x, y in zip(X[changed], Y[changed], strict=True):
        before, after = livs(SPACE, x), livs(SPACE, y)
        assert len(after) == len(before) + step
        rest = [row.tolist() for row in (after if step <= 0 else before)]
        whole = [row.tolist() for row in (before if step <= 0 else after)]
        if step:
            assert any(whole[:i] + whole[i + 1 :] == rest for i in range(len(whole))), "all but one LIV stay, in order"
        else:
            assert sorted(rest) == sorted(whole) and sum(p != q for p, q in zip(rest, whole, strict=True)) == 2


def test_a_full_genome_takes_no_more_and_the_last_liv_stays():
    rng = np.random.default_rng(3)
    full, one = vector(*[1] * 8), vector(7)
    assert np.array_equal(SlotMutation(SPACE, "insert", 1.0)._do(None, full[None], random_state=rng)[0], full)
    for kind in ("delete", "swap"):
        assert np.array_equal(SlotMutation(SPACE, kind, 1.0)._do(None, one[None], random_state=rng)[0], one)
    whole = Space(n_slots=4, d_models=(64,), head_dim=16, classes=(1, 9))  # no empty slots
    x = whole.sample(rng, 1)
    assert np.array_equal(SlotMutation(whole, "delete", 1.0)._do(None, x, random_state=rng), x)
