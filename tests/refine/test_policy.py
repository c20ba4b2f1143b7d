"""The policy: untrained it is Bayesian optimization, simulations teach it, the gate holds it back. Proposals are pure
functions.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from star.refine.policy import (
    CLOSED,
    Policy,
    PolicySettings,
    Scene,
    State,
    consult,
    delivered,
    gate,
    learn,
    observe,
    returns,
    sample_worlds,
    start,
    values,
)
from star.refine.propose import Pool, Settings, fidelity_coordinate, propose, thresholds
from star.surrogate.posterior import Observations, update

QUICK = PolicySettings(updates=3, pairs=8, gate_pairs=8, depth=3)
BAYES = Settings(policy=None, samples=0)


def scene(mean, sd, options=None, price=0.0, cost=None, own=None, budget=3.0, best=100.0, correlation=0.0, scores=None):
    """Actions as independent or equally correlated losses; by default all are full trainings and all are options."""
    mean, sd = (torch.tensor(part, dtype=torch.float64) for part in (mean, sd))
    P = len(mean)
    C = sd[:, None] * sd[None, :] * (correlation + (1 - correlation) * torch.eye(P, dtype=torch.float64))
    cost = torch.ones(P, dtype=torch.float64) if cost is None else torch.tensor(cost, dtype=torch.float64)
    own = torch.arange(P) if own is None else torch.tensor(own)
    now = Scene(
        mean, C, 0.01, cost, own, torch.ones(P, dtype=torch.bool), torch.arange(P), mean, best, 1.0, budget, price
    )
    found = values(now, start(now, 1))[0, :-1] if scores is None else torch.tensor(scores, dtype=torch.float64)
    if options is None:
        options = sorted(range(P), key=lambda i: -float(found[i])) + ([P] if price else [])
    return replace(now, scores=found, options=torch.tensor(options))


def worlds(now: Scene, pairs: int, seed: int = 0):
    root = np.linalg.cholesky(now.covariance.numpy() + 1e-12 * np.eye(len(now.mean)))
    return sample_worlds([(now.mean.numpy(), root)], np.ones(1), 0.1, pairs, np.random.default_rng(seed))


def problem(n: int = 30, k: int = 1, seed: int = 0, told: int = 10):
    """A pool and observations of a smooth function."""
    rng = np.random.default_rng(seed)
    shares = (0.1, 0.4, 1.0)[-k:]
    pool = Pool(rng.random((n, 2)), shares, open=None)
    rows = pool.rows()
    y = (rows[:, 0] - 0.6) ** 2 + 0.5 * (rows[:, 1] - 0.3) ** 2 - (0.3 * rows[:, 2] if k > 1 else 0.0)
    done = rng.choice(len(rows), size=told, replace=False)
    free = np.ones(len(rows), bool)
    free[done] = False
    return Pool(pool.X, shares, open=free.reshape(n, k)), Observations(rows[done], y[done]), y


# ---- the worked example of the text on which this is built


def test_eight_layers_after_simulation():
    """6 layers predicted at 20 (18 to 22), 8 layers at 17 (15 to 19): what it learns in simulations prefers 8."""
    now = scene([20.0, 17.0], [1.0, 1.0], options=[0, 1], budget=1.0, best=21.0, scores=[0.0, 0.0])
    settings = PolicySettings(depth=1, anchor=0.0, updates=60)
    policy = Policy(settings)
    assert policy(now).detach().numpy() == pytest.approx([0.0, 0.0])
    log = learn(policy, now, worlds(now, 32), settings)
    assert torch.softmax(policy(now), dim=0)[1] > 0.9 and log["learned"] > 1.0
    slow = returns(now, worlds(now, 2000, seed=1), now.options, 1).mean(dim=1)  # what it should have learned
    assert slow.tolist() == pytest.approx([-20.0, -17.0], abs=0.1)


# ---- untrained


@pytest.mark.parametrize("price", [0.0, 0.05])
def test_untrained_is_bayesian_optimization(price):
    now = scene([1.0, 0.8, 0.9, 0.7], [0.1, 0.3, 0.2, 0.05], price=price, best=0.9)
    logits = Policy(QUICK)(now)
    assert int(logits.argmax()) == 0, "the first option is the choice of Bayesian optimization"
    assert (logits.diff() <= 0).all() or price, "and the others follow in its order"
    assert now.options[0] == values(now, start(now, 1))[0].argmax()


def test_the_order_of_options_does_not_matter():
    now = scene([1.0, 0.8, 0.9, 0.7], [0.1, 0.3, 0.2, 0.05], price=0.01, best=0.9)
    policy = Policy(QUICK)
    torch.nn.init.normal_(policy.last.weight, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 0, 4, 2, 1])
    moved = policy(replace(now, options=now.options[order]))
    assert torch.allclose(policy(now)[order], moved, atol=1e-12)


def test_it_sees_uncertainty():
    policy = Policy(QUICK)
    torch.nn.init.normal_(policy.last.weight, generator=torch.Generator().manual_seed(0))
    narrow, wide = (scene([1.0, 0.8], sd, options=[0, 1], scores=[0.0, 0.0]) for sd in ([0.1, 0.1], [0.1, 0.5]))
    assert not torch.allclose(policy(narrow), policy(wide))


# ---- simulations


def test_a_state_is_conditioned_as_the_process_is():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(5, 5))
    mean, C = rng.normal(size=5), A @ A.T
    now = replace(scene(mean.tolist(), [1.0] * 5), covariance=torch.tensor(C))
    after = observe(now, start(now, 1), torch.tensor([3]), torch.tensor([0.4], dtype=torch.float64))
    slow = update(mean, C, 0.01, 3, 0.4)
    assert after.mean[0].numpy() == pytest.approx(slow[0]) and after.covariance[0].numpy() == pytest.approx(slow[1])
    assert not after.open[0, 3] and after.spent[0] == 1.0 and after.tried[0, 3]


def test_nothing_is_tried_twice_or_over_budget_and_stopping_is_final():
    now = scene([1.0, 0.9, 0.8, 0.7], [0.3] * 4, price=1e-3, cost=[0.5, 1.0, 0.5, 1.0], own=[1, 1, 3, 3], budget=2.0)
    generator = torch.Generator().manual_seed(0)
    state, stopped = start(now, 64), torch.zeros(64, dtype=torch.bool)
    for _ in range(6):
        legal = values(now, state) > CLOSED
        assert not (legal[:, :-1] & state.tried).any() and not legal[stopped][:, :-1].any() and legal.any(dim=1).all()
        action = torch.rand(legal.shape, generator=generator).masked_fill(~legal, -1.0).argmax(dim=1)
        stopped = stopped | (action == 4)
        state = observe(now, state, action, torch.zeros(64, dtype=torch.float64))
        assert (state.spent <= now.budget * (1 + 1e-9)).all() and (state.stopped == stopped).all()


def test_stops_where_no_trial_is_worth_its_price():
    for price, stops in ((1.0, True), (1e-6, False), (0.0, False)):
        now = scene([1.0, 1.05], [0.05, 0.05], best=1.0, price=price)
        assert (int(values(now, start(now, 1)).argmax()) == 2) == stops


def test_the_return_is_the_true_loss_of_what_was_trained_in_full_or_had_before():
    now = scene([1.0, 2.0], [1.0, 1.0], options=[0, 1, 2], price=0.1, budget=1.0, best=3.0)
    truth = torch.tensor([[5.0, 0.5], [0.7, 0.5]], dtype=torch.float64)
    found = returns(replace(now, best=0.9), (truth, torch.zeros(2, 2, dtype=torch.float64)), now.options, 1)
    # First world: option 0 measured 5, so 0.9 is still the best. Option 2 is stopping.
    assert found[0].tolist() == pytest.approx([-0.9 - 0.1, -0.7 - 0.1])
    assert found[1].tolist() == pytest.approx([-0.5 - 0.1] * 2) and found[2].tolist() == pytest.approx([-0.9, -0.9])


def test_a_cheap_trial_delivers_nothing():
    now = scene([0.0, 0.0], [1.0, 1.0], cost=[0.1, 1.0], own=[1, 1], best=0.5)
    state = observe(now, start(now, 1), torch.tensor([0]), torch.tensor([-3.0], dtype=torch.float64))
    assert isinstance(state, State) and delivered(now, state)[1] == 0.5


def test_worlds_have_the_moments_of_the_average():
    rng = np.random.default_rng(0)
    roots = [(np.array([0.0, 1.0]), np.array([[1.0, 0.0], [0.5, 0.2]])), (np.array([2.0, 0.0]), 0.1 * np.eye(2))]
    loss, noise = sample_worlds(roots, np.array([0.75, 0.25]), 0.3, 20_000, rng)
    assert loss.mean(dim=0).numpy() == pytest.approx([0.5, 0.75], abs=0.03)
    assert float(noise.std()) == pytest.approx(0.3, rel=0.02)
    sums = loss.unflatten(0, (2, -1)).mean(dim=0)  # antithetic: the mean of its process
    assert set(np.unique(sums[:, 0].numpy().round(9))) == {0.0, 2.0}


# ---- learning and the gate


def misled():
    """A scene where Bayesian optimization says 0 and the worlds say 1; the options differ in their uncertainty."""
    now = scene(
        [0.0] * 4, [0.1, 0.3, 0.1, 0.1], options=[0, 1, 2, 3], budget=1.0, best=1.0, scores=[1.0, 0.0, 0.0, 0.0]
    )
    loss = 0.05 * np.random.default_rng(0).standard_normal((64, 4))
    loss[:, 1] -= 1.0
    return now, (torch.tensor(loss), torch.zeros(64, 4, dtype=torch.float64))


def test_learning_finds_what_bayesian_optimization_misses_and_the_gate_lets_it():
    now, simulated = misled()
    settings = PolicySettings(depth=1, updates=60)
    assert int(Policy(settings)(now).argmax()) == 0
    option, log = consult(now, lambda pairs: simulated, settings)
    assert option == 1 and log["acts"] and not log["agrees"] and log["kl"] > 0.1
    assert log["gain"] == pytest.approx(1.0, abs=0.05) and 0.9 < log["low"] < log["gain"]


def test_the_gate_holds_back_what_is_worse_or_no_better():
    now = scene([0.0, 1.0], [0.5, 0.1], options=[0, 1], budget=1.0, best=1.0)
    worse, same = (gate(now, worlds(now, 64), option, PolicySettings(depth=1)) for option in (1, 0))
    assert not worse.acts and worse.gain < 0 and not same.acts and same.gain == 0.0
    option, log = consult(now, lambda pairs: worlds(now, pairs), PolicySettings(depth=1))
    assert option == 0 and not log["acts"]


def test_it_learns_that_a_cheap_trial_first_pays():
    """Two candidates with equal means: a cheap trial tells which one is good; the budget allows one full training."""
    own, cost = [1, 1, 3, 3], [0.05, 1.0, 0.05, 1.0]
    sd = torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    same = torch.tensor([[1, 0.99, 0, 0], [0.99, 1, 0, 0], [0, 0, 1, 0.99], [0, 0, 0.99, 1]], dtype=torch.float64)
    now = scene(
        [0.0] * 4, [1.0] * 4, options=[1, 0], cost=cost, own=own, budget=1.1, best=3.0, scores=[-1.0, 1.0, -2.0, 0.0]
    )
    now = replace(now, covariance=same * sd[:, None] * sd[None, :])
    option, log = consult(now, lambda pairs: worlds(now, pairs, seed=pairs), PolicySettings(updates=60, gate_pairs=96))
    assert option == 1 and log["acts"] and log["low"] > 0, "cheap first"


def test_learning_is_reproducible():
    now, simulated = misled()
    one, two = (consult(now, lambda pairs: simulated, QUICK) for _ in range(2))
    assert one == two


# ---- proposals


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("policy", [None, QUICK])
def test_proposals_are_pure_functions(k, policy):
    pool, seen, _ = problem(k=k)
    pool = replace(pool, member=np.arange(pool.n) % 3)
    one, two = (propose(pool, seen, Settings(policy, samples=4), 5.0, seed=1, step=7) for _ in range(2))
    assert one == two and pool.open.ravel()[one.action] and one.sd > 0
    if policy:
        assert {"gain", "low", "entropy", "kl", "acts"} <= set(one.log)


@pytest.mark.parametrize("k", [1, 3])
def test_a_gate_that_never_opens_is_bayesian_optimization(k):
    pool, seen, _ = problem(k=k)
    pool = replace(pool, member=np.arange(pool.n) % 3)
    alone = propose(pool, seen, Settings(None, samples=4), 5.0)
    gated = propose(pool, seen, Settings(replace(QUICK, confidence=1 - 1e-12), samples=4), 5.0)
    assert gated.action == alone.action and gated.source == "bayes"


def test_finds_the_best_of_a_pool():
    pool, seen, truth = problem(n=60, told=5)
    rows, y, free = list(seen.X), list(seen.y), pool.open.copy()
    for step in range(10):
        proposal = propose(Pool(pool.X, open=free), Observations(np.array(rows), np.array(y)), BAYES, step=step)
        rows.append(pool.rows()[proposal.action])
        y.append(truth[proposal.action])
        free.ravel()[proposal.action] = False
    assert min(y) == truth.min()


def test_pending_trials_are_not_proposed_again_and_spread_the_next():
    pool, seen, _ = problem(n=40)
    first = propose(pool, seen, BAYES)
    free = pool.open.copy()
    free.ravel()[first.action] = False
    waiting = Observations(seen.X, seen.y, pending=pool.rows()[first.action])
    alone, aware = (propose(Pool(pool.X, open=free), given, BAYES) for given in (seen, waiting))
    distance = [np.linalg.norm(pool.rows()[p.action] - pool.rows()[first.action]) for p in (alone, aware)]
    assert distance[1] >= distance[0] and aware.action != first.action


def test_budget_and_price_end_it():
    pool, seen, _ = problem(k=3)
    assert propose(pool, seen, BAYES, budget=0.05).action is None
    assert propose(pool, seen, BAYES, budget=0.9).action is None, "no full training would be affordable afterwards"
    assert propose(pool, seen, BAYES, budget=1.05).fidelity == 1.0
    for policy in (None, QUICK):
        assert propose(pool, seen, Settings(policy, samples=2, price=1e6)).action is None


def test_with_a_front_what_counts_is_the_gain():
    """Small candidates, of which the front has a bad one, and large ones, of which it has the best."""
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.random(40), np.repeat([0.0, 1.0], 20)])
    seen = Observations(np.array([[0.9, 0.0], [0.1, 0.0], [0.5, 1.0], [0.1, 1.0]]), np.array([2.0, 1.9, 1.0, 1.1]))
    pool, front = Pool(X, exact=X[:, 1:], member=np.repeat([0, 1], 20)), np.array([[1.9, 0.0], [1.0, 1.0]])
    assert np.isfinite(propose(pool, seen, BAYES, front=front).log["log_worth"])
    assert propose(pool, seen, Settings(QUICK, samples=2), front=front).action is not None
    assert thresholds(front, np.array([[0.0], [1.0], [-1.0]])).tolist() == [1.9, 1.0, 1.9]


def test_pool_refuses_what_cannot_be():
    with pytest.raises(ValueError, match=r"ascend to 1\.0"):
        Pool(np.zeros((2, 1)), fidelities=(1.0, 0.5))
    with pytest.raises(ValueError, match="above 0"):
        Pool(np.zeros((2, 1)), cost=np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="inputs must be"):
        Pool(np.zeros((2, 3, 1)), fidelities=(0.5, 1.0))


def test_rows():
    pool = Pool(np.array([[0.1], [0.2]]), (0.01, 1.0))
    assert pool.rows().tolist() == [[0.1, 0.0], [0.1, 1.0], [0.2, 0.0], [0.2, 1.0]] and pool.full().tolist() == [1, 3]
    assert pool.cost.tolist() == [[0.01, 1.0]] * 2 and fidelity_coordinate(0.1) == pytest.approx(0.5)
