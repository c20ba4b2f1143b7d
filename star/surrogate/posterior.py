"""What the results say about candidates that were not tried: a Gaussian process, and its average over hyperparameters.

The process with the most probable hyperparameters proposes; the average reports, since a single one is overconfident
with few observations: along runs on four tables its 90 % intervals held 59 % of what came, the average's 83 %, the rest
being choices whose promise was luck; `star.surrogate.calibration.inflation` sees to those.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from star.surrogate.gaussian_process import AVERAGE, REFINE, GaussianProcess, Posterior, with_noise

SAMPLES = 24
# Length scale of the input that tells tasks apart: median, sd of the log; 1.5 is a correlation of 0.8
RELATED = (1.5, 1.0)
# Of the log posterior: a direction that the data say nothing about is explored to two units of the log
LEAST_CURVATURE = 0.25


@dataclass(frozen=True)
class Observations:
    """What has been tried so far, as rows of a pool (this one or earlier ones), in order."""

    X: np.ndarray  # [m, d or d + 1]
    y: np.ndarray  # [m] losses in nats; not finite: failed or diverged
    pending: np.ndarray = None  # type: ignore[assignment]  # [q, d or d + 1] trials that still run; default: none
    seed_sd: float = 0.0  # standard deviation of the loss between seeds, in nats, where it is known
    # How many columns (the last, before the fidelity) tell rows of related tasks apart
    related: int = 0
    # Rows [m, d] -> losses [m] expected before any observation, nats; default: none
    prior: Callable[[np.ndarray], np.ndarray] | None = None

    def __post_init__(self):
        X = np.atleast_2d(np.asarray(self.X, float))
        object.__setattr__(self, "X", X)
        object.__setattr__(self, "y", np.asarray(self.y, float).reshape(len(X)))
        pending = (
            np.zeros((0, X.shape[1]))
            if self.pending is None
            else np.asarray(self.pending, float).reshape(-1, X.shape[1])
        )
        object.__setattr__(self, "pending", pending)


@dataclass(frozen=True)
class Averaged:
    """Processes with several hyperparameters. Make one by `fit`.

    The first has the most probable ones, at unit output scale: it proposes. It has no weight in the average, whose
    output scale is free.
    """

    processes: tuple[GaussianProcess, ...]
    weights: np.ndarray  # [s] of the average
    slope: (
        float  # nats per unit of the last input, which was taken out before the fit: what more tokens bring on average
    )
    cap: float  # nats: losses above this, and failures, were set to it
    # Nats: lowest mean of the most probable process over what was observed at full fidelity; if nothing was, its
    # average
    best: float
    # Losses that were expected before any observation: taken out before the fit too
    prior: Callable[[np.ndarray], np.ndarray] | None = None

    def joint(self, X: np.ndarray, sample: int = 0) -> tuple[np.ndarray, np.ndarray, float]:
        """Mean [m], covariance [m, m] of the noise-free loss at X [m, d], and variance of the noise, of one process."""
        process = self.processes[sample]
        mean, covariance = process.predict(X)
        return mean + self._trend(X), covariance, process.noise

    def predict(self, X: np.ndarray, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Mean [m] and sd [m] of what a trial at X [m, d] would measure, noise included: the average of all processes.

        scale: factor on the sd.
        """
        means, variances = zip(*(process.marginals(X) for process in self.processes), strict=True)
        means, w = np.array(means), self.weights[:, None]
        mean = (w * means).sum(axis=0)
        noise = np.array([process.noise for process in self.processes])[:, None]
        variance = (w * (np.array(variances) + noise + (means - mean) ** 2)).sum(axis=0)
        return mean + self._trend(X), scale * np.sqrt(variance)

    def leave_one_out(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean, sd and truth [n] of every observation given the others, by the average without a refit."""
        means, sds = (np.array(part) for part in zip(*(p.leave_one_out() for p in self.processes), strict=True))
        w, first = self.weights[:, None], self.processes[0]
        mean = (w * means).sum(axis=0)
        sd = np.sqrt((w * (sds**2 + (means - mean) ** 2)).sum(axis=0))
        truth = first.level[0] + first.level[1] * (first.factor @ (first.factor.T @ first.alpha))
        trend = self._trend(first.X)
        return mean + trend, sd, truth + trend

    def _trend(self, X: np.ndarray) -> np.ndarray:
        return self.slope * (X[:, -1] - 1.0) + (self.prior(X) if self.prior else 0.0)


def fit(seen: Observations, fidelity: bool, seed: int = 0, samples: int = SAMPLES) -> Averaged:
    """The posterior given what was seen (at least one row). fidelity: the last input is one, of which the loss falls
    linearly on average.

    Deterministic given seed. With samples = 0 the most probable hyperparameters alone.
    """
    expected = seen.prior(seen.X) if seen.prior else 0.0
    y, cap = winsorised(seen.y - expected)
    slope = 0.0
    if fidelity and np.ptp(seen.X[:, -1]) > 0:
        y = _winsorised_within(
            seen.y - expected, seen.X[:, -1]
        )  # few cheap losses among many full ones are no outliers
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
    best = processes[0].marginals(at)[0] + (seen.prior(at) if seen.prior else 0.0)
    return Averaged(
        tuple(processes), weights, slope, cap, float(best.min()) if len(at) else processes[0].level[0], seen.prior
    )


def winsorised(y: np.ndarray) -> tuple[np.ndarray, float]:
    """y with everything above Q3 + 1.5 IQR of the finite values set to that, failures too; and that cap.

    One divergence among ten results would otherwise be all that a Gaussian process sees. Without a finite value: zeros.
    """
    finite = y[np.isfinite(y)]
    if not len(finite):
        return np.zeros_like(y), 0.0
    low, high = np.quantile(finite, [0.25, 0.75])
    cap = high + 1.5 * (high - low) if high > low else finite.max()
    cap = min(cap, finite.max()) if np.isfinite(y).all() else cap
    return np.where(np.isfinite(y), np.minimum(y, cap), cap), float(cap)


def _slope(X: np.ndarray, y: np.ndarray) -> float:
    """Of y [n] on the last input: within candidates that were measured at several fidelities, where there are any; over
    all otherwise.

    What is tried cheaply is not what is trained in full: over all, the slope would also be how much better the latter
    are.
    """
    _, group = np.unique(X[:, :-1], axis=0, return_inverse=True)
    group = group.ravel()
    counts = np.bincount(group)
    x = X[:, -1] - (np.bincount(group, X[:, -1]) / counts)[group]
    if (x * x).sum() < 1e-9:
        return float(np.polyfit(X[:, -1], y, 1)[0])
    return float((x * (y - (np.bincount(group, y) / counts)[group])).sum() / (x * x).sum())


def _winsorised_within(y: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Each group of equal level winsorised for itself; a group of failures alone is set to the largest value of the
    others.
    """
    told = np.full_like(y, np.nan)
    for value in np.unique(level):
        rows = level == value
        if np.isfinite(y[rows]).any():
            told[rows] = winsorised(y[rows])[0]
    most = np.nanmax(told) if np.isfinite(told).any() else 0.0
    return np.where(np.isnan(told), most, told)


def laplace(
    posterior: Posterior, mode: np.ndarray, samples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Hyperparameters [1 + samples, G + 3], the mode first, and their weights: draws from the normal approximation at
    the mode.

    Weights are the square roots of posterior over proposal: importance weights proper are too unequal for so few draws.
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
    """Second derivatives [f, f] of the negative log posterior in the free log hyperparameters: differences of exact
    gradients.
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
    """Mean [m] and covariance [m, m] after y was measured at point a; equals a refit with the same hyperparameters."""
    root = np.sqrt(covariance[a, a] + noise)
    gain = covariance[:, a] / root
    return mean + gain * (y - mean[a]) / root, covariance - np.outer(gain, gain)


def condition(process_rows: np.ndarray, posterior: Averaged, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Joint of `rows` [m, d] as if every trial still pending, at process_rows [q, d], had the predicted result: only
    the covariance shrinks.
    """
    mean, covariance, noise = posterior.joint(np.vstack([rows, process_rows]))
    for a in range(len(rows), len(mean)):
        mean, covariance = update(mean, covariance, noise, a, mean[a])
    m = len(rows)
    return mean[:m], covariance[:m, :m], noise


def whitened(rows: np.ndarray, posterior: Averaged, sample: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean [m] and a root R [m, m] of the covariance, R R' = C, of one process: a world is mean + R z with z standard
    normal.
    """
    mean, covariance, _ = posterior.joint(rows, sample)
    values, vectors = np.linalg.eigh(covariance)
    return mean, vectors * np.sqrt(np.maximum(values, 0.0))
