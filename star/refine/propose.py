"""What to try next: a pure function of (pool, observations, seed, step), so that a resumed refinement proposes the
same.

    pool = Pool(X, fidelities=(0.2, 0.5, 1.0), cost=cost)
    proposal = propose(pool, Observations(rows, losses), seed=0, step=12, budget=4.0)
    proposal.candidate, proposal.fidelity          # None, None: stop
    proposal.mean, proposal.sd                     # what it should measure: keep it, it is judged afterwards

Bayesian optimization proposes. A policy, if there is one, learns in worlds drawn from the posterior of this step and
takes the choice over where it beats Bayesian optimization there.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np
import torch

from star.refine.candidates import KINDS, Pool, fidelity_coordinate
from star.refine.imagine import NOTHING, Scene, dream
from star.refine.policy import Policy, PolicySettings, Verdict, choose, gate, learn, lesson
from star.surrogate.acquisition import knowledge_gradient, log_ei, log_hypervolume_gain, log_rate, reduction
from star.surrogate.posterior import SAMPLES, Averaged, Observations, condition, fit, whitened


@dataclass(frozen=True)
class Settings:
    """How proposals are made. price: nats of loss that one full training is worth; above 0 a proposal may be to stop."""

    samples: int = SAMPLES  # hyperparameters that are averaged over, for what is reported and imagined
    price: float = 0.0
    gated: bool = True  # the policy acts only where it wins in imagination
    policy: PolicySettings = field(default_factory=PolicySettings)
    gradient: bool = False  # rank by knowledge gradient per cost where there are several fidelities


@dataclass(frozen=True)
class Proposal:
    """The action to try, or None to stop; what the averaged posterior expects of it, noise included (nats); who chose
    it, and a log.
    """

    action: int | None
    candidate: int | None
    fidelity: float | None
    mean: float
    sd: float
    source: str  # bayes or policy
    log: dict[str, float]


def propose(
    pool: Pool, seen: Observations, settings: Settings = Settings(), policy: Policy | None = None, budget: float = math.inf,
    seed: int = 0, step: int = 0, front: np.ndarray | None = None, scale: float = 1.0, level: Callable[[Averaged], np.ndarray] | None = None,
) -> Proposal:  # fmt: skip
    """The next trial, given at least one observation. Without a policy: Bayesian optimization alone.

    budget: full trainings left. front [k, 1 + m]: the losses and exact objectives of the present front; with it, trials
    are worth what they add to its hypervolume. level(posterior) [n]: instead, the loss that each candidate must beat
    (that of its own member, say); by default all must beat the best. scale: of the reported sd, from
    `star.surrogate.calibration.inflation`.
    """
    k = len(pool.fidelities)
    posterior, rows = fit(seen, k > 1, seed, settings.samples), pool.rows()
    belief = _Belief(pool, posterior, seen, rows, front, settings, budget, level and level(posterior))
    legal = pool.open.ravel() & (pool.cost.ravel() <= budget * (1 + 1e-9))
    scores = np.where(legal, belief.scores, -np.inf)
    stop = (
        not legal.any() or scores.max() <= NOTHING or (settings.price > 0 and scores.max() < math.log(settings.price))
    )
    action, source = None if stop else int(scores.argmax()), "bayes"
    log: dict[str, float] = {"log_worth": float(scores.max()) if legal.any() else -math.inf, "best": posterior.best}
    if policy is not None and legal.any():
        chosen, log_policy = _consult(policy, pool, belief, scores, legal, settings, budget, seed, step)
        log |= log_policy
        if log["acts"] or not settings.gated:
            source = "policy" if chosen != action else "bayes"
            action = chosen
    if action is None:
        return Proposal(None, None, None, posterior.best, 0.0, source, log)
    mean, sd = posterior.predict(rows[action : action + 1], scale)
    return Proposal(action, action // k, pool.fidelities[action % k], float(mean[0]), float(sd[0]), source, log)


def recommend(
    pool: Pool, seen: Observations, seed: int = 0, tried: Sequence[int] | None = None
) -> tuple[int, float, float]:
    """The candidate with the lowest averaged mean at full fidelity, of those tried (at any fidelity) or of all; its
    mean and sd.
    """
    posterior = fit(seen, len(pool.fidelities) > 1, seed)
    among = np.arange(pool.n) if tried is None else np.unique(np.asarray(tried, int))
    mean, sd = posterior.predict(pool.rows()[pool.full()[among]])
    best = int(mean.argmin())
    return int(among[best]), float(mean[best]), float(sd[best])


def spread(X: np.ndarray, n: int, rng: np.random.Generator, first: Sequence[int] = ()) -> list[int]:
    """n rows of X [m, d] far from each other (greedy maximin), beginning with `first`: an initial design."""
    chosen = list(first)[:n] or [int(rng.integers(len(X)))]
    far = np.min([((X - X[i]) ** 2).sum(axis=1) for i in chosen], axis=0)
    while len(chosen) < min(n, len(X)):
        far[chosen] = -1.0
        chosen.append(int(rng.choice(np.flatnonzero(far >= far.max() - 1e-12))))
        far = np.minimum(far, ((X - X[chosen[-1]]) ** 2).sum(axis=1))
    return chosen


class _Belief:
    """The most probable process on the whole pool, pending trials taken as predicted, and what each action is worth."""

    def __init__(self, pool: Pool, posterior: Averaged, seen: Observations, rows: np.ndarray, front: np.ndarray | None, settings: Settings, budget: float, level: np.ndarray | None = None):  # fmt: skip
        self.posterior, self.seen, self.rows = posterior, seen, rows
        k = len(pool.fidelities)
        self.own = np.repeat(pool.full(), k)
        self.cheap, self.gradient, self.best = k > 1, settings.gradient, posterior.best
        if self.cheap or len(seen.pending):
            self.mean, covariance, self.noise = condition(seen.pending, posterior, rows)
            variance, moves = np.diag(covariance), reduction(covariance, self.noise, self.own)
        else:
            process = posterior.processes[0]
            (self.mean, variance), self.noise = process.marginals(rows), process.noise
            self.mean = self.mean + (seen.prior(rows) if seen.prior else 0.0)
            moves = np.sqrt(variance)
        sd, cost = np.sqrt(np.maximum(variance, 0.0)), pool.cost.ravel()
        self.offset = np.zeros(
            len(rows)
        )  # the loss that a candidate must beat at its size and cache; 0 if the loss alone counts
        if front is not None:
            self.offset, self.best = np.repeat(thresholds(front, pool.exact), k), 0.0
            gain = _hypervolume(front, np.repeat(pool.exact, k, axis=0))
        elif level is not None:
            self.offset, self.best = np.repeat(level, k), 0.0
            offset = torch.as_tensor(self.offset)
            gain = lambda mean, sd: log_ei(
                (mean - offset.view(-1, *[1] * (mean.dim() - 1))).reshape(1, -1), sd.reshape(1, -1), torch.zeros(1)
            ).view_as(mean)
        else:
            best = torch.tensor(posterior.best)
            gain = lambda mean, sd: log_ei(mean.reshape(1, -1), sd.reshape(1, -1), best[None]).view_as(mean)  # noqa: E731
        m, s, v, c = (
            torch.as_tensor(part) for part in (self.mean[self.own], sd[self.own], np.minimum(moves, sd[self.own]), cost)
        )
        self.scores = (gain(m, s) - c.log()).numpy()
        if self.cheap and self.gradient and front is None:
            batch = torch.as_tensor(self.mean)[None], torch.as_tensor(covariance)[None], torch.tensor([self.noise])
            learnt = knowledge_gradient(*batch, torch.as_tensor(pool.full())[None])[0].numpy()
            self.scores = np.log(learnt + 1e-9 * moves + 1e-30) - np.log(cost)
        elif self.cheap:
            full = cost[self.own]
            first = log_rate(gain, m, s, v, c, torch.as_tensor(full)).numpy()
            possible = pool.open.ravel()[self.own] & (cost + full <= budget * (1 + 1e-9))
            at_once = self.own == np.arange(len(rows))
            self.scores = np.where(at_once, self.scores, np.where(possible, first, NOTHING))
        self.scores = np.maximum(self.scores, NOTHING)

    def scene(self, pool: Pool, chosen: np.ndarray, legal: np.ndarray, budget: float, settings: Settings) -> Scene:
        """Of the actions `chosen`, which hold the target of each."""
        at = {int(action): i for i, action in enumerate(chosen)}
        mean, covariance, noise = condition(self.seen.pending, self.posterior, self.rows[chosen])
        own = [at[int(self.own[a])] for a in chosen]
        parts = {
            "mean": mean - self.offset[chosen], "covariance": covariance, "noise": np.array(noise), "cost": pool.cost.ravel()[chosen],
            "targets": np.array(sorted(set(own))), "own": np.array(own), "open": legal[chosen], "best": np.array(self.best),
            "scale": np.array(self.posterior.processes[0].level[1]), "facts": facts(pool)[chosen], "budget": np.array(budget),
            "price": np.array(settings.price), "scores": self.scores[chosen],
        }  # fmt: skip
        return Scene(
            **{name: torch.as_tensor(part)[None] for name, part in parts.items()},
            cheap=self.cheap,
            gradient=self.gradient,
        )


def _consult(policy, pool, belief, scores, legal, settings, budget, seed, step) -> tuple[int | None, dict[str, float]]:
    """What the policy would do after learning in this posterior, and the log: acts, gain, low, entropy, kl."""
    s, rng = settings.policy, np.random.default_rng([seed, step, 1])
    chosen = shortlist(pool, scores, belief.mean - belief.offset, s.actions, rng)
    left = min(budget, s.steps * float(pool.cost.ravel()[chosen].max()))
    scene = belief.scene(pool, chosen, legal, left, settings)
    roots = [whitened(belief.rows[chosen], belief.posterior, i) for i in range(len(belief.posterior.processes))]
    roots = [(mean - belief.offset[chosen], root) for mean, root in roots]
    imagined = lambda pairs: dream(roots, belief.posterior.weights, math.sqrt(belief.noise), pairs, rng)  # noqa: E731
    learned, history = learn(policy, repeat(lesson(scene, imagined(s.pairs), s), s.updates), s)
    found = choose(learned, scene, s)
    verdict = Verdict(False, 0.0, 0.0, 0)
    if settings.gated and found.action != found.bayes:  # otherwise there is nothing to decide
        verdict = gate(scene, imagined(s.gate_pairs), found.action, found.bayes, s)
    log = {
        "acts": verdict.acts,
        "agrees": found.action == found.bayes,
        "gain": verdict.gain,
        "low": verdict.low,
        "entropy": found.entropy,
        "kl": found.kl,
    }
    if history:
        log["learned"] = history[-1]["gain"]
    return (None if found.action == len(chosen) else int(chosen[found.action])), log


def shortlist(pool: Pool, scores: np.ndarray, mean: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Actions [<= most] that imagination is about: of the candidates worth most, expected best and some by lot, all
    fidelities.
    """
    k = len(pool.fidelities)
    n = max(1, min(pool.n, most // k))
    worth, expected = scores.reshape(-1, k).max(axis=1), mean[pool.full()]
    kept = list(
        dict.fromkeys(
            [*np.argsort(-worth, kind="stable")[: max(1, n // 2)], *np.argsort(expected, kind="stable")[: n // 4]]
        )
    )
    rest = np.setdiff1d(np.arange(pool.n), kept)
    kept = np.sort([*kept, *rng.choice(rest, size=min(len(rest), n - len(kept)), replace=False)]).astype(int)
    return (kept[:, None] * k + np.arange(k)).ravel()


def facts(pool: Pool) -> np.ndarray:
    """Of each action what does not change [n * k, FACTS]: fidelity, kind of edit, inherits, distance, exact objectives
    within the pool.
    """
    k = len(pool.fidelities)
    exact = np.zeros((pool.n, 2))
    m = min(2, pool.exact.shape[1])
    low, high = (pool.exact[:, :m].min(axis=0), pool.exact[:, :m].max(axis=0)) if m else (0.0, 1.0)
    exact[:, :m] = (pool.exact[:, :m] - low) / np.where(high > low, high - low, 1.0)
    each = np.column_stack([np.eye(len(KINDS))[pool.kind], pool.inherits, np.minimum(pool.distance / 4, 1.0), exact])
    return np.column_stack(
        [np.tile(fidelity_coordinate(np.array(pool.fidelities)), pool.n), np.repeat(each, k, axis=0)]
    )


def thresholds(front: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Loss [n] that a candidate with exact objectives [n, m] must beat: the lowest of the front [k, 1 + m] that is as
    small; else the highest.
    """
    as_small = (front[None, :, 1:] <= exact[:, None, :] + 1e-12).all(axis=2)  # [n, k]
    lowest = np.where(as_small, front[None, :, 0], np.inf).min(axis=1)
    return np.where(np.isfinite(lowest), lowest, front[:, 0].max())


def _hypervolume(front: np.ndarray, exact: np.ndarray) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Log expected gain in hypervolume as a function of mean and sd of the loss, [P] or [P, nodes]; exact [P, m]."""
    low, high = front.min(axis=0), front.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    scaled, others = np.unique((front - low) / span, axis=0), (exact - low[1:]) / span[1:]

    def gain(mean: torch.Tensor, sd: torch.Tensor) -> torch.Tensor:
        means, sds = (part.reshape(len(others), -1).numpy() for part in (mean, sd))
        columns = [
            log_hypervolume_gain(np.column_stack([(m - low[0]) / span[0], others]), s / span[0], 0, scaled)
            for m, s in zip(means.T, sds.T, strict=True)
        ]
        return torch.as_tensor(np.maximum(np.stack(columns, axis=1), NOTHING)).view_as(mean)

    return gain
