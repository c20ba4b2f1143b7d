"""Statistics of paired comparisons over seeds and tasks: what `benchmarks/refine/refine_on_tables.py` prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats


def mean_difference(a: np.ndarray, b: np.ndarray) -> dict[str, float | int]:
    """a - b, paired [n]: mean, BCa bootstrap interval of 95 %, paired t, Wilcoxon (Pratt), Cohen's dz; better: how
    often a < b.
    """
    d = np.asarray(a, float) - np.asarray(b, float)
    low, high = bca(d)
    same = bool(np.ptp(d) == 0)
    return {
        "n": len(d),
        "mean": float(d.mean()),
        "low": low,
        "high": high,
        "t_p": 1.0 if same else float(stats.ttest_1samp(d, 0.0).pvalue),
        "wilcoxon_p": 1.0 if not d.any() else float(stats.wilcoxon(d, zero_method="pratt").pvalue),
        "dz": 0.0 if same else float(d.mean() / d.std(ddof=1)),
        "better": int((d < 0).sum()),
        "worse": int((d > 0).sum()),
        "ties": int((d == 0).sum()),
    }


def bca(values: np.ndarray, statistic: Callable = np.mean, n: int = 4000) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap interval of 95 % (Efron, 1987)."""
    values = np.asarray(values, float)
    if len(values) < 2 or np.ptp(values) == 0:
        return float(statistic(values)), float(statistic(values))
    found = stats.bootstrap(
        (values,), statistic, n_resamples=n, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(found.low), float(found.high)


def ratio(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Geometric mean of a / b, paired [n], with its BCa interval of 95 %: of costs."""
    log = np.log(np.asarray(a, float) / np.asarray(b, float))
    low, high = bca(log)
    return {"n": len(log), "ratio": float(np.exp(log.mean())), "low": float(np.exp(low)), "high": float(np.exp(high))}


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p values (Holm, 1979)."""
    p = np.asarray(p, float)
    order, adjusted, running = np.argsort(p), np.empty(len(p)), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = running
    return adjusted.tolist()


def anova(values: np.ndarray) -> dict[str, dict[str, float]]:
    """values [tasks, arms, seeds], balanced: value ~ arm * task + seed within task. F and p of arm and of arm x task,
    and partial eta squared.

    Seeds are blocks within tasks; the error is what arm and seed leave unexplained within tasks.
    """
    T, A, S = values.shape
    grand, by_task = values.mean(), values.mean(axis=(1, 2))
    by_arm, cell, block = values.mean(axis=(0, 2)), values.mean(axis=2), values.mean(axis=1)  # [A], [T, A], [T, S]
    squares = {"arm": T * S * ((by_arm - grand) ** 2).sum()}
    squares["arm x task"] = S * ((cell - by_task[:, None] - by_arm[None] + grand) ** 2).sum()
    error = ((values - cell[:, :, None] - block[:, None] + by_task[:, None, None]) ** 2).sum()
    degrees = {"arm": A - 1, "arm x task": (A - 1) * (T - 1)}
    rest = T * (A - 1) * (S - 1)
    table = {}
    for name, total in squares.items():
        if degrees[name]:
            F = (total / degrees[name]) / (error / rest)
            table[name] = {
                "F": float(F),
                "df": degrees[name],
                "df_error": rest,
                "p": float(stats.f.sf(F, degrees[name], rest)),
            }
            table[name]["eta2"] = float(total / (total + error))
    return table


def interquartile_mean(values: np.ndarray) -> float:
    """Mean of the middle half (Agarwal et al., 2021, arXiv 2108.13264)."""
    return float(stats.trim_mean(values, 0.25))


def probability_of_improvement(a: np.ndarray, b: np.ndarray) -> float:
    """That a random run of a is lower than one of b [n], ties counting half."""
    a, b = np.asarray(a, float)[:, None], np.asarray(b, float)[None]
    return float(((a < b) + 0.5 * (a == b)).mean())
