"""The policy: a network that sees what the Gaussian process believes of every candidate, and corrects Bayesian optimization.

    logit = beta x log(value per cost) + network(what is seen)

The network's last layer begins at zero, so an untrained policy is greedy Bayesian optimization (and stops where that would); all it
can learn is a correction among the *contenders*, the actions that Bayesian optimization ranks highest, and stopping. It learns by the policy
gradient over all of them (Sutton et al., 2001: REINFORCE without the noise of sampling actions): each contender is tried first in imagined worlds,
Bayesian optimization goes on, and its return is compared with that of Bayesian optimization in the same worlds (a self-critical
baseline: Rennie et al., 2017). It acts only where its choice is better in fresh worlds.
"""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor, nn

from star.refine.candidates import KINDS
from star.refine.imagine import SHUT, Scene, Worlds, anchored, outcomes, worth

FACTS = 1 + len(KINDS) + 4  # fidelity; kind of edit; inherits; distance from its member; two exact objectives
SEEN = FACTS + 10
CONTEXT = 5


@dataclass(frozen=True)
class PolicySettings:
    """How the policy learns at each step of a refinement. The defaults cost some 0.4 s a step on one core."""

    updates: int = (
        20  # from the pre-trained weights, at every step anew: nothing is carried, so a resumed run repeats itself
    )
    rate: float = 5e-3
    contenders: int = 8
    pairs: int = 32  # antithetic pairs of imagined worlds that it learns in
    steps: int = 4  # of each future
    entropy: float = 0.001  # weights, in units of the losses' sd
    anchor: float = 0.002  # of KL(policy, Bayesian optimization)
    gate_pairs: int = 64  # of fresh worlds
    confidence: float = 0.95  # of the gate: one-sided lower limit of the imagined gain above 0
    actions: int = 48  # at most, in imagination


class Policy(nn.Module):
    """Equivariant to the order of the candidates; any number of them. uncertainty=False hides sd and all that derives from it."""

    def __init__(self, hidden: int = 32, beta: float = 2.5, uncertainty: bool = True, seed: int = 0):
        super().__init__()
        self.beta, self.uncertainty = beta, uncertainty
        self.each = nn.Linear(SEEN, hidden)
        self.both = nn.Linear(3 * hidden + CONTEXT, hidden)
        self.score = nn.Linear(hidden, 1)
        self.stop = nn.Sequential(nn.Linear(2 * hidden + CONTEXT, hidden), nn.SiLU(), nn.Linear(hidden, 1))
        generator = torch.Generator().manual_seed(seed)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                with torch.no_grad():
                    layer.weight.copy_(
                        torch.randn(layer.weight.shape, generator=generator) / math.sqrt(layer.in_features)
                    )
                    layer.bias.zero_()
        for last in (self.score, self.stop[-1]):
            nn.init.zeros_(last.weight)
        self.double()

    def forward(self, scene: Scene) -> Tensor:
        """Logits [B, P + 1], the last of stopping."""
        legal, scores = scene.legal(), worth(scene)
        seen, context = see(scene, scores[:, :-1], self.uncertainty)
        h = nn.functional.silu(self.each(seen))  # [B, P, hidden]
        pooled = torch.cat([h.mean(dim=1), h.amax(dim=1), context], dim=1)  # [B, 2 hidden + CONTEXT]
        h = nn.functional.silu(self.both(torch.cat([h, pooled[:, None].expand(-1, h.shape[1], -1)], dim=2)))
        residual = torch.cat([self.score(h)[..., 0], self.stop(pooled)], dim=1)
        if not self.uncertainty:
            mean = (
                -torch.cat([scene.mean - scene.best[:, None], torch.zeros_like(scene.best)[:, None]], dim=1)
                / scene.scale[:, None]
            )
            scores = 3.0 * mean - torch.cat([scene.cost.log(), torch.zeros_like(scene.best)[:, None]], dim=1)
        return (self.beta * anchored(scores, legal) + residual).masked_fill(~legal, SHUT)


def see(scene: Scene, scores: Tensor, uncertainty: bool = True) -> tuple[Tensor, Tensor]:
    """What the policy sees: of each action [B, P, SEEN], and of the whole [B, CONTEXT]. All of order one, whatever the unit of the loss.

    scores [B, P]: log value per cost.
    """
    scale, sd = scene.scale[:, None], scene.sd()
    left = (scene.budget - scene.spent).clamp(min=1e-9)
    variance = (sd**2 + scene.noise[:, None]).clamp(min=1e-18)
    influence = (scene.covariance**2).mean(dim=2) / variance / (sd**2).mean(dim=1, keepdim=True).clamp(min=1e-18)
    lowest = scene.targets.gather(1, scene.mean.gather(1, scene.targets).argmin(dim=1, keepdim=True))
    at = scene.covariance.gather(2, lowest[:, None, :].expand(-1, sd.shape[1], 1))[..., 0]
    chosen = sd.gather(1, lowest)
    alike = at / (sd * chosen).clamp(min=1e-12)
    unsure = [
        (sd / scale).clamp(max=3.0),
        (sd / scale).clamp(min=1e-4).log() / 4,
        (scores - scores.masked_fill(~scene.open, SHUT).amax(dim=1, keepdim=True)).clamp(-12.0, 0.0) / 4,
        ((scores + scene.cost.log()) - scale.log()).clamp(-16.0, 2.0) / 8,
        influence.clamp(max=3.0),
        alike,
    ]
    known = [
        ((scene.mean - scene.had()[:, None]) / scale).clamp(-3.0, 3.0),
        scene.cost.log() / 3,
        (scene.cost / left[:, None]).clamp(max=2.0),
        scene.tried.to(scale.dtype),
    ]
    if not uncertainty:
        unsure = [torch.zeros_like(part) for part in unsure]
    priced = torch.where(scene.price > 0, (scene.price.clamp(min=1e-12) / scene.scale).log().clamp(-8.0, 4.0) / 4, -3.0)
    context = torch.stack(
        [
            left.clamp(max=10.0).log1p(),
            (left / scene.budget.clamp(min=1e-9)),
            torch.full_like(left, scene.step / 5),
            priced,
            (scene.price > 0).to(left.dtype),
        ],
        dim=1,
    )
    return torch.cat([torch.stack(known + unsure, dim=2), scene.facts], dim=2), context


def contenders(scene: Scene, n: int) -> tuple[Tensor, Tensor]:
    """The n actions [S, n] that Bayesian optimization ranks highest, its own choice first; stopping takes the last place where it is allowed
    and not among them. Second: which of them are legal."""
    legal = scene.legal()
    scores, n = worth(scene).masked_fill(~legal, SHUT), min(n, legal.shape[1])
    actions = scores.argsort(dim=1, descending=True, stable=True)[:, :n]
    stop = legal.shape[1] - 1
    missing = legal[:, stop] & ~(actions == stop).any(dim=1)
    actions = torch.cat([actions[:, :-1], torch.where(missing, stop, actions[:, -1])[:, None]], dim=1)
    return actions, legal.gather(1, actions)


@dataclass(frozen=True)
class Lesson:
    """What each contender would bring: the mean return over imagined worlds minus that of Bayesian optimization, in sds of the losses."""

    scene: Scene  # S scenes
    actions: Tensor  # [S, n]
    legal: Tensor  # [S, n]
    advantage: Tensor  # [S, n]


def lesson(scene: Scene, worlds: Worlds, settings: PolicySettings) -> Lesson:
    actions, legal = contenders(scene, settings.contenders)
    returns = outcomes(scene, worlds, actions, settings.steps)
    advantage = (returns - returns[:, :1]).mean(dim=2) / scene.scale[:, None]
    return Lesson(scene, actions, legal, advantage.clamp(-3.0, 3.0).masked_fill(~legal, 0.0))


def learn(
    policy: Policy, lessons: Iterable[Lesson], settings: PolicySettings, decay: int = 0
) -> tuple[Policy, list[dict[str, float]]]:
    """A copy of the policy after one gradient step on each lesson; and of each its expected gain, entropy and KL to Bayesian optimization.

    decay: the number of lessons over whose last third the rate falls linearly to zero; 0: it stays.
    """
    policy = copy.deepcopy(policy)
    optimizer = torch.optim.Adam(policy.parameters(), lr=settings.rate)
    history = []
    for i, given in enumerate(lessons):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * (min(1.0, 3 * (decay - i) / decay) if decay else 1.0)
        log_p, log_q = among(policy, given.scene, given.actions, given.legal)
        p = log_p.exp()
        gain = (p * given.advantage).sum(dim=1)
        entropy, divergence = (
            -(p * log_p.clamp(min=-50.0)).sum(dim=1),
            (p * (log_p - log_q).clamp(-50.0, 50.0)).sum(dim=1),
        )
        loss = (-gain - settings.entropy * entropy + settings.anchor * divergence).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        history.append(
            {
                name: float(value.detach().mean())
                for name, value in (("gain", gain), ("entropy", entropy), ("kl", divergence))
            }
        )
    return policy, history


def among(policy: Policy, scene: Scene, actions: Tensor, legal: Tensor) -> tuple[Tensor, Tensor]:
    """Log probabilities [S, n] of the policy and of Bayesian optimization, at the same beta, over these actions."""
    mine = policy(scene).gather(1, actions).masked_fill(~legal, SHUT)
    base = (policy.beta * anchored(worth(scene), scene.legal())).gather(1, actions).masked_fill(~legal, SHUT)
    return mine.log_softmax(dim=1), base.log_softmax(dim=1)


@dataclass(frozen=True)
class Verdict:
    """Whether the policy may act: the imagined return of its choice minus that of Bayesian optimization's, in nats, over fresh worlds."""

    acts: bool
    gain: float
    low: float  # one-sided lower limit
    pairs: int


def gate(scene: Scene, worlds: Worlds, action: int, bayes: int, settings: PolicySettings) -> Verdict:
    """Both actions of one scene begin the same worlds, Bayesian optimization goes on; limits by Student's t over the antithetic pairs."""
    returns = outcomes(scene, worlds, torch.tensor([[action, bayes]]), settings.steps)[0]
    gain = (returns[0] - returns[1]).numpy().reshape(2, -1).mean(axis=0)
    low = gain.mean() - student.ppf(settings.confidence, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain))
    return Verdict(bool(low > 0), float(gain.mean()), float(low), len(gain))


@dataclass(frozen=True)
class Choice:
    """What the policy and Bayesian optimization would do in one scene; entropy of the policy and KL between them, over the contenders, in nats."""

    action: int
    bayes: int
    probability: dict[int, float]
    entropy: float
    kl: float


def choose(policy: Policy, scene: Scene, settings: PolicySettings) -> Choice:
    actions, legal = contenders(scene, settings.contenders)
    with torch.no_grad():
        log_p, log_q = (part[0].numpy() for part in among(policy, scene, actions, legal))
    p, numbers = np.exp(log_p), actions[0].tolist()
    kl = float((p * np.clip(log_p - log_q, -50, 50)).sum())
    return Choice(
        numbers[int(p.argmax())],
        numbers[0],
        dict(zip(numbers, p.tolist(), strict=True)),
        float(-(p * np.maximum(log_p, -50)).sum()),
        max(0.0, kl),
    )
