"""The policy's first education: worlds drawn from Gaussian-process priors, no data at all.

    python -m star.refine.pretrain            # writes policy.safetensors beside this file, under two minutes on one core

The worlds are broad on purpose: other dimensions, length scales, noises, budgets and prices than any refinement has, and a belief whose
length scales are somewhat wrong, as fitted ones are.
"""

import argparse
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from star.refine.imagine import Scene, Worlds
from star.refine.policy import Policy, PolicySettings, gate, learn
from star.refine.pool import KINDS, fidelity_coordinate

WEIGHTS = Path(__file__).with_name("policy.safetensors")
PRETRAINING = PolicySettings(rate=2e-3, worlds=64, entropy=0.005)
UPDATES = 240
MISFIT = 0.3  # sd of the log of believed over true length scales


@lru_cache(maxsize=2)
def pretrained(uncertainty: bool = True) -> Policy:
    """The policy that comes with the package. Treat it as read-only: `learn` copies."""
    policy = Policy(uncertainty=uncertainty)
    policy.load_state_dict({name: value.double() for name, value in load_file(WEIGHTS).items()})
    return policy


def episodes(seed: int, worlds: int = 64):
    """What `learn` asks for: batches of scenes in turn with one fidelity, several, and several at a price."""

    def make(i: int) -> tuple[Scene, Worlds, int]:
        rng = np.random.default_rng([seed, i])
        cheap, priced = i % 3 > 0, i % 3 == 2
        return *scenes(rng, worlds // 2, cheap, priced), int(rng.integers(3, 7))

    return make


def scenes(rng: np.random.Generator, pairs: int, cheap: bool, priced: bool) -> tuple[Scene, Worlds]:
    """2 x pairs scenes: pools of 64 candidates, or 20 at three fidelities, each with two mirrored truths (i and i + pairs)."""
    n, k = (20, 3) if cheap else (64, 1)
    made = [_scene(rng, n, k, priced) for _ in range(pairs)]
    parts = {name: torch.as_tensor(np.stack([m[name] for m in made] * 2)) for name in made[0] if name not in ("truth", "error")}
    truth, error = (np.stack([m[name] for m in made]) for name in ("truth", "error"))
    mean = np.stack([m["mean"] for m in made])
    worlds = Worlds(torch.as_tensor(np.concatenate([truth, 2 * mean - truth])), torch.as_tensor(np.concatenate([error, -error])))
    return Scene(**parts, cheap=cheap), worlds


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
    scales = np.clip(np.exp(np.append(rng.normal(0.5 * math.log(d) - 0.7, 0.8, size=d), rng.normal(-0.5, 0.7))), 0.08, 20.0)
    believed = scales * np.exp(rng.normal(0.0, MISFIT, size=d + 1))
    noise = float(np.exp(rng.normal(-6.0, 1.5)))
    K, B = _rbf(Z, scales), _rbf(Z, believed)
    truth = np.linalg.cholesky(K + 1e-6 * np.eye(len(Z))) @ rng.standard_normal(len(Z))
    y = truth[P:] + math.sqrt(noise) * rng.standard_normal(told)
    level, unit = y.mean(), max(y.std(), 0.1)
    solved = np.linalg.solve(B[P:, P:] + (noise + 1e-6) * np.eye(told), np.column_stack([B[P:, :P], y - level]))
    mean = level + B[:P, P:] @ solved[:, -1]
    covariance = B[:P, :P] - B[:P, P:] @ solved[:, :-1]
    cost = np.tile(shares, n) * np.repeat(np.exp(rng.normal(0.0, rng.choice([0.0, 0.3]), size=n)), k)
    full = np.arange(n) * k + k - 1
    kinds = np.eye(len(KINDS))[rng.integers(len(KINDS), size=n)]
    facts = np.column_stack([np.tile(coordinate, n), np.repeat(kinds, k, axis=0), np.repeat(rng.random((n, 4)), k, axis=0)])
    at_full = seen[levels >= 1.0]
    best = level + _rbf(at_full, believed, seen) @ np.linalg.solve(B[P:, P:] + (noise + 1e-6) * np.eye(told), y - level) if len(at_full) else level
    budget = rng.uniform(0.5, 3.0) if k > 1 else rng.integers(2, 7) * cost.mean()
    return {
        "mean": mean, "covariance": 0.5 * (covariance + covariance.T), "noise": np.array(noise), "cost": cost, "targets": full,
        "own": np.repeat(full, k), "open": np.ones(P, bool), "best": np.array(np.min(best)), "scale": np.array(unit),
        "facts": facts.astype(float), "budget": np.array(float(budget)),
        "price": np.array(unit * math.exp(rng.uniform(math.log(0.01), math.log(0.5))) if priced else 0.0),
        "truth": truth[:P], "error": math.sqrt(noise) * rng.standard_normal(P),
    }  # fmt: skip


def _rbf(A: np.ndarray, scales: np.ndarray, B: np.ndarray | None = None) -> np.ndarray:
    A, B = A / scales, (A if B is None else B) / scales
    return np.exp(-0.5 * np.maximum((A * A).sum(1)[:, None] + (B * B).sum(1)[None] - 2 * A @ B.T, 0.0))


def held_out(policy: Policy, batches: int = 6, worlds: int = 256, seed: int = 10_000) -> dict[str, list[float]]:
    """Gain over greedy Bayesian optimization in worlds that were never trained on: mean, one-sided 95 % limit, mean return of the latter."""
    found = {}
    for i, name in enumerate(("one fidelity", "several", "several at a price")):
        gains = []
        for batch in range(batches):
            scene, truth, steps = episodes(seed, worlds)(3 * batch + i)
            gains.append(gate(policy, scene, truth, steps))
        found[name] = [float(np.mean([g.gain for g in gains])), float(np.mean([g.low for g in gains]))]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    policy, history = learn(Policy(), episodes(0, PRETRAINING.worlds), args.updates, PRETRAINING, seed=0, decay=0.3)
    for i in range(0, len(history), max(1, len(history) // 12)):
        print(f"update {i:4d}", {key: round(value, 4) for key, value in history[i].items()})
    print("gain over Bayesian optimization in held-out worlds, nats of unit-variance functions [mean, lower limit]:", held_out(policy))
    save_file({name: value.float() for name, value in policy.state_dict().items()}, args.out)


if __name__ == "__main__":
    main()
