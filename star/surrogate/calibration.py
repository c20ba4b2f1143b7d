"""How well predictions rank and how honest their uncertainty is, once the truth is known.

    report([[2.3, 0.1], ...], [2.35, ...], proxy=[...])      # predicted [mean, sd] before training, measured after it
    calibration([[2.3, 0.1], ...], [2.35, ...])              # the same intervals, and the scores by which forecasts are
        judged
    inflation([[2.3, 0.1], ...], [2.35, ...])                # what to multiply the next sd by, so that 90 % intervals
        hold 90 %

In a search, predictions exist for the chosen candidates, which resemble each other more than random ones, so all
correlations are smaller than in a random sample. The proxy (size alone, say) is judged on the same ones and is what a
surrogate must beat.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import kstest, norm, rankdata

LEAST = 5  # results before a correlation is given
LEVELS = (50, 80, 90)
FIRST, RATE = 1.3, 0.5  # of the factor on sds: where it begins, and how fast its logarithm moves
# Coverage of the 90 % intervals over the last ten results below this: calibration has degraded
WINDOW, LOST = (10, 0.7)
BINS = 5  # of sd, for the expected normalised calibration error


def report(
    predicted: Sequence[Sequence[float]], actual: Sequence[float], proxy: Sequence[float] | None = None
) -> dict[str, float | int | None]:
    """Keys: n; spearman, spearman_low, spearman_high; coverage_50, _80, _90: share of the truth within the central
    interval; coverage_90_low, coverage_90_high; bias: mean of actual - predicted; error: its root mean square; with a
    proxy proxy_spearman, _low, _high.

    Intervals are of 95 %. A correlation is None with fewer than five results or where all are equal. Rows that are not
    finite are left out.
    """
    rows = np.array(
        [[mean, sd, value] for (mean, sd), value in zip(predicted, actual, strict=True)], dtype=float
    ).reshape(-1, 3)
    finite = np.isfinite(rows).all(axis=1)
    mean, sd, truth = rows[finite].T
    n = len(truth)
    result: dict[str, float | int | None] = {"n": n} | _correlation("spearman", mean, truth)
    distance = np.abs(truth - mean) / np.maximum(sd, 1e-12)
    for level in LEVELS:
        inside = int((distance <= norm.ppf(0.5 + level / 200)).sum())
        result[f"coverage_{level}"] = inside / n if n else None
    result["coverage_90_low"], result["coverage_90_high"] = _wilson(int((distance <= norm.ppf(0.95)).sum()), n)
    result["bias"] = float((truth - mean).mean()) if n else None
    result["error"] = float(np.sqrt(((truth - mean) ** 2).mean())) if n else None
    if proxy is not None:
        result |= _correlation("proxy_spearman", np.asarray(proxy, dtype=float)[finite], truth)
    return result


def calibration(
    predicted: Sequence[Sequence[float]], actual: Sequence[float]
) -> dict[str, float | int | list[float] | None]:
    """Of normal forecasts [mean, sd], noise included, and what came. Rows that are not finite are left out; empty: None
    everywhere.

    Keys: n; coverage_50, _80, _90, _95 with _low and _high: share of the truth within the central interval and its 95 %
    interval (Wilson, 1927); nll, nll_median: negative log density, in nats; crps: continuous ranked probability score,
    in the unit of the forecasts (Gneiting and Raftery, 2007); pit: probability integral transforms, in order; ks_p:
    Kolmogorov-Smirnov test of their uniformity; z_sd: 1 if sds are right on average; sharpness: root mean variance;
    ence: expected normalised calibration error over bins of sd (Levi et al., 2022); sd_error: Spearman's correlation of
    sd with |error|. Below 50 results little more than coverage and nll means much.
    """
    mean, sd, truth = _finite(predicted, actual)
    n, z = len(truth), (truth - mean) / sd
    result: dict = {"n": n}
    for level in (*LEVELS, 95):
        inside = int((np.abs(z) <= norm.ppf(0.5 + level / 200)).sum())
        result[f"coverage_{level}"] = inside / n if n else None
        result[f"coverage_{level}_low"], result[f"coverage_{level}_high"] = _wilson(inside, n)
    if not n:
        return (
            result
            | dict.fromkeys(("nll", "nll_median", "crps", "ks_p", "z_sd", "sharpness", "ence", "sd_error"))
            | {"pit": []}
        )
    nll = 0.5 * z * z + np.log(sd) + 0.5 * math.log(2 * math.pi)
    pit = norm.cdf(z)
    crps = sd * (z * (2 * pit - 1) + 2 * norm.pdf(z) - 1 / math.sqrt(math.pi))
    result |= {"nll": float(nll.mean()), "nll_median": float(np.median(nll)), "crps": float(crps.mean())}
    result |= {
        "pit": pit.tolist(),
        "ks_p": float(kstest(pit, "uniform").pvalue),
        "z_sd": float(np.sqrt((z * z).mean())),
    }
    result |= {"sharpness": float(np.sqrt((sd * sd).mean())), "ence": _ence(sd, truth - mean)}
    return result | {"sd_error": _correlation("r", sd, np.abs(truth - mean))["r"]}


def inflation(predicted: Sequence[Sequence[float]], actual: Sequence[float]) -> float:
    """Factor on the sd of the next forecast, never below 1, given all earlier ones as they were made (factors included)
    and what came.

    Adaptive conformal inference (Gibbs and Candes, 2021) on the log of the sd: a result outside its 90 % interval
    raises the factor by 57 %, one inside lowers it by 5 %, so that in the long run a tenth falls outside. It begins at
    1.3: forecasts for what looks best are too good on average, since part of looking best is luck.
    """
    mean, sd, truth = _finite(predicted, actual)
    factor = FIRST
    for outside in np.abs(truth - mean) > norm.ppf(0.95) * sd:
        factor = max(1.0, factor * math.exp(RATE * (float(outside) - 0.1)))
    return factor


def fallen_off(predicted: Sequence[Sequence[float]], actual: Sequence[float]) -> bool:
    """Whether fewer than 70 % of the last ten results lie in their 90 % intervals, of which a good forecaster has a
    chance of 1 %.

    Then people are to be told, and a trust region widened: the model is wrong about where it looks.
    """
    mean, sd, truth = (part[-WINDOW:] for part in _finite(predicted, actual))
    return len(truth) == WINDOW and bool((np.abs(truth - mean) <= norm.ppf(0.95) * sd).mean() < LOST)


def _finite(predicted: Sequence[Sequence[float]], actual: Sequence[float]) -> np.ndarray:
    """Means, sds above 0 and truths [3, n] of the rows where all three are finite."""
    rows = np.array(
        [[mean, sd, value] for (mean, sd), value in zip(predicted, actual, strict=True)], dtype=float
    ).reshape(-1, 3)
    rows = rows[np.isfinite(rows).all(axis=1)]
    rows[:, 1] = np.maximum(rows[:, 1], 1e-12)
    return rows.T


def _ence(sd: np.ndarray, error: np.ndarray) -> float:
    """|root mean variance - root mean square error| / root mean variance, mean over bins of equal size in the order of
    sd.
    """
    found = []
    for part in np.array_split(np.argsort(sd, kind="stable"), min(BINS, len(sd))):
        spread = math.sqrt((sd[part] ** 2).mean())
        found.append(abs(spread - math.sqrt((error[part] ** 2).mean())) / spread)
    return float(np.mean(found))


def _correlation(name: str, a: np.ndarray, b: np.ndarray) -> dict[str, float | None]:
    """Spearman's, with Fisher's interval and the standard error of Bonett and Wright (2000)."""
    if len(a) < LEAST or np.ptp(a) == 0 or np.ptp(b) == 0:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    r = float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
    z, half = math.atanh(max(-0.999999, min(0.999999, r))), norm.ppf(0.975) * math.sqrt((1 + r * r / 2) / (len(a) - 3))
    return {name: r, f"{name}_low": math.tanh(z - half), f"{name}_high": math.tanh(z + half)}


def _wilson(inside: int, n: int) -> tuple[float | None, float | None]:
    """Interval of a share (Wilson, 1927)."""
    if not n:
        return None, None
    z, p = norm.ppf(0.975), inside / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))
