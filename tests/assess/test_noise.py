"""Fitness noise: estimates that cover the truth as often as they say, and probabilities that agree with theory."""

import numpy as np
import pytest
from scipy.stats import norm

from star.assess.noise import noise_sd, rescored


def test_pooled_noise_against_its_definition():
    noise = noise_sd({"a": [1.0, 3.0], "b": [10.0, 10.0, 13.0], "c": [5.0]})
    assert noise.sd == pytest.approx(np.sqrt((2.0 + 6.0) / 3)) and noise.degrees == 3
    assert noise.low < noise.sd < noise.high
    assert noise_sd({"a": [1.0], "b": []}) is None
    assert noise_sd([[1.0, 3.0, float("nan")]]).sd == pytest.approx(np.sqrt(2))


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(1000):
        estimate = noise_sd([rng.normal(level, 0.3, 3) for level in rng.normal(size=6)], confidence=0.8)
        inside += estimate.low < 0.3 < estimate.high
    assert 0.76 < inside / 1000 < 0.84


def test_probability_of_two_members_is_that_of_a_normal_difference():
    """Both are equal in the exact objective, so the one with the lower loss dominates the other."""
    F, fresh = np.array([[2.0, 5.0], [2.0, 5.0]]), {0: {0: [2.0] * 4}, 1: {0: [2.1] * 4}}
    (a, b) = rescored(F, fresh, sd={0: 0.1}, draws=20_000)
    expected = norm.cdf(0.1 / (0.1 / 2 * np.sqrt(2)))
    assert a.probability == pytest.approx(expected, abs=0.01) and b.probability == pytest.approx(1 - expected, abs=0.01)
    assert a.non_dominated and not b.non_dominated
    assert a.se == pytest.approx([0.05, 0.0]) and a.n == 4 and b.luck == pytest.approx([0.1, 0.0])


def test_a_lucky_member_is_seen_and_a_real_trade_off_stays():
    F = np.array([[2.0, 6.0], [2.1, 5.0], [1.0, 7.0]])
    fresh = {0: {0: [2.0, 2.02, 1.98]}, 1: {0: [2.1, 2.12, 2.08]}, 2: {0: [2.6, 2.58, 2.62]}}
    honest, small, lucky = rescored(F, fresh)
    assert honest.probability > 0.99 and small.probability == 1.0  # nobody is as small
    assert lucky.probability < 0.01 and not lucky.non_dominated and lucky.luck[0] == pytest.approx(1.6)


def test_without_fresh_values_a_member_has_the_error_of_one_measurement():
    F = np.array([[2.0, 5.0], [2.1, 5.0]])
    measured, unmeasured = rescored(F, {0: {0: [2.0, 2.2]}})
    assert unmeasured.n == 0 and unmeasured.mean == pytest.approx(F[1])
    assert unmeasured.se[0] == pytest.approx(np.sqrt(0.02))
    assert measured.n == 2 and measured.mean[0] == pytest.approx(2.1)


def test_exact_objectives_alone_have_nothing_to_doubt():
    rows = rescored(np.array([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0]]), {})
    assert [row.probability for row in rows] == [1.0, 1.0, 0.0]
    assert [row.non_dominated for row in rows] == [True, True, False]
