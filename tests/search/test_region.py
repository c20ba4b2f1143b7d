"""A search that looks at a range of sizes: every genome that it proposes lies there, whatever the algorithm."""

import numpy as np
import pytest
from fakes import config, run

from star.errors import UserError
from star.run import Run
from star.search.region import within_region
from star.search.spaces import make_baselines, make_space

ALGORITHMS = ("nsga2", "random", "aging", "ga", "firefly")


def limited(**changes):
    settings = config(**changes)
    space = make_space(settings)
    return space, within_region(space, make_baselines(space, settings), settings, 256)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("screen", [1, 4])
def test_every_proposal_lies_in_the_region(tmp_path, algorithm, screen):
    changes = {"search__algorithm": algorithm, "search__screen": screen, "search__population": 10}
    settings = config(search__region="parameters=1e5:1.5e5,cache=:1e6", search__generations=4, **changes)
    run(tmp_path, settings)
    found = Run(tmp_path).candidates()
    assert len(found) == settings.candidates and all(c.status == "ok" for c in found)
    assert all(1e5 <= c.costs["parameters"] <= 1.5e5 and c.costs["cache"] <= 1e6 for c in found)


def test_multiples_are_of_the_smallest_and_the_largest_baseline():
    changes = {"search__baselines": ("transformer++", "lfm2-350m")}
    plain, space = limited(search__region="parameters=0.5x:1.5x", **changes)
    ((objective, low, high),) = space.within.ranges
    assert objective.name == "parameters" and (round(low / 1e3), round(high / 1e3)) == (82, 342)
    X = space.sample(np.random.default_rng(0), 30)
    assert all(space.holds(space.decode(x)) for x in X) and space == plain and space.to_json() == plain.to_json()
    assert not all(space.holds(plain.decode(x)) for x in plain.sample(np.random.default_rng(0), 30))


def test_the_region_of_a_preset_needs_baselines_and_says_so(tmp_path):
    said: list[dict] = []
    run(tmp_path, config(search__region="parameters=0.5x:1.5x", search__generations=1), callbacks=[said.append])
    assert any("all sizes are searched" in event.get("text", "") for event in said)
    with pytest.raises(UserError, match="is relative and there are no baselines"):
        limited(search__region="parameters=0.4x:1.5x")


def test_seeds_and_baselines_may_lie_outside(tmp_path):
    run(
        tmp_path,
        config(search__region="parameters=1e5:2e5", search__seeds=("16",), search__generations=2),
    )
    (found,) = Run(tmp_path).candidates("seed")
    assert not 1e5 <= found.costs["parameters"] <= 2e5


@pytest.mark.parametrize(
    "region, words",
    [
        ("parameters", "is no range; write NAME=LOW:HIGH"),
        ("loss=1:2", "is no range; write NAME=LOW:HIGH with a NAME of"),
        ("parameters=a:1e5", "'a' is no number"),
        ("parameters=-5:1e5", "'-5' is no number"),
        ("parameters=2e5:1e5", "is empty"),
        ("parameters=0.7x:", "is relative and there are no baselines"),
    ],
)
def test_a_wrong_region_is_one_sentence(region, words):
    with pytest.raises(UserError, match=words):
        limited(search__region=region)


def test_a_region_that_is_almost_empty_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="hardly any genome of this space has parameters from 1 to 2; widen"):
        run(tmp_path, config(search__region="parameters=1:2"))
