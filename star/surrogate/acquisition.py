"""Acquisition functions: the value of a measurement before it is made.

    expected_gain(points, sd, first, front)            # gain in hypervolume; a search chooses offspring by it
    log_hypervolume_gain(points, sd, first, front)     # its logarithm, which does not underflow; for refinements
    log_ei(mean, sd, best)                             # log expected improvement
    log_rate(log_gain, mean, sd, moves, cost, full)    # log gain per cost of a cheap trial and what may follow it

Objectives are minimised. Costs are in full trainings. All values are closed forms or quadratures, without sampling.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

NOTHING = -700.0  # log value of a trial that cannot gain anything
FAR = -30.0  # standard deviations below which the asymptotic series of the expected improvement is exact to rounding

LogGain = Callable[[Tensor, Tensor], Tensor]
"""Mean and sd, [P] or [P, nodes] -> log expected gain of that shape."""


@lru_cache
def quadrature(n: int = 20) -> tuple[Tensor, Tensor]:
    """Nodes [n] and weights [n] for the mean over a standard normal, by the trapezoidal rule.

    The integrands have kinks: 8 Gauss-Hermite nodes were measured to be 20 % off, 20 trapezoidal ones a few per cent.
    """
    nodes = torch.linspace(-4.5, 4.5, n, dtype=torch.float64)
    weights = torch.exp(-0.5 * nodes**2)
    return nodes, weights / weights.sum()


def log_excess(u: Tensor) -> Tensor:
    """log E[max(0, u + z)] = log(phi(u) + u Phi(u)) for z standard normal, of any shape, without underflow.

    Ament et al., 2023, arXiv 2310.20708.
    """
    log_phi = -0.5 * u * u - 0.5 * math.log(2 * math.pi)
    near = u.clamp(min=-1.0)
    above = (torch.exp(-0.5 * near * near) / math.sqrt(2 * math.pi) + near * torch.special.ndtr(near)).log()
    a = (-u).clamp(1.0, -FAR)  # phi(u) (1 - a R(a)), where R is the Mills ratio
    middle = log_phi + torch.log1p(-a * math.sqrt(math.pi / 2) * torch.special.erfcx(a / math.sqrt(2)))
    q = 1.0 / u.clamp(max=FAR) ** 2
    below = log_phi + torch.log(q) + torch.log1p(q * (-3 + q * (15 - q * 105)))
    return torch.where(u > -1.0, above, torch.where(u > FAR, middle, below))


def log_ei(mean: Tensor, sd: Tensor, best: Tensor) -> Tensor:
    """Log expected improvement [..., P] below best [...] of a normal mean and sd [..., P].

    best should be the lowest posterior mean. The lowest observation was probably lucky.
    """
    sd = sd.clamp(min=1e-12)
    return sd.log() + log_excess((best[..., None] - mean) / sd)


def log_rate(
    log_gain: LogGain,
    mean: Tensor,
    sd: Tensor,
    moves: Tensor,
    cost: Tensor,
    full: Tensor,
    n: int = 20,
    rounds: int = 6,
) -> Tensor:
    """Log of the highest expected gain per expected cost [..., P] of a cheap trial, followed by the full training of
    the same candidate if the result makes that worthwhile.

    log_gain: of a full training. mean, sd [..., P]: of the candidate at full fidelity. moves [..., P]: sd of the change
    that the trial makes to that mean. cost, full [..., P]: of the trial, and of the full training. n: quadrature nodes.
    The rate r solves E[max(0, gain' - r full)] = r cost, where gain' is the expected gain after the trial. It is a
    two-stage Gittins index, found by `rounds` of Dinkelbach's iteration, which converges from below.
    """
    after = (sd * sd - moves * moves).clamp(min=0.0).sqrt()[..., None]
    z, w = quadrature(n)
    shifted = mean[..., None] + moves[..., None] * z
    log = log_gain(shifted, after.expand_as(shifted))  # [..., P, nodes]
    top = log.amax(dim=-1, keepdim=True).clamp(min=-600.0)
    gain = (log - top).exp()
    rate = (gain * w).sum(dim=-1) / (cost + full)
    for _ in range(rounds):
        go = (gain > (rate * full)[..., None]).to(w.dtype) * w  # outcomes after which the full training follows
        rate = (gain * go).sum(dim=-1) / (cost + full * go.sum(dim=-1))
    return top[..., 0] + rate.clamp(min=1e-300).log()


def log_hypervolume_gain(
    points: np.ndarray, sd: np.ndarray, first: int, front: np.ndarray, reference: float = 1.1
) -> np.ndarray:
    """Logarithm [n] of `expected_gain`, which takes the same arguments; -inf where no outcome gains anything.

    The gain is a sum over front members: the area that each is the first to cover, times the expected improvement below
    its value. All terms are positive, so the logarithm exists where the gain itself underflows.
    """
    area, steps = first_covered(points, first, front, reference)  # [n, k + 1], [k + 1]
    sd = np.maximum(sd, 1e-12)
    u = torch.as_tensor((steps[None, :] - points[:, first, None]) / sd[:, None])
    with np.errstate(divide="ignore"):
        terms = torch.as_tensor(np.log(area)) + log_excess(u)
    return np.log(sd) + torch.logsumexp(terms, dim=-1).numpy()


def reduction(covariance: np.ndarray, noise: float, targets: np.ndarray) -> np.ndarray:
    """Sd [P] of the change that each trial makes to the mean of its target: how much a cheap trial can teach.

    covariance [P, P] and noise variance of the trials; targets [P]: index of the full training of the same candidate.
    """
    own = np.arange(len(covariance))
    return np.abs(covariance[targets, own]) / np.sqrt(np.maximum(np.diag(covariance) + noise, 1e-18))


def expected_gain(
    points: np.ndarray, sd: np.ndarray, first: int, front: np.ndarray, reference: float = 1.1
) -> np.ndarray:
    """Expected gain in hypervolume [n] of points [n, m], normal in objective `first` with sd [n], exact in the others.

    front [k, m]: non-dominated points; reference: of the hypervolume, in every objective. A point of value t gains the
    integral from t to the reference of A(s): the area in the other objectives that it covers and that no front member
    with a value up to s covers. A is a step function, so the expectation is a sum over its steps of A times the
    integral of P(value < s). Exact for any number of objectives (Emmerich et al., 2006).
    """
    by_member, edges = first_covered(points, first, front, reference)
    area = np.cumsum(by_member[:, ::-1], axis=1)[:, ::-1]  # [n, k + 1] what the first i members leave open
    mean = points[:, first]
    total = np.zeros(len(points))
    below = _integral(-np.inf, mean, sd)
    for i, edge in enumerate(edges):  # between steps i and i + 1 the first i members cover their areas
        above = _integral(edge, mean, sd)
        total += area[:, i] * (above - below)
        below = above
    return total


def first_covered(
    points: np.ndarray, first: int, front: np.ndarray, reference: float = 1.1
) -> tuple[np.ndarray, np.ndarray]:
    """The area that each point [n, m] covers in all objectives but `first`, divided among front members [k, m].

    Returns areas [n, k + 1] and values [k + 1]. Members are ordered by their value in `first`; each gets the area that
    it is the first to cover, and the last column is the area that no member covers, with the reference as its value.
    Members beyond the reference are left out, so that k may be smaller than the size of the front.
    """
    n, m = points.shape
    others = [k for k in range(m) if k != first]
    front = front[(front < reference).all(axis=1)]
    front = front[np.argsort(front[:, first], kind="stable")]
    # Cells between the coordinates of the front in the other objectives: after how many members each is covered.
    edges = [np.unique(np.append(front[:, k], reference)) for k in others]
    shape = [len(edge) for edge in edges]
    covered = np.full(shape, len(front))
    for i in range(len(front) - 1, -1, -1):
        corner = [int(np.searchsorted(edge, front[i, k])) for edge, k in zip(edges, others, strict=True)]
        covered[tuple(slice(start, None) for start in corner)] = i
    # Cell j of an edge lies between its entries j and j + 1. One more cell, before the first entry, is never covered.
    covered = np.pad(covered, [(1, 0)] * len(others), constant_values=len(front)) if others else covered.reshape(1)
    weights = np.ones((n, 1))
    for edge, k in zip(edges, others, strict=True):
        bounds = np.concatenate([[-np.inf], edge, [reference]])
        low = np.maximum(bounds[:-1][None], points[:, k : k + 1])
        width = np.clip(np.minimum(bounds[1:][None], reference) - low, 0.0, None)  # [n, cells]
        weights = (weights[:, :, None] * width[:, None, :]).reshape(n, -1)
    by_member = weights @ (covered.ravel()[:, None] == np.arange(len(front) + 1))
    return by_member, np.append(front[:, first], reference)


def _integral(t: float, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """The integral of P(value < s) over s up to t, for normal values with mean [n] and sd [n]."""
    if t == -np.inf:
        return np.zeros_like(mean)
    z = (t - mean) / sd
    return sd * (z * ndtr(z) + np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi))


def improvement(offset: np.ndarray, best: float) -> LogGain:
    """Log expected improvement below best + offset [P], as a function of mean and sd."""

    def gain(mean: Tensor, sd: Tensor) -> Tensor:
        beaten = torch.as_tensor(offset).view(-1, *[1] * (mean.dim() - 1))
        return log_ei((mean - beaten).reshape(1, -1), sd.reshape(1, -1), torch.tensor([best])).view_as(mean)

    return gain


def thresholds(front: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Loss [n] to beat at exact objectives [n, m]: the lowest on the front [k, 1 + m] among members as small as that.

    The first column of the front is the loss. Where no member is as small, the highest loss on the front.
    """
    as_small = (front[None, :, 1:] <= exact[:, None, :] + 1e-12).all(axis=2)  # [n, k]
    lowest = np.where(as_small, front[None, :, 0], np.inf).min(axis=1)
    return np.where(np.isfinite(lowest), lowest, front[:, 0].max())


def hypervolume_gain(front: np.ndarray, exact: np.ndarray) -> LogGain:
    """Log expected gain in hypervolume over front [k, 1 + m], the loss first, as a function of mean and sd of the loss.

    exact [P, m]: the other objectives of the candidates. Objectives are scaled by their range on the front.
    """
    low, high = front.min(axis=0), front.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    scaled, others = np.unique((front - low) / span, axis=0), (exact - low[1:]) / span[1:]

    def gain(mean: Tensor, sd: Tensor) -> Tensor:
        means, sds = (part.reshape(len(others), -1).numpy() for part in (mean, sd))
        columns = [
            log_hypervolume_gain(np.column_stack([(m - low[0]) / span[0], others]), s / span[0], 0, scaled)
            for m, s in zip(means.T, sds.T, strict=True)
        ]
        return torch.as_tensor(np.maximum(np.stack(columns, axis=1), NOTHING)).view_as(mean)

    return gain
