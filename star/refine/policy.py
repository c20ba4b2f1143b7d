"""The policy: a network that sees what the Gaussian process believes of every candidate, and corrects Bayesian optimization.

    logit = beta x log(value per cost) + network(what is seen)

The network's last layer begins at zero, so an untrained policy is greedy Bayesian optimization (and stops where that would); all it
can learn is a correction. It learns by REINFORCE in imagined worlds against how greedy Bayesian optimization plays the same
worlds (a self-critical baseline: Rennie et al., 2017), and acts only where it then beats it on fresh ones.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from star.refine.imagine import SHUT, Play, Scene, Worlds, anchored, greedy, play, worth
from star.refine.pool import KINDS

FACTS = 1 + len(KINDS) + 4  # fidelity; kind of edit; inherits; distance from its member; two exact objectives
SEEN = FACTS + 10
CONTEXT = 5


@dataclass(frozen=True)
class PolicySettings:
    """How the policy learns at each step of a refinement. The defaults cost 0.3-0.8 s a step on one core."""

    updates: int = 4  # from the pre-trained weights, at every step anew: nothing is carried, so a resumed run repeats itself
    worlds: int = 32
    steps: int = 5  # of a play
    rate: float = 1e-3
    entropy: float = 0.003
    anchor: float = 0.01  # weight of KL(policy, Bayesian optimization)
    pairs: int = 64  # antithetic pairs of fresh worlds that the gate compares on
    confidence: float = 0.95  # of the gate: one-sided lower limit of the imagined gain above 0
    actions: int = 72  # at most, in imagination


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
                    layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / math.sqrt(layer.in_features))
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
            mean = -torch.cat([scene.mean - scene.best[:, None], torch.zeros_like(scene.best)[:, None]], dim=1) / scene.scale[:, None]
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
        [left.clamp(max=10.0).log1p(), (left / scene.budget.clamp(min=1e-9)), torch.full_like(left, scene.step / 5), priced, (scene.price > 0).to(left.dtype)],
        dim=1,
    )
    return torch.cat([torch.stack(known + unsure, dim=2), scene.facts], dim=2), context


def learn(
    policy: Policy, episodes: Callable[[int], tuple[Scene, Worlds, int]], updates: int, settings: PolicySettings, seed: int, decay: float = 0.0
) -> tuple[Policy, list[dict[str, float]]]:
    """A copy of the policy after REINFORCE on `episodes(i)`: a scene, worlds for it and the number of steps. Second: what each update saw.

    decay: share of the updates, at the end, over which the learning rate falls linearly to zero.
    """
    policy = copy.deepcopy(policy)
    optimizer = torch.optim.Adam(policy.parameters(), lr=settings.rate)
    generator, history = torch.Generator().manual_seed(seed), []
    for i in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * min(1.0, (updates - i) / max(1.0, decay * updates))
        scene, worlds, steps = episodes(i)
        with torch.no_grad():
            baseline = play(scene, worlds, greedy, steps)
        divergences: list[Tensor] = []

        def chooser(now: Scene, divergences=divergences) -> Tensor:
            logits = policy(now)
            log_p = logits.log_softmax(dim=1)
            log_q = (policy.beta * anchored(worth(now), now.legal())).log_softmax(dim=1)
            divergences.append((log_p.exp() * (log_p - log_q).clamp(-50.0, 50.0)).sum(dim=1))
            return logits

        mine = play(scene, worlds, chooser, steps, generator)
        gain = (mine.returns - baseline.returns) / scene.scale
        spread = (baseline.returns / scene.scale).std() + 1e-3
        advantage = ((gain - gain.mean()) / spread).clamp(-3.0, 3.0)
        divergence = torch.stack(divergences).mean(dim=0)
        loss = (-mine.log_probability * advantage - settings.entropy * mine.entropy + settings.anchor * divergence).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        history.append({"gain": float(gain.detach().mean()), "entropy": float(mine.entropy.detach().mean()), "kl": float(divergence.detach().mean())})
    return policy, history


@dataclass(frozen=True)
class Verdict:
    """Whether the policy may act: its imagined return minus that of greedy Bayesian optimization, in nats, over fresh worlds."""

    acts: bool
    gain: float
    low: float  # one-sided lower limit
    pairs: int


def gate(policy: Policy, scene: Scene, worlds: Worlds, steps: int, confidence: float = 0.95) -> Verdict:
    """Both play the same worlds, which come in antithetic pairs (i, i + n / 2); limits by Student's t over the pairs."""
    from scipy.stats import t as student

    with torch.no_grad():
        mine, other = play(scene, worlds, policy, steps), play(scene, worlds, greedy, steps)
    return _verdict(mine, other, student.ppf(confidence, len(mine.returns) // 2 - 1))


def _verdict(mine: Play, other: Play, quantile: float) -> Verdict:
    gain = (mine.returns - other.returns).numpy().reshape(2, -1).mean(axis=0)
    low = gain.mean() - quantile * gain.std(ddof=1) / np.sqrt(len(gain))
    return Verdict(bool(low > 0), float(gain.mean()), float(low), len(gain))


def preferences(policy: Policy, scene: Scene) -> dict[str, np.ndarray | float]:
    """Of a single scene: probabilities [P + 1] of the policy and of Bayesian optimization at the same beta; entropy and KL in nats."""
    with torch.no_grad():
        p = policy(scene).softmax(dim=1)[0].numpy()
        q = (policy.beta * anchored(worth(scene), scene.legal())).softmax(dim=1)[0].numpy()
    kl = float((p * (np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(q, 1e-300)))).sum())
    return {"policy": p, "bayes": q, "entropy": float(-(p * np.log(np.maximum(p, 1e-300))).sum()), "kl": max(0.0, kl)}


