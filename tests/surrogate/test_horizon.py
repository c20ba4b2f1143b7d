"""The horizon: it learns who gains with tokens, says how well, and does not pretend to know more."""

import numpy as np
import pytest

from star.cost import costs
from star.genome import Genome, Space, to_json
from star.surrogate.descriptors import describe
from star.surrogate.horizon import Horizon, Step

SPACE = Space(n_slots=6, d_models=(64,), head_dim=16)


def described(genomes: list[Genome]) -> tuple[np.ndarray, np.ndarray]:
    return describe(genomes, [costs(genome, vocab_size=256) for genome in genomes])


def attention(genome: Genome) -> float:
    genes = [gene for gene in genome.backbone if gene.class_id]
    return float(np.mean([genome.operator(gene).family == "attention" for gene in genes]))


def ladder(n: int, seed: int, noise: float = 0.01) -> tuple[list[Genome], list[Step]]:
    """Attention is worse at first and better at the end; the rest is size and luck."""
    rng = np.random.default_rng(seed)
    genomes = [SPACE.decode(x) for x in SPACE.sample(rng, n)]
    size = [np.log10(costs(genome, vocab_size=256).parameters) for genome in genomes]
    far = [
        3.0 - 0.3 * s - 0.2 * attention(g) + noise * rng.standard_normal() for g, s in zip(genomes, size, strict=True)
    ]
    near = [f + 0.6 + 0.6 * attention(g) + noise * rng.standard_normal() for f, g in zip(far, genomes, strict=True)]
    return genomes, [Step(to_json(g), n, f) for g, n, f in zip(genomes, near, far, strict=True)]


def test_it_ranks_new_genomes_by_what_they_will_be():
    horizon = Horizon(ladder(50, 0)[1], described)
    genomes, steps = ladder(40, 1)
    near, far = (np.array([getattr(step, name) for step in steps]) for name in ("near", "far"))
    mean, sd = horizon.predict(genomes, near)
    places = [np.argsort(np.argsort(values)) for values in (near, mean, far)]
    plain, predicted = (np.corrcoef(place, places[2])[0, 1] for place in places[:2])
    assert predicted > 0.85 > plain + 0.3
    assert 0.75 < np.mean(np.abs(mean - far) < 1.645 * sd) <= 1


def test_its_own_error_is_that_of_genomes_it_has_not_seen():
    _, steps = ladder(40, 2)
    error = Horizon(steps, described).error()
    apart = []
    for i, step in enumerate(steps):
        others = Horizon(steps[:i] + steps[i + 1 :], described)
        apart.append(others.predict([SPACE_GENOME(step)], [step.near])[0][0] - step.far)
    assert error["n"] == 40 and error["error"] == pytest.approx(np.sqrt(np.mean(np.square(apart))), rel=0.4)
    assert error["spearman"] > error["proxy_spearman"]
    noise = Horizon(ladder(40, 2, noise=2.0)[1], described).error()
    assert noise["spearman"] < error["spearman"] and noise["error"] > 1


def SPACE_GENOME(step: Step) -> Genome:
    from star.genome import from_json

    return from_json(step.genome)
