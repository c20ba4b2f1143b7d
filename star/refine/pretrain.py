"""The policy's first education: worlds drawn from Gaussian-process priors, no data at all.

    python -m star.refine.pretrain            # writes policy.safetensors beside this file, two minutes on one core

The worlds are broad on purpose: other dimensions, length scales, noises, budgets and prices than any refinement has.
"""

import argparse
import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from star.refine.candidates import KINDS, fidelity_coordinate
from star.refine.imagine import Scene, Worlds, outcomes
from star.refine.policy import Lesson, Policy, PolicySettings, contenders, learn, lesson

WEIGHTS = Path(__file__).with_name("policy.safetensors")
PRETRAINING = PolicySettings(rate=3e-3, contenders=6, pairs=12)
LESSONS, SCENES = 120, 12
PARTS = {"one fidelity": (False, False), "several": (True, False), "several at a price": (True, True)}  # cheap, priced


@lru_cache(maxsize=1)
def pretrained() -> Policy:
    """The policy that comes with the package. Treat it as read-only: `learn` copies."""
    policy = Policy()
    policy.load_state_dict({name: value.double() for name, value in load_file(WEIGHTS).items()})
    return policy


def lessons(n: int, seed: int, settings: PolicySettings = PRETRAINING, size: int = SCENES) -> Iterator[Lesson]:
    """n batches of scenes, of each kind in turn."""
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        scene = scenes(rng, size, *list(PARTS.values())[i % len(PARTS)])
        yield lesson(scene, worlds_of(scene, settings.pairs, rng), settings)


def scenes(rng: np.random.Generator, n: int, cheap: bool, priced: bool) -> Scene:
    """n scenes: pools of 64 candidates, or 20 at three fidelities."""
    made = [_scene(rng, *((20, 3) if cheap else (64, 1)), priced) for _ in range(n)]
    return Scene(**{name: torch.as_tensor(np.stack([m[name] for m in made])) for name in made[0]}, cheap=cheap)


def worlds_of(scene: Scene, pairs: int, rng: np.random.Generator) -> Worlds:
    """2 x pairs worlds for each scene, drawn from its own belief."""
    S, P = scene.mean.shape
    z, e = (torch.as_tensor(rng.standard_normal((S, pairs, P))) for _ in range(2))
    values, vectors = torch.linalg.eigh(scene.covariance)
    moves = z @ (vectors * values.clamp(min=0.0).sqrt()[:, None]).transpose(1, 2)
    noise = e * scene.noise.sqrt()[:, None, None]
    return Worlds(scene.mean[:, None] + torch.cat([moves, -moves], dim=1), torch.cat([noise, -noise], dim=1))


def _scene(rng: np.random.Generator, n: int, k: int, priced: bool) -> dict[str, np.ndarray]:
    d, P = int(rng.integers(2, 9)), n * k
    shares = np.geomspace(rng.uniform(0.03, 0.25), 1.0, k) if k > 1 else np.ones(1)
    told = int(rng.integers(4, 22))
    X = rng.random((n + told, d))
    if rng.random() < 0.5:
        X = np.round(X * 4) / 4
    coordinate = fidelity_coordinate(shares)
    rows = np.column_stack([np.repeat(X[:n], k, axis=0), np.tile(coordinate, n)])
    levels = rng.choice(coordinate, size=told, p=(1 / shares) / (1 / shares).sum())
    seen = np.column_stack([np.where(rng.random((told, 1)) < 0.5, X[rng.integers(n, size=told)], X[n:]), levels])
    Z = np.vstack([rows, seen])
    scales = np.clip(
        np.exp(np.append(rng.normal(0.5 * math.log(d) - 0.7, 0.8, size=d), rng.normal(-0.5, 0.7))), 0.08, 20.0
    )
    noise = float(np.exp(rng.normal(-6.0, 1.5)))
    B = _rbf(Z, scales)
    truth = np.linalg.cholesky(B + 1e-6 * np.eye(len(Z))) @ rng.standard_normal(len(Z))
    y = truth[P:] + math.sqrt(noise) * rng.standard_normal(told)
    level, unit = y.mean(), max(y.std(), 0.1)
    solved = np.linalg.solve(B[P:, P:] + (noise + 1e-6) * np.eye(told), np.column_stack([B[P:, :P], y - level]))
    mean = level + B[:P, P:] @ solved[:, -1]
    covariance = B[:P, :P] - B[:P, P:] @ solved[:, :-1]
    cost = np.tile(shares, n) * np.repeat(np.exp(rng.normal(0.0, rng.choice([0.0, 0.3]), size=n)), k)
    full = np.arange(n) * k + k - 1
    kinds = np.eye(len(KINDS))[rng.integers(len(KINDS), size=n)]
    facts = np.column_stack(
        [np.tile(coordinate, n), np.repeat(kinds, k, axis=0), np.repeat(rng.random((n, 4)), k, axis=0)]
    )
    at_full = seen[levels >= 1.0]
    best = (
        level + _rbf(at_full, scales, seen) @ np.linalg.solve(B[P:, P:] + (noise + 1e-6) * np.eye(told), y - level)
        if len(at_full)
        else level
    )
    budget = rng.uniform(0.5, 3.0) if k > 1 else rng.integers(2, 7) * cost.mean()
    return {
        "mean": mean, "covariance": 0.5 * (covariance + covariance.T), "noise": np.array(noise), "cost": cost, "targets": full,
        "own": np.repeat(full, k), "open": np.ones(P, bool), "best": np.array(np.min(best)), "scale": np.array(unit),
        "facts": facts.astype(float), "budget": np.array(float(budget)),
        "price": np.array(unit * math.exp(rng.uniform(math.log(0.01), math.log(0.5))) if priced else 0.0),
    }  # fmt: skip


def _rbf(A: np.ndarray, scales: np.ndarray, B: np.ndarray | None = None) -> np.ndarray:
    A, B = A / scales, (A if B is None else B) / scales
    return np.exp(-0.5 * np.maximum((A * A).sum(1)[:, None] + (B * B).sum(1)[None] - 2 * A @ B.T, 0.0))


def held_out(policy: Policy, n: int = 48, seed: int = 10_000) -> dict[str, list[float]]:
    """In scenes that were never trained on, in sds of the losses: gain of the policy's choices over Bayesian
    optimization's, with its standard error;
    and of the best contender, found in half of the worlds and judged in the other: how much there is to gain, with its
    standard error.
    """
    found = {}
    for name, part in PARTS.items():
        gains, rooms = [], []
        for i in range(0, n, SCENES):
            rng = np.random.default_rng([seed, i])
            scene = scenes(rng, SCENES, *part)
            actions, legal = contenders(scene, PRETRAINING.contenders)
            returns = (
                outcomes(scene, worlds_of(scene, 40, rng), actions, PRETRAINING.steps) / scene.scale[:, None, None]
            )
            gain = (
                (returns - returns[:, :1])
                .masked_fill(~legal[:, :, None], -9.0)
                .unflatten(2, (2, 2, 20))
                .mean(dim=(2, 4))
            )  # [S, n, 2] by half
            with torch.no_grad():
                picked = policy(scene).gather(1, actions).masked_fill(~legal, -1e9).argmax(dim=1)
            rows = torch.arange(SCENES)
            gains += gain.mean(dim=2)[rows, picked].tolist()
            rooms += gain[rows, gain[:, :, 0].argmax(dim=1), 1].tolist()
        found[name] = [
            round(float(f(v)), 4) for v in (gains, rooms) for f in (np.mean, lambda x: np.std(x) / np.sqrt(len(x)))
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lessons", type=int, default=LESSONS)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    policy, history = learn(Policy(), lessons(args.lessons, seed=0), PRETRAINING, decay=args.lessons)
    for i in range(0, len(history), max(1, len(history) // 12)):
        print(f"lesson {i:4d}", {key: round(value, 4) for key, value in history[i].items()})
    print("held out, in sds [gain, its error, room for gain, its error]:", held_out(policy))
    save_file({name: value.float() for name, value in policy.state_dict().items()}, args.out)


if __name__ == "__main__":
    main()
