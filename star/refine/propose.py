"""What to try next: a pure function of (pool, observations, seed, step), so that a resumed refinement proposes the same.

    pool = Pool(X, fidelities=(0.2, 0.5, 1.0), cost=cost)
    proposal = propose(pool, Observations(rows, losses), seed=0, step=12, budget=4.0)
    proposal.candidate, proposal.fidelity          # None, None: stop
    proposal.mean, proposal.sd                     # what it should measure: keep it, it is judged afterwards

Bayesian optimization proposes. A policy, if there is one, learns in worlds drawn from the posterior of this step and takes the choice
over where it beats Bayesian optimization there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from star.refine.acquisition import knowledge_gradient, log_ei, log_hypervolume_gain, reduction
from star.refine.imagine import Scene, dream, repeat
from star.refine.policy import Policy, PolicySettings, gate, learn, preferences
from star.refine.pool import KINDS, Observations, Pool, fidelity_coordinate
from star.refine.posterior import SAMPLES, Averaged, condition, fit, whitened


@dataclass(frozen=True)
class Settings:
    """How proposals are made. price: nats of loss that one full training is worth; above 0 a proposal may be to stop."""

    samples: int = SAMPLES  # hyperparameters that are averaged over, for what is reported and imagined
    price: float = 0.0
    gated: bool = True  # the policy acts only where it wins in imagination
    policy: PolicySettings = field(default_factory=PolicySettings)
    single: bool = False  # rank by log EI per cost at full fidelity even where there are cheaper ones


@dataclass(frozen=True)
class Proposal:
    """The action to try, or None to stop; what the averaged posterior expects of it, noise included (nats); who chose it, and a log."""

    action: int | None
    candidate: int | None
    fidelity: float | None
    mean: float
    sd: float
    source: str  # bayes or policy
    log: dict[str, float]


def propose(
    pool: Pool, seen: Observations, settings: Settings = Settings(), policy: Policy | None = None, budget: float = math.inf,
    seed: int = 0, step: int = 0, front: np.ndarray | None = None, scale: float = 1.0,
) -> Proposal:  # fmt: skip
    """The next trial, given at least one observation. Without a policy: Bayesian optimization alone.

    budget: full trainings left. front [k, 1 + m]: the losses and exact objectives of the present front; with it, trials are worth
    what they add to its hypervolume. scale: of the reported sd, from `star.assess.calibration.inflation`.
    """
    k = len(pool.fidelities)
    posterior, rows = fit(seen, k > 1, seed, settings.samples), pool.rows()
    belief = _Belief(pool, posterior, seen, rows, front, settings)
    legal = pool.open.ravel() & (pool.cost.ravel() <= budget * (1 + 1e-9))
    scores = np.where(legal, belief.scores, -np.inf)
    stop = not legal.any() or (settings.price > 0 and scores.max() < math.log(settings.price))
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


def recommend(pool: Pool, seen: Observations, seed: int = 0, tried: Sequence[int] | None = None) -> tuple[int, float, float]:
    """The candidate with the lowest averaged mean at full fidelity, of those tried (at any fidelity) or of all; its mean and sd."""
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

    def __init__(self, pool: Pool, posterior: Averaged, seen: Observations, rows: np.ndarray, front: np.ndarray | None, settings: Settings):
        self.posterior, self.seen, self.rows = posterior, seen, rows
        k = len(pool.fidelities)
        self.own = np.repeat(pool.full(), k)
        cheap = k > 1 and not settings.single
        # What a candidate must beat at its size and cache; 0 everywhere if the loss alone counts.
        self.offset, self.best = np.zeros(len(rows)), posterior.best
        if cheap or len(seen.pending) or front is not None:
            self.mean, self.covariance, self.noise = condition(seen.pending, posterior, rows)
        else:
            process = posterior.processes[0]
            mean, variance = process.marginals(rows)
            self.mean, self.covariance, self.noise = mean + posterior.slope * (rows[:, -1] - 1.0), np.diag(variance), process.noise
        if front is not None:
            self.offset = np.repeat(thresholds(front, pool.exact), k)
            self.best = 0.0
            self.scores = _hypervolume_scores(pool, self.mean, self.covariance, self.noise, self.own, front)
        elif cheap:
            batch = torch.as_tensor(self.mean)[None], torch.as_tensor(self.covariance)[None], torch.tensor([self.noise])
            gain = knowledge_gradient(*batch, torch.as_tensor(pool.full())[None])[0].numpy()
            self.scores = np.log(gain + 1e-9 * reduction(self.covariance, self.noise, self.own) + 1e-30)
        else:
            sd = torch.as_tensor(np.sqrt(np.maximum(np.diag(self.covariance), 0.0)))[None]
            self.scores = log_ei(torch.as_tensor(self.mean)[None], sd, torch.tensor([posterior.best]))[0].numpy()
            self.scores[np.arange(len(rows)) % k < k - 1] = -np.inf
        self.scores = self.scores - np.log(pool.cost.ravel())
        self.cheap = cheap

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
        return Scene(**{name: torch.as_tensor(part)[None] for name, part in parts.items()}, cheap=self.cheap)


def _consult(policy, pool, belief, scores, legal, settings, budget, seed, step) -> tuple[int | None, dict[str, float]]:
    """What the policy would do after learning in this posterior, and the log: acts, gain, low, entropy, kl."""
    s, rng = settings.policy, np.random.default_rng([seed, step, 1])
    chosen = shortlist(pool, scores, belief.mean - belief.offset, s.actions, rng, settings.single)
    left = min(budget, s.steps * float(pool.cost.ravel()[chosen].max()))
    scene = belief.scene(pool, chosen, legal, left, settings)
    roots = [whitened(belief.rows[chosen], belief.posterior, i) for i in range(len(belief.posterior.processes))]
    roots = [(mean - belief.offset[chosen], root) for mean, root in roots]
    noise_sd, weights = math.sqrt(belief.noise), belief.posterior.weights

    def episodes(_: int):
        return repeat(scene, s.worlds), dream(roots, weights, noise_sd, s.worlds // 2, rng), s.steps

    learned, history = learn(policy, episodes, s.updates, s, seed=int(rng.integers(2**31)))
    verdict = gate(learned, repeat(scene, 2 * s.pairs), dream(roots, weights, noise_sd, s.pairs, rng), s.steps, s.confidence)
    found = preferences(learned, scene)
    best = int(np.argmax(found["policy"]))
    log = {"acts": verdict.acts, "gain": verdict.gain, "low": verdict.low, "entropy": found["entropy"], "kl": found["kl"]}
    if history:
        log["learned"] = float(np.mean([h["gain"] for h in history]))
    return (None if best == len(chosen) else int(chosen[best])), log


def shortlist(pool: Pool, scores: np.ndarray, mean: np.ndarray, most: int, rng: np.random.Generator, single: bool = False) -> np.ndarray:
    """Actions [<= most] that imagination is about: of the candidates worth most, expected best and some by lot, all fidelities."""
    k = len(pool.fidelities)
    n = max(1, min(pool.n, most // (1 if single else k)))
    worth, expected = scores.reshape(-1, k).max(axis=1), mean[pool.full()]
    kept = list(dict.fromkeys([*np.argsort(-worth, kind="stable")[: n // 2], *np.argsort(expected, kind="stable")[: n // 4]]))
    rest = np.setdiff1d(np.arange(pool.n), kept)
    kept = np.sort([*kept, *rng.choice(rest, size=min(len(rest), n - len(kept)), replace=False)]).astype(int)
    return pool.full()[kept] if single else (kept[:, None] * k + np.arange(k)).ravel()


def facts(pool: Pool) -> np.ndarray:
    """Of each action what does not change [n * k, FACTS]: fidelity, kind of edit, inherits, distance, exact objectives within the pool."""
    k = len(pool.fidelities)
    exact = np.zeros((pool.n, 2))
    m = min(2, pool.exact.shape[1])
    low, high = (pool.exact[:, :m].min(axis=0), pool.exact[:, :m].max(axis=0)) if m else (0.0, 1.0)
    exact[:, :m] = (pool.exact[:, :m] - low) / np.where(high > low, high - low, 1.0)
    each = np.column_stack([np.eye(len(KINDS))[pool.kind], pool.inherits, np.minimum(pool.distance / 4, 1.0), exact])
    return np.column_stack([np.tile(fidelity_coordinate(np.array(pool.fidelities)), pool.n), np.repeat(each, k, axis=0)])


def thresholds(front: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Loss [n] that a candidate with exact objectives [n, m] must beat: the lowest of the front [k, 1 + m] that is as small; else the highest."""
    as_small = (front[None, :, 1:] <= exact[:, None, :] + 1e-12).all(axis=2)  # [n, k]
    lowest = np.where(as_small, front[None, :, 0], np.inf).min(axis=1)
    return np.where(np.isfinite(lowest), lowest, front[:, 0].max())


def _hypervolume_scores(pool, mean, covariance, noise, own, front) -> np.ndarray:
    """Log expected gain in hypervolume once the action is measured: of its candidate's mean at full fidelity, which moves by `reduction`."""
    exact = np.repeat(pool.exact, len(pool.fidelities), axis=0)
    low, high = front.min(axis=0), front.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    points = (np.column_stack([mean[own], exact]) - low) / span
    sd = reduction(covariance, noise, own) / span[0]
    return log_hypervolume_gain(points, sd, 0, np.unique((front - low) / span, axis=0))
