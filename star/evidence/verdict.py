"""What a comparison has shown: means, paired differences with intervals, and wins by the rule of its protocol.

All arms of one matching share their seeds, so seeds are blocks: a difference between two arms is the mean over seeds of
their differences, and its error comes from a two-way layout (arms and seeds) with one variance for all arms. That
variance has (arms - 1) (seeds - 1) degrees of freedom, many more than the two of one pair of three seeds.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from star.evidence.comparison import Arm, Comparison
from star.evidence.design import measure

LARGER = 0.05  # share by which an arm may be larger than another and still win


@dataclass(frozen=True)
class Standing:
    """One arm at one matching. Bits per byte of test text.

    size: of what was matched; rate: times the recipe's. mean, se: over seeds; None if not all of them ended well.
    difference, low, high, p: of this arm above the reference (positive: the reference is better), 95 % interval.
    verdict: "reference", "win" (of the reference), "loss", "no difference shown", "larger" (better or worse, but by
    sizes that differ too much), "out of reach" or "incomplete".
    """

    arm: Arm
    size: float | None
    rate: float | None
    n: int
    mean: float | None = None
    se: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    verdict: str = "incomplete"


def standings(comparison: Comparison, matching: str) -> list[Standing]:
    """All arms at a matching, the reference (the first member) first, then the best first."""
    measured, protocol = measure(comparison.run, matching), comparison.protocol
    arms = comparison.arms
    values = {arm.name: comparison.values(arm, matching) for arm in arms}
    whole = {name: row for name, row in values.items() if row and None not in row}
    table = np.array(list(whole.values()), dtype=float)  # [arms, seeds]
    found = []
    for arm in arms:
        row, genome = values[arm.name], comparison.sized(arm, matching)
        size = measured(genome) if genome else None
        n = sum(value is not None for value in row or ())
        standing = Standing(arm, size, comparison.rate(arm), n, verdict="incomplete" if genome else "out of reach")
        if arm.name in whole:
            standing = _judged(standing, whole, table, arms[0].name, protocol)
        found.append(standing)
    reference = found[0]
    judged = [found[0], *(_sizes(s, reference) for s in found[1:])]
    return sorted(judged, key=lambda s: (s is not reference, s.mean is None, s.mean or 0.0))


def _judged(standing: Standing, whole: dict, table: np.ndarray, reference: str, protocol: dict) -> Standing:
    row = np.array(whole[standing.arm.name])
    fields = {**standing.__dict__, "mean": float(row.mean()), "se": float(row.std(ddof=1) / np.sqrt(len(row)))}
    if standing.arm.name == reference:
        return Standing(**fields | {"verdict": "reference"})
    if reference not in whole:
        return Standing(**fields)
    arms, seeds = table.shape
    residuals = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    degrees = (arms - 1) * (seeds - 1)
    error = float(np.sqrt(2 * (residuals**2).sum() / degrees / seeds))
    difference = float((row - np.array(whole[reference])).mean())
    half = float(student.ppf(0.975, degrees)) * error
    p = float(2 * student.sf(abs(difference) / error, degrees)) if error > 0 else float(difference == 0)
    shown = abs(difference) >= protocol["win"] and p < protocol["level"]
    verdict = ("win" if difference > 0 else "loss") if shown else "no difference shown"
    found = {"difference": difference, "low": difference - half, "high": difference + half, "p": p, "verdict": verdict}
    return Standing(**fields | found)


def _sizes(standing: Standing, reference: Standing) -> Standing:
    """A win by an arm that is larger is none."""
    if standing.verdict not in ("win", "loss") or not standing.size or not reference.size:
        return standing
    ratio = reference.size / standing.size if standing.verdict == "win" else standing.size / reference.size
    return Standing(**{**standing.__dict__, "verdict": "larger"}) if ratio > 1 + LARGER else standing
