"""Which search finds the better front for the same training tokens?

    python benchmarks/search/search_on_tables.py                    # every arm, 20 seeds, both landscapes; minutes to
        an hour on two cores
    python benchmarks/search/search_on_tables.py --arms paper,star --seeds 5

Arms: NSGA-II as the STAR paper has it (`paper`), the same with each improvement of this package alone and with all of
them (`star`), the other algorithms of this package, and Optuna's NSGA-II and TPE on the same genes. Landscapes, both
tables of real trainings in which the whole optimum is known:
    star     all 1,364 architectures of five SA-1, Rec-1, GConv-1 or GMemless LIVs, with learning curves
             (benchmarks/search/make_table.py);
             loss, parameters and cache; run by `star.search.evolve` itself, store and all, so that rungs are real rungs
    hwgpt    10,000 GPT-S architectures of HW-GPT-Bench (Sukthanker et al., 2024): perplexity, parameters and cache;
             a genome that is not in the table counts as the nearest one that is, for all arms alike
Budget: training tokens, counted when they are spent; an architecture that an arm proposes again costs nothing.
Quality: hypervolume of the fully trained, over that of the whole table, in the box from the table's best to its worst.
Seeds: 0 to n - 1, the same for all arms. Intervals: 95 %, bootstrap over seeds (percentile); ratios are paired by seed.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import itertools
import json
import math
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one search, one core

import numpy as np
from pymoo.indicators.hv import HV

RESULTS = Path(__file__).parent / "results"
SHARED = Path(__file__).parents[3] / "shared" / "data" / "tables"
PAPER = {
    "search.algorithm": "nsga2",
    "search.population": 16,
    "search.generations": 18,
    "search.tournament": 2,
    "search.crossover_points": 2,
    "search.crossover_probability": 0.9,
    "search.mutation_probability": 0.1,
    "search.link_probability": 0.0,
    "search.parents": 0,
    "search.offspring": 0,
    "search.screen": 1,
}
# In full trainings. hwgpt: the paper's 16 x 18. star: half of that, since with 288 of 1,364 every good arm finds the
# whole front.
BUDGETS = {"star": 144, "hwgpt": 288}
RUNGS = {"search.rungs": (0.25,), "search.promote": 0.5}
SCREEN = {"search.screen": 8}
DEPTH = {"search.insert_probability": 0.1, "search.delete_probability": 0.1, "search.swap_probability": 0.1}
STAR = {"search.population": 8, "search.parents": 32, "search.offspring": 4, "search.screen": 32}
ARMS: dict[str, dict] = {
    "paper": {},
    "paper + steady state": {"search.asynchronous": True, "engine.workers": 2},
    "paper + rungs": RUNGS,
    "paper + screening": SCREEN,
    "paper + aligned": {"search.crossover": "aligned"},
    "paper + depth": DEPTH,
    "star": STAR | DEPTH,
    "star - depth": STAR,
    "star - depth + rungs": STAR | RUNGS,
    "genetic algorithm": {"search.algorithm": "ga"},
    "firefly": {"search.algorithm": "firefly"},
    "aging evolution": {"search.algorithm": "aging"},
    "random": {"search.algorithm": "random"},
}
# rungs need learning curves, and changes of depth and alignment a sequence of classes, which the table of HW-GPT-Bench
# has not
NOT_HWGPT = ("paper + rungs", "star - depth", "star - depth + rungs", "paper + aligned", "paper + depth")
OPTUNA = ("optuna NSGA-II", "optuna TPE")


# Landscapes.


@functools.cache
def star_table() -> dict[str, dict]:
    """By classes, such as "1-9-1": parameters, cache, losses at eighths of the budget."""
    with (RESULTS / "table-1364.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["seed"] == "0"]
    return {
        row["classes"]: {key: float(value) for key, value in row.items() if key not in ("classes", "status") and value}
        for row in rows
    }


def assess(job: dict, report: Callable) -> dict:
    """The evaluation that `evolve` runs: what training this genome gave, read from the table."""
    classes = "-".join(
        gene[:-4] for gene in job["genome"]["backbone"].split("-")
    )  # four digits about sharing, all 0 here
    row, tokens = star_table()[classes], job["recipe"]["tokens"]
    eighths = 8 if job["stop_tokens"] is None else max(1, round(8 * job["stop_tokens"] / tokens))
    return {
        "status": "ok",
        "metrics": {"val_loss": row[f"loss_{eighths}"], "tokens": eighths * tokens // 8},
        "curve": [],
    }


@dataclass(frozen=True)
class Landscape:
    """All architectures: scaled objectives F [n, 3] by id, and the genes that Optuna draws. A full training costs 1."""

    F: dict[str, np.ndarray]
    legal: list[int]  # number of values of each gene
    snap: Callable[[list[int]], str | None]  # the architecture of these genes

    @functools.cached_property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        F = np.array(list(self.F.values()))
        return F.min(axis=0), F.max(axis=0) + 0.01 * (F.max(axis=0) - F.min(axis=0))

    def hypervolume(self, F: list[np.ndarray]) -> float:
        low, high = self.box
        return float(HV(ref_point=np.ones(len(low)))((np.array(F) - low) / (high - low))) if len(F) else 0.0

    @functools.cached_property
    def best(self) -> float:
        return self.hypervolume(list(self.F.values()))


def scaled(loss: float, parameters: float, cache: float) -> np.ndarray:
    return np.array([loss, math.log10(1 + parameters), math.log10(1 + cache)])


@functools.cache
def star_landscape() -> Landscape:
    classes = (0, 1, 5, 7, 9)

    def snap(genes: list[int]) -> str | None:
        return "-".join(str(classes[g]) for g in genes if g) or None

    F = {key: scaled(row["loss_8"], row["parameters"], row["cache"]) for key, row in star_table().items()}
    return Landscape(F, [len(classes)] * 5, snap)


class Hwgpt:
    """The table of HW-GPT-Bench as a search space with the interface of `star.genome.Space`. Head size 64.

    Genes: width, depth, bias, then heads and MLP ratio of each of 12 layers, as indices into their legal values.
    """

    def __init__(self):
        with (SHARED / "hwgpt-s-perplexity.csv").open() as file:
            rows = list(csv.DictReader(file))
        table = {key: np.array([float(row[key]) for row in rows]) for key in rows[0]}
        head, ratio = (np.stack([table[f"{name}_{i}"] for i in range(12)], axis=1) for name in ("n_head", "mlp_ratio"))
        d, active = table["embed_dim"][:, None], head > 0
        per_layer = 4 * d * 64 * head + 2 * ratio * d * d
        parameters = (per_layer * active).sum(axis=1) + 50_257 * table["embed_dim"]
        cache = (2 * 64 * head * 4096 * 2 * active).sum(axis=1)
        self.F = np.stack([np.log(table["perplexity"]), np.log10(1 + parameters), np.log10(1 + cache)], axis=1)
        columns = [table["embed_dim"], table["n_layer"], table["bias"]]
        columns += [part[:, i] for i in range(12) for part in (head, ratio)]
        legal = [np.unique(column[column > 0]) if n > 2 else np.unique(column) for n, column in enumerate(columns)]
        self.X = np.stack(
            [np.searchsorted(v, np.maximum(c, v[0])) for v, c in zip(legal, columns, strict=True)], axis=1
        ).astype(np.int64)
        self.values = [np.arange(len(v), dtype=np.int64) for v in legal]
        self.layers = table["n_layer"].astype(int)
        self.n_var = len(self.values)
        self.lower, self.upper = np.zeros(self.n_var, np.int64), np.array([v[-1] for v in self.values])
        self.segments = [slice(3 + 2 * i, 5 + 2 * i) for i in range(12)]
        self.cuts = np.array([s.start for s in self.segments])
        self.names = [f"gene{i}" for i in range(self.n_var)]
        width, depth, heads, ratios = table["embed_dim"], table["n_layer"], head * active, ratio * active
        blocks = [
            [np.log(width), depth, np.log(parameters), table["bias"]],
            [heads.sum(axis=1), ratios.sum(axis=1), heads.sum(axis=1) / depth, ratios.sum(axis=1) / depth],
            [*heads.T, *ratios.T],
        ]
        self.inputs = np.concatenate([np.array(block).T for block in blocks], axis=1)
        self.groups = np.repeat(np.arange(3), [len(block) for block in blocks])
        self.weight = np.array(
            [6.0, 6.0, 1.0] + [1.0] * 24
        )  # width and depth decide most: keep them where the table has them
        self.index = {x.tobytes(): i for i, x in enumerate(self.X)}

    def nearest(self, x: np.ndarray) -> int:
        return int(((self.X != x) * self.weight).sum(axis=1).argmin())

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        return self.X[rng.integers(len(self.X), size=n)]

    def repair(self, X: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        fixed = np.array([self.X[self.nearest(x)] for x in X])
        return fixed, (fixed != X).any(axis=1)

    def describe(self, rows: list[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the surrogate sees: perplexity is unknown to it, size and cache are not."""
        at = [row.row for row in rows]
        F = self.F[at].copy()
        F[:, 0] = np.nan
        return self.inputs[at], self.groups, F

    def encode(self, row: Row) -> np.ndarray:
        return self.X[row.row]

    def decode(self, x: np.ndarray) -> Row:
        return Row(self.index[np.asarray(x, np.int64).tobytes()])


@dataclass(frozen=True)
class Row:
    """An architecture of the table, by its row."""

    row: int

    @property
    def id(self) -> str:
        return str(self.row)


@functools.cache
def hwgpt() -> Hwgpt:
    return Hwgpt()


@functools.cache
def hwgpt_landscape() -> Landscape:
    space = hwgpt()
    F = {str(i): row for i, row in enumerate(space.F)}
    return Landscape(F, [len(v) for v in space.values], lambda genes: str(space.nearest(np.array(genes))))


LANDSCAPES = {"star": star_landscape, "hwgpt": hwgpt_landscape}


# Arms. Each returns [(cost so far in full trainings, id of the fully trained or None)] in order.


def run_evolve(settings: dict, seed: int, budget: float) -> list[tuple[float, str | None]]:
    """The whole system: `star.search.evolve` with the table for an engine."""
    from star.config import load_config
    from star.engine import InProcess
    from star.run import Run
    from star.search import evolve

    fixed = {
        "evaluation": "tabular",
        "search.baselines": (),
        "seed": seed,
        "training.tokens": 131_072,
        "space.slots": 5,
    }
    fixed |= {"space.d_models": (32,), "space.head_dim": 8, "space.classes": (1, 5, 7, 9), "space.sharing": False}
    config = load_config("laptop", overrides=fixed | PAPER | settings)
    rungs, promote = (*config.search.rungs, 1.0), config.search.promote
    shares = [rungs[0]] + [(b - a) * promote ** (i + 1) for i, (a, b) in enumerate(itertools.pairwise(rungs))]
    generations = math.ceil(budget / sum(shares) / config.offspring) + 1
    with tempfile.TemporaryDirectory() as folder:
        config = config.replace({"search.generations": generations})
        evolve(
            Path(folder) / "run", config, engine=InProcess(f"{__name__ if __name__ != '__main__' else 'search'}:assess")
        )
        found, spent = [], 0.0
        settled = [c for c in Run(Path(folder) / "run").candidates() if c.order is not None]
        for candidate in sorted(settled, key=lambda c: c.order):
            spent += candidate.metrics["tokens"] / config.training.tokens
            found.append(
                (spent, "-".join(str(g.class_id) for g in candidate.genome.backbone) if candidate.objectives else None)
            )
    return found


def run_algorithm(settings: dict, seed: int, budget: float) -> list[tuple[float, str | None]]:
    """Ask and tell on the space of the HW-GPT table, where every evaluation is a full one."""
    from star.assess import load_objectives
    from star.config import load_config
    from star.search.algorithm import Told, load_algorithm
    from star.surrogate.screening import Surrogate

    config = load_config(
        "laptop", overrides=PAPER | {"seed": seed} | {k: v for k, v in settings.items() if k not in DEPTH}
    )
    space, found = hwgpt(), []
    surrogate = (
        Surrogate(load_objectives(config.objectives.names), space.describe) if config.search.screen > 1 else None
    )
    algorithm = load_algorithm(space, config, surrogate)
    while len(found) < budget:
        batch = algorithm.ask(
            2 if config.search.asynchronous and found else config.offspring if found else config.search.population
        )
        if batch is None:
            break
        algorithm.tell([Told(child.id, tuple(space.F[int(child.id)]), (0.0,)) for child in batch.offspring])
        found += [(len(found) + 1.0 + i, child.id) for i, child in enumerate(batch.offspring)]
    return found


def run_optuna(sampler: str, landscape: Landscape, seed: int, budget: float) -> list[tuple[float, str | None]]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if sampler == "optuna NSGA-II":
        chosen = optuna.samplers.NSGAIISampler(population_size=16, seed=seed)
    else:
        chosen = optuna.samplers.TPESampler(seed=seed, multivariate=False)
    study = optuna.create_study(directions=["minimize"] * 3, sampler=chosen)
    found: list[tuple[float, str | None]] = []
    seen: set[str] = set()
    worst = landscape.box[1]
    for _ in range(4 * int(budget)):  # architectures that are proposed again are free, but not for ever
        trial = study.ask()
        id = landscape.snap(
            [trial.suggest_categorical(f"gene{i}", list(range(n))) for i, n in enumerate(landscape.legal)]
        )
        study.tell(trial, list(worst if id is None else landscape.F[id]))
        if id is not None and id not in seen:
            seen.add(id)
            found.append((len(found) + 1.0, id))
        if len(found) >= budget:
            break
    return found


def trajectory(task: tuple[str, str, int, float]) -> tuple[str, str, int, list[float], float]:
    """Hypervolume over that of the whole table after 1, 2, ... full trainings' worth of tokens; and seconds."""
    name, arm, seed, budget = task
    landscape, started = LANDSCAPES[name](), time.perf_counter()
    if arm in OPTUNA:
        found = run_optuna(arm, landscape, seed, budget)
    elif name == "star":
        found = run_evolve(ARMS[arm], seed, budget)
    else:
        found = run_algorithm(ARMS[arm], seed, budget)
    grid, volumes, F, at = np.arange(1, int(budget) + 1), [], [], 0
    volume = 0.0
    for cost in grid:
        before = len(F)
        while at < len(found) and found[at][0] <= cost + 1e-9:
            if found[at][1] is not None:
                F.append(landscape.F[found[at][1]])
            at += 1
        volume = landscape.hypervolume(F) / landscape.best if len(F) > before else volume
        volumes.append(volume)
    return name, arm, seed, volumes, time.perf_counter() - started


# What is printed, kept and drawn.


def interval(values: np.ndarray, statistic: Callable = np.mean, n: int = 2000) -> tuple[float, float, float]:
    """The statistic and its 95 % percentile bootstrap interval over seeds."""
    values = np.asarray(values, dtype=float)
    draws = np.random.default_rng(0).integers(len(values), size=(n, len(values)))
    low, high = np.percentile(statistic(values[draws], axis=1), [2.5, 97.5])
    return float(statistic(values)), float(low), float(high)


def summarise(curves: dict[str, np.ndarray], budget: int) -> list[dict]:
    """Of each arm: final hypervolume, area under its curve, and the tokens to reach what `paper` ends with on that
    seed.
    """
    target = curves["paper"][:, -1]
    rows = []
    for arm, volumes in curves.items():
        reached = [
            int(np.argmax(v >= t)) + 1 if (v >= t).any() else budget + 1 for v, t in zip(volumes, target, strict=True)
        ]
        rows.append(
            {
                "arm": arm,
                "seeds": len(volumes),
                "final": interval(volumes[:, -1]),
                "final_minus_paper": interval(volumes[:, -1] - target),
                "area": interval(volumes.mean(axis=1)),
                "share_of_tokens": interval(np.array(reached) / budget, np.median),
                "never_reached": sum(r > budget for r in reached),
            }
        )
    return rows


def table(name: str, rows: list[dict]) -> str:
    lines = [
        f"{name}: hypervolume (share of the table's), 95 % intervals",
        f"{'arm':24s} {'final':>22s} {'final - paper':>25s} {'tokens to the final of paper':>30s}",
    ]
    for row in rows:
        final, gain, share = (
            "{:.4f} [{:.4f}, {:.4f}]".format(*row[k]) for k in ("final", "final_minus_paper", "share_of_tokens")
        )
        never = f"  ({row['never_reached']} of {row['seeds']} never)" if row["never_reached"] else ""
        lines.append(f"{row['arm']:24s} {final:>22s} {gain:>25s} {share:>28s}{never}")
    return "\n".join(lines)


def draw(curves: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(curves), figsize=(6.2 * len(curves), 4.4), squeeze=False, layout="constrained")
    titles = {
        "star": "1,364 architectures of this package, really trained",
        "hwgpt": "HW-GPT-Bench, 10,000 GPT-S architectures",
    }
    every = list(dict.fromkeys(arm for arms in curves.values() for arm in arms))
    colors = {arm: plt.cm.tab20(k % 20) for k, arm in enumerate(every)} | {"paper": "black", "star": "#d55e00"}
    handles = {}
    for axes, (name, arms) in zip(panels[0], curves.items(), strict=True):
        for arm, volumes in arms.items():
            grid, mean, main = np.arange(1, volumes.shape[1] + 1), volumes.mean(axis=0), arm in ("paper", "star")
            (handles[arm],) = axes.plot(
                grid, mean, label=arm, color=colors[arm], linewidth=2.2 if main else 1.2, zorder=3 if main else 2
            )
            if main and len(volumes) > 1:
                error = 1.96 * volumes.std(axis=0, ddof=1) / math.sqrt(len(volumes))
                axes.fill_between(grid, mean - error, mean + error, color=colors[arm], alpha=0.15, linewidth=0)
        axes.set(
            title=titles[name],
            xlabel="training tokens spent, in full trainings",
            ylabel="hypervolume over that of the whole table",
            xscale="log",
        )
        axes.set_ylim(bottom=max(0.0, min(v[:, min(7, v.shape[1] - 1)].mean() for v in arms.values())), top=1.003)
        axes.axvline(BUDGETS[name] / 5, color="grey", linewidth=0.8, linestyle=":")
        axes.set_xlim(4, None)
        axes.grid(alpha=0.25)
    figure.legend(list(handles.values()), list(handles), fontsize=8, loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--budget", type=int, help="in full trainings (default: 144 on star, 288 on hwgpt)")
    parser.add_argument("--arms", default=",".join([*ARMS, *OPTUNA]), help="separated by commas")
    parser.add_argument("--landscapes", default="star,hwgpt")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--cache", type=Path, help="file of finished searches: the same command goes on where it was stopped"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "search-cpu.json")
    args = parser.parse_args()
    arms = [arm.strip() for arm in args.arms.split(",")]
    names = [name for name in args.landscapes.split(",") if name != "hwgpt" or SHARED.is_dir()]
    if "hwgpt" in args.landscapes and "hwgpt" not in names:
        print(f"{SHARED} is absent: the landscape hwgpt is skipped")
    budgets = {name: args.budget or BUDGETS[name] for name in names}
    tasks = [
        (name, arm, seed, budgets[name])
        for name in names
        for seed in range(args.seeds)
        for arm in arms
        if name == "star" or arm not in NOT_HWGPT
    ]
    found: dict[str, dict[str, dict[int, list[float]]]] = {}
    seconds: dict[str, list[float]] = {}
    earlier = (
        [json.loads(line) for line in args.cache.read_text().splitlines()] if args.cache and args.cache.exists() else []
    )
    for name, arm, seed, volumes, took in earlier:
        if name in names and (name, arm, seed, budgets[name]) in tasks and len(volumes) >= budgets[name]:
            found.setdefault(name, {}).setdefault(arm, {})[seed] = volumes[: budgets[name]]
            seconds.setdefault(arm, []).append(took)
    tasks = [task for task in tasks if task[2] not in found.get(task[0], {}).get(task[1], {})]
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        for n, (name, arm, seed, volumes, took) in enumerate(pool.imap_unordered(trajectory, tasks), start=1):
            found.setdefault(name, {}).setdefault(arm, {})[seed] = volumes
            seconds.setdefault(arm, []).append(took)
            if args.cache:
                with args.cache.open("a") as file:
                    file.write(json.dumps([name, arm, seed, np.round(volumes, 6).tolist(), took]) + "\n")
            if n % 20 == 0:
                print(f"{n} of {len(tasks)}", flush=True)
    curves = {}
    for name in names:  # the seeds that every arm has, so that ratios are paired
        present = [arm for arm in arms if arm in found[name]]
        seeds = sorted(set.intersection(*(set(found[name][arm]) for arm in present)))
        curves[name] = {arm: np.array([found[name][arm][seed] for seed in seeds]) for arm in present}
    results = {name: summarise(curves[name], budgets[name]) for name in names}
    for name in names:
        print("\n" + table(name, results[name]))
    print("\nseconds per search:", ", ".join(f"{arm} {np.mean(s):.1f}" for arm, s in seconds.items()))
    facts = {
        "device": f"{platform.machine()} CPU",
        "budgets": budgets,
        "seeds": args.seeds,
        "arms": {arm: PAPER | ARMS.get(arm, {}) for arm in arms},
    }
    means = {name: {arm: np.round(v.mean(axis=0), 5).tolist() for arm, v in curves[name].items()} for name in names}
    args.out.write_text(json.dumps(facts | {"results": results, "mean_hypervolume": means}, indent=1) + "\n")
    draw(curves, args.out.with_suffix(".png"))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
