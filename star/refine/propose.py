"""What to try next: a pure function of (pool, observations, seed, step), so a resumed refinement proposes the same.

    pool = Pool(X, fidelities=(0.2, 0.5, 1.0), cost=cost)
    proposal = propose(pool, Observations(rows, losses), seed=0, step=12, budget=4.0)
    proposal.candidate, proposal.fidelity          # None, None: stop
    proposal.mean, proposal.sd                     # the predicted measurement: recorded, and judged afterwards

Bayesian optimization ranks every candidate at every fidelity. The policy (`star.refine.policy`) may then choose another
member, another fidelity, or to stop.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from star.refine.policy import PolicySettings, Scene, consult, sample_worlds
from star.surrogate.acquisition import NOTHING, hypervolume_gain, improvement, log_rate, reduction, thresholds
from star.surrogate.posterior import SAMPLES, Averaged, Observations, condition, fit, whitened

LEAST_SHARE = 0.01  # of a full training: fidelity coordinate 0
CANDIDATES = 6  # of each member at each fidelity in simulations; the policy chooses among the first of each


def fidelity_coordinate(share: np.ndarray | float) -> np.ndarray:
    """A share of the full training's tokens as an input of the Gaussian process: logarithmic, 0.01 -> 0 and 1 -> 1."""
    return 1.0 - np.log(np.maximum(np.asarray(share, float), LEAST_SHARE)) / np.log(LEAST_SHARE)


@dataclass(frozen=True)
class Pool:
    """n candidates at k fidelities. An *action* is one candidate at one fidelity: candidate * k + fidelity.

    X: inputs in [0, 1], [n, d], or [n, k, d] where they depend on the fidelity. fidelities: shares of the full
    training's tokens, ascending to 1. cost [n, k]: in full trainings, or [n] of a full one; default: the fidelities.
    exact [n, m]: the other objectives, scaled, smaller is better. member [n]: index of the front member that a
    candidate comes from. open [n, k]: may be tried: neither done, nor pending, nor invalid. Raises ValueError for
    shapes that do not agree.
    """

    X: np.ndarray
    fidelities: tuple[float, ...] = (1.0,)
    cost: np.ndarray = None  # type: ignore[assignment]  # replaced by its default in __post_init__
    exact: np.ndarray = None  # type: ignore[assignment]  # replaced by its default in __post_init__
    member: np.ndarray = None  # type: ignore[assignment]  # replaced by its default in __post_init__
    open: np.ndarray = None  # type: ignore[assignment]  # replaced by its default in __post_init__
    n: int = field(init=False)

    def __post_init__(self):
        n, k = len(self.X), len(self.fidelities)
        if (
            list(self.fidelities) != sorted(set(self.fidelities))
            or self.fidelities[-1] != 1.0
            or self.fidelities[0] <= 0
        ):
            raise ValueError(f"fidelities must ascend to 1.0, not {self.fidelities}")
        shares, X = np.asarray(self.fidelities), np.asarray(self.X, float)
        cost = np.ones(n) if self.cost is None else np.asarray(self.cost, float)
        values = {
            "n": n,
            "X": np.repeat(X[:, None], k, axis=1) if X.ndim == 2 else X,
            "cost": cost[:, None] * shares if cost.ndim == 1 else cost,
            "exact": np.zeros((n, 0)) if self.exact is None else np.asarray(self.exact, float),
            "member": np.zeros(n, int) if self.member is None else np.asarray(self.member),
            "open": np.ones((n, k), bool) if self.open is None else np.asarray(self.open, bool),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if self.cost.shape != (n, k) or self.open.shape != (n, k) or not (self.cost > 0).all():
            raise ValueError("cost and open must be [candidates, fidelities], costs above 0")
        if self.X.shape[:2] != (n, k):
            raise ValueError(f"inputs must be [n, d] or [n, {k}, d], not {np.shape(self.X)}")

    def rows(self) -> np.ndarray:
        """Inputs of every action [n * k, d + 1]; the fidelity is the last column, absent if there is only one."""
        k, flat = len(self.fidelities), self.X.reshape(self.n * len(self.fidelities), -1)
        share = np.tile(fidelity_coordinate(np.array(self.fidelities)), self.n)
        return flat if k == 1 else np.column_stack([flat, share])

    def full(self) -> np.ndarray:
        """The actions [n] at full fidelity."""
        k = len(self.fidelities)
        return np.arange(self.n) * k + k - 1


@dataclass(frozen=True)
class Settings:
    """How proposals are made. policy: None for Bayesian optimization alone. price: nats that one full training is
    worth;
    above 0 a proposal may be to stop. samples: hyperparameters to average over, for reports and simulations."""

    policy: PolicySettings | None = field(default_factory=PolicySettings)
    price: float = 0.0
    samples: int = SAMPLES


@dataclass(frozen=True)
class Proposal:
    """The action to try, or None to stop; the prediction, noise included (nats); "bayes" or "policy"; a log."""

    action: int | None
    candidate: int | None
    fidelity: float | None
    mean: float
    sd: float
    source: str
    log: dict[str, float]


def propose(
    pool: Pool,
    seen: Observations,
    settings: Settings = Settings(),
    budget: float = math.inf,
    seed: int = 0,
    step: int = 0,
    front: np.ndarray | None = None,
    scale: float = 1.0,
    level: Callable[[Averaged], np.ndarray] | None = None,
) -> Proposal:
    """The next trial, given at least one observation.

    By default every candidate must beat the best. level(posterior) [n]: instead, the loss that each candidate must
    beat. front [k, 1 + m]: losses and exact objectives of the present front; then a trial is worth what it adds to the
    hypervolume. budget: full trainings left. scale: of the reported sd, from `star.surrogate.calibration.inflation`.
    """
    k = len(pool.fidelities)
    posterior = fit(seen, k > 1, seed, settings.samples)
    belief = Belief(pool, posterior, seen, front, budget, level and level(posterior))
    legal = pool.open.ravel() & (pool.cost.ravel() <= budget * (1 + 1e-9))
    scores = np.where(legal, belief.scores, -np.inf)
    top = float(scores.max()) if legal.any() else -math.inf
    stops = top <= NOTHING or (settings.price > 0 and top < math.log(settings.price))
    action, source = None if stops else int(scores.argmax()), "bayes"
    log: dict[str, float] = {"log_worth": top, "best": posterior.best}
    if settings.policy is not None and legal.any():
        scene, actions = belief.scene(pool, scores, legal, budget, settings, stops)
        rng = np.random.default_rng([seed, step, 1])
        option, found = consult(scene, lambda pairs: belief.worlds(actions, pairs, rng), settings.policy)
        log |= found
        if option:
            chosen = int(scene.options[option])
            action, source = (None if chosen == len(actions) else int(actions[chosen])), "policy"
    if action is None:
        return Proposal(None, None, None, posterior.best, 0.0, source, log)
    mean, sd = posterior.predict(belief.rows[action : action + 1], scale)
    return Proposal(action, action // k, pool.fidelities[action % k], float(mean[0]), float(sd[0]), source, log)


class Belief:
    """The most probable process on the whole pool, pending trials taken as predicted, and the value of each action.

    scores [n * k]: log value per cost: expected improvement or gain in hypervolume of a full training; of a cheap trial
    the rate of `star.surrogate.acquisition.log_rate`, NOTHING where the full training cannot follow.
    """

    def __init__(
        self,
        pool: Pool,
        posterior: Averaged,
        seen: Observations,
        front: np.ndarray | None,
        budget: float,
        level: np.ndarray | None,
    ):
        self.posterior, self.seen, self.rows, self.best = posterior, seen, pool.rows(), posterior.best
        k, cost = len(pool.fidelities), pool.cost.ravel()
        self.own = np.repeat(pool.full(), k)
        if k > 1 or len(seen.pending):
            self.mean, covariance, self.noise = condition(seen.pending, posterior, self.rows)
            variance, moves = np.diag(covariance), reduction(covariance, self.noise, self.own)
        else:
            process = posterior.processes[0]
            (self.mean, variance), self.noise = process.marginals(self.rows), process.noise
            self.mean = self.mean + (seen.prior(self.rows) if seen.prior else 0.0)
            moves = np.sqrt(variance)
        sd = np.sqrt(np.maximum(variance, 0.0))
        self.offset = np.zeros(len(self.rows))  # the loss that a candidate must beat; 0 where all must beat the best
        if front is not None:
            self.offset, self.best = np.repeat(thresholds(front, pool.exact), k), 0.0
            gain = hypervolume_gain(front, np.repeat(pool.exact, k, axis=0))
        else:
            if level is not None:
                self.offset, self.best = np.repeat(level, k), 0.0
            gain = improvement(self.offset, self.best)
        m, s, v, c = map(torch.as_tensor, (self.mean[self.own], sd[self.own], np.minimum(moves, sd[self.own]), cost))
        self.scores = (gain(m, s) - c.log()).numpy()
        if k > 1:
            full = cost[self.own]
            first = log_rate(gain, m, s, v, c, torch.as_tensor(full)).numpy()
            possible = pool.open.ravel()[self.own] & (cost + full <= budget * (1 + 1e-9))
            at_once = self.own == np.arange(len(self.rows))
            self.scores = np.where(at_once, self.scores, np.where(possible, first, NOTHING))
        self.scores = np.maximum(self.scores, NOTHING)

    def scene(
        self, pool: Pool, scores: np.ndarray, legal: np.ndarray, budget: float, settings: Settings, stops: bool
    ) -> tuple[Scene, np.ndarray]:
        """The two best candidates of each member at each fidelity, with their full trainings; and these actions [P]."""
        k, groups = len(pool.fidelities), []
        for member in np.unique(pool.member):
            for j in range(k):
                group = np.flatnonzero(np.repeat(pool.member == member, k) & (np.arange(len(scores)) % k == j) & legal)
                groups.append(group[np.argsort(-scores[group], kind="stable")][:CANDIDATES])
        actions = np.unique(np.concatenate([*groups, *(self.own[group] for group in groups)])).astype(int)
        at = {int(action): i for i, action in enumerate(actions)}
        options = sorted({at[int(group[0])] for group in groups if len(group)}, key=lambda i: -scores[actions[i]])
        if settings.price > 0:
            options.insert(0 if stops else len(options), len(actions))
        mean, covariance, noise = condition(self.seen.pending, self.posterior, self.rows[actions])
        settled = settings.policy or PolicySettings()
        tensor = torch.as_tensor
        scene = Scene(
            mean=tensor(mean - self.offset[actions]),
            covariance=tensor(covariance),
            noise=float(noise),
            cost=tensor(pool.cost.ravel()[actions]),
            own=tensor([at[int(self.own[action])] for action in actions]),
            open=tensor(legal[actions]),
            options=tensor(options),
            scores=tensor(np.maximum(np.where(legal[actions], self.scores[actions], NOTHING), NOTHING)),
            best=float(self.best),
            scale=float(self.posterior.processes[0].level[1]),
            budget=min(budget, settled.depth * float(pool.cost.ravel()[actions].max())),
            price=settings.price,
        )
        return scene, actions

    def worlds(self, actions: np.ndarray, pairs: int, rng: np.random.Generator):
        """Simulated truths of these actions, relative to what each must beat, from the averaged posterior."""
        roots = [whitened(self.rows[actions], self.posterior, i) for i in range(len(self.posterior.processes))]
        roots = [(mean - self.offset[actions], root) for mean, root in roots]
        return sample_worlds(roots, self.posterior.weights, math.sqrt(self.noise), pairs, rng)
