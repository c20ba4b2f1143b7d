"""Futures drawn from the posterior and played by any chooser: where a policy learns, and where it must beat Bayesian
optimization first.

A *scene* is a batch of pools of P actions with a belief about their losses. A *world* is one true loss for every
action, and one noise. A *chooser* gives every action, and stopping, a logit; what it tries is measured in the world,
and the belief is conditioned on it. The return of a play is minus the true loss of what is delivered at its end, minus
price x cost: in nats. Only what was trained in full can be delivered: the target with the lowest mean of those tried,
unless what was had before is better.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from star.surrogate.acquisition import knowledge_gradient, log_ei, log_rate

SHUT = -1e9  # logit of what may not be chosen
DEPTH = 12.0  # logs below the best at which scores are cut off
NODES = 10  # of quadrature, in imagination
NOTHING = -700.0  # score of what cannot lead to anything


@dataclass(frozen=True)
class Scene:
    """B pools of P actions, of which T are at full fidelity (the targets). float64 throughout."""

    mean: Tensor  # [B, P] nats
    covariance: Tensor  # [B, P, P] nats squared, of the noise-free loss
    noise: Tensor  # [B] variance of one measurement
    cost: Tensor  # [B, P] full trainings
    targets: Tensor  # [B, T] actions at full fidelity
    own: Tensor  # [B, P] the target that has the same candidate as action p
    open: Tensor  # [B, P] may be tried
    best: Tensor  # [B] nats: what is had already, the lowest mean over what was observed at full fidelity
    scale: Tensor  # [B] nats: sd of the losses that were fitted, the unit of what the policy sees
    facts: Tensor  # [B, P, S] what does not change: fidelity, kind of edit, ... (see policy.py)
    budget: Tensor  # [B] full trainings left
    price: Tensor  # [B] nats that one full training is worth; 0: stopping has no value
    cheap: bool  # whether there are several fidelities
    gradient: bool = False  # of these, whether they are ranked by knowledge gradient per cost
    spent: Tensor | None = None  # [B]
    tried: Tensor | None = None  # [B, P]
    step: int = 0
    stopped: Tensor | None = None  # [B]
    scores: Tensor | None = None  # [B, P] of this step, where they are known from a larger pool
    value: Tensor | None = None  # [B, P + 1] what `worth` has found

    def __post_init__(self):
        put = object.__setattr__
        if self.spent is None:
            put(self, "spent", torch.zeros_like(self.budget))
            put(self, "tried", torch.zeros_like(self.open))
            put(self, "stopped", torch.zeros_like(self.budget, dtype=torch.bool))

    def legal(self) -> Tensor:
        """[B, P + 1] the last is stopping, which is always allowed, but only where it has a price or nothing else is."""
        affordable = (
            self.open & (self.cost <= (self.budget - self.spent)[:, None] * (1 + 1e-9)) & ~self.stopped[:, None]
        )
        stop = (self.price > 0) | ~affordable.any(dim=1)
        return torch.cat([affordable, stop[:, None]], dim=1)

    def observe(self, action: Tensor, y: Tensor) -> "Scene":
        """Measured y [B] at action [B]; an action of P stops for good."""
        B, P = self.mean.shape
        rows, stops = torch.arange(B), action == P
        a = torch.where(stops, 0, action)
        column = self.covariance[rows, :, a]  # [B, P]
        variance = (column[rows, a] + self.noise).clamp(min=1e-18)
        go = (~stops & ~self.stopped).to(self.mean.dtype)
        mean = self.mean + column * ((y - self.mean[rows, a]) / variance * go)[:, None]
        gain = column * (go / variance.sqrt())[:, None]
        covariance = torch.baddbmm(self.covariance, gain[:, :, None], gain[:, None, :], alpha=-1.0)
        mark = torch.zeros_like(self.tried)
        mark[rows, a] = go > 0
        return replace(
            self, mean=mean, covariance=covariance, spent=self.spent + go * self.cost[rows, a], open=self.open & ~mark,
            tried=self.tried | mark, step=self.step + 1, stopped=self.stopped | stops, scores=None, value=None,
        )  # fmt: skip

    def delivered(self) -> tuple[Tensor, Tensor]:
        """[B] the target with the lowest mean of those tried, and whether it is expected to be better than what was had
        before.
        """
        means = torch.where(self.tried.gather(1, self.targets), self.mean.gather(1, self.targets), torch.inf)
        lowest, at = means.min(dim=1)
        return self.targets.gather(1, at[:, None])[:, 0], lowest < self.best

    def had(self) -> Tensor:
        """[B] nats: the lowest mean of what could be delivered now."""
        target, better = self.delivered()
        return torch.where(better, self.mean.gather(1, target[:, None])[:, 0], self.best)

    def moves(self) -> Tensor:
        """[B, P] sd of how trying action p changes the mean of its own target."""
        variance = self.covariance.diagonal(dim1=1, dim2=2) + self.noise[:, None]
        return self.covariance.gather(1, self.own[:, None, :])[:, 0].abs() / variance.clamp(min=1e-18).sqrt()

    def sd(self) -> Tensor:
        return self.covariance.diagonal(dim1=1, dim2=2).clamp(min=0.0).sqrt()


def worth(scene: Scene) -> Tensor:
    """[B, P + 1] log value per cost of each action, in nats per full training, and of stopping: the price. Bayesian
    optimization.
    """
    if scene.value is None:  # what greedy, policy and their divergence all ask for
        object.__setattr__(
            scene, "value", torch.cat([_worth(scene), scene.price.clamp(min=1e-300).log()[:, None]], dim=1)
        )
    return scene.value


def _worth(scene: Scene) -> Tensor:
    if scene.scores is not None:
        return scene.scores
    if not scene.cheap:
        return log_ei(scene.mean, scene.sd(), scene.had()) - scene.cost.log()
    if not scene.gradient:
        return rates(scene)
    gain = knowledge_gradient(scene.mean, scene.covariance, scene.noise, scene.targets)
    return (
        gain + 1e-9 * scene.moves() + 1e-30
    ).log() - scene.cost.log()  # where no gain is seen, what moves its target most


def rates(scene: Scene) -> Tensor:
    """[B, P] log gain per cost where trials may be cheap; NOTHING where the full training cannot follow."""
    had, full = scene.had(), scene.cost.gather(1, scene.own)
    mean, sd = scene.mean.gather(1, scene.own), scene.sd().gather(1, scene.own)
    is_full = scene.own == torch.arange(scene.own.shape[1])
    at_once = log_ei(mean, sd, had) - scene.cost.log()
    first = log_rate(
        lambda m, s: log_ei(m.flatten(1), s.flatten(1), had).view_as(m),
        mean,
        sd,
        torch.minimum(scene.moves(), sd),
        scene.cost,
        full,
        n=NODES,
    )
    left = (scene.budget - scene.spent)[:, None]
    possible = scene.open.gather(1, scene.own) & (scene.cost + full <= left * (1 + 1e-9))
    return torch.where(is_full, at_once, torch.where(possible, first, NOTHING)).clamp(min=NOTHING)


def anchored(scores: Tensor, legal: Tensor) -> Tensor:
    """Scores [B, P + 1] below the best legal one, cut off at -12; SHUT where illegal."""
    shut = scores.masked_fill(~legal, SHUT)
    return (shut - shut.amax(dim=1, keepdim=True)).clamp(min=-DEPTH).masked_fill(~legal, SHUT)


def greedy(scene: Scene) -> Tensor:
    """The chooser that is Bayesian optimization itself."""
    return worth(scene).masked_fill(~scene.legal(), SHUT)


@dataclass(frozen=True)
class Worlds:
    """Truths for each of S scenes: W losses of every action, and the noise of every measurement; nats. Antithetic: i
    and i + W / 2.
    """

    loss: Tensor  # [S, W, P]
    noise: Tensor  # [S, W, P]


@dataclass(frozen=True)
class Play:
    """What came of it."""

    returns: Tensor  # [B] nats
    first: Tensor  # [B] first action; P: stopped at once
    spent: Tensor  # [B]


def play(scene: Scene, loss: Tensor, noise: Tensor, chooser: Callable[[Scene], Tensor], steps: int) -> Play:
    """At most `steps` choices, the highest logit each, one world per scene: loss, noise [B, P]."""
    rows = torch.arange(len(loss))
    padded, error = (torch.cat([part, torch.zeros(len(rows), 1, dtype=part.dtype)], dim=1) for part in (loss, noise))
    first = None
    for _ in range(steps):
        action = chooser(scene).argmax(dim=1)
        first = action if first is None else first
        scene = scene.observe(action, padded[rows, action] + error[rows, action])
    target, better = scene.delivered()
    returns = -torch.where(better, loss[rows, target], scene.best) - scene.price * scene.spent
    return Play(returns, first, scene.spent)


def outcomes(scene: Scene, worlds: Worlds, actions: Tensor, steps: int) -> Tensor:
    """Returns [S, m, W] of choosing each of actions [S, m] first and going on as Bayesian optimization would, in the
    same worlds.
    """
    (S, m), (_, W, P) = actions.shape, worlds.loss.shape
    first = actions[:, :, None].expand(S, m, W).reshape(-1)
    loss, noise = (part[:, None].expand(S, m, W, P).reshape(-1, P) for part in (worlds.loss, worlds.noise))

    def chooser(now: Scene) -> Tensor:
        return torch.nn.functional.one_hot(first, P + 1).double() if now.step == scene.step else greedy(now)

    with torch.no_grad():
        return play(select(scene, torch.arange(S).repeat_interleave(m * W)), loss, noise, chooser, steps).returns.view(
            S, m, W
        )


def select(scene: Scene, rows: Tensor) -> Scene:
    """The scenes with these numbers, repeats allowed."""
    parts = {name: getattr(scene, name) for name in scene.__dataclass_fields__}
    return Scene(**{name: part[rows] if isinstance(part, Tensor) else part for name, part in parts.items()})


def dream(
    roots: list[tuple[np.ndarray, np.ndarray]],
    weights: np.ndarray,
    noise_sd: float,
    pairs: int,
    rng: np.random.Generator,
) -> Worlds:
    """2 x pairs worlds of one scene, each pair drawn from one process of an average.

    roots: mean [P] and root of the covariance [P, P] of each process (`star.surrogate.posterior.whitened`), with their
    weights.
    """
    P = len(roots[0][0])
    which = rng.choice(len(roots), size=pairs, p=weights)
    z, e = rng.standard_normal((pairs, P)), rng.standard_normal((pairs, P))
    means = np.stack([roots[k][0] for k in which])
    moves = np.stack([roots[k][1] @ v for k, v in zip(which, z, strict=True)])
    loss = np.concatenate([means + moves, means - moves])
    return Worlds(torch.as_tensor(loss)[None], torch.as_tensor(noise_sd * np.concatenate([e, -e]))[None])
