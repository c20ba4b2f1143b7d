"""Tables of real trainings as tuning tasks: a finite set of configurations, their losses at several budgets, and what
each costs.

steplaw-N   learning rate x batch of dense language models (Step Law, arXiv 2503.04715): final smoothed loss, nats per
            token; token budgets
            are the fidelities, the largest of each size the full one; shares of its tokens are the cost
nmt-sw-en   767 Transformers, six hyperparameters (HPO-NMT): log perplexity; one fidelity, every trial costs 1
hwgpt-s     1,000 of the 10,000 architectures of HW-GPT-Bench: z(log perplexity) + 0.9 z(log parameters), so that larger
            is not simply better
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SHARED = Path(__file__).parents[3] / "shared" / "data" / "tables"
PRICE = 1.0  # points of regret that a full training costs, for arms that may stop
TASKS = ("steplaw-215M", "steplaw-268M", "steplaw-429M", "steplaw-537M", "nmt-sw-en", "hwgpt-s")


@dataclass(frozen=True)
class Task:
    """n configurations at k budgets."""

    name: str
    X: np.ndarray  # [n, d] in [0, 1]
    relative: np.ndarray  # [n, k, d] in [0, 1]: relative to a rule where there is one, otherwise X
    levels: tuple[np.ndarray, ...]  # per column of X, its values: what a sampler may ask for
    loss: np.ndarray  # [n, k], NaN where the table has none
    fidelities: tuple[float, ...]
    budget: float  # full trainings
    unit: str
    tokens: np.ndarray | None = None  # [k]
    size: float = 0.0

    @property
    def full(self) -> np.ndarray:
        return self.loss[:, -1]

    @functools.cached_property
    def target(self) -> float:
        """The loss of the configurations that are the table's best 1 %."""
        return float(np.sort(self.full)[max(1, int(np.ceil(0.01 * len(self.full)))) - 1])

    def regret(self, loss: float) -> float:
        """0 at the table's best, 100 at its median."""
        best = self.full.min()
        return 100.0 * (loss - best) / (np.median(self.full) - best)


@functools.cache
def load(name: str) -> Task:
    return steplaw(name) if name.startswith("steplaw") else nmt() if name == "nmt-sw-en" else hwgpt()


def read(path: Path) -> dict[str, np.ndarray]:
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {key: np.array([float(row[key]) for row in rows]) for key in rows[0]}


@functools.cache
def steplaw_rows() -> dict[str, np.ndarray]:
    table = read(SHARED / "steplaw-dense.csv")
    # The grid's steps of the root of two; the file rounds them
    table["log_lr"] = np.round(2 * np.log2(table["lr"] / 2**-12)) / 2
    table["log_bs"] = np.log2(table["bs"])
    return table


def steplaw(name: str) -> Task:
    """One size. Its rule is fitted on all other sizes, so nothing of this one leaks into it."""
    table = steplaw_rows()
    sizes = np.unique(table["N"])
    size = sizes[np.abs(sizes / 1e6 - float(name.removeprefix("steplaw-").rstrip("M"))).argmin()]
    mine = table["N"] == size
    tokens = np.unique(table["D"][mine])
    full = mine & (table["D"] == tokens[-1])
    keys = sorted(set(zip(table["log_lr"][full], table["log_bs"][full], strict=True)))
    index = {key: i for i, key in enumerate(keys)}
    loss = np.full((len(keys), len(tokens)), np.nan)
    for r in np.flatnonzero(mine):
        i = index.get((table["log_lr"][r], table["log_bs"][r]))
        if i is not None:
            loss[i, np.searchsorted(tokens, table["D"][r])] = table["smooth_loss"][r]
    raw = np.array(keys)
    lr, bs = rule(table, table["N"] != size)
    offsets = np.stack(
        [raw - np.array([lr(size, D), bs(size, D)]) for D in tokens], axis=1
    )  # [n, k, 2] doublings from the rule
    return Task(
        name,
        (raw - raw.min(axis=0)) / np.ptp(raw, axis=0),
        (offsets + 4.0) / 8.0,
        tuple(np.unique(c) for c in unit(raw).T),
        loss,
        tuple(float(D / tokens[-1]) for D in tokens),
        16.0,
        "nats per token",
        tokens,
        float(size),
    )


def rule(table: dict[str, np.ndarray], rows: np.ndarray):
    """log2 of the best learning rate / 2^-12 and of the best batch, as functions of (N, D): optimum of a quadratic
    fitted on these rows.

    Terms: those of the regression of loss on log2 of N, D, learning rate and batch with all interactions of the two
    latter with the former.
    """
    best = {
        (N, D): table["smooth_loss"][(table["N"] == N) & (table["D"] == D)].min()
        for N, D in set(zip(table["N"], table["D"], strict=True))
    }
    near = table["smooth_loss"] < np.array([best[key] for key in zip(table["N"], table["D"], strict=True)]) + 0.15
    keep = rows & near

    def terms(N, D, a, b):
        n, d = np.log2(N / 268e6) * np.ones_like(a), np.log2(D / 20e9) * np.ones_like(a)
        return np.stack(
            [np.ones_like(a), n, d, n * n, d * d, n * d, a, b, a * a, b * b, a * b, n * a, d * a, n * b, d * b], axis=-1
        )

    A = terms(*(table[key][keep] for key in ("N", "D", "log_lr", "log_bs")))
    w = np.linalg.lstsq(A, table["smooth_loss"][keep], rcond=None)[0]

    def optimum(N: float, D: float) -> np.ndarray:
        n, d = np.log2(N / 268e6), np.log2(D / 20e9)
        H = np.array([[2 * w[8], w[10]], [w[10], 2 * w[9]]])
        return np.linalg.solve(H, -np.array([w[6] + w[11] * n + w[12] * d, w[7] + w[13] * n + w[14] * d]))

    return (lambda N, D: optimum(N, D)[0]), (lambda N, D: optimum(N, D)[1])


def nmt() -> Task:
    table = read(SHARED / "nmt-sw-en.csv")
    names = ("bpe_symbols", "num_layers", "num_embed", "feed_forward", "attention_heads", "initial_lr")
    raw = np.stack([np.log2(table[name]) for name in names], axis=1)
    return single("nmt-sw-en", raw, np.log(table["dev_ppl"]), 30.0, "nats per token")


def hwgpt(n: int = 1000) -> Task:
    table = read(SHARED / "hwgpt-s-perplexity.csv")
    heads, ratios = (np.stack([table[f"{name}_{i}"] for i in range(12)], axis=1) for name in ("n_head", "mlp_ratio"))
    width, used = table["embed_dim"], heads > 0
    size = ((4 * width[:, None] ** 2 + 2 * width[:, None] ** 2 * ratios) * used).sum(axis=1) + 50_304 * width
    z = [(v - v.mean()) / v.std() for v in (np.log(table["perplexity"]), np.log(size))]
    raw = np.column_stack([np.log2(width), table["n_layer"], table["bias"], heads * used, ratios * used])
    rows = np.random.default_rng(0).permutation(len(raw))[:n]
    return single("hwgpt-s", raw[rows], (z[0] + 0.9 * z[1])[rows], 30.0, "sd of the table")


def single(name: str, raw: np.ndarray, loss: np.ndarray, budget: float, measured: str) -> Task:
    X = unit(raw)
    return Task(name, X, X[:, None], tuple(np.unique(c) for c in X.T), loss[:, None], (1.0,), budget, measured)


def unit(raw: np.ndarray) -> np.ndarray:
    low, high = raw.min(axis=0), raw.max(axis=0)
    return (raw - low) / np.where(high > low, high - low, 1.0)
