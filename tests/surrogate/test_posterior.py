"""The Gaussian process against BoTorch, finite differences and refits; its average over hyperparameters."""

import numpy as np
import pytest

from star.surrogate.gaussian_process import REFINE, SEARCH, Posterior, with_noise
from star.surrogate.gaussian_process import fit as fit_mode
from star.surrogate.posterior import Averaged, Observations, condition, fit, hessian, laplace, update, winsorised


def data(n: int = 20, d: int = 4, seed: int = 0):
    X = np.random.default_rng(seed).random((n, d))
    return X, np.sin(5 * X[:, 0]) + (X[:, 1] - 0.3) ** 2 + 0.05 * np.random.default_rng(seed + 1).standard_normal(n)


def theta_of(scales, noise: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array([*scales, 1.0, 0.0, noise]))


def test_equals_botorch_at_equal_hyperparameters():
    torch, botorch = pytest.importorskip("torch"), pytest.importorskip("botorch")
    X, y = data()
    Xs = np.random.default_rng(5).random((7, 4))
    posterior = Posterior(X, y, np.arange(4), REFINE)
    ours = posterior.process(theta_of([0.4, 0.9, 2.0, 3.0], 0.01))
    z = (y - y.mean()) / y.std()
    model = botorch.models.SingleTaskGP(torch.tensor(X), torch.tensor(z)[:, None], outcome_transform=None)
    model.covar_module.lengthscale = torch.tensor([[0.4, 0.9, 2.0, 3.0]], dtype=torch.float64)
    model.likelihood.noise = torch.tensor([0.01 + 1e-8], dtype=torch.float64)
    model.mean_module.constant.data.fill_(0.0)
    model.eval()
    theirs = model(torch.tensor(Xs))
    mean, covariance, _ = ours.joint(Xs)
    assert mean == pytest.approx(y.mean() + y.std() * theirs.mean.detach().numpy(), abs=1e-6)
    assert covariance == pytest.approx(y.var() * theirs.covariance_matrix.detach().numpy(), abs=1e-6)


def test_the_same_prior_as_botorch():
    torch, botorch = pytest.importorskip("torch"), pytest.importorskip("botorch")
    X, y = data()
    prior = botorch.models.SingleTaskGP(torch.tensor(X), torch.tensor(y)[:, None]).covar_module.lengthscale_prior
    posterior = Posterior(X, y, np.arange(4), REFINE)
    assert posterior.prior[:4] == pytest.approx(float(prior.loc.mean()))
    assert posterior.spread[:4] == pytest.approx(float(prior.scale.mean()))


@pytest.mark.parametrize("assumptions", [SEARCH, REFINE], ids=["search", "refine"])
def test_gradient_and_hessian_against_differences(assumptions):
    X, y = data(15, 3)
    posterior = Posterior(X, y, np.array([0, 1, 1]) if assumptions is SEARCH else np.arange(3), assumptions)
    theta = posterior.mode() + np.where(posterior.free, 0.1, 0.0)
    free, h = np.flatnonzero(posterior.free), 1e-4

    def at(*moves):
        moved = theta.copy()
        for i, step in moves:
            moved[i] += step
        return posterior.loss(moved)[0]

    gradient = [(at((i, h)) - at((i, -h))) / (2 * h) for i in free]
    assert posterior.loss(theta)[1][free] == pytest.approx(np.array(gradient), rel=1e-4, abs=1e-6)
    slow = [
        [
            (at((i, h), (j, h)) - at((i, h), (j, -h)) - at((i, -h), (j, h)) + at((i, -h), (j, -h))) / (4 * h * h)
            for j in free
        ]
        for i in free
    ]
    assert hessian(posterior, theta) == pytest.approx(np.array(slow), rel=1e-3, abs=1e-4)


def test_rank_one_equals_a_refit():
    X, y = data(16)
    theta = theta_of([0.5, 0.8, 2.0, 2.0], 0.02)
    rows = np.random.default_rng(3).random((6, 4))
    few = Posterior(X, y, np.arange(4), REFINE)
    mean, covariance, noise = few.process(theta).joint(rows)
    mean, covariance = update(mean, covariance, noise, 2, 0.7)
    more = Posterior(np.vstack([X, rows[2]]), np.append(y, 0.7), np.arange(4), REFINE)
    more.level, more.z = few.level, (np.append(y, 0.7) - few.level[0]) / few.level[1]  # the same units
    refitted = more.process(theta).joint(rows)
    assert mean == pytest.approx(refitted[0], abs=1e-6) and covariance == pytest.approx(refitted[1], abs=1e-6)


def test_leave_one_out_equals_leaving_one_out():
    X, y = data(12)
    theta = theta_of([0.5, 0.8, 2.0, 2.0], 0.02)
    whole = Posterior(X, y, np.arange(4), REFINE)
    mean, sd, truth = whole.process(theta).leave_one_out()
    assert truth == pytest.approx(y, abs=1e-6)
    for i in range(12):
        rest = Posterior(np.delete(X, i, 0), np.delete(y, i), np.arange(4), REFINE)
        rest.level, rest.z = whole.level, np.delete(whole.z, i)
        process = rest.process(theta)
        (m,), (s,) = process.predict(X[i : i + 1])
        assert mean[i] == pytest.approx(m, abs=1e-5) and sd[i] == pytest.approx(s, rel=1e-4)


def test_marginals_are_the_diagonal():
    for assumptions in (SEARCH, REFINE):
        X, y = data()
        process = fit_mode(X, y, np.arange(4), assumptions=assumptions)
        mean, covariance, noise = process.joint(X[:5] + 0.01)
        assert process.marginals(X[:5] + 0.01)[0] == pytest.approx(mean)
        assert process.marginals(X[:5] + 0.01)[1] == pytest.approx(np.diag(covariance), abs=1e-12)
        assert process.predict(X[:5] + 0.01)[1] == pytest.approx(np.sqrt(np.diag(covariance) + noise))


def test_known_seed_noise_is_a_floor():
    X, y = data()
    seed_sd = 0.5
    noisy = fit(Observations(X, y, seed_sd=seed_sd), fidelity=False, samples=0)
    assert np.sqrt(noisy.processes[0].noise) >= seed_sd * 0.999
    assert np.sqrt(fit(Observations(X, y), fidelity=False, samples=0).processes[0].noise) < 0.2
    assert with_noise(REFINE, 1e-9) == REFINE


def test_repeats_are_noise_and_not_duplicates():
    """Two results of one configuration: the mean is between them, and nothing fails."""
    X, y = data(10)
    both = fit(Observations(np.vstack([X, X[:1]]), np.append(y, y[0] + 0.5)), fidelity=False, samples=0)
    mean, _ = both.predict(X[:1])
    assert y[0] < mean[0] < y[0] + 0.5


def test_divergences_are_capped():
    y = np.array([2.0, 2.1, 2.2, 2.3, 9.0, np.nan, np.inf])
    capped, cap = winsorised(y)
    low, high = np.quantile([2.0, 2.1, 2.2, 2.3, 9.0], [0.25, 0.75])
    assert cap == high + 1.5 * (high - low) and (capped[4:] == cap).all() and (capped[:4] == y[:4]).all()
    assert (winsorised(np.array([np.nan, np.nan]))[0] == 0).all()
    X = np.random.default_rng(0).random((40, 2))
    smooth = np.sin(4 * X[:, 0]) + X[:, 1]
    spoilt = np.where(np.arange(40) == 7, np.nan, smooth)
    found = fit(Observations(X[:30], spoilt[:30]), fidelity=False).predict(X[30:])[0]
    assert np.corrcoef(found, smooth[30:])[0, 1] > 0.9


def test_averaging_is_reproducible_and_wider_where_little_is_known():
    X, y = data(8)
    seen = Observations(X, y)
    one, again, mode = fit(seen, False, seed=3), fit(seen, False, seed=3), fit(seen, False, samples=0)
    rows = np.random.default_rng(9).random((50, 4))
    assert (one.predict(rows)[0] == again.predict(rows)[0]).all() and len(one.processes) == 26
    assert one.weights.sum() == pytest.approx(1.0) and one.processes[0].theta == pytest.approx(mode.processes[0].theta)
    assert one.predict(rows)[1].mean() > mode.predict(rows)[1].mean()
    assert one.predict(rows, scale=2.0)[1] == pytest.approx(2 * one.predict(rows)[1])


def test_mixture_moments():
    X, y = data(8)
    found: Averaged = fit(Observations(X, y), False)
    rng, row = np.random.default_rng(0), X[:1] + 0.2
    mean, sd = np.array([process.predict(row) for process in found.processes])[:, :, 0].T
    which = rng.choice(26, size=40000, p=found.weights)
    draws = mean[which] + sd[which] * rng.standard_normal(40000)
    (mean,), (sd,) = found.predict(X[:1] + 0.2)
    assert mean == pytest.approx(np.mean(draws), abs=4 * np.std(draws) / 200)
    assert sd == pytest.approx(np.std(draws), rel=0.02)


def test_laplace_draws_stay_within_bounds():
    X, y = data(6)
    posterior = Posterior(X, y, np.arange(4), REFINE)
    thetas, weights = laplace(posterior, posterior.mode(), 24, np.random.default_rng(0))
    free = posterior.free
    assert (thetas[:, free] >= posterior.low[free] - 1e-12).all()
    assert (thetas[:, free] <= posterior.high[free] + 1e-12).all()
    assert (thetas[:, ~free] == thetas[0, ~free]).all() and (weights > 0).all()


def test_more_tokens_lower_the_loss_on_average():
    """The trend over the fidelity is removed and restored, so cheap results predict full trainings."""
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.random((30, 2)), rng.choice([0.0, 0.5, 1.0], size=30)])
    y = 3.0 + (X[:, 0] - 0.5) ** 2 - 0.4 * X[:, 2]
    found = fit(Observations(X, y), fidelity=True)
    assert found.slope == pytest.approx(-0.4, abs=0.1)
    mean, _ = found.predict(np.array([[0.5, 0.5, 1.0], [0.5, 0.5, 0.0]]))
    assert mean == pytest.approx([2.6, 3.0], abs=0.05)
    assert fit(Observations(X, 6.0 - y), fidelity=True).slope == 0.0  # never upwards


def test_pending_trials_leave_the_mean_and_take_uncertainty():
    X, y = data()
    found = fit(Observations(X, y), False, samples=0)
    rows = np.random.default_rng(1).random((5, 4))
    mean, covariance, _ = condition(np.zeros((0, 4)), found, rows)
    with_mean, with_covariance, _ = condition(rows[2:3], found, rows)
    assert with_mean == pytest.approx(mean) and with_covariance[2, 2] < covariance[2, 2]
    assert (np.diag(with_covariance) <= np.diag(covariance) + 1e-12).all()
