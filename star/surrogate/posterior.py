"""Gaussian processes averaged over their hyperparameters: what a refinement knows about trials that were not run.

    posterior = fit(Observations(X, y), fidelity=True)
    mean, sd = posterior.predict(Xs)

The process with the most probable hyperparameters proposes trials. The average reports predictions, because one process
is overconfident with few observations: in runs on four tables its 90 % intervals held 59 % of the measured losses, the
average's 83 %. The rest were proposals that only looked good by luck, which `star.surrogate.calibration.inflation`
corrects for.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from star.surrogate.gaussian_process import AVERAGE, REFINE, GaussianProcess, Posterior, with_noise

SAMPLES = 24
# Prior of the length scale of the input that tells tasks apart: median, sd of the log; 1.5 is a correlation of 0.8
RELATED = (1.5, 1.0)
# Lower bound on the curvature of the log posterior: where the data say nothing, the draws have an sd of two log units
LEAST_CURVATURE = 0.25


@dataclass(frozen=True)
class Observations:
    """The trials so far, in order. With several fidelities the last input is the fidelity, 1 for a full training."""

    X: np.ndarray  # [m, d]
    y: np.ndarray  # [m] losses in nats; not finite: failed or diverged
    pending: np.ndarray = None  # type: ignore[assignment]  # [q, d] trials that still run; default: none
    seed_sd: float = 0.0  # standard deviation of the loss between seeds, in nats, where it is known
    related: int = 0  # number of columns (the last ones before the fidelity) that tell related tasks apart
    prior: Callable[[np.ndarray], np.ndarray] | None = None  # rows [m, d] -> losses [m] in nats, a mean function

    def __post_init__(self):
        X = np.atleast_2d(np.asarray(self.X, float))
        object.__setattr__(self, "X", X)
        object.__setattr__(self, "y", np.asarray(self.y, float).reshape(len(X)))
        pending = [] if self.pending is None else self.pending
        object.__setattr__(self, "pending", np.asarray(pending, float).reshape(-1, X.shape[1]))


@dataclass(frozen=True)
class Averaged:
    """Processes with different hyperparameters, made by `fit`; losses in nats.

    The first process has the most probable hyperparameters at unit output scale. It proposes, and has no weight in the
    average unless it is alone.
    """

    processes: tuple[GaussianProcess, ...]
    weights: np.ndarray  # [s] of the processes in the average
    slope: float  # average change of the loss per unit of fidelity, removed before the fit
    best: float  # lowest mean of the first process over the full trainings so far; its average if there are none
    prior: Callable[[np.ndarray], np.ndarray] | None = None  # mean function, removed before the fit

    def joint(self, X: np.ndarray, sample: int = 0) -> tuple[np.ndarray, np.ndarray, float]:
        """Mean [m] and covariance [m, m] of the loss without noise at X [m, d], and the noise variance, of one process.

        sample: index of the process.
        """
        mean, covariance, noise = self.processes[sample].joint(X)
        return mean + self._trend(X), covariance, noise

    def predict(self, X: np.ndarray, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Mean [m] and sd [m], times `scale`, of the loss measured at X [m, d], noise included, by the average."""
        means, variances = zip(*(process.marginals(X) for process in self.processes), strict=True)
        means, w = np.array(means), self.weights[:, None]
        mean = (w * means).sum(axis=0)
        noise = np.array([process.noise for process in self.processes])[:, None]
        variance = (w * (np.array(variances) + noise + (means - mean) ** 2)).sum(axis=0)
        return mean + self._trend(X), scale * np.sqrt(variance)

    def leave_one_out(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean [n] and sd [n] of each observation given all others, and the observations [n]; without a refit."""
        means, sds, truths = (np.array(part) for part in zip(*(p.leave_one_out() for p in self.processes), strict=True))
        w = self.weights[:, None]
        mean = (w * means).sum(axis=0)
        sd = np.sqrt((w * (sds**2 + (means - mean) ** 2)).sum(axis=0))
        trend = self._trend(self.processes[0].X)
        return mean + trend, sd, truths[0] + trend

    def _trend(self, X: np.ndarray) -> np.ndarray:
        return self.slope * (X[:, -1] - 1.0) + (self.prior(X) if self.prior else 0.0)


def fit(seen: Observations, fidelity: bool, seed: int = 0, samples: int = SAMPLES) -> Averaged:
    """Fit at least one observation. fidelity: the last input is a fidelity, along which the loss falls linearly.

    samples: hyperparameters drawn for the average; 0 uses the most probable ones alone. Deterministic given `seed`.
    """
    expected = seen.prior(seen.X) if seen.prior else 0.0
    y, _ = winsorised(seen.y - expected)
    slope = 0.0
    if fidelity and np.ptp(seen.X[:, -1]) > 0:
        # For each fidelity alone: a few cheap losses among many full ones are no outliers
        y = _winsorised_within(seen.y - expected, seen.X[:, -1])
        slope = min(0.0, _slope(seen.X, y))
        y, _ = winsorised(y - slope * (seen.X[:, -1] - 1.0))
    noise, d = (seen.seed_sd / (float(y.std()) or 1.0)) ** 2, seen.X.shape[1]
    context = {d - fidelity - 1 - i: RELATED for i in range(seen.related)}
    proposing, averaging = (
        Posterior(seen.X, y, np.arange(d), with_noise(a, noise), context) for a in (REFINE, AVERAGE)
    )
    mode = proposing.mode()
    processes, weights = [proposing.process(mode)], np.ones(1)
    if samples:
        thetas, weights = laplace(averaging, averaging.mode(mode), samples, np.random.default_rng([seed, len(y)]))
        processes += [averaging.process(theta) for theta in thetas]
        weights = np.append(0.0, weights)
    at = seen.X[(seen.X[:, -1] >= 1.0) if fidelity else slice(None)]
    at = at[(at[:, d - fidelity - seen.related : d - fidelity] == 0).all(axis=1)]  # of this task
    means = processes[0].marginals(at)[0] + (seen.prior(at) if seen.prior else 0.0)
    best = float(means.min()) if len(at) else processes[0].level[0]
    return Averaged(tuple(processes), weights, slope, best, seen.prior)


def winsorised(y: np.ndarray) -> tuple[np.ndarray, float]:
    """y [n] with failures and all above Q3 + 1.5 IQR of the finite values set to that cap, and the cap.

    Otherwise one diverged training among ten results would dominate the fit. Zeros if no value is finite.
    """
    finite = y[np.isfinite(y)]
    if not len(finite):
        return np.zeros_like(y), 0.0
    low, high = np.quantile(finite, [0.25, 0.75])
    cap = high + 1.5 * (high - low) if high > low else finite.max()
    cap = min(cap, finite.max()) if np.isfinite(y).all() else cap
    return np.where(np.isfinite(y), np.minimum(y, cap), cap), float(cap)


def _slope(X: np.ndarray, y: np.ndarray) -> float:
    """Slope of y [n] on the last input of X [n, d], within candidates measured at several fidelities if there are any.

    Otherwise over all observations, which overstates it: candidates trained in full are also the better ones.
    """
    _, group = np.unique(X[:, :-1], axis=0, return_inverse=True)
    group = group.ravel()
    counts = np.bincount(group)
    x = X[:, -1] - (np.bincount(group, X[:, -1]) / counts)[group]
    if (x * x).sum() < 1e-9:
        return float(np.polyfit(X[:, -1], y, 1)[0])
    return float((x * (y - (np.bincount(group, y) / counts)[group])).sum() / (x * x).sum())


def _winsorised_within(y: np.ndarray, level: np.ndarray) -> np.ndarray:
    """y [n] winsorised separately for each level [n]; failures alone get the largest value of the others."""
    capped = np.full_like(y, np.nan)
    for value in np.unique(level):
        rows = level == value
        if np.isfinite(y[rows]).any():
            capped[rows] = winsorised(y[rows])[0]
    most = np.nanmax(capped) if np.isfinite(capped).any() else 0.0
    return np.where(np.isnan(capped), most, capped)


def laplace(
    posterior: Posterior, mode: np.ndarray, samples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Log hyperparameters [1 + samples, G + 3], the mode first, and their weights [1 + samples], which sum to 1.

    Drawn from the normal approximation at the mode. A weight is the square root of posterior over proposal density,
    because proper importance weights are too unequal with so few draws.
    """
    free = np.flatnonzero(posterior.free)
    if not samples:
        return mode[None], np.ones(1)
    values, vectors = np.linalg.eigh(hessian(posterior, mode))
    values = np.maximum(values, LEAST_CURVATURE)
    draws = (vectors / np.sqrt(values)) @ rng.standard_normal((len(free), samples))  # [free, s]
    thetas = np.repeat(mode[None], 1 + samples, axis=0)
    thetas[1:, free] = np.clip(mode[free] + draws.T, posterior.low[free], posterior.high[free])
    off = (thetas[:, free] - mode[free]) @ vectors
    log_q = -0.5 * (off * off * values).sum(axis=1)
    log_p = -np.array([posterior.loss(theta)[0] for theta in thetas])
    log_w = 0.5 * (log_p - log_q)
    weights = np.exp(log_w - log_w.max())
    return thetas, weights / weights.sum()


def hessian(posterior: Posterior, theta: np.ndarray, step: float = 1e-4) -> np.ndarray:
    """Second derivatives [f, f] of the negative log posterior in the f free entries of theta [G + 3].

    Central differences of the exact gradient.
    """
    free = np.flatnonzero(posterior.free)
    rows = []
    for i in free:
        shift = np.zeros_like(theta)
        shift[i] = step
        rows.append((posterior.loss(theta + shift)[1][free] - posterior.loss(theta - shift)[1][free]) / (2 * step))
    H = np.array(rows)
    return 0.5 * (H + H.T)


def update(mean: np.ndarray, covariance: np.ndarray, noise: float, a: int, y: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean [m] and covariance [m, m] after y was measured at point a, as a refit at equal hyperparameters gives them.

    noise: its variance.
    """
    root = np.sqrt(covariance[a, a] + noise)
    gain = covariance[:, a] / root
    return mean + gain * (y - mean[a]) / root, covariance - np.outer(gain, gain)


def condition(pending: np.ndarray, posterior: Averaged, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """`Averaged.joint` of rows [m, d], assuming that each pending trial [q, d] will measure its predicted mean.

    The means stay the same, the covariance shrinks.
    """
    mean, covariance, noise = posterior.joint(np.vstack([rows, pending]))
    for a in range(len(rows), len(mean)):
        mean, covariance = update(mean, covariance, noise, a, mean[a])
    m = len(rows)
    return mean[:m], covariance[:m, :m], noise


def whitened(rows: np.ndarray, posterior: Averaged, sample: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean [m] of one process at rows [m, d] and R [m, m] with R R' = covariance: mean + R z samples it, z normal."""
    mean, covariance, _ = posterior.joint(rows, sample)
    values, vectors = np.linalg.eigh(covariance)
    return mean, vectors * np.sqrt(np.maximum(values, 0.0))
