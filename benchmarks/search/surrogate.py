"""How well the surrogate ranks architectures that were not trained, and how honest its uncertainty is.

    python benchmarks/search/surrogate.py                  # 20 seeds, both tables; some minutes on one core

Tables of real trainings: `star` (benchmarks/search/make_table.py, our genomes, final validation loss) and `hwgpt`
(10,000 GPT-S architectures of HW-GPT-Bench, Sukthanker et al., 2024, log perplexity). For each seed, n architectures
chosen at random are fitted and up to 1,000 others predicted. Models: `gp`, as in a search
(star/surrogate/gaussian_process.py); `gp, one scale`, the same with a single length scale; ridge regression
(leave-one-out penalty) and the 5 nearest neighbours on the same inputs; and size alone, which needs no training.
Columns: Spearman correlation with the measured loss; coverage of the central 50, 80 and 90 % intervals; regret of the
best among the 10 with the best predictions, in standard deviations of the table. Means over seeds with 95 % bootstrap
intervals. `botorch_comparison.py` compares the model with BoTorch.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import time
from pathlib import Path

import numpy as np
from scipy.stats import norm, spearmanr

from star.cost import costs as costs_of
from star.genome import Gene, Genome
from star.surrogate.descriptors import describe
from star.surrogate.gaussian_process import fit

RESULTS = Path(__file__).parent / "results"
SHARED = Path(__file__).parents[3] / "shared" / "data" / "tables"
LEVELS = (0.5, 0.8, 0.9)
TOP = 10


def star_table(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Inputs [n, p], their groups [p], losses [n], size [n]."""
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["seed"] == "0" and row["status"] == "ok"]
    genomes = [Genome(tuple(Gene(int(c)) for c in row["classes"].split("-")), d_model=32, head_dim=8) for row in rows]
    costs = [costs_of(genome, seq_len=4096) for genome in genomes]
    return (
        *describe(genomes, costs),
        np.array([float(row["loss_8"]) for row in rows]),
        np.array([c.parameters for c in costs], float),
    )


def hwgpt_table(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    with path.open() as file:
        rows = list(csv.DictReader(file))
    table = {key: np.array([float(row[key]) for row in rows]) for key in rows[0]}
    heads, ratios = (np.stack([table[f"{name}_{i}"] for i in range(12)], axis=1) for name in ("n_head", "mlp_ratio"))
    active, width, depth = heads > 0, table["embed_dim"], table["n_layer"]
    heads, ratios = heads * active, ratios * active
    size = ((256 * heads * width[:, None] + 2 * ratios * width[:, None] ** 2).sum(axis=1)) + 50_257 * width
    groups = [
        [np.log(width), depth, np.log(size), table["bias"]],
        [heads.sum(axis=1), ratios.sum(axis=1), heads.sum(axis=1) / depth, ratios.sum(axis=1) / depth],
        [*heads.T, *ratios.T],
    ]
    X = np.concatenate([np.array(group).T for group in groups], axis=1)
    return X, np.repeat(np.arange(3), [len(group) for group in groups]), np.log(table["perplexity"]), size


# Models: (X, y, groups, X of the unseen, size, size of the unseen) -> mean, and sd or None


def gp(X, y, groups, Xs, *_):
    return fit(X, y, groups).predict(Xs)


def gp_one_scale(X, y, groups, Xs, *_):
    return gp(X, y, np.zeros_like(groups), Xs)


def ridge(X, y, groups, Xs, *_):
    Z, Zs = standardised(X, Xs)
    z = y - y.mean()
    U, s, Vt = np.linalg.svd(Z, full_matrices=False)
    best = (np.inf, None, None)
    for penalty in np.geomspace(1e-2, 1e4, 25):
        shrink = s**2 / (s**2 + penalty)
        left_out = (z - U @ (shrink * (U.T @ z))) / np.maximum(1 - (U * U * shrink).sum(axis=1) - 1 / len(z), 1e-3)
        error = (left_out**2).mean()
        if error < best[0]:
            best = error, Vt.T @ (s / (s**2 + penalty) * (U.T @ z)), left_out
    return y.mean() + Zs @ best[1], np.full(len(Xs), np.sqrt(best[0]))


def neighbours(X, y, groups, Xs, *_):
    Z, Zs = standardised(X, Xs)
    nearest = np.argsort(((Zs[:, None] - Z[None]) ** 2).sum(axis=2), axis=1, kind="stable")[:, :5]
    return y[nearest].mean(axis=1), None


def size_alone(X, y, groups, Xs, size, sizes):
    """Larger is better: no training at all."""
    return -sizes, None


MODELS = {"gp": gp, "gp, one scale": gp_one_scale, "ridge": ridge, "5 neighbours": neighbours, "size alone": size_alone}


def standardised(X, Xs):
    sd = np.where(X.std(axis=0) > 1e-9, X.std(axis=0), 1.0)
    return (X - X.mean(axis=0)) / sd, (Xs - X.mean(axis=0)) / sd


def score(mean, sd, truth, spread) -> dict[str, float]:
    row = {
        "spearman": spearmanr(mean, truth).statistic,
        "regret": (truth[np.argsort(mean)[:TOP]].min() - truth.min()) / spread,
    }
    if sd is not None:
        row |= {
            f"coverage {level:.0%}": (np.abs(truth - mean) < norm.ppf(0.5 + level / 2) * sd).mean() for level in LEVELS
        }
    return {key: float(value) for key, value in row.items()}


def interval(values: list[float]) -> list[float]:
    values = np.array(values)
    means = values[np.random.default_rng(0).integers(len(values), size=(2000, len(values)))].mean(axis=1)
    return [round(float(x), 4) for x in (values.mean(), *np.quantile(means, [0.025, 0.975]))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--sizes", default="16,32,64,128")
    parser.add_argument("--star", type=Path, default=RESULTS / "table-1364.csv")
    parser.add_argument("--hwgpt", type=Path, default=SHARED / "hwgpt-s-perplexity.csv")
    parser.add_argument("--out", type=Path, default=RESULTS / "surrogate-cpu.json")
    args = parser.parse_args()
    rows, started = [], time.perf_counter()
    for name, (X, groups, y, size) in {"star": star_table(args.star), "hwgpt": hwgpt_table(args.hwgpt)}.items():
        print(f"\n{name}: {len(y)} architectures, sd {y.std():.4f}")
        for n in map(int, args.sizes.split(",")):
            found: dict[str, list[dict]] = {model: [] for model in MODELS}
            for seed in range(args.seeds):
                order = np.random.default_rng(seed).permutation(len(y))
                seen, unseen = order[:n], order[n : n + 1000]
                for model, predict in MODELS.items():
                    begin = time.perf_counter()
                    mean, sd = predict(X[seen], y[seen], groups, X[unseen], size[seen], size[unseen])
                    found[model].append(score(mean, sd, y[unseen], y.std()) | {"seconds": time.perf_counter() - begin})
            for model, scores in found.items():
                row = {"table": name, "architectures": len(y), "n": n, "model": model} | {
                    key: interval([s[key] for s in scores]) for key in scores[0]
                }
                rows.append(row)
                cells = "  ".join(
                    f"{key} {value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"
                    for key, value in row.items()
                    if isinstance(value, list)
                )
                print(f"n {n:4d}  {model:14s} {cells}", flush=True)
    facts = {
        "seeds": args.seeds,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "processor": platform.machine(),
    }
    facts |= {"seconds": round(time.perf_counter() - started), "rows": rows}
    args.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
