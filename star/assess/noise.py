"""How much of a measured objective is luck, and which members of a front stay on it with new random seeds.

    noise_sd({"a": [2.31, 2.33], "b": [2.40, 2.37, 2.41]})      # pooled within genomes, with its interval
    rescored(F, {3: {0: [2.34, 2.36]}}, sd={0: 0.02})           # mean, se, probability of being non-dominated

A genome is on the front because its loss was the best of many noisy ones, so that loss is too good on average (the
winner's curse). Only training with new seeds shows by how much. All objectives are scaled: smaller is better.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtri, stdtrit  # scipy.stats takes a second to import

from star.assess.objectives import Objective
from star.assess.pareto import dominates
from star.candidate import Measured

DRAWS = 2000


@dataclass(frozen=True)
class Noise:
    """Standard deviation between seeds of one genome in the unit of the values, degrees of freedom, and interval."""

    sd: float
    degrees: int
    low: float
    high: float


@dataclass(frozen=True)
class Rescored:
    """The objectives of one front member, measured again with new seeds.

    mean, se [m]: of the new measurements; se is 0 for an exact objective. n: number of new measurements (the smallest
    among the noisy objectives). luck [m]: new mean minus the search's measurement, above 0 if that was lucky.
    non_dominated: by the new means. probability: of being non-dominated, given the noise.
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
    """Noise pooled over genomes, each with the values of several seeds; None if no genome has two finite values.

    Assumes equal normal noise for all genomes. The interval is the chi-square interval of a variance.
    """
    groups = [np.asarray(v, dtype=float) for v in (repeats.values() if isinstance(repeats, Mapping) else repeats)]
    groups = [values[np.isfinite(values)] for values in groups]
    degrees = sum(len(values) - 1 for values in groups if len(values) > 1)
    if not degrees:
        return None
    squares = sum(((values - values.mean()) ** 2).sum() for values in groups if len(values) > 1)
    low, high = (squares / chdtri(degrees, 0.5 - sign * confidence / 2) for sign in (1, -1))
    return Noise(float(np.sqrt(squares / degrees)), degrees, float(np.sqrt(low)), float(np.sqrt(high)))


def measured(
    objective: Objective, values: Sequence[float], fresh: bool, noise: Noise | None, error: float | None = None
) -> Measured:
    """What trainings with these values (own unit) say about an objective.

    noise: of its scaled values between seeds. error: standard error of the evaluation, used if `noise` is None.
    """
    mean = float(np.mean([objective.scaled(value) for value in values]))
    if noise is None:
        return Measured(objective.unscaled(mean), np.nan if error is None else error, len(values), fresh)
    se = noise.sd / np.sqrt(len(values))
    half = stdtrit(noise.degrees, 0.975) * se
    low, high = sorted(objective.unscaled(float(end)) for end in (mean - half, mean + half))
    return Measured(objective.unscaled(mean), float(se), len(values), fresh, low, high)


def rescored(
    F: np.ndarray,
    fresh: Mapping[int, Mapping[int, Sequence[float]]],
    sd: Mapping[int, float] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> list[Rescored]:
    """Front members F [n, m], as the search measured them, with new values fresh[i][k] of objective k of member i.

    sd: {k: sd}, the noise of each noisy objective; by default pooled from `fresh`. Without new values a member keeps
    the search's value, with the error of a single measurement if the objective is noisy. The probability is the share
    of `draws` from normal distributions around the means in which no other member dominates this one. That is a flat
    prior, which is slightly unfavourable for members with few measurements.
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
    fewest = counts[:, noisy].min(axis=1) if noisy else np.zeros(n, int)
    return [
        Rescored(mean[i], se[i], int(fewest[i]), mean[i] - F[i], bool(stays[i]), float(probability[i]))
        for i in range(n)
    ]


def _dominated(samples: np.ndarray) -> np.ndarray:
    """[draws, n, m] -> bool [draws, n]: whether another member dominates it."""
    return np.any(dominates(samples[:, :, None], samples[:, None]), axis=1)
