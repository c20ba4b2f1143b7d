"""Would BoTorch do the surrogate's work as well? Its start-up, its fit, its predictions and its choices against ours.

    pip install botorch==0.18.1 && python benchmarks/search/botorch_comparison.py      # half an hour on one core

Fixed before it ran. Tables: `star` and `hwgpt` of benchmarks/search/surrogate.py. One thread.
Predict: for seeds 0 to 19, n = 20, 40, 80 and 160 random architectures are fitted and 1,000 others predicted, by ours
    (star/surrogate/gaussian_process.py with the groups of the descriptors) and by `SingleTaskGP` (default priors and
    Matern-5/2 with a length scale for each input, inputs normalised, outputs standardised, fit_gpytorch_mll). Measures:
    Spearman, RMSE in standard deviations of the table, NLL, coverage of 90 % intervals, seconds to fit and to predict.
Choose: for seeds 0 to 9, 16 random architectures are known; ten times 4 of 128 random ones are chosen and become known.
    Objectives: loss (modelled) and log size (exact). Ours is `star.surrogate.screening.Surrogate.choose`. BoTorch:
    `qLogNoisyExpectedHypervolumeImprovement` over a SingleTaskGP of the loss and the exact size, 64 Sobol samples,
    optimize_acqf_discrete. Measure: hypervolume of all known, over that of the whole table, in the box of the
    table, after every round; seconds for each choice, fit included. Both get the same candidates.
Start: seconds and memory to import `star.surrogate.screening`, and `botorch.models` with `botorch.fit`, in a fresh
process, median of 5. Differences are paired by seed, with 95 % intervals (t).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from scipy.stats import norm, spearmanr, t
from surrogate import RESULTS, SHARED, hwgpt_table, star_table

from star.assess.objectives import Objective
from star.surrogate.gaussian_process import fit
from star.surrogate.screening import Surrogate

SIZES, ROUNDS, BATCH, POOL, KNOWN, SAMPLES = (20, 40, 80, 160), 10, 4, 128, 16, 64


def botorch_fit(X: np.ndarray, y: np.ndarray):
    """SingleTaskGP with its defaults."""
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.models.transforms import Normalize, Standardize
    from gpytorch.mlls import ExactMarginalLogLikelihood

    x, z = torch.as_tensor(X, dtype=torch.float64), torch.as_tensor(y, dtype=torch.float64)[:, None]
    d = X.shape[1]
    model = SingleTaskGP(x, z, input_transform=Normalize(d), outcome_transform=Standardize(1))
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def botorch_gp(X, y, groups, Xs):
    """Mean, sd with noise, seconds to fit and to predict."""
    began = time.perf_counter()
    model = botorch_fit(X, y)
    fitted = time.perf_counter()
    with torch.no_grad():
        posterior = model.posterior(torch.as_tensor(Xs), observation_noise=True)
        mean, sd = posterior.mean[:, 0].numpy(), posterior.variance[:, 0].sqrt().numpy()
    return mean, sd, fitted - began, time.perf_counter() - fitted


def our_gp(X, y, groups, Xs):
    """The same by ours."""
    began = time.perf_counter()
    model = fit(X, y, groups)
    fitted = time.perf_counter()
    mean, variance = model.marginals(Xs)
    return mean, np.sqrt(variance + model.noise), fitted - began, time.perf_counter() - fitted


def predict(table, seeds: int) -> list[dict]:
    """Part one."""
    X, groups, y, _ = table
    rows = []
    for n in SIZES:
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(len(y))
            seen, rest = order[:n], order[n : n + 1000]
            for name, model in (("ours", our_gp), ("botorch", botorch_gp)):
                mean, sd, fitting, predicting = model(X[seen], y[seen], groups, X[rest])
                z = (y[rest] - mean) / sd
                rows.append(
                    {
                        "n": n,
                        "seed": seed,
                        "model": name,
                        "spearman": float(spearmanr(mean, y[rest]).statistic),
                        "rmse": float(np.sqrt(((mean - y[rest]) ** 2).mean()) / y.std()),
                        "nll": float((0.5 * z * z + np.log(sd / y.std()) + 0.5 * math.log(2 * math.pi)).mean()),
                        "coverage": float((np.abs(z) < norm.ppf(0.95)).mean()),
                        "fit": fitting,
                        "predict": predicting,
                    }
                )
    return rows


def hypervolume(F: np.ndarray) -> float:
    """Of points [n, 2], smaller is better, reference 1 in both."""
    F = F[np.argsort(F[:, 0])]
    volume, height = 0.0, 1.0
    for first, second in F:
        if second < height:
            volume += (1.0 - first) * (height - second)
            height = second
    return volume


def ours_chooses(table, known: np.ndarray, pool: np.ndarray, F: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`Surrogate.choose`; a "genome" is a row of the table."""
    X, groups, _, _ = table

    def describe(rows):
        exact = F[np.asarray(rows)].copy()
        exact[:, 0] = np.nan
        return X[np.asarray(rows)], groups, exact

    objectives = [
        Objective("loss", "", "", lambda m: 0.0),
        Objective("size", "", "", lambda c: 0.0, cheap=True),
    ]
    surrogate = Surrogate(objectives, describe)
    surrogate.tell(list(known), F[known], np.ones(len(known), bool))
    chosen, _ = surrogate.choose(list(pool), BATCH, rng)
    return pool[chosen]


def botorch_chooses(table, known: np.ndarray, pool: np.ndarray, F: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """qLogNEHVI over the loss and the exact size, which is the last input."""
    from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.models.deterministic import GenericDeterministicModel
    from botorch.models.model import ModelList
    from botorch.models.transforms import Normalize, Standardize
    from botorch.models.transforms.input import ChainedInputTransform, FilterFeatures
    from botorch.optim import optimize_acqf_discrete
    from botorch.sampling.get_sampler import get_sampler
    from gpytorch.mlls import ExactMarginalLogLikelihood

    X, d = np.column_stack([table[0], F[:, 1]]), table[0].shape[1]
    x = torch.as_tensor(X)
    transform = ChainedInputTransform(only=FilterFeatures(feature_indices=torch.arange(d)), unit=Normalize(d))
    loss = SingleTaskGP(
        x[known],
        torch.as_tensor(-F[known, :1]),
        input_transform=transform,
        outcome_transform=Standardize(1),
    )
    fit_gpytorch_mll(ExactMarginalLogLikelihood(loss.likelihood, loss))
    size = GenericDeterministicModel(lambda z: -z[..., -1:], num_outputs=1)
    model = ModelList(loss, size)
    seed = int(rng.integers(2**31))
    acquisition = qLogNoisyExpectedHypervolumeImprovement(
        model=model,
        ref_point=[-1.0, -1.0],
        X_baseline=x[known],
        sampler=get_sampler(model.posterior(x[:1]), torch.Size([SAMPLES]), seed=seed),
        prune_baseline=True,
    )
    found, _ = optimize_acqf_discrete(acquisition, q=BATCH, choices=x[pool], unique=True)
    return np.array([pool[int((x[pool] - row).abs().sum(dim=1).argmin())] for row in found])


def choose(table, seeds: int) -> list[dict]:
    """Part two."""
    _, _, y, size = table
    F = np.column_stack([y, np.log(size)])
    F = (F - F.min(axis=0)) / np.ptp(F, axis=0)
    whole, rows = hypervolume(F), []
    for seed in range(seeds):
        for name, chooses in (("ours", ours_chooses), ("botorch", botorch_chooses)):
            rng = np.random.default_rng([seed, 1])
            known = np.random.default_rng(seed).permutation(len(y))[:KNOWN]
            volumes, seconds = [hypervolume(F[known]) / whole], []
            for turn in range(ROUNDS):
                free = np.setdiff1d(np.arange(len(y)), known)
                pool = np.random.default_rng([seed, turn]).choice(free, POOL, replace=False)
                began = time.perf_counter()
                picked = chooses(table, known, pool, F, rng)
                seconds.append(time.perf_counter() - began)
                known = np.append(known, picked)
                volumes.append(hypervolume(F[known]) / whole)
            rows.append({"seed": seed, "arm": name, "hypervolume": volumes, "seconds": statistics.median(seconds)})
    return rows


def start_up(module: str) -> dict[str, float]:
    """Median seconds and MiB to import a module in a fresh process."""
    read = "[line for line in open('/proc/self/status') if line.startswith('VmHWM')][0].split()[1]"
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t, int({read}) / 1024)"
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() for _ in range(5)
    ]
    seconds, memory = zip(*((float(a), float(b)) for a, b in runs), strict=True)
    return {"seconds": statistics.median(seconds), "mib": statistics.median(memory)}


def difference(ours: list[float], theirs: list[float]) -> str:
    """Mean of both, and the paired difference (ours minus BoTorch's) with its 95 % interval."""
    a, b = np.array(ours), np.array(theirs)
    d = a - b
    half = t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d))
    return f"{a.mean():8.3f} {b.mean():8.3f}   {d.mean():+.3f} [{d.mean() - half:+.3f}, {d.mean() + half:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--choices", type=int, default=10, help="seeds of the second part")
    parser.add_argument("--out", type=Path, default=RESULTS / "botorch-cpu.json")
    args = parser.parse_args()
    try:
        import botorch
    except ImportError:
        print("BoTorch is not installed: nothing to compare")
        return
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    tables = {"star": star_table(RESULTS / "table-1364.csv")}
    if SHARED.is_dir():
        tables["hwgpt"] = hwgpt_table(SHARED / "hwgpt-s-perplexity.csv")
    lines = [f"BoTorch {botorch.__version__}, torch {torch.__version__}; columns: ours, BoTorch, difference [95 %]"]
    data: dict = {
        "start": {name: start_up(name) for name in ("star.surrogate.screening", "botorch.models, botorch.fit")}
    }
    for name, row in data["start"].items():
        lines.append(f"import {name}: {row['seconds']:.2f} s, {row['mib']:.0f} MiB")
    for name, table in tables.items():
        rows = data[f"{name} predict"] = predict(table, args.seeds)
        for n in SIZES:
            for key in ("spearman", "rmse", "nll", "coverage", "fit", "predict"):
                both = [[r[key] for r in rows if r["n"] == n and r["model"] == model] for model in ("ours", "botorch")]
                lines.append(f"{name:6} n {n:4} {key:9} {difference(*both)}")
        chosen = data[f"{name} choose"] = choose(table, args.choices)
        arms = [[r for r in chosen if r["arm"] == arm] for arm in ("ours", "botorch")]
        for turn in (2, 5, 10):
            both = [[r["hypervolume"][turn] for r in arm] for arm in arms]
            lines.append(f"{name:6} hypervolume after {turn:2} choices of {BATCH} {difference(*both)}")
        lines.append(f"{name:6} seconds for a choice {difference(*[[r['seconds'] for r in arm] for arm in arms])}")
        print("\n".join(lines), flush=True)
    args.out.write_text(json.dumps(data) + "\n")
    args.out.with_suffix(".txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
