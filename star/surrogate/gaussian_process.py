"""An exact Gaussian process for tens to hundreds of trials: deterministic, and needs only numpy and scipy.

    y(x) = c + linear(x) + smooth(x) + noise
    model = fit(X, y, groups)                     # X [n, p], y [n], groups [p]
    mean, sd = model.predict(Xs)                  # of a measurement at each row of Xs [m, p]
    mean, covariance, noise = model.joint(Xs)     # of the function without noise

Search and refinement use the same process with different assumptions. A search fits architectures, described by about
sixty numbers in a few groups (composition, order, size, sharing). Each group has one length scale: with few
observations, one for each input would fit noise, and one for all inputs would let the least useful group blur the
others. A refinement fits recipes, described by a dozen numbers in [0, 1], each with its own length scale.
Hyperparameters maximise the posterior under log-normal priors (L-BFGS-B, exact gradients); `star.surrogate.posterior`
averages over them. Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

ROOT5 = np.sqrt(5.0)


@dataclass(frozen=True)
class Assumptions:
    """Kernel and priors. A prior is log-normal, given as (median, sd of its log); an sd of 0 fixes it."""

    kernel: str  # matern (5/2) or rbf
    standardised: bool  # inputs are standardised first; otherwise they lie in [0, 1]
    # Median of the squared length scale for each input: the length scale grows with the square root of the number of
    # inputs, as distances do (Hvarfner et al., 2024, arXiv 2402.02229).
    scale: tuple[float, float]
    amplitude: tuple[float, float]
    linear: tuple[float, float]
    noise: tuple[float, float]
    least_scale: float = 0.0
    least_noise: float = 0.0  # variance, of standardised outputs
    starts: tuple[float, ...] = (1.0,)  # L-BFGS-B starts from the medians, with length scales times these


SEARCH = Assumptions("matern", True, scale=(2.0, 1.0), amplitude=(1.0, 1.0), linear=(1.0, 1.0), noise=(0.02, 1.5))
# The default priors of BoTorch since 0.12, from the same paper; unit output scale.
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
# The average has a free and wider output scale: four losses say little about the spread of the others.
AVERAGE = replace(REFINE, amplitude=(2.0, 0.7), starts=(1.0,))


@dataclass(frozen=True)
class GaussianProcess:
    """A fitted process, made by `fit`."""

    X: np.ndarray  # [n, p] inputs, standardised if the assumptions say so
    groups: np.ndarray  # [p] group of each input
    center: tuple[np.ndarray, np.ndarray]  # [p], [p]: inputs are standardised by subtracting one, dividing by the other
    level: tuple[float, float]  # mean and sd of the outputs
    theta: np.ndarray  # log hyperparameters: length scale of each group, amplitude, linear, noise
    factor: np.ndarray  # lower Cholesky factor of the covariance [n, n]
    alpha: np.ndarray  # [n]
    kernel: str = "matern"

    def predict(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean [m] and sd [m] of a measurement, noise included, at each row of X [m, p], in units of y."""
        mean, variance = self.marginals(X)
        return mean, np.sqrt(variance + self.noise)

    def joint(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Mean [m] and covariance [m, m] of the function without noise at X [m, p], and the variance of the noise."""
        Z, mean, half = self._solve(X)
        covariance = _kernel(Z, Z, self.groups, self.theta, self.kernel) - half.T @ half
        return mean, self.level[1] ** 2 * covariance, self.noise

    def marginals(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean [m] and variance [m] of the function without noise at X [m, p]; cheaper than `joint`."""
        Z, mean, half = self._solve(X)
        n_groups = len(self.theta) - 3
        own = np.exp(self.theta[n_groups]) + np.exp(self.theta[n_groups + 1]) * (Z * Z).sum(axis=1) / max(1, Z.shape[1])
        variance = np.maximum(own - (half * half).sum(axis=0), 0.0)
        return mean, self.level[1] ** 2 * variance

    def leave_one_out(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean [n] and sd [n], noise included, of each observation given all others; and the observations y [n].

        In closed form with the hyperparameters unchanged (Rasmussen and Williams, equations 5.10 to 5.12). These were
        fitted to all observations, so the sd is slightly too small.
        """
        inverse = cho_solve((self.factor, True), np.eye(len(self.alpha)))
        y = self.factor @ (self.factor.T @ self.alpha)
        variance = 1.0 / np.diag(inverse)
        level, sd = self.level
        return level + sd * (y - self.alpha * variance), sd * np.sqrt(variance), level + sd * y

    @property
    def noise(self) -> float:
        """Variance of the noise, in units of y squared."""
        return float(np.exp(self.theta[-1])) * self.level[1] ** 2

    def _solve(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Standardised inputs [m, p], mean [m], and the factor's solution [n, m] whose square reduces the variance."""
        Z = (X - self.center[0]) / self.center[1]
        cross = _kernel(Z, self.X, self.groups, self.theta, self.kernel)
        mean = self.level[0] + self.level[1] * (cross @ self.alpha)
        return Z, mean, solve_triangular(self.factor, cross.T, lower=True)


class Posterior:
    """The posterior of the log hyperparameters theta [G + 3] given y [n] at X [n, p], G the number of groups.

    theta: length scale of each group, amplitude, linear term, noise. Those whose prior has an sd above 0 are free.
    """

    def __init__(
        self,
        X: np.ndarray,
        y: np.ndarray,
        groups: np.ndarray,
        assumptions: Assumptions = SEARCH,
        scales: dict[int, tuple[float, float]] | None = None,
    ):
        """groups [p]: 0, 1, ...; scales: {group: (median, sd of the log)}, priors that replace the assumed one."""
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
        """Negative log posterior at theta [G + 3], up to a constant, and its gradient [G + 3] (0 where fixed)."""
        scales, (amplitude, slope, noise) = np.exp(theta[: self.n_groups]), np.exp(theta[self.n_groups :])
        per_group = self.squares / scales[:, None, None] ** 2
        if self.assumptions.kernel == "matern":
            r = np.sqrt(per_group.sum(axis=0))
            decay = np.exp(-ROOT5 * r)
            smooth = (1 + ROOT5 * r + 5 / 3 * r * r) * decay
            # dK / dlog scale_g = 5/3 a (1 + sqrt(5) r) exp(-sqrt(5) r) d_g^2 / scale_g^2
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
        spread = np.where(self.free, self.spread, 1.0)
        # A fixed value may be -inf (no linear term), so the difference is taken only where both are finite
        off = np.where(self.free, theta, 0.0) - np.where(self.free, self.prior, 0.0)
        off = off / spread
        value = 0.5 * self.z @ alpha + np.log(np.diag(factor[0])).sum() + 0.5 * off @ off
        W = inverse - np.outer(alpha, alpha)
        steep = W * steepness
        gradient = [0.5 * (steep * part).sum() for part in per_group]
        gradient += [0.5 * (W * part).sum() for part in (amplitude * smooth, slope * self.linear)]
        gradient += [0.5 * noise * np.trace(W)]
        return float(value), np.where(self.free, np.array(gradient) + off / spread, 0.0)

    def mode(self, start: np.ndarray | None = None) -> np.ndarray:
        """theta [G + 3] of the highest posterior found from `start` [G + 3], by default from the assumed starts."""
        free = self.free
        if start is not None and len(start) == len(self.prior):
            starts = [start]
        else:
            is_scale = np.arange(len(self.prior)) < self.n_groups
            starts = [np.where(is_scale, self.prior + np.log(s), self.prior) for s in self.assumptions.starts]

        def loss(part: np.ndarray) -> tuple[float, np.ndarray]:
            theta = self.prior.copy()
            theta[free] = part
            value, gradient = self.loss(theta)
            return value, gradient[free]

        bounds = list(zip(self.low[free], self.high[free], strict=True))
        clipped = [np.clip(begin[free], self.low[free], self.high[free]) for begin in starts]
        found = [
            minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60})
            for begin in clipped
        ]
        theta = self.prior.copy()
        theta[free] = min(found, key=lambda result: result.fun).x
        return theta

    def process(self, theta: np.ndarray) -> GaussianProcess:
        """The Gaussian process with these hyperparameters."""
        kernel, eye = self.assumptions.kernel, np.eye(len(self.z))
        K = _kernel(self.Z, self.Z, self.groups, theta, kernel) + np.exp(theta[-1]) * eye
        factor = np.linalg.cholesky(K + 1e-8 * eye)
        alpha = cho_solve((factor, True), self.z)
        return GaussianProcess(self.Z, self.groups, self.center, self.level, theta, factor, alpha, kernel)


def fit(
    X: np.ndarray, y: np.ndarray, groups: np.ndarray, start: np.ndarray | None = None, assumptions: Assumptions = SEARCH
) -> GaussianProcess:
    """Fit y [n] at X [n, p]. groups [p]: 0, 1, ...; start: `theta` of an earlier fit, from which to optimise."""
    posterior = Posterior(X, y, groups, assumptions)
    return posterior.process(posterior.mode(start))


def with_noise(assumptions: Assumptions, variance: float) -> Assumptions:
    """The same assumptions with a known part of the noise (variance of standardised outputs) as a lower bound."""
    floor = max(assumptions.least_noise, variance)
    return replace(assumptions, least_noise=floor, noise=(max(assumptions.noise[0], floor), assumptions.noise[1]))


def _squares(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Squared distances [a, b]."""
    return np.maximum((A * A).sum(1)[:, None] + (B * B).sum(1)[None] - 2 * A @ B.T, 0.0)


def _kernel(A: np.ndarray, B: np.ndarray, groups: np.ndarray, theta: np.ndarray, kernel: str = "matern") -> np.ndarray:
    """Covariance [a, b] of the function without noise."""
    n_groups = int(groups.max()) + 1
    if kernel == "matern":
        r = np.sqrt(sum(_squares(A[:, groups == g], B[:, groups == g]) / np.exp(2 * theta[g]) for g in range(n_groups)))
        smooth = (1 + ROOT5 * r + 5 / 3 * r * r) * np.exp(-ROOT5 * r)
    else:
        scales = np.exp(theta[groups])
        smooth = np.exp(-0.5 * _squares(A / scales, B / scales))
    return np.exp(theta[n_groups]) * smooth + np.exp(theta[n_groups + 1]) * A @ B.T / max(1, A.shape[1])
