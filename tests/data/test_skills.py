"""The capability tasks: every answer follows from the tokens before it, and a guess has the accuracy of chance."""

import numpy as np
import pytest

from star.data.skills import SKILLS
from star.data.synthetic import IGNORE
from star.errors import UserError


def draw(skill, n=200, seed=0):
    inputs, targets = skill.batch(n, np.random.default_rng(seed))
    return inputs.numpy(), targets.numpy()


def solve_mqar(x, skill):
    """Looks the keys up, as they come: pairs first, then the same keys among other tokens."""
    known, answers = {}, {}
    for t, token in enumerate(x):
        if token < skill.symbols:
            if token in known:
                answers[t] = known[token]
            else:
                known[token] = x[t + 1]
    return answers


def solve_needle(x, skill):
    mark = x[-1]
    return {len(x) - 1: x[list(x).index(mark) + 1]}


def solve_parity(x, skill):
    return {t: list(x[: t + 1]).count(1) % 2 for t in range(len(x))}


def solve_s5(x, skill):
    """Composes permutations of the five cups, as lists, and follows the ball through the product."""
    cycle, swap = [1, 2, 3, 4, 0], [1, 0, 2, 3, 4]
    product, answers = [0, 1, 2, 3, 4], {0: x[0]}
    for t, token in enumerate(x[1:], 1):
        product = [(cycle if token == 5 else swap)[place] for place in product]
        answers[t] = product[x[0]]
    return answers


def solve_copying(x, skill):
    tokens = list(x)
    size = tokens.index(skill.symbols)
    return {size + i: tokens[i] for i in range(size)}


SOLVERS = {name: globals()[f"solve_{name}"] for name in SKILLS}


@pytest.mark.parametrize("name", SKILLS)
def test_answers_are_those_of_an_independent_solver_and_use_only_what_came_before(name):
    skill = SKILLS[name]
    for test in (skill, *skill.tests().values()):
        inputs, targets = draw(test)
        assert inputs.shape == targets.shape == (200, test.length) and inputs.dtype == targets.dtype == np.int64
        assert inputs.min() >= 0 and max(inputs.max(), targets.max()) < test.vocab_size
        for x, y in zip(inputs, targets, strict=True):
            expected = SOLVERS[name](x, test)
            if getattr(test, "last", False):
                expected = {test.length - 1: expected[test.length - 1]}
            assert {t: v for t, v in enumerate(y) if v != IGNORE} == expected
            if name != "mqar":  # at each answer, no later token matters
                t = max(expected)
                assert SOLVERS[name](x[: t + 1], test)[t] == expected[t]
        assert (inputs == draw(test)[0]).all() and (inputs != draw(test, seed=1)[0]).any()


@pytest.mark.parametrize("name", SKILLS)
def test_every_possible_answer_is_as_frequent_as_chance_says(name):
    for part, test in SKILLS[name].tests().items():
        inputs, targets = draw(test, 6000)
        asked = targets[targets != IGNORE]
        if name == "mqar":  # of the values of the sequence, whichever place one always guesses
            guesses = inputs[:, 1 : 2 * test.pairs : 2]
            rates = [(targets == guess[:, None])[targets != IGNORE].mean() for guess in guesses.T]
        else:
            rates = np.bincount(asked) / len(asked)
        assert len(rates) == round(1 / test.chance) and np.abs(np.array(rates) / test.chance - 1).max() < 0.15, part


def test_gaps_of_mqar_follow_a_power_law():
    skill = SKILLS["mqar"].sized({"length": 64, "pairs": 2, "symbols": 4})
    _, targets = draw(skill, 4000)
    counts = (targets != IGNORE).sum(axis=0)[4:]
    gaps = np.arange(1, 61)
    assert 0.5 < -np.polyfit(np.log(gaps[2:]), np.log(counts[2:]), 1)[0] < 1.2  # density gap ** -0.9
    assert (np.diff(np.add.reduceat(counts, [0, 10, 20, 30, 40, 50])) < 0).all()


def test_needles_lie_at_the_depths_asked_for_and_copies_are_as_long():
    places = {part: {list(x).index(16) for x in draw(test)[0]} for part, test in SKILLS["needle"].tests().items()}
    assert places == {"0%": {0}, "25%": {15}, "50%": {30}, "75%": {46}, "100%": {61}}
    assert {list(x).index(16) for x in draw(SKILLS["needle"], 2000)[0]} == set(range(62))
    sizes = {part: set((y != IGNORE).sum() for y in draw(t)[1]) for part, t in SKILLS["copying"].tests().items()}
    assert sizes == {"1x": {16}, "2x": {32}, "4x": {64}}
    assert {(y != IGNORE).sum() for y in draw(SKILLS["copying"], 1000)[1]} == set(range(1, 17))


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("mqar", {"length": 11}, "4 pairs and their queries need at least 12"),
        ("mqar", {"pairs": 9}, "with 8 symbols it must be at most that"),
        ("mqar", {"power": float("nan")}, "power is nan; it must be above 0"),
        ("needle", {"length": 6}, "five depths need at least 7"),
        ("needle", {"length": 10**9}, "must have at most 65536"),
        ("needle", {"depth": 1}, "has no size 'depth'; it has length, symbols"),
        ("parity", {"length": 1}, "length is 1; it must be at least 2"),
        ("s5", {"length": 2.5}, "length is 2.5; it must be a whole number"),
        ("copying", {"length": 8}, "has no size 'length'; it has items, symbols"),
        ("copying", {"items": 10_000}, "must have at most 65536"),
    ],
)
def test_sizes_that_cannot_be_are_one_sentence(name, sizes, message):
    with pytest.raises(UserError, match=message) as caught:
        SKILLS[name].sized(sizes)
    assert str(caught.value).startswith(f"task {name}") and "\n" not in str(caught.value)
