"""An exact Gaussian process for tens to hundreds of trials: small, deterministic, numpy and scipy alone.

    y(x) = c + linear(x) + smooth(x) + noise

There is one such process in the project, and two sets of assumptions about it. A search fits architectures, described
by some sixty numbers: these fall into groups (composition, order, size, ...) with one length scale each, since with n
observations a scale for every input would be fitted to noise, and one for all would let the least useful group blur the
others. A refinement fits recipes, described by a dozen numbers in [0, 1], each with its own length scale.
Hyperparameters are the maximum of the posterior (L-BFGS-B, exact gradients) under log-normal priors;
`star.surrogate.posterior` averages over them.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

ROOT5 = np.sqrt(5.0)


@dataclass(frozen=True)
class Assumptions:
    """What is believed before any observation. Priors are log-normal, as (median, sd of the log); sd 0: fixed at the
    median.
    """

    kernel: str  # matern (5/2) or rbf
    standardised: bool  # inputs are standardised first; otherwise they lie in [0, 1]
    # The first is of the squared length scale for each input: the median grows with the root of the number of inputs,
    # as distances do (Hvarfner et al., 2024, arXiv 2402.02229).
    scale: tuple[float, float]
    amplitude: tuple[float, float]
    linear: tuple[float, float]
    noise: tuple[float, float]
    least_scale: float = 0.0
    least_noise: float = 0.0  # variance, of standardised outputs
    starts: tuple[float, ...] = (1.0,)  # L-BFGS begins from the medians, with length scales times these


SEARCH = Assumptions("matern", True, scale=(2.0, 1.0), amplitude=(1.0, 1.0), linear=(1.0, 1.0), noise=(0.02, 1.5))
# The priors that BoTorch has by default since 0.12, from the same paper; unit output scale.
REFINE = Assumptions(
    "rbf",
    False,
    scale=(np.exp(2 * np.sqrt(2.0)), np.sqrt(3.0)),
    amplitude=(1.0, 0.0),
    linear=(0.0, 0.0),
    noise=(np.exp(-4.0), 1.0),
    least_scale=0.025,
    least_noise=1e-4,
    starts=(1.0, 0.15),
)
# For averages, the output scale is free, and wider: four losses tell little about how far the others spread.
AVERAGE = replace(REFINE, amplitude=(2.0, 0.7), starts=(1.0,))


@dataclass(frozen=True)
class GaussianProcess:
    """A fitted posterior. Make one by `fit`."""

    X: np.ndarray  # [n, p] inputs, standardised if so assumed
    groups: np.ndarray  # [p] group of each input
    center: tuple[np.ndarray, np.ndarray]  # of inputs: what was subtracted, and what was divided by
    level: tuple[float, float]  # of outputs: mean and sd
    theta: np.ndarray  # log hyperparameters: length scale of each group, amplitude, linear, noise
    factor: np.ndarray  # lower Cholesky factor of the covariance [n, n]
    alpha: np.ndarray  # [n]
    kernel: str = "matern"

    def predict(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean [m] and covariance [m, m] of the noise-free function at X [m, p], in units of y."""
        Z = (X - self.center[0]) / self.center[1]
        cross = _kernel(Z, self.X, self.groups, self.theta, self.kernel)
        half = solve_triangular(self.factor, cross.T, lower=True)
        covariance = _kernel(Z, Z, self.groups, self.theta, self.kernel) - half.T @ half
        return self.level[0] + self.level[1] * (cross @ self.alpha), self.level[1] ** 2 * covariance

    def marginals(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean [m] and variance [m] of the noise-free function, without the covariance between points."""
        Z = (X - self.center[0]) / self.center[1]
        cross = _kernel(Z, self.X, self.groups, self.theta, self.kernel)
        half = solve_triangular(self.factor, cross.T, lower=True)
        n_groups = len(self.theta) - 3
        own = np.exp(self.theta[n_groups]) + np.exp(self.theta[n_groups + 1]) * (Z * Z).sum(axis=1) / max(1, Z.shape[1])
        variance = np.maximum(own - (half * half).sum(axis=0), 0.0)
        return self.level[0] + self.level[1] * (cross @ self.alpha), self.level[1] ** 2 * variance

    def leave_one_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean [n] and sd [n], noise included, of each observation given all the others, hyperparameters as they are.

        Closed form (Rasmussen and Williams, 2006, equations 5.10-5.12): the sd is a little too small, since the
        hyperparameters have seen all.
        """
        inverse = cho_solve((self.factor, True), np.eye(len(self.alpha)))
        y = self.factor @ (self.factor.T @ self.alpha)
        variance = 1.0 / np.diag(inverse)
        return self.level[0] + self.level[1] * (y - self.alpha * variance), self.level[1] * np.sqrt(variance)

    @property
    def noise(self) -> float:
        """Variance of the noise, in units of y squared."""
        return float(np.exp(self.theta[-1])) * self.level[1] ** 2


class Posterior:
    """The posterior of the log hyperparameters given y [n] at X [n, p]: of the free ones, which are those with a prior
    sd above 0.
    """

    def __init__(
        self,
        X: np.ndarray,
        y: np.ndarray,
        groups: np.ndarray,
        assumptions: Assumptions = SEARCH,
        scales: dict[int, tuple[float, float]] | None = None,
    ):
        """scales: priors (median, sd of the log) of the length scales of some groups, other than the assumptions'."""
        varying = X.std(axis=0) > 1e-9
        if assumptions.standardised:
            self.center = X.mean(axis=0), np.where(varying, X.std(axis=0), 1.0)
        else:
            self.center = np.zeros(X.shape[1]), np.ones(X.shape[1])
            varying = np.ones(X.shape[1], bool)
        self.level = float(y.mean()), float(y.std()) or 1.0
        self.Z, self.z = (X - self.center[0]) / self.center[1], (y - self.level[0]) / self.level[1]
        self.groups, self.n_groups, self.assumptions = groups, int(groups.max()) + 1, assumptions
        sizes = np.array([max(1, (varying & (groups == g)).sum()) for g in range(self.n_groups)])
        a, n_groups = assumptions, self.n_groups
        with np.errstate(divide="ignore"):  # a term of amplitude 0 is absent
            rest = np.log([a.amplitude[0], a.linear[0], a.noise[0]])
        self.prior = np.concatenate([np.log(np.sqrt(a.scale[0] * sizes * n_groups)), rest])
        self.spread = np.array([a.scale[1]] * n_groups + [a.amplitude[1], a.linear[1], a.noise[1]])
        for group, (median, sd) in (scales or {}).items():
            self.prior[group], self.spread[group] = np.log(median), sd
        self.free = self.spread > 0
        low, high = self.prior - 4 * self.spread, self.prior + 4 * self.spread
        with np.errstate(divide="ignore"):
            low[:n_groups] = np.maximum(low[:n_groups], np.log(a.least_scale))
            low[-1] = max(low[-1], np.log(a.least_noise))
        self.low, self.high = low, np.maximum(high, low)
        self.squares = np.stack(
            [_squares(self.Z[:, groups == g], self.Z[:, groups == g]) for g in range(n_groups)]
        )  # [G, n, n]
        self.linear = self.Z @ self.Z.T / max(1, varying.sum())

    def loss(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """Negative log posterior at theta [G + 3], up to a constant, and its gradient [G + 3] (0 for what is fixed)."""
        scales, (amplitude, slope, noise) = np.exp(theta[: self.n_groups]), np.exp(theta[self.n_groups :])
        per_group = self.squares / scales[:, None, None] ** 2
        if self.assumptions.kernel == "matern":
            r = np.sqrt(per_group.sum(axis=0))
            decay = np.exp(-ROOT5 * r)
            smooth = (1 + ROOT5 * r + 5 / 3 * r * r) * decay
            # DK/dlog scale_g = 5/3 a (1 + root5 r) e^-root5r d_g^2/l_g^2
            steepness = 5 / 3 * amplitude * (1 + ROOT5 * r) * decay
        else:
            smooth = np.exp(-0.5 * per_group.sum(axis=0))
            steepness = amplitude * smooth
        K = amplitude * smooth + slope * self.linear + noise * np.eye(len(self.z))
        try:
            factor = cho_factor(K, lower=True)
        except LinAlgError:
            return 1e10, np.zeros_like(theta)
        alpha, inverse = cho_solve(factor, self.z), cho_solve(factor, np.eye(len(self.z)))
        off = (
            np.where(self.free, theta - np.where(self.free, self.prior, 0.0), 0.0)
            if not self.free.all()
            else theta - self.prior
        )
        spread = np.where(self.free, self.spread, 1.0)
        off = off / spread
        value = 0.5 * self.z @ alpha + np.log(np.diag(factor[0])).sum() + 0.5 * off @ off
        W = inverse - np.outer(alpha, alpha)
        steep = W * steepness
        gradient = [0.5 * (steep * part).sum() for part in per_group]
        gradient += [0.5 * (W * part).sum() for part in (amplitude * smooth, slope * self.linear)] + [
            0.5 * noise * np.trace(W)
        ]
        return float(value), np.where(self.free, np.array(gradient) + off / spread, 0.0)

    def mode(self, start: np.ndarray | None = None) -> np.ndarray:
        """theta [G + 3] of the highest posterior found from the starts, or from one given."""
        a, free = self.assumptions, self.free
        if start is None or len(start) != len(self.prior):
            begins = [
                np.where(np.arange(len(self.prior)) < self.n_groups, self.prior + np.log(s), self.prior)
                for s in a.starts
            ]
        else:
            begins = [start]

        def loss(part: np.ndarray) -> tuple[float, np.ndarray]:
            theta = self.prior.copy()
            theta[free] = part
            value, gradient = self.loss(theta)
            return value, gradient[free]

        bounds = list(zip(self.low[free], self.high[free], strict=True))
        clipped = [np.clip(begin[free], self.low[free], self.high[free]) for begin in begins]
        found = [
            minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60})
            for begin in clipped
        ]
        theta = self.prior.copy()
        theta[free] = min(found, key=lambda result: result.fun).x
        return theta

    def process(self, theta: np.ndarray) -> GaussianProcess:
        """The Gaussian process with these hyperparameters."""
        K = _kernel(self.Z, self.Z, self.groups, theta, self.assumptions.kernel) + np.exp(theta[-1]) * np.eye(
            len(self.z)
        )
        factor = np.linalg.cholesky(K + 1e-8 * np.eye(len(self.z)))
        alpha = cho_solve((factor, True), self.z)
        return GaussianProcess(
            self.Z, self.groups, self.center, self.level, theta, factor, alpha, self.assumptions.kernel
        )


def fit(
    X: np.ndarray, y: np.ndarray, groups: np.ndarray, start: np.ndarray | None = None, assumptions: Assumptions = SEARCH
) -> GaussianProcess:
    """Posterior given y [n] at X [n, p]. groups [p]: 0, 1, ...; start: `theta` of an earlier fit, to begin from."""
    posterior = Posterior(X, y, groups, assumptions)
    return posterior.process(posterior.mode(start))


def with_noise(assumptions: Assumptions, variance: float) -> Assumptions:
    """The same with a known part of the noise (variance of standardised outputs) as a floor below the prior."""
    floor = max(assumptions.least_noise, variance)
    return replace(assumptions, least_noise=floor, noise=(max(assumptions.noise[0], floor), assumptions.noise[1]))


def _squares(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Squared distances [a, b]."""
    return np.maximum((A * A).sum(1)[:, None] + (B * B).sum(1)[None] - 2 * A @ B.T, 0.0)


def _kernel(A: np.ndarray, B: np.ndarray, groups: np.ndarray, theta: np.ndarray, kernel: str = "matern") -> np.ndarray:
    """Covariance [a, b] of the noise-free function."""
    n_groups = int(groups.max()) + 1
    if kernel == "matern":
        r = np.sqrt(sum(_squares(A[:, groups == g], B[:, groups == g]) / np.exp(2 * theta[g]) for g in range(n_groups)))
        smooth = (1 + ROOT5 * r + 5 / 3 * r * r) * np.exp(-ROOT5 * r)
    else:
        scales = np.exp(theta[groups])
        smooth = np.exp(-0.5 * _squares(A / scales, B / scales))
    return np.exp(theta[n_groups]) * smooth + np.exp(theta[n_groups + 1]) * A @ B.T / max(1, A.shape[1])
