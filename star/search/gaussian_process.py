"""An exact Gaussian process for tens to hundreds of architectures: small, deterministic, numpy alone.

    y(x) = c + linear(x) + Matern-5/2(x) + noise

Inputs fall into groups (composition, order, size, ...) with one length scale each: with n observations and sixty inputs, a scale
for every input would be fitted to noise, and one for all would let the least useful group blur the others. Hyperparameters
are the maximum of the posterior (L-BFGS-B, exact gradients), under the log-normal priors below.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

ROOT5 = np.sqrt(5.0)
# Log-normal priors on standardised data: (median, sd of the log). The length scale's median grows with the root of the
# number of inputs, as distances do (Hvarfner et al., 2024, arXiv 2402.02229).
SCALE_SD, AMPLITUDE, LINEAR, NOISE = 1.0, (1.0, 1.0), (1.0, 1.0), (0.02, 1.5)


@dataclass(frozen=True)
class GaussianProcess:
    """A fitted posterior. Make one by `fit`."""

    X: np.ndarray  # [n, p] standardised inputs
    groups: np.ndarray  # [p] group of each input
    center: tuple[np.ndarray, np.ndarray]  # of inputs: mean and sd
    level: tuple[float, float]  # of outputs: mean and sd
    theta: np.ndarray  # log hyperparameters: length scale of each group, amplitude, linear, noise
    factor: np.ndarray  # lower Cholesky factor of the covariance [n, n]
    alpha: np.ndarray  # [n]

    def predict(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean [m] and covariance [m, m] of the noise-free function at X [m, p], in units of y."""
        Z = (X - self.center[0]) / self.center[1]
        cross = _kernel(Z, self.X, self.groups, self.theta)
        half = solve_triangular(self.factor, cross.T, lower=True)
        covariance = _kernel(Z, Z, self.groups, self.theta) - half.T @ half
        return self.level[0] + self.level[1] * (cross @ self.alpha), self.level[1] ** 2 * covariance

    @property
    def noise(self) -> float:
        """Variance of the noise, in units of y squared."""
        return float(np.exp(self.theta[-1])) * self.level[1] ** 2


def fit(X: np.ndarray, y: np.ndarray, groups: np.ndarray, start: np.ndarray | None = None) -> GaussianProcess:
    """Posterior given y [n] at X [n, p]. groups [p]: 0, 1, ...; start: `theta` of an earlier fit, to begin from."""
    center = X.mean(axis=0), np.where(X.std(axis=0) > 1e-9, X.std(axis=0), 1.0)
    level = float(y.mean()), float(y.std()) or 1.0
    Z, z = (X - center[0]) / center[1], (y - level[0]) / level[1]
    n_groups = int(groups.max()) + 1
    varying = X.std(axis=0) > 1e-9
    sizes = np.array([max(1, (varying & (groups == g)).sum()) for g in range(n_groups)])
    prior = np.concatenate([np.log(np.sqrt(2.0 * sizes * n_groups)), np.log([AMPLITUDE[0], LINEAR[0], NOISE[0]])])
    spread = np.array([SCALE_SD] * n_groups + [AMPLITUDE[1], LINEAR[1], NOISE[1]])
    squares = np.stack([_squares(Z[:, groups == g], Z[:, groups == g]) for g in range(n_groups)])  # [G, n, n]
    linear = Z @ Z.T / max(1, varying.sum())

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        scales, (amplitude, slope, noise) = np.exp(theta[:n_groups]), np.exp(theta[n_groups:])
        per_group = squares / scales[:, None, None] ** 2
        r = np.sqrt(per_group.sum(axis=0))
        decay = np.exp(-ROOT5 * r)
        matern = (1 + ROOT5 * r + 5 / 3 * r * r) * decay
        K = amplitude * matern + slope * linear + noise * np.eye(len(z))
        try:
            factor = cho_factor(K, lower=True)
        except LinAlgError:
            return 1e10, np.zeros_like(theta)
        alpha, inverse = cho_solve(factor, z), cho_solve(factor, np.eye(len(z)))
        off = (theta - prior) / spread
        value = 0.5 * z @ alpha + np.log(np.diag(factor[0])).sum() + 0.5 * off @ off
        W = inverse - np.outer(alpha, alpha)
        steep = W * (5 / 3 * amplitude * (1 + ROOT5 * r) * decay)  # dK/dlog scale_g = 5/3 a (1 + root5 r) e^-root5r d_g^2/l_g^2
        gradient = [0.5 * (steep * part).sum() for part in per_group]
        gradient += [0.5 * (W * part).sum() for part in (amplitude * matern, slope * linear)] + [0.5 * noise * np.trace(W)]
        return float(value), np.array(gradient) + off / spread

    bounds = [(m - 4 * s, m + 4 * s) for m, s in zip(prior, spread, strict=True)]
    begin = prior if start is None or len(start) != len(prior) else np.clip(start, *np.array(bounds).T)
    theta = minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60}).x
    K = _kernel(Z, Z, groups, theta) + np.exp(theta[-1]) * np.eye(len(z))
    factor = np.linalg.cholesky(K + 1e-8 * np.eye(len(z)))
    return GaussianProcess(Z, groups, center, level, theta, factor, cho_solve((factor, True), z))


def _squares(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Squared distances [a, b]."""
    return np.maximum((A * A).sum(1)[:, None] + (B * B).sum(1)[None] - 2 * A @ B.T, 0.0)


def _kernel(A: np.ndarray, B: np.ndarray, groups: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Covariance [a, b] of the noise-free function."""
    n_groups = int(groups.max()) + 1
    r = np.sqrt(sum(_squares(A[:, groups == g], B[:, groups == g]) / np.exp(2 * theta[g]) for g in range(n_groups)))
    matern = (1 + ROOT5 * r + 5 / 3 * r * r) * np.exp(-ROOT5 * r)
    return np.exp(theta[n_groups]) * matern + np.exp(theta[n_groups + 1]) * A @ B.T / max(1, A.shape[1])
