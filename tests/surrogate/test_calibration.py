"""Scores of forecasts against their definitions, and the factor that restores coverage."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from star.surrogate.calibration import calibration, inflation


def forecasts(n: int, factor: float = 1.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    mean, sd = rng.normal(size=n), rng.uniform(0.5, 2.0, size=n)
    return np.column_stack([mean, sd]), mean + factor * sd * rng.standard_normal(n)


def test_scores_against_their_definitions():
    predicted, actual = forecasts(12)
    found = calibration(predicted, actual)
    slow = []
    for (m, s), y in zip(predicted, actual, strict=True):  # CRPS: the integral of (F - step)^2
        left = quad(lambda t, m=m, s=s: norm.cdf(t, m, s) ** 2, m - 12 * s, y)[0]
        slow.append(left + quad(lambda t, m=m, s=s: norm.sf(t, m, s) ** 2, y, m + 12 * s)[0])
    assert found["crps"] == pytest.approx(np.mean(slow), rel=1e-6)
    assert found["nll"] == pytest.approx(-norm.logpdf(actual, *predicted.T).mean())
    assert found["pit"] == pytest.approx(norm.cdf(actual, *predicted.T).tolist())
    inside = [abs(y - m) <= 1.6448536 * s for (m, s), y in zip(predicted, actual, strict=True)]
    assert (
        found["coverage_90"] == np.mean(inside)
        and found["coverage_90_low"] < np.mean(inside) <= found["coverage_90_high"]
    )


def test_honest_forecasts_pass_and_overconfident_ones_do_not():
    honest, bold = (calibration(*forecasts(2000, factor)) for factor in (1.0, 2.0))
    assert honest["ks_p"] > 0.01 > bold["ks_p"] and honest["ence"] < 0.1 < bold["ence"]
    assert honest["coverage_95_low"] < 0.95 < honest["coverage_95_high"] and bold["coverage_90_high"] < 0.7
    assert honest["z_sd"] == pytest.approx(1.0, abs=0.05) and bold["z_sd"] == pytest.approx(2.0, abs=0.1)
    assert honest["sharpness"] == bold["sharpness"] and honest["nll"] < bold["nll"] and honest["crps"] < bold["crps"]


def test_a_known_ence():
    """Errors of exactly half the sd in every bin: half."""
    predicted = np.column_stack([np.zeros(20), np.repeat([1.0, 2.0, 3.0, 4.0, 5.0], 4)])
    assert calibration(predicted, 0.5 * predicted[:, 1])["ence"] == pytest.approx(0.5)


def test_inflation_brings_coverage_back():
    """With sds half as large as they should be, the factor restores 90 % coverage in the long run."""
    predicted, actual = forecasts(1500, factor=2.0)
    made, inside = [], []
    for (mean, sd), y in zip(predicted, actual, strict=True):
        made.append([mean, sd * inflation(made[-200:], actual[max(0, len(made) - 200) : len(made)])])
        inside.append(abs(y - mean) <= 1.6448536 * made[-1][1])
    assert (
        np.mean(inside[200:]) == pytest.approx(0.9, abs=0.02)
        and np.mean(np.abs(actual - predicted[:, 0]) <= 1.6448536 * predicted[:, 1]) < 0.7
    )


def test_inflation_follows_its_formula_and_never_narrows():
    assert inflation([], []) == 1.3
    out, within = ([[0.0, 1.0]], [2.0]), ([[0.0, 1.0]], [1.0])
    assert inflation(*out) == pytest.approx(1.3 * np.exp(0.45))
    assert inflation(*within) == pytest.approx(1.3 * np.exp(-0.05))
    assert inflation([[0.0, 1.0]] * 50, [0.0] * 50) == 1.0


def test_failures_are_left_out():
    predicted, actual = forecasts(10)
    actual[3] = np.nan
    assert calibration(predicted, actual)["n"] == 9
    empty = calibration([], [])
    assert empty["n"] == 0 and empty["nll"] is None and empty["coverage_90_low"] is None
