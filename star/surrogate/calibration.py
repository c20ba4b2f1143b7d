"""How well predictions ranked candidates, and how honest their uncertainty was, once the candidates are trained.

    report([[2.3, 0.1], ...], [2.35, ...], proxy=[...])   # [mean, sd] predicted before training, values measured after
    calibration([[2.3, 0.1], ...], [2.35, ...])           # the same intervals, and scores for probabilistic forecasts
    inflation([[2.3, 0.1], ...], [2.35, ...])             # factor on the next sd, so that 90 % intervals cover 90 %

In a search only the chosen candidates have predictions. They resemble each other more than random ones, so correlations
are smaller than in a random sample. The proxy (model size, for example) is judged on the same candidates; a useful
surrogate ranks them better.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import kstest, norm, rankdata

LEAST = 5  # results before a correlation is given
LEVELS = (50, 80, 90)
FIRST, RATE = 1.3, 0.5  # of the factor on sds: its first value, and how fast its logarithm moves
BINS = 5  # of sd, for the expected normalised calibration error


def report(
    predicted: Sequence[Sequence[float]], actual: Sequence[float], proxy: Sequence[float] | None = None
) -> dict[str, float | int | None]:
    """Ranking and coverage of n predictions [mean, sd] of n measured values; rows that are not finite are left out.

    Keys: n; spearman; coverage_50, _80, _90: share of values within the central interval; bias: mean of actual -
    predicted; error: its root mean square; with a proxy [n] also proxy_spearman. The correlations and coverage_90 have
    95 % intervals under the same key with _low and _high. A correlation is None with fewer than five results or if all
    are equal.
    """
    (mean, sd, truth), finite = _finite(predicted, actual)
    n = len(truth)
    result: dict[str, float | int | None] = {"n": n} | correlation("spearman", mean, truth)
    distance = np.abs(truth - mean) / sd
    for level in LEVELS:
        inside = int((distance <= norm.ppf(0.5 + level / 200)).sum())
        result[f"coverage_{level}"] = inside / n if n else None
    result["coverage_90_low"], result["coverage_90_high"] = _wilson(int((distance <= norm.ppf(0.95)).sum()), n)
    result["bias"] = float((truth - mean).mean()) if n else None
    result["error"] = float(np.sqrt(((truth - mean) ** 2).mean())) if n else None
    if proxy is not None:
        result |= correlation("proxy_spearman", np.asarray(proxy, dtype=float)[finite], truth)
    return result


def calibration(
    predicted: Sequence[Sequence[float]], actual: Sequence[float]
) -> dict[str, float | int | list[float] | None]:
    """Scores of n normal forecasts [mean, sd], noise included, of n measured values; rows not finite are left out.

    Keys: n; coverage_50, _80, _90, _95, each with _low and _high: share of values within the central interval and its
    95 % interval (Wilson, 1927); nll, nll_median: negative log density, in nats; crps: continuous ranked probability
    score, in the unit of the forecasts (Gneiting and Raftery, 2007); pit: probability integral transforms, in order;
    ks_p: p of a Kolmogorov-Smirnov test that these are uniform; z_sd: sd of the standardised errors, 1 if the sds are
    right on average; sharpness: root mean variance; ence: expected normalised calibration error over bins of sd (Levi
    et al., 2022); sd_error: Spearman correlation of sd with |error|. All are None (pit: []) without results; with
    fewer than 50, only coverage and nll are reliable.
    """
    (mean, sd, truth), _ = _finite(predicted, actual)
    n, z = len(truth), (truth - mean) / sd
    result: dict = {"n": n}
    for level in (*LEVELS, 95):
        inside = int((np.abs(z) <= norm.ppf(0.5 + level / 200)).sum())
        result[f"coverage_{level}"] = inside / n if n else None
        result[f"coverage_{level}_low"], result[f"coverage_{level}_high"] = _wilson(inside, n)
    if not n:
        missing = dict.fromkeys(("nll", "nll_median", "crps", "ks_p", "z_sd", "sharpness", "ence", "sd_error"))
        return result | missing | {"pit": []}
    nll = 0.5 * z * z + np.log(sd) + 0.5 * math.log(2 * math.pi)
    pit = norm.cdf(z)
    crps = sd * (z * (2 * pit - 1) + 2 * norm.pdf(z) - 1 / math.sqrt(math.pi))
    return result | {
        "nll": float(nll.mean()),
        "nll_median": float(np.median(nll)),
        "crps": float(crps.mean()),
        "pit": pit.tolist(),
        "ks_p": float(kstest(pit, "uniform").pvalue),
        "z_sd": float(np.sqrt((z * z).mean())),
        "sharpness": float(np.sqrt((sd * sd).mean())),
        "ence": _ence(sd, truth - mean),
        "sd_error": correlation("r", sd, np.abs(truth - mean))["r"],
    }


def inflation(predicted: Sequence[Sequence[float]], actual: Sequence[float]) -> float:
    """Factor on the sd of the next forecast, at least 1, given all earlier forecasts (with their factors) and results.

    Adaptive conformal inference (Gibbs and Candes, 2021) on the log of the sd: a result outside its 90 % interval
    raises the factor by 57 %, one inside lowers it by 5 %, so that in the long run a tenth falls outside. The factor
    starts at 1.3, because a candidate that looks best is predicted too well on average: part of it is luck.
    """
    (mean, sd, truth), _ = _finite(predicted, actual)
    factor = FIRST
    for outside in np.abs(truth - mean) > norm.ppf(0.95) * sd:
        factor = max(1.0, factor * math.exp(RATE * (float(outside) - 0.1)))
    return factor


def _finite(predicted: Sequence[Sequence[float]], actual: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Means, sds above 0 and truths [3, k] of the k rows where all three are finite, and whether each row [n] is."""
    listed = [[mean, sd, value] for (mean, sd), value in zip(predicted, actual, strict=True)]
    rows = np.array(listed, dtype=float).reshape(-1, 3)
    finite = np.isfinite(rows).all(axis=1)
    mean, sd, truth = rows[finite].T
    return np.array([mean, np.maximum(sd, 1e-12), truth]), finite


def _ence(sd: np.ndarray, error: np.ndarray) -> float:
    """|root mean variance - root mean square error| / root mean variance, averaged over bins of equal count by sd."""
    found = []
    for part in np.array_split(np.argsort(sd, kind="stable"), min(BINS, len(sd))):
        spread = math.sqrt((sd[part] ** 2).mean())
        found.append(abs(spread - math.sqrt((error[part] ** 2).mean())) / spread)
    return float(np.mean(found))


def correlation(name: str, a: np.ndarray, b: np.ndarray) -> dict[str, float | None]:
    """Spearman's correlation of a [n] and b [n] under `name`, and its 95 % interval under name_low and name_high.

    By Fisher's transform, with Bonett and Wright's standard error (2000). None with fewer than five values, or if all
    are equal.
    """
    if len(a) < LEAST or np.ptp(a) == 0 or np.ptp(b) == 0:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    r = float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
    z = math.atanh(max(-0.999999, min(0.999999, r)))
    half = norm.ppf(0.975) * math.sqrt((1 + r * r / 2) / (len(a) - 3))
    return {name: r, f"{name}_low": math.tanh(z - half), f"{name}_high": math.tanh(z + half)}


def _wilson(inside: int, n: int) -> tuple[float | None, float | None]:
    """95 % interval of the share inside / n (Wilson, 1927)."""
    if not n:
        return None, None
    z, p = norm.ppf(0.975), inside / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))
