"""How much of a measured fitness is luck, and which members of a front stay on it with fresh seeds.

    noise_sd({"a": [2.31, 2.33], "b": [2.40, 2.37, 2.41]})      # pooled within genomes, with its interval
    rescored(F, {3: {0: [2.34, 2.36]}}, sd={0: 0.02})           # mean, se, probability of being non-dominated

The loss that put a genome on the front is the best of many noisy ones, so it is too good on average (the winner's
curse); only fresh seeds tell by how much. Pure functions of numbers. All objectives are scaled: smaller is better.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtri  # scipy.stats takes a second to import

DRAWS = 2000


@dataclass(frozen=True)
class Noise:
    """Standard deviation between seeds of one genome (unit of the values), degrees of freedom, 95 % interval."""

    sd: float
    degrees: int
    low: float
    high: float


@dataclass(frozen=True)
class Rescored:
    """One objective vector from fresh seeds.

    mean, se [m]: of the fresh measurements; se 0 where the objective is exact. n: how many of them (the fewest, of the
    noisy objectives). luck [m]: fresh mean minus what the search measured; above 0 where the search's measurement was
    lucky. non_dominated: by the fresh means. probability: that it is non-dominated, given the noise.
    """

    mean: np.ndarray
    se: np.ndarray
    n: int
    luck: np.ndarray
    non_dominated: bool
    probability: float


def noise_sd(
    repeats: Mapping[str, Sequence[float]] | Sequence[Sequence[float]], confidence: float = 0.95
) -> Noise | None:
    """Pooled over genomes, of which each has values of several seeds; None if no genome has two.

    Assumes the same normal noise for all genomes; the interval is the chi-square one of a variance.
    """
    groups = [
        np.asarray(values, dtype=float) for values in (repeats.values() if isinstance(repeats, Mapping) else repeats)
    ]
    groups = [values[np.isfinite(values)] for values in groups]
    degrees = sum(len(values) - 1 for values in groups if len(values) > 1)
    if not degrees:
        return None
    squares = sum(((values - values.mean()) ** 2).sum() for values in groups if len(values) > 1)
    low, high = (squares / chdtri(degrees, 0.5 - sign * confidence / 2) for sign in (1, -1))
    return Noise(float(np.sqrt(squares / degrees)), degrees, float(np.sqrt(low)), float(np.sqrt(high)))


def rescored(
    F: np.ndarray,
    fresh: Mapping[int, Mapping[int, Sequence[float]]],
    sd: Mapping[int, float] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> list[Rescored]:
    """Front members F [n, m], as the search measured them, with fresh[i][k]: new values of objective k of member i.

    sd: noise of the objectives that have any, {k: sd}; by default pooled from `fresh`. A member or objective without
    fresh values keeps the search's; where its objective is noisy, that has the error of one measurement. The
    probability is the share of draws from normal distributions around the means in which no other member dominates it:
    a flat prior, so it is a little hard on whoever was measured least.
    """
    F = np.asarray(F, dtype=float)
    n, m = F.shape
    if sd is None:
        pooled = {k: noise_sd([fresh[i].get(k, ()) for i in fresh]) for k in range(m)}
        sd = {k: noise.sd for k, noise in pooled.items() if noise is not None}
    mean, se, counts = F.copy(), np.zeros((n, m)), np.zeros((n, m), int)
    for k, spread in sd.items():
        se[:, k] = spread
    for i, values_of in fresh.items():
        for k, values in values_of.items():
            good = np.asarray(values, dtype=float)
            good = good[np.isfinite(good)]
            if len(good):
                mean[i, k], counts[i, k] = good.mean(), len(good)
                se[i, k] = sd.get(k, 0.0) / np.sqrt(len(good))
    samples = mean + se * np.random.default_rng(seed).standard_normal((draws, n, m))
    probability = (~_dominated(samples)).mean(axis=0)
    stays = ~_dominated(mean[None])[0]
    noisy = sorted(sd)
    return [
        Rescored(
            mean[i],
            se[i],
            int(counts[i, noisy].min()) if noisy else 0,
            mean[i] - F[i],
            bool(stays[i]),
            float(probability[i]),
        )
        for i in range(n)
    ]


def _dominated(samples: np.ndarray) -> np.ndarray:
    """[draws, n, m] -> bool [draws, n]: whether another one is as good in everything and better in something."""
    a, b = samples[:, :, None], samples[:, None]  # is column b beaten by row a
    return np.any(np.all(a <= b, axis=-1) & np.any(a < b, axis=-1), axis=1)
