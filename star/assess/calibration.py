"""How well predictions rank and how honest their uncertainty is, once the truth is known.

    report([[2.3, 0.1], ...], [2.35, ...], proxy=[...])      # predicted [mean, sd] before training, measured after it

In a search the predicted are those that were chosen, so they are more alike than architectures at large, and all correlations are
smaller than in a random sample. The proxy (size alone, say) is judged on the same ones and is what a surrogate must beat.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import norm, rankdata

LEAST = 5  # results before a correlation is given
LEVELS = (50, 80, 90)


def report(predicted: Sequence[Sequence[float]], actual: Sequence[float], proxy: Sequence[float] | None = None) -> dict[str, float | int | None]:
    """Keys: n; spearman, spearman_low, spearman_high; coverage_50, _80, _90: share of the truth within the central interval;
    coverage_90_low, coverage_90_high; bias: mean of actual - predicted; error: its root mean square; with a proxy proxy_spearman, _low, _high.

    Intervals are of 95 %. A correlation is None with fewer than five results or where all are equal. Rows that are not finite are left out.
    """
    rows = np.array([[mean, sd, value] for (mean, sd), value in zip(predicted, actual, strict=True)], dtype=float).reshape(-1, 3)
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
