"""The policy, on one page: which member next, at which fidelity, or stop.

Bayesian optimization ranks the trials of one member well, but it looks one trial ahead. Whether to try cheaply first,
to move to another member or to stop depends on what comes after. So the policy chooses among a few *options*: of every
member, at every fidelity, the candidate that Bayesian optimization ranks first; and stopping, where training has a
price.

    logit(option) = beta x log(value per cost) + network(what is known of the options)

The network sees mean and uncertainty of the Gaussian process. Its last layer is zero at first, so an untrained policy
is Bayesian optimization. It learns at every step anew, by policy gradient over all options (Sutton et al., 2000), in
simulations sampled from the Gaussian process: each option is tried first, Bayesian optimization continues, and the
return is compared with that of Bayesian optimization in the same simulation (a self-critical baseline: Rennie et al.,
2017). It acts only where a one-sided t-test on fresh simulations says that its choice is better. Nothing is carried
from step to step, so a resumed refinement repeats itself.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor, nn
from torch.nn.functional import silu

from star.surrogate.acquisition import NOTHING, log_ei, log_rate

CLOSED = -1e9  # logit of what may not be chosen
DEPTH = 12.0  # log values this far below the best are cut off
NODES = 10  # of quadrature, in simulations
SEEN = 9  # features of an option


@dataclass(frozen=True)
class PolicySettings:
    """How the policy learns at each step of a refinement. pairs: of antithetic simulations, to learn in and for the
    test.
    """

    beta: float = 2.5
    hidden: int = 24
    updates: int = 20
    rate: float = 1e-2
    pairs: int = 64
    gate_pairs: int = 64
    depth: int = 4  # trials of a simulation
    entropy: float = 0.001  # weights, in units of the losses' standard deviation
    anchor: float = 0.002  # of KL(policy, Bayesian optimization)
    confidence: float = 0.95  # of the test


@dataclass(frozen=True)
class Scene:
    """P actions (a candidate at a fidelity) as the Gaussian process sees them now. Tensors are float64, losses in nats.

    A candidate's full training is one of the actions. Losses are relative to what the candidate must beat.
    """

    mean: Tensor  # [P]
    covariance: Tensor  # [P, P] of the noise-free loss
    noise: float  # variance of one measurement
    cost: Tensor  # [P] full trainings
    own: Tensor  # [P] the action that trains the same candidate in full
    open: Tensor  # [P] may be tried
    options: Tensor  # [n] actions to choose among, the choice of Bayesian optimization first; P is stopping
    scores: Tensor  # [P] log value per cost
    best: float  # the lowest mean achieved so far
    scale: float  # standard deviation of the observed losses
    budget: float  # full trainings left
    price: float = 0.0  # nats that one full training is worth; 0: never stop early


@dataclass(frozen=True)
class State:
    """B simulations after some trials. Fields as in `Scene`, with a first dimension B."""

    mean: Tensor
    covariance: Tensor
    open: Tensor
    tried: Tensor  # [B, P]
    spent: Tensor  # [B]
    stopped: Tensor  # [B]


def start(scene: Scene, n: int) -> State:
    """n equal simulations before their first trial."""
    P = len(scene.mean)
    none, zeros = torch.zeros(n, P, dtype=torch.bool), torch.zeros(n, dtype=torch.float64)
    covariance = scene.covariance.expand(n, P, P)
    return State(scene.mean.expand(n, P), covariance, scene.open.expand(n, P), none, zeros, zeros.bool())


def observe(scene: Scene, state: State, action: Tensor, y: Tensor) -> State:
    """The states after y [B] was measured at action [B]; an action of P stops for good."""
    rows, P = torch.arange(len(action)), len(scene.mean)
    go = (action < P) & ~state.stopped
    a = action.clamp(max=P - 1)
    column = state.covariance[rows, :, a]  # [B, P]
    variance = (column[rows, a] + scene.noise).clamp(min=1e-18)
    mean = state.mean + column * ((y - state.mean[rows, a]) / variance * go)[:, None]
    gain = column * (go / variance.sqrt())[:, None]
    covariance = torch.baddbmm(state.covariance, gain[:, :, None], gain[:, None, :], alpha=-1.0)
    mark = torch.zeros_like(state.tried)
    mark[rows, a] = go
    spent = state.spent + go * scene.cost[a]
    return State(mean, covariance, state.open & ~mark, state.tried | mark, spent, state.stopped | (action >= P))


def delivered(scene: Scene, state: State) -> tuple[Tensor, Tensor]:
    """Action [B] with the lowest mean among those trained in full, and that mean or, if lower, the earlier best."""
    full = state.tried & (scene.own == torch.arange(len(scene.own)))
    lowest, action = state.mean.masked_fill(~full, torch.inf).min(dim=1)
    return action, lowest.clamp(max=scene.best)


def values(scene: Scene, state: State) -> Tensor:
    """[B, P + 1]: log value per cost of every action by Bayesian optimization, and of stopping; CLOSED where not
    allowed.

    Full trainings: expected improvement. Cheap ones: the rate of `star.surrogate.acquisition.log_rate`.
    """
    own, is_full = scene.own, scene.own == torch.arange(len(scene.own))
    variance = state.covariance.diagonal(dim1=1, dim2=2)
    mean, sd, (_, had) = state.mean[:, own], variance.clamp(min=0).sqrt()[:, own], delivered(scene, state)
    value = log_ei(mean, sd, had) - scene.cost.log()
    left = (scene.budget - state.spent)[:, None] * (1 + 1e-9)
    if not is_full.all():
        shared = state.covariance[:, own, torch.arange(len(own))].abs()
        moves = torch.minimum(shared / (variance + scene.noise).clamp(min=1e-18).sqrt(), sd)
        log_gain = lambda m, s: log_ei(m.flatten(1), s.flatten(1), had).view_as(m)  # noqa: E731
        first = log_rate(log_gain, mean, sd, moves, scene.cost, scene.cost[own], n=NODES)
        possible = state.open[:, own] & (scene.cost + scene.cost[own] <= left)
        value = torch.where(is_full, value, first.masked_fill(~possible, NOTHING))
    legal = state.open & (scene.cost <= left) & ~state.stopped[:, None]
    stop = torch.full((len(value), 1), math.log(max(scene.price, 1e-300)), dtype=value.dtype)
    stop = stop.masked_fill(legal.any(dim=1, keepdim=True) & (scene.price <= 0), CLOSED)
    return torch.cat([value.clamp(min=NOTHING).masked_fill(~legal, CLOSED), stop], dim=1)


Worlds = tuple[
    Tensor, Tensor
]  # true losses [W, P] and measurement noise [W, P]; simulations i and i + W / 2 are antithetic


def sample_worlds(
    roots: list[tuple[np.ndarray, np.ndarray]],
    weights: np.ndarray,
    noise_sd: float,
    pairs: int,
    rng: np.random.Generator,
) -> Worlds:
    """2 x pairs simulated truths from an average of Gaussian processes: their means [P] and roots of covariances [P,
    P].
    """
    P = len(roots[0][0])
    which = rng.choice(len(roots), size=pairs, p=weights)
    z, e = rng.standard_normal((pairs, P)), rng.standard_normal((pairs, P))
    means = np.stack([roots[k][0] for k in which])
    moves = np.stack([roots[k][1] @ v for k, v in zip(which, z, strict=True)])
    loss = np.concatenate([means + moves, means - moves])
    return torch.as_tensor(loss), torch.as_tensor(noise_sd * np.concatenate([e, -e]))


def returns(scene: Scene, worlds: Worlds, first: Tensor, depth: int) -> Tensor:
    """[n, W] nats: minus the true loss of what is delivered and the price of what was spent, if option first[i] is
    tried
    first and Bayesian optimization continues, in every simulation."""
    n, W = len(first), len(worlds[0])
    pad = torch.zeros(n * W, 1, dtype=torch.float64)
    loss, noise = (torch.cat([part.repeat(n, 1), pad], dim=1) for part in worlds)
    state, action, rows = start(scene, n * W), first.repeat_interleave(W), torch.arange(n * W)
    for step in range(depth):
        if step:
            action = values(scene, state).argmax(dim=1)
        state = observe(scene, state, action, loss[rows, action] + noise[rows, action])
    action, expected = delivered(scene, state)
    truth = torch.where(expected < scene.best, loss[rows, action], scene.best)
    return (-truth - scene.price * state.spent).view(n, W)


class Policy(nn.Module):
    """Corrects Bayesian optimization among options; equivariant to their order. Weights follow from the seed."""

    def __init__(self, settings: PolicySettings, seed: int = 0):
        super().__init__()
        self.beta, hidden = settings.beta, settings.hidden
        self.each, self.both, self.last = nn.Linear(SEEN, hidden), nn.Linear(2 * hidden, hidden), nn.Linear(hidden, 1)
        generator = torch.Generator().manual_seed(seed)
        for layer in (self.each, self.both, self.last):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.last.weight)
        self.double()

    def forward(self, scene: Scene) -> Tensor:
        """Logits [n] of the options."""
        h = silu(self.each(features(scene)))
        h = silu(self.both(torch.cat([h, h.mean(dim=0).expand_as(h)], dim=1)))
        return self.beta * anchored(scene) + self.last(h)[:, 0]


def anchored(scene: Scene) -> Tensor:
    """Log values of the options relative to the best of them [n], cut off at -12."""
    value = torch.cat([scene.scores, torch.tensor([math.log(max(scene.price, 1e-300))])])[scene.options]
    return (value - value.max()).clamp(min=-DEPTH)


def features(scene: Scene) -> Tensor:
    """What the network sees of the options [n, SEEN], of order one in any unit of the loss."""
    sd = scene.covariance.diagonal().clamp(min=0).sqrt()
    left = max(scene.budget, 1e-9)
    seen = torch.stack(
        [
            ((scene.mean[scene.own] - scene.best) / scene.scale).clamp(-3, 3),
            (sd[scene.own] / scene.scale).clamp(max=3),
            (sd[scene.own] / scene.scale).clamp(min=1e-4).log() / 4,
            (scene.covariance[scene.own, torch.arange(len(sd))] / (sd * sd[scene.own]).clamp(min=1e-12)).clamp(-1, 1),
            ((scene.scores + scene.cost.log()) - math.log(scene.scale)).clamp(-16, 2) / 8,
            scene.cost.log() / 3,
            (scene.cost / left).clamp(max=2),
            torch.full_like(sd, math.log1p(min(left, 10.0))),
            torch.zeros_like(sd),
        ],
        dim=1,
    )
    stop = torch.zeros(1, SEEN, dtype=torch.float64)
    stop[0, -1] = 1.0
    return torch.cat([seen, stop])[scene.options]


def learn(policy: Policy, scene: Scene, worlds: Worlds, settings: PolicySettings) -> dict[str, float]:
    """Train the policy in place; returns its expected gain over Bayesian optimization (in units of `scale`), entropy
    and KL.
    """
    found = returns(scene, worlds, scene.options, settings.depth)
    advantage = ((found - found[:1]).mean(dim=1) / scene.scale).clamp(-3, 3)
    base = (policy.beta * anchored(scene)).log_softmax(dim=0)
    optimizer, log = torch.optim.Adam(policy.parameters(), lr=settings.rate), {}
    for _ in range(settings.updates):
        log_p = policy(scene).log_softmax(dim=0)
        p = log_p.exp()
        gain, entropy, divergence = (p * advantage).sum(), -(p * log_p).sum(), (p * (log_p - base)).sum()
        optimizer.zero_grad()
        (-gain - settings.entropy * entropy + settings.anchor * divergence).backward()
        optimizer.step()
        log = {"learned": gain.item(), "entropy": entropy.item(), "kl": max(0.0, divergence.item())}
    return log


@dataclass(frozen=True)
class Verdict:
    """Whether the policy acts: mean gain of its choice over Bayesian optimization (nats), and its lower limit."""

    acts: bool = False
    gain: float = 0.0
    low: float = 0.0


def gate(scene: Scene, worlds: Worlds, option: int, settings: PolicySettings) -> Verdict:
    """One-sided t-test over antithetic pairs of simulations in which both choices are tried first."""
    both = returns(scene, worlds, scene.options[[option, 0]], settings.depth)
    gain = (both[0] - both[1]).numpy().reshape(2, -1).mean(axis=0)
    low = gain.mean() - student.ppf(settings.confidence, len(gain) - 1) * gain.std(ddof=1) / math.sqrt(len(gain))
    return Verdict(bool(low > 0), float(gain.mean()), float(low))


def consult(
    scene: Scene, sample: Callable[[int], Worlds], settings: PolicySettings = PolicySettings()
) -> tuple[int, dict[str, float]]:
    """Which option to take (0: the choice of Bayesian optimization), and a log: acts, agrees, gain, low, learned,
    entropy, kl.

    sample(pairs) makes fresh simulations of the scene.
    """
    if len(scene.options) < 2:
        return 0, {"acts": False, "agrees": True, "gain": 0.0, "low": 0.0}
    policy = Policy(settings)
    log = learn(policy, scene, sample(settings.pairs), settings)
    with torch.no_grad():
        option = int(policy(scene).argmax())
    verdict = gate(scene, sample(settings.gate_pairs), option, settings) if option else Verdict()
    log |= {"acts": verdict.acts, "agrees": option == 0, "gain": verdict.gain, "low": verdict.low}
    return (option if verdict.acts else 0), log
