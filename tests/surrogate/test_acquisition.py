"""Acquisition functions against quadrature, enumeration and arbitrary precision."""

import mpmath
import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from star.surrogate.acquisition import (
    expected_gain,
    log_ei,
    log_excess,
    log_hypervolume_gain,
    log_rate,
    reduction,
)


def belief(n: int = 6, seed: int = 0):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(n, n))
    return rng.normal(size=n), A @ A.T / n + 0.1 * np.eye(n)


def test_log_excess_is_exact_everywhere():
    mpmath.mp.dps = 60
    u = [5.0, 1.0, 0.0, -0.99, -1.01, -3.0, -6.0, -10.0, -29.9, -30.1, -100.0, -1e4]
    found = log_excess(torch.tensor(u, dtype=torch.float64))
    for x, value in zip(u, found.tolist(), strict=True):
        x = mpmath.mpf(x)
        if x > -50:
            exact = mpmath.log(mpmath.npdf(x) + x * mpmath.ncdf(x))
        else:  # the Mills ratio's continued fraction, which needs no cancellation
            exact = -x * x / 2 - mpmath.log(mpmath.sqrt(2 * mpmath.pi)) - 2 * mpmath.log(-x) + mpmath.log(1 - 3 / x**2)
        assert value == pytest.approx(float(exact), rel=1e-9, abs=1e-9), float(x)


def test_log_excess_has_a_gradient_everywhere():
    u = torch.linspace(-60.0, 5.0, 200, dtype=torch.float64, requires_grad=True)
    log_excess(u).sum().backward()
    assert torch.isfinite(u.grad).all() and (u.grad > 0).all()


def test_expected_improvement_against_quadrature():
    for mean, sd, best in ((0.3, 0.5, 0.0), (-1.0, 0.2, 0.0), (2.0, 0.7, 0.0)):
        slow = quad(lambda y, m=mean, s=sd, b=best: (b - y) * norm.pdf(y, m, s), mean - 12 * sd, best, epsabs=1e-14)[0]
        fast = log_ei(
            *(torch.tensor([v], dtype=torch.float64) for v in (mean, sd)), torch.tensor(best, dtype=torch.float64)
        )
        assert float(fast.exp()) == pytest.approx(slow, rel=1e-6)


def test_hypervolume_gain_is_the_search_s_in_logarithms():
    rng = np.random.default_rng(0)
    for m in (1, 2, 3):
        front = rng.random((6, m))
        front = np.unique(front[[not ((front <= f).all(1) & (front < f).any(1)).any() for f in front]], axis=0)
        points, sd = 1.2 * rng.random((20, m)), 0.01 + 0.3 * rng.random(20)
        slow = expected_gain(points, sd, 0, front)
        assert np.exp(log_hypervolume_gain(points, sd, 0, front)) == pytest.approx(slow, rel=1e-8, abs=1e-13)
    # where the gain itself has underflowed, its logarithm still ranks
    far = np.array([[0.9, 0.5], [0.95, 0.5]])
    assert (expected_gain(far, np.array([0.002, 0.002]), 0, np.array([[0.5, 0.5]])) < 1e-300).all()
    log = log_hypervolume_gain(far, np.array([0.002, 0.002]), 0, np.array([[0.5, 0.5]]))
    assert np.isfinite(log).all() and log[0] > log[1]


def test_one_objective_is_expected_improvement():
    points, sd = np.array([[0.4], [0.6]]), np.array([0.1, 0.3])
    found = log_hypervolume_gain(points, sd, 0, np.array([[0.5]]))
    assert found == pytest.approx(
        log_ei(torch.tensor(points[:, 0]), torch.tensor(sd), torch.tensor(0.5, dtype=torch.float64)).numpy()
    )


def test_reduction_is_the_sd_of_the_change_of_the_mean():
    _, covariance = belief(4)
    own = np.array([1, 1, 3, 3])
    found = reduction(covariance, 0.2, own)
    rng = np.random.default_rng(0)
    for a in range(4):
        y = rng.normal(0.0, np.sqrt(covariance[a, a] + 0.2), size=100_000)  # of mean 0 before
        assert found[a] == pytest.approx(np.std(covariance[own[a], a] / (covariance[a, a] + 0.2) * y), rel=0.02)


def rate(mean: float, sd: float, moves: float, cost: float, best: float = 0.0) -> float:
    def gain(m, s):
        return log_ei(m.flatten(1), s.flatten(1), torch.tensor([best], dtype=torch.float64)).view_as(m)

    parts = (torch.tensor([[v]], dtype=torch.float64) for v in (mean, sd, moves, cost, 1.0))
    return float(log_rate(gain, *parts)[0, 0].exp())


def test_rate_of_a_cheap_trial_against_enumeration():
    """The highest expected gain per expected cost over thresholds that the result of the cheap trial must pass."""
    z = np.linspace(-8, 8, 200_001)
    w = norm.pdf(z) / norm.pdf(z).sum()
    for mean, sd, moves, cost in ((0.3, 0.5, 0.4, 0.1), (0.0, 0.3, 0.1, 0.2), (1.0, 0.6, 0.5, 0.02)):
        after = np.sqrt(sd**2 - moves**2)
        u = -(mean + moves * z) / after
        gain = after * (norm.pdf(u) + u * norm.cdf(u))
        slow = max(
            (w * gain * (gain > t)).sum() / (cost + (w * (gain > t)).sum())
            for t in np.quantile(gain, np.linspace(0, 0.9999, 400))
        )
        assert rate(mean, sd, moves, cost) == pytest.approx(slow, rel=0.05)


def test_rate_knows_when_a_cheap_trial_is_worth_it():
    at_once = float(
        log_ei(
            *(torch.tensor([v], dtype=torch.float64) for v in (0.5, 0.5)), torch.tensor(0.0, dtype=torch.float64)
        ).exp()
    )
    assert rate(0.5, 0.5, 0.45, 0.05) > 1.5 * at_once  # tells much for little
    assert rate(0.5, 0.5, 0.05, 0.25) < at_once  # tells next to nothing
    assert rate(0.5, 0.5, 0.0, 0.25) == pytest.approx(at_once / 1.25)  # nothing at all: its cost is added
    assert rate(0.5, 0.5, 0.3, 0.05) > rate(0.5, 0.5, 0.3, 0.1) > rate(0.5, 0.5, 0.2, 0.1)
