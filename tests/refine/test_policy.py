"""The policy: untrained it is Bayesian optimization, imagination teaches it, the gate holds it back; proposals are pure
functions.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from star.refine.candidates import KINDS, Pool, fidelity_coordinate
from star.refine.imagine import Scene, Worlds, dream, greedy, outcomes, play, select, worth
from star.refine.policy import Policy, PolicySettings, choose, contenders, gate, learn, lesson
from star.refine.pretrain import lessons, pretrained, scenes, worlds_of
from star.refine.propose import Settings, facts, propose, recommend, shortlist, spread, thresholds
from star.refine.transfer import Source, contextual, widen
from star.surrogate.posterior import Observations, update

QUICK = PolicySettings(updates=2, pairs=8, gate_pairs=8, steps=3, actions=24, contenders=4)


def scene(
    mean, sd, price: float = 0.0, cost=None, budget: float = 3.0, best: float = 100.0, correlation: float = 0.0
) -> Scene:
    """One pool whose actions are all full trainings."""
    mean, sd = torch.tensor([mean], dtype=torch.float64), torch.tensor([sd], dtype=torch.float64)
    P = mean.shape[1]
    C = sd[:, :, None] * sd[:, None, :] * (correlation + (1 - correlation) * torch.eye(P, dtype=torch.float64))
    one = torch.ones(1, dtype=torch.float64)
    cost = torch.ones(1, P, dtype=torch.float64) if cost is None else torch.tensor([cost], dtype=torch.float64)
    return Scene(
        mean, C, 0.01 * one, cost, torch.arange(P)[None], torch.arange(P)[None], torch.ones(1, P, dtype=torch.bool), best * one, one,
        torch.zeros(1, P, 11, dtype=torch.float64), budget * one, price * one, cheap=False,
    )  # fmt: skip


def worlds(now: Scene, pairs: int, seed: int = 0) -> Worlds:
    root = np.linalg.cholesky(now.covariance[0].numpy())
    return dream([(now.mean[0].numpy(), root)], np.ones(1), 0.1, pairs, np.random.default_rng(seed))


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


def test_eight_layers_after_imagination():
    """6 layers predicted at 20 (18 to 22), 8 layers at 17 (15 to 19): what is learnt in imagined outcomes prefers 8."""
    now = scene([20.0, 17.0], [1.0, 1.0], budget=1.0)
    policy, settings = Policy(beta=0.0), PolicySettings(steps=1, anchor=0.0)  # no anchor: all that it prefers is learnt
    before = choose(policy, now, settings).probability
    assert before[0] == pytest.approx(before[1])
    learned, history = learn(policy, [lesson(now, worlds(now, 32), settings)] * 30, settings)
    after = choose(learned, now, settings).probability
    assert after[1] > 0.9 and after[1] > after[0] and history[-1]["gain"] > history[0]["gain"]
    slow = outcomes(now, worlds(now, 2000, seed=1), torch.tensor([[0, 1]]), 1)[0].mean(
        dim=1
    )  # what it should have learnt
    assert slow.tolist() == pytest.approx([-20.0, -17.0], abs=0.1)


# ---- untrained


@pytest.mark.parametrize("cheap, priced", [(False, False), (True, False), (True, True)])
def test_untrained_is_bayesian_optimization(cheap, priced):
    now = scenes(np.random.default_rng(1), 8, cheap, priced)
    truth = worlds_of(now, 1, np.random.default_rng(2))
    with torch.no_grad():
        mine, other = (play(now, truth.loss[:, 0], truth.noise[:, 0], chooser, 4) for chooser in (Policy(), greedy))
    assert (mine.first == other.first).all() and (mine.returns == other.returns).all()
    found = choose(Policy(), select(now, torch.tensor([3])), QUICK)
    assert found.kl == pytest.approx(0.0, abs=1e-12) and found.action == found.bayes == int(other.first[3])


def test_order_of_candidates_does_not_matter():
    now = scenes(np.random.default_rng(2), 2, True, True)
    policy = pretrained()
    n = now.mean.shape[1] // 3
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    moved = (order[:, None] * 3 + torch.arange(3)).ravel()
    back = torch.argsort(moved)
    other = Scene(
        now.mean[:, moved], now.covariance[:, moved][:, :, moved], now.noise, now.cost[:, moved], now.targets, back[now.own[:, moved]], now.open[:, moved],
        now.best, now.scale, now.facts[:, moved], now.budget, now.price, now.cheap,
    )  # fmt: skip
    with torch.no_grad():
        a, b = policy(now), policy(other)
    assert torch.allclose(a[:, moved], b[:, :-1], atol=1e-9) and torch.allclose(a[:, -1], b[:, -1], atol=1e-9)


def test_what_is_hidden_has_no_part():
    """Without uncertainty the logits are the same whatever the sds are."""
    policy = Policy(uncertainty=False)
    with torch.no_grad():
        torch.nn.init.normal_(policy.score.weight, generator=torch.Generator().manual_seed(0))
        a, b = policy(scene([1.0, 2.0, 1.5], [0.1, 0.2, 0.3])), policy(scene([1.0, 2.0, 1.5], [0.5, 0.01, 0.2]))
    assert torch.equal(a, b)


# ---- imagination


def test_a_scene_is_conditioned_as_the_process_is():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(5, 5))
    mean, C = rng.normal(size=5), A @ A.T
    now = scene(mean.tolist(), [1.0] * 5)
    now = Scene(
        **{name: getattr(now, name) for name in now.__dataclass_fields__} | {"covariance": torch.tensor(C)[None]}
    )
    after = now.observe(torch.tensor([3]), torch.tensor([0.4]))
    slow = update(mean, C, 0.01, 3, 0.4)
    assert after.mean[0].numpy() == pytest.approx(slow[0]) and after.covariance[0].numpy() == pytest.approx(slow[1])
    assert not after.open[0, 3] and after.spent[0] == 1.0 and after.tried[0, 3]


def test_nothing_is_tried_twice_or_over_budget_and_stopping_is_for_good():
    now = scenes(np.random.default_rng(3), 16, True, True)
    truth, seen = worlds_of(now, 1, np.random.default_rng(4)), []

    def watch(at: Scene) -> torch.Tensor:
        assert not (at.legal()[:, :-1] & at.tried).any()
        seen.append(at.stopped.clone())
        return torch.randn(
            at.legal().shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(seen))
        ).masked_fill(~at.legal(), -1e9)

    end = play(now, truth.loss[:, 0], truth.noise[:, 0], watch, 12)
    assert (end.spent <= now.budget * (1 + 1e-9)).all()
    assert all((after | ~before).all() for before, after in itertools.pairwise(seen))


def test_stops_where_no_trial_is_worth_its_price():
    now = scene([1.0, 1.05], [0.05, 0.05], best=1.0, price=1.0)
    assert int(greedy(now).argmax()) == 2 and int(Policy()(now).argmax()) == 2
    assert int(greedy(scene([1.0, 1.05], [0.05, 0.05], best=1.0, price=1e-6)).argmax()) < 2
    assert int(greedy(scene([1.0, 1.05], [0.05, 0.05], best=1.0, price=0.0)).argmax()) < 2


def test_return_is_the_true_loss_of_what_was_trained_in_full_or_had_before():
    now = scene([1.0, 2.0], [1.0, 1.0], price=0.1, budget=1.0, best=3.0)
    truth = Worlds(
        torch.tensor([[[5.0, 0.5], [0.7, 0.5]]], dtype=torch.float64), torch.zeros(1, 2, 2, dtype=torch.float64)
    )
    found = outcomes(now, truth, torch.tensor([[0, 1, 2]]), 1)[
        0
    ]  # in the first world 0 is worse than what was had; 2 is stopping
    assert found.tolist() == [
        pytest.approx([-3.0 - 0.1, -0.7 - 0.1]),
        pytest.approx([-0.5 - 0.1] * 2),
        pytest.approx([-3.0, -3.0]),
    ]


def test_outcomes_of_the_greedy_choice_are_those_of_greedy_play():
    now = scenes(np.random.default_rng(5), 3, True, False)
    truth = worlds_of(now, 2, np.random.default_rng(6))
    found = outcomes(now, truth, contenders(now, 2)[0], 4)
    for w in range(4):
        assert torch.equal(found[:, 0, w], play(now, truth.loss[:, w], truth.noise[:, w], greedy, 4).returns)


def test_worlds_have_the_moments_of_the_average():
    rng = np.random.default_rng(0)
    roots = [(np.array([0.0, 1.0]), np.array([[1.0, 0.0], [0.5, 0.2]])), (np.array([2.0, 0.0]), 0.1 * np.eye(2))]
    found = dream(roots, np.array([0.75, 0.25]), 0.3, 20_000, rng)
    assert found.loss[0].mean(dim=0).numpy() == pytest.approx([0.5, 0.75], abs=0.03)
    assert float(found.noise.std()) == pytest.approx(0.3, rel=0.02)
    sums = found.loss[0].unflatten(0, (2, -1)).mean(dim=0)  # antithetic: the mean of its process
    assert set(np.unique(sums[:, 0].numpy().round(9))) == {0.0, 2.0}


# ---- learning and the gate


def misled() -> tuple[Scene, Worlds]:
    """A pool where the scores of Bayesian optimization say 0 and the worlds say 1, which a fact tells apart."""
    now = scene([0.0] * 6, [0.1] * 6, budget=1.0, best=1.0)
    told = now.facts.clone()
    told[0, 1, 0] = 1.0
    now = replace(now, facts=told, scores=torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64))
    loss = 0.05 * np.random.default_rng(0).standard_normal((1, 64, 6))
    loss[:, :, 1] -= 1.0
    return now, Worlds(torch.tensor(loss), torch.zeros(1, 64, 6, dtype=torch.float64))


def test_learning_finds_what_greedy_misses_and_the_gate_lets_it():
    now, imagined = misled()
    settings = PolicySettings(steps=1)
    assert choose(Policy(), now, settings).action == 0
    learned, history = learn(Policy(), [lesson(now, imagined, settings)] * 60, settings)
    found = choose(learned, now, settings)
    assert found.action == 1 and found.bayes == 0 and history[-1]["kl"] > history[0]["kl"]
    verdict = gate(now, imagined, found.action, found.bayes, settings)
    assert verdict.acts and verdict.gain == pytest.approx(1.0, abs=0.05) and verdict.pairs == 32


def test_the_gate_holds_back_what_is_worse_or_no_better():
    now = scene([0.0, 1.0], [0.5, 0.1], budget=1.0, best=1.0)
    worse, same = (gate(now, worlds(now, 64), action, 0, PolicySettings(steps=1)) for action in (1, 0))
    assert not worse.acts and worse.gain < 0 and not same.acts and same.gain == 0.0


def test_contenders_begin_with_the_choice_of_bayesian_optimization_and_hold_stopping():
    now = scenes(np.random.default_rng(7), 20, True, True)
    actions, legal = contenders(now, 4)
    assert (actions[:, 0] == greedy(now).argmax(dim=1)).all() and legal[:, 0].all()
    assert (actions == now.mean.shape[1]).any(dim=1).all() and all(len(set(row)) == 4 for row in actions.tolist())


def test_the_gradient_is_that_of_the_expected_gain():
    """All contenders' policy gradient against differences of sum_a p(a) advantage(a)."""
    now, imagined = misled()
    settings = PolicySettings(steps=1, entropy=0.0, anchor=0.0, rate=1e-3)
    given, policy = lesson(now, imagined, settings), Policy()

    def expected(bias: float) -> float:
        with torch.no_grad():
            policy.score.weight[0, 0] = bias
            logits = policy(now).gather(1, given.actions).masked_fill(~given.legal, -1e9)
            return float((logits.softmax(dim=1) * given.advantage).sum())

    slope = (expected(1e-4) - expected(-1e-4)) / 2e-4
    expected(0.0)
    learned, _ = learn(policy, [given], settings)
    assert (
        np.sign(float(learned.score.weight.detach()[0, 0])) == np.sign(slope) != 0
    )  # Adam's first step follows the sign


def test_learning_is_reproducible_and_leaves_the_original_alone():
    start = pretrained()
    before = [p.clone() for p in start.parameters()]
    settings = PolicySettings(contenders=3, pairs=2)
    one, two = (learn(start, lessons(3, 5, settings, size=2), settings)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), before, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), before, strict=True))


# ---- proposals


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("rl", [False, True])
def test_proposals_are_pure_functions(k, rl):
    pool, seen, _ = problem(k=k)
    settings, policy = Settings(samples=4, policy=QUICK), pretrained() if rl else None
    one, two = (propose(pool, seen, settings, policy, 5.0, seed=1, step=7) for _ in range(2))
    assert one == two and pool.open.ravel()[one.action] and one.sd > 0
    if rl:
        assert {"gain", "low", "entropy", "kl", "acts"} <= set(one.log)


@pytest.mark.parametrize("k", [1, 3])
def test_a_gate_that_never_opens_is_bayesian_optimization(k):
    pool, seen, _ = problem(k=k)
    alone = propose(pool, seen, Settings(samples=4), None, 5.0)
    gated = propose(pool, seen, Settings(samples=4, policy=replace(QUICK, confidence=1 - 1e-12)), pretrained(), 5.0)
    assert gated.action == alone.action and gated.source == "bayes"
    untrained = propose(pool, seen, Settings(samples=4, gated=False, policy=replace(QUICK, updates=0)), Policy(), 5.0)
    assert untrained.action == alone.action


def test_finds_the_best_of_a_pool():
    pool, seen, truth = problem(n=60, told=5)
    rows, y, free = list(seen.X), list(seen.y), pool.open.copy()
    for step in range(10):
        proposal = propose(
            Pool(pool.X, open=free), Observations(np.array(rows), np.array(y)), Settings(samples=0), step=step
        )
        rows.append(pool.rows()[proposal.action])
        y.append(truth[proposal.action])
        free.ravel()[proposal.action] = False
    assert min(y) == truth.min()
    found, mean, sd = recommend(pool, Observations(np.array(rows), np.array(y)))
    assert truth[found] < np.quantile(truth, 0.05) and abs(mean - truth[found]) < 3 * sd + 0.01


def test_pending_trials_are_not_proposed_again_and_spread_the_next():
    pool, seen, _ = problem(n=40)
    first = propose(pool, seen, Settings(samples=0))
    free = pool.open.copy()
    free.ravel()[first.action] = False
    waiting = Observations(seen.X, seen.y, pending=pool.rows()[first.action])
    alone, aware = (propose(Pool(pool.X, open=free), given, Settings(samples=0)) for given in (seen, waiting))
    distance = [np.linalg.norm(pool.rows()[p.action] - pool.rows()[first.action]) for p in (alone, aware)]
    assert distance[1] >= distance[0] and aware.action != first.action


def test_budget_and_price_end_it():
    pool, seen, _ = problem(k=3)
    assert propose(pool, seen, Settings(samples=0), budget=0.05).action is None
    assert (
        propose(pool, seen, Settings(samples=0), budget=0.9).action is None
    )  # nothing could be trained in full any more
    assert propose(pool, seen, Settings(samples=0), budget=1.05).fidelity == 1.0
    assert propose(pool, seen, Settings(samples=0, gradient=True), budget=0.2).fidelity == 0.1
    assert propose(pool, seen, Settings(samples=0, price=1e6)).action is None


def test_with_a_front_what_counts_is_what_it_gains():
    """Two kinds of candidate: small ones, of which the front has a bad one, and large ones, of which it has the best."""
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.random(40), np.repeat([0.0, 1.0], 20)])
    exact = X[:, 1:]
    seen = Observations(np.array([[0.9, 0.0], [0.1, 0.0], [0.5, 1.0], [0.1, 1.0]]), np.array([2.0, 1.9, 1.0, 1.1]))
    proposal = propose(Pool(X, exact=exact), seen, Settings(samples=0), front=np.array([[1.9, 0.0], [1.0, 1.0]]))
    assert np.isfinite(proposal.log["log_worth"])
    with_policy = propose(
        Pool(X, exact=exact),
        seen,
        Settings(samples=2, policy=QUICK),
        pretrained(),
        front=np.array([[1.9, 0.0], [1.0, 1.0]]),
    )
    assert with_policy.action is not None
    assert thresholds(np.array([[1.9, 0.0], [1.0, 1.0]]), np.array([[0.0], [1.0], [-1.0]])).tolist() == [1.9, 1.0, 1.9]


# ---- pools, designs, transfer


def test_pool_refuses_what_cannot_be():
    with pytest.raises(ValueError, match=r"ascend to 1\.0"):
        Pool(np.zeros((2, 1)), fidelities=(1.0, 0.5))
    with pytest.raises(ValueError, match="above 0"):
        Pool(np.zeros((2, 1)), cost=np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="inputs must be"):
        Pool(np.zeros((2, 3, 1)), fidelities=(0.5, 1.0))


def test_rows_and_facts():
    pool = Pool(np.array([[0.1], [0.2]]), (0.01, 1.0), kind=np.array([0, 3]), exact=np.array([[1.0, 5.0], [3.0, 5.0]]))
    assert pool.rows().tolist() == [[0.1, 0.0], [0.1, 1.0], [0.2, 0.0], [0.2, 1.0]] and pool.full().tolist() == [1, 3]
    assert pool.cost.tolist() == [[0.01, 1.0]] * 2 and fidelity_coordinate(0.1) == pytest.approx(0.5)
    found = facts(pool)
    assert (
        found.shape == (4, 1 + len(KINDS) + 4)
        and found[2, 1 + 3] == 1.0
        and found[3, -2] == 1.0
        and found[3, -1] == 0.0
    )


def test_shortlist_keeps_the_best_and_whole_candidates():
    pool, _, _ = problem(n=50, k=3)
    scores, mean = np.arange(150.0), -np.arange(150.0)
    found = shortlist(pool, scores, mean, 30, np.random.default_rng(0))
    assert 149 in found and len(found) == 30 and len(set(found // 3)) == 10 and len(set(found)) == 30


def test_spread_is_spread():
    X = np.random.default_rng(0).random((100, 2))
    chosen = spread(X, 5, np.random.default_rng(1), first=[7])
    assert chosen[0] == 7 and len(set(chosen)) == 5
    far = min(np.linalg.norm(X[i] - X[j]) for i in chosen for j in chosen if i < j)
    assert far > 0.4
    assert len(spread(X[:3], 9, np.random.default_rng(0))) == 3


def test_a_related_task_helps_and_an_unrelated_one_is_dropped():
    rng = np.random.default_rng(0)
    f = lambda X: np.sin(6 * X[:, 0]) + X[:, 1] ** 2  # noqa: E731
    X, held = rng.random((6, 2)), rng.random((40, 2))
    alike = Source(XS := rng.random((30, 2)), f(XS) + 5.0)
    unlike = Source(XS, -3 * f(XS) + rng.standard_normal(30))
    from star.surrogate.posterior import fit

    alone = fit(Observations(X, f(X)), False).predict(held)[0]
    joined, kept = contextual(Observations(X, f(X)), [alike, unlike], False)
    assert kept == [0]
    both = fit(joined, False).predict(widen(held, 1, False))[0]
    assert np.abs(both - f(held)).mean() < 0.5 * np.abs(alone - f(held)).mean()
    assert widen(np.array([[0.1, 1.0]]), 2, True, 1).tolist() == [[0.1, 0.0, 1.0, 1.0]]


def test_worth_has_the_price_last():
    now = scene([1.0, 2.0], [0.1, 0.1], price=0.25)
    assert float(worth(now)[0, -1].exp()) == pytest.approx(0.25)
