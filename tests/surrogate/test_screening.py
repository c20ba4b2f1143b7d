"""The surrogate: what it sees, what it predicts, how it chooses, and the figures that say how good it is."""

import numpy as np
import pytest
from pymoo.indicators.hv import HV
from scipy.stats import norm, spearmanr

from star.assess.objectives import load_objectives
from star.config import load_config
from star.cost import costs
from star.genome import Genome, Space
from star.genome.codec import parse_text
from star.surrogate.calibration import report
from star.surrogate.descriptors import describe
from star.surrogate.gaussian_process import fit
from star.surrogate.screening import LEAST, Surrogate, expected_gain, make_surrogate

SPACE = Space(n_slots=6, d_models=(32, 64), head_dim=8)
OBJECTIVES = load_objectives(("bpb", "parameters", "cache"))


def genomes(n: int, seed: int = 0) -> list[Genome]:
    return [SPACE.decode(x) for x in SPACE.sample(np.random.default_rng(seed), n)]


def seen(given: list[Genome]) -> tuple[np.ndarray, np.ndarray]:
    return describe(given, [costs(genome) for genome in given])


# ---- descriptors


def test_a_description_is_of_the_architecture():
    given = genomes(50)
    X, groups = seen(given)
    assert X.shape == (50, len(groups)) and np.isfinite(X).all() and set(groups) == {0, 1, 2, 3}
    renamed = [
        Genome(parse_text(text), d_model=32, head_dim=8) for text in ("21200-90000-21200", "21233-0-90000-21234")
    ]
    Y, _ = seen([renamed[0], Genome(parse_text("23200-90000-23200"), d_model=32, head_dim=8)])
    assert (Y[0] == Y[1]).all()  # another name of the same sharing group
    assert len({tuple(x) for x in X}) > 45  # and different architectures differ


@pytest.mark.parametrize(
    "near, far", [(("1-9-1", "2-9-1"), ("1-9-1", "7-9-1")), (("5-9-5-9", "5-9-6-9"), ("5-9-5-9", "5-9-1-9"))]
)
def test_similar_operators_are_near(near, far):
    X, groups = seen([Genome(parse_text(text), d_model=32, head_dim=8) for text in (*near, *far)])
    composition = X[:, groups == 0]
    assert np.linalg.norm(composition[0] - composition[1]) < np.linalg.norm(composition[2] - composition[3])


def test_order_is_seen():
    X, groups = seen([Genome(parse_text(text), d_model=32, head_dim=8) for text in ("1-9-7", "7-9-1")])
    assert (X[0, groups == 0] == X[1, groups == 0]).all() and (X[0, groups == 1] != X[1, groups == 1]).any()


# ---- Gaussian process


def smooth(X: np.ndarray) -> np.ndarray:
    return np.sin(2 * X[:, 0]) + 0.5 * X[:, 1] ** 2 + X[:, 2]


def test_it_learns_a_smooth_function_and_finds_its_noise():
    rng = np.random.default_rng(0)
    X, groups = rng.normal(size=(120, 4)), np.array([0, 0, 1, 2])  # the last input does nothing
    model = fit(X, 3.0 + 5.0 * (smooth(X) + 0.1 * rng.normal(size=120)), groups)
    Xs = rng.normal(size=(300, 4))
    mean, covariance, _ = model.joint(Xs)
    truth = 3.0 + 5.0 * smooth(Xs)
    assert np.corrcoef(mean, truth)[0, 1] > 0.98
    assert np.sqrt(model.noise) == pytest.approx(0.5, rel=0.3)
    sd = np.sqrt(np.diag(covariance))
    for level in (0.5, 0.8, 0.9):
        assert (np.abs(truth - mean) < norm.ppf(0.5 + level / 2) * sd).mean() == pytest.approx(level, abs=0.12)
    assert np.linalg.eigvalsh(covariance + covariance.T).min() > -1e-6


def test_units_and_order_change_nothing():
    rng = np.random.default_rng(1)
    X, groups = rng.normal(size=(60, 3)), np.array([0, 0, 1])
    y, Xs = smooth(X), rng.normal(size=(20, 3))
    mean, covariance, _ = fit(X, y, groups).joint(Xs)
    other = fit(X * [1000, 0.01, 3] + 5, 7.0 - 2.0 * y, groups)
    mirrored, scaled, _ = other.joint(Xs * [1000, 0.01, 3] + 5)
    assert mirrored == pytest.approx(7.0 - 2.0 * mean, abs=1e-3) and scaled == pytest.approx(4.0 * covariance, abs=1e-3)
    order = rng.permutation(60)
    assert fit(X[order], y[order], groups).predict(Xs)[0] == pytest.approx(mean, abs=1e-3)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_few_or_equal_observations_do_no_harm(n):
    X, groups = np.random.default_rng(n).normal(size=(n, 5)), np.zeros(5, int)
    for y in (np.ones(n), np.arange(n, dtype=float)):
        mean, covariance, _ = fit(X, y, groups).joint(X)
        assert np.isfinite(mean).all() and np.isfinite(covariance).all()
    mean, sd = fit(np.ones((n, 5)), np.arange(n, dtype=float), groups).predict(np.ones((1, 5)))
    assert mean[0] == pytest.approx((n - 1) / 2, abs=0.3) and np.isfinite(sd).all()


# ---- expected gain in hypervolume


def volume(front: np.ndarray) -> float:
    front = front[(front < 1.1).all(axis=1)]
    return float(HV(ref_point=np.full(front.shape[1], 1.1))(front)) if len(front) else 0.0


@pytest.mark.parametrize("m, first", [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (4, 2)])
def test_expected_gain_is_the_mean_of_real_gains(m, first):
    rng = np.random.default_rng(m)
    F = rng.random((8, m))
    front = np.array([row for row in F if not ((F <= row).all(axis=1) & (F < row).any(axis=1)).any()])
    points, sd = rng.random((5, m)) * 1.2 - 0.05, np.array([0.01, 0.1, 0.3, 0.2, 0.5])
    gain = expected_gain(points, sd, first, front)
    for point, spread, expected in zip(points, sd, gain, strict=True):
        z = norm.ppf((np.arange(400) + 0.5) / 400)
        gains = []
        for value in point[first] + spread * z:
            drawn = point.copy()
            drawn[first] = value
            gains.append(volume(np.vstack([front, drawn])) - volume(front))
        assert expected == pytest.approx(np.mean(gains), abs=3e-3, rel=0.02)


# ---- the surrogate


def truth_of(given: list[Genome]) -> np.ndarray:
    """A loss that descriptors can explain: depth helps, attention late helps more, convolutions early."""
    rows = []
    for genome in given:
        cost = costs(genome)
        kinds = [genome.operator(gene).family for gene in genome.backbone if gene.class_id]
        late = sum(i for i, kind in enumerate(kinds) if kind == "attention") / 10
        loss = 3.0 - 0.1 * len(kinds) - 0.3 * late - 0.2 * (kinds[0] == "convolution") - 0.1 * np.log10(cost.parameters)
        rows.append([loss, *(o.scaled(o.measure(cost)) for o in OBJECTIVES[1:])])
    return np.array(rows)


def surrogate(n: int, seed: int = 0) -> Surrogate:
    made = make_surrogate(load_config(overrides={"search.screen": 4, "objectives.cache_tokens": 4096}), 256)
    given = genomes(n, seed)
    made.tell(given, truth_of(given), np.ones(n, bool))
    return made


def test_it_ranks_genomes_that_it_has_not_seen():
    made, unseen = surrogate(100), genomes(200, seed=1)
    F, covariances = made.predict(unseen)
    truth = truth_of(unseen)
    assert spearmanr(F[:, 0], truth[:, 0]).statistic > 0.9
    assert F[:, 1:] == pytest.approx(truth[:, 1:])  # exact, never modelled
    assert list(covariances) == [0]


def test_what_it_chooses_is_distinct_repeatable_and_better_than_chance():
    gains = []
    for seed in range(5):
        made, offered = surrogate(60, seed), genomes(64, seed=100 + seed)
        chosen, predictions = made.choose(offered, 8, np.random.default_rng(seed))
        again = surrogate(60, seed).choose(offered, 8, np.random.default_rng(seed))
        assert (chosen, predictions) == again and len(set(chosen)) == 8
        assert all(set(p) == {"bpb"} and len(p["bpb"]) == 2 and p["bpb"][1] > 0 for p in predictions)
        known, truth = truth_of(genomes(60, seed)), truth_of(offered)
        low, high = known.min(axis=0), known.max(axis=0)
        of = lambda picks: volume((np.vstack([known, truth[picks]]) - low) / (high - low))  # noqa: B023, E731
        drawn = [of(np.random.default_rng(k).choice(64, 8, replace=False)) for k in range(20)]
        gains.append(of(chosen) - np.mean(drawn))
    assert np.mean(gains) > 0 and sum(gain > 0 for gain in gains) >= 4


def test_all_offered_can_be_chosen_and_twins_are_not_chosen_twice_first():
    made, offered = surrogate(40), genomes(6, seed=5)
    chosen, _ = made.choose(offered, 6, np.random.default_rng(0))
    assert sorted(chosen) == list(range(6))


def test_failures_teach_nothing_and_it_waits_for_enough():
    made = make_surrogate(load_config(overrides={"search.screen": 4}), 256)
    given = genomes(LEAST + 3)
    good = np.arange(len(given)) >= 3
    F = truth_of(given)
    F[~good] = 1e6
    made.tell(given[:5], F[:5], good[:5])
    assert not made.ready
    made.tell(given[5:], F[5:], good[5:])
    assert made.ready and made.predict(given)[0][:, 0].max() < 10


def test_a_run_without_need_has_none():
    assert make_surrogate(load_config(overrides={"search.screen": 1}), 256) is None
    assert (
        make_surrogate(load_config(overrides={"search.screen": 4, "objectives.names": ("parameters", "cache")}), 256)
        is None
    )


def test_one_terrible_loss_does_not_bend_the_rest():
    made, spoilt = surrogate(60), make_surrogate(load_config(overrides={"search.screen": 4}), 256)
    given = genomes(60)
    F = truth_of(given)
    F[7, 0] = 50.0
    spoilt.tell(given, F, np.ones(60, bool))
    unseen = genomes(100, seed=3)
    truth = truth_of(unseen)[:, 0]
    assert (
        spearmanr(spoilt.predict(unseen)[0][:, 0], truth).statistic
        > spearmanr(made.predict(unseen)[0][:, 0], truth).statistic - 0.2
    )


# ---- the report on it


def test_report_of_honest_predictions():
    rng = np.random.default_rng(0)
    mean, sd = rng.normal(size=4000), rng.uniform(0.1, 1.0, 4000)
    actual = mean + sd * rng.normal(size=4000)
    facts = report(np.stack([mean, sd], axis=1), actual, proxy=-mean)
    for level in (50, 80, 90):
        assert facts[f"coverage_{level}"] == pytest.approx(level / 100, abs=0.03)
    assert (
        facts["spearman"] == pytest.approx(spearmanr(mean, actual).statistic) == pytest.approx(-facts["proxy_spearman"])
    )
    assert facts["spearman_low"] < facts["spearman"] < facts["spearman_high"]
    assert facts["coverage_90_low"] < 0.9 < facts["coverage_90_high"] and abs(facts["bias"]) < 0.05


def test_the_interval_of_a_correlation_holds_the_truth():
    rng, rho = np.random.default_rng(1), 0.6
    expected = 6 / np.pi * np.arcsin(rho / 2)  # Spearman's of a normal pair
    inside = 0
    for _ in range(500):
        a, b = rng.normal(size=(2, 30))
        facts = report(np.stack([a, np.ones(30)], axis=1), rho * a + np.sqrt(1 - rho**2) * b)
        inside += facts["spearman_low"] < expected < facts["spearman_high"]
    assert 0.92 < inside / 500 < 0.98


def test_report_of_little_or_nothing():
    assert report([], [])["n"] == 0 and report([], [])["coverage_90"] is None
    facts = report([[1.0, 0.1]] * 6 + [[float("nan"), 1.0]], [1.0] * 7)
    assert facts["n"] == 6 and facts["spearman"] is None and facts["coverage_50"] == 1.0
    assert report([[1.0, 0.1], [2.0, 0.1]], [1.0, 2.0])["spearman"] is None


# ---- rungs


def learning(given: list[Genome]) -> tuple[np.ndarray, np.ndarray]:
    """Losses at a rung and at the end: quick starters (many memoryless LIVs) are overtaken, as in real training."""
    size = np.array([np.log10(costs(genome).parameters) for genome in given])
    quick = np.array([sum(gene.class_id == 9 for gene in genome.backbone) / genome.depth for genome in given])
    end = 5.0 - 0.5 * size + 0.2 * quick
    return end + 0.6 - 0.5 * quick, end


def objectives_of(given: list[Genome], loss: np.ndarray) -> np.ndarray:
    rows = [costs(genome) for genome in given]
    return np.array(
        [
            [o.scaled(o.measure(row)) if o.cheap else value for o in OBJECTIVES]
            for row, value in zip(rows, loss, strict=True)
        ]
    )


def test_the_end_of_training_is_predicted_from_a_rung():
    surrogate, given = make_surrogate(load_config("laptop"), 256), genomes(60)
    rung, end = learning(given)
    at, F = objectives_of(given, rung), objectives_of(given, end)
    assert surrogate.promising(given[:3], at[:3], 0) is None, "nothing is known yet"
    surrogate.tell(given[:30], F[:30], np.ones(30, bool), [[row] for row in at[:30]])
    curves = surrogate.curves[0]
    X, groups = seen(given[30:])
    mean, sd = curves.predict(X, at[30:], groups)
    assert np.abs(mean[:, 0] - end[30:]).max() < 0.1 < np.abs(rung[30:] - end[30:]).max()
    assert (sd[:, 0] > 0).all() and (mean[:, 1:] == at[30:, 1:]).all() and (sd[:, 1:] == 0).all()
    gains = surrogate.promising(given[30:], at[30:], 0)
    best = expected_gain(
        (F[30:] - F[:30].min(0)) / np.ptp(F[:30], axis=0),
        np.full(30, 1e-9),
        0,
        (F[:30] - F[:30].min(0)) / np.ptp(F[:30], axis=0),
    )
    assert spearmanr(gains, best)[0] > 0.6
    assert surrogate.promising(given[30:], at[30:], 1) is None, "of another rung nothing is known"


def test_those_that_were_stopped_teach_what_they_would_have_come_to():
    given = genomes(60, seed=1)
    rung, end = learning(given)
    at, F = objectives_of(given, rung), objectives_of(given, end)
    good = np.arange(60) < 15
    taught, ignorant = (make_surrogate(load_config("laptop"), 256) for _ in range(2))
    taught.tell(given, F, good, [[row] for row in at])
    ignorant.tell(given[:15], F[:15], good[:15], [[row] for row in at[:15]])
    others = genomes(80, seed=2)
    truth = learning(others)[1]
    error = [np.abs(model.predict(others)[0][:, 0] - truth).mean() for model in (taught, ignorant)]
    assert error[0] < error[1]


def test_a_search_for_one_objective_is_screened_for_it_alone():
    given = genomes(80)
    F = objectives_of(given, learning(given)[1])
    alone, all_of_them = (make_surrogate(load_config("laptop"), 256) for _ in range(2))
    alone.seen = 1
    for surrogate in (alone, all_of_them):
        surrogate.tell(given[:40], F[:40], np.ones(40, bool))
    picks = [surrogate.choose(given[40:], 8, np.random.default_rng(0))[0] for surrogate in (alone, all_of_them)]
    losses = [F[40:][p, 0].mean() for p in picks]
    assert losses[0] < losses[1], "the small and poor are of no use to it"
