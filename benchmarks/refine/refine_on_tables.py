"""Which refinement finds good configurations for the least training?

    python benchmarks/refine/refine_on_tables.py --cache refine.jsonl            # 20 seeds, hours on one core; the same
        command goes on where it stopped
    python benchmarks/refine/refine_on_tables.py --cache refine.jsonl --report   # tables and plots of what is there

Tasks: tables of real trainings (benchmarks/refine/table_tasks.py), where every answer is known. Cost: full trainings; a
trial at a cheaper fidelity costs its share of the tokens; a configuration proposed again costs nothing. Arms, all from
the same initial configurations of a seed:
    random; TPE and GPSampler (Optuna, defaults but for the shorter start, nearest row of the table); ASHA (asynchronous
    halving of random configurations, one worker); RL only (a REINFORCE controller over the settings, no model); BO
    (this package's GP and log EI, full trainings alone); BO + rate (fidelities by rate of gain); where tables hold
    several model sizes: BO + rule (rate; learning rate and batch relative
    to a rule that is fitted on the other sizes, whose choice is the first trial), GPSampler + rule (the same first
    trial), BO + transfer (BO + rule with 24 results of the next smaller size, which are taken as had: no cost), and
    both with full trainings alone; BO + RL gated: the policy on top of BO + rule, or of BO where there is
    no rule.
Where else a policy might help: on fidelities that mislead (BO + rate + RL), with results of a related task (BO +
    transfer + RL), and on when to stop: BO, stopping and BO + RL, stopping, where a full training has a price of one
    point of regret (1 % of best to median).
What counts after each trial is the true full loss of the best that was trained in full (before any was: of the best at
the highest fidelity yet). Statistics: benchmarks/refine/paired.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from related_task import Source, contextual
from table_tasks import PRICE, SHARED, TASKS, Task, load

from star.refine.policy import PolicySettings
from star.refine.propose import Pool, Settings, fidelity_coordinate, propose
from star.surrogate.calibration import inflation
from star.surrogate.posterior import Observations

RESULTS = Path(__file__).parent / "results"
FIRST = 4  # initial configurations, common to all arms of a seed
SIBLING = {"steplaw-268M": "steplaw-215M", "steplaw-429M": "steplaw-268M", "steplaw-537M": "steplaw-429M"}
MOST_TRIALS = 60


@dataclass
class Run:
    """One arm on one task with one seed: what it tried, what that cost, and what it would have recommended."""

    task: Task
    seed: int
    spent: float = 0.0
    trials: list[tuple[int, int, float]] = field(default_factory=list)  # configuration, fidelity, loss
    curve: list[tuple[float, int]] = field(default_factory=list)  # cost so far, recommended configuration
    predicted: list[tuple[float, float, float]] = field(default_factory=list)  # mean, sd, what came
    log: list[dict] = field(default_factory=list)

    def __post_init__(self):
        self.rng = np.random.default_rng([self.seed, 5])
        self.first = np.random.default_rng([self.seed, 1]).choice(len(self.task.X), size=FIRST, replace=False).tolist()

    def open(self) -> np.ndarray:
        """[n, k] what the table has and was not tried."""
        free = np.isfinite(self.task.loss)
        for i, j, _ in self.trials:
            free[i, j] = False
        return free

    def left(self) -> float:
        return self.task.budget - self.spent

    def affords(self, j: int = -1) -> bool:
        return self.spent + self.task.fidelities[j] <= self.task.budget * (1 + 1e-9)

    def tell(self, i: int, j: int | None = None) -> float:
        """Train configuration i at fidelity j (default: in full). Known results are free."""
        j = len(self.task.fidelities) - 1 if j is None else j
        for seen, at, loss in self.trials:
            if (seen, at) == (i, j):
                return loss
        loss = float(self.task.loss[i, j])
        self.trials.append((i, j, loss))
        self.spent += self.task.fidelities[j]
        return loss

    def recommend(self, i: int | None = None) -> None:
        """After a trial: configuration i, or the best full trial so far, or the best at the highest fidelity."""
        if i is None:
            top = max(j for _, j, _ in self.trials)
            i = min((loss, c) for c, j, loss in self.trials if j == top)[1]
        self.curve.append((self.spent, int(i)))

    def nearest(self, x: np.ndarray) -> int:
        return int(((self.task.X - x) ** 2).sum(axis=1).argmin())


def centre(task: Task) -> int | None:
    """The configuration that the rule picks, for tables that have one."""
    return None if task.tokens is None else int((np.abs(task.relative[:, -1] - 0.5) ** 2).sum(axis=1).argmin())


# Arms.


def random(run: Run) -> None:
    for i in [*run.first, *run.rng.permutation(len(run.task.X))]:
        if not run.affords():
            break
        run.tell(int(i))
        run.recommend()


def optuna_arm(sampler: str, use_rule: bool = False) -> Callable[[Run], None]:
    def arm(run: Run) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        made = {"TPE": optuna.samplers.TPESampler, "GPSampler": optuna.samplers.GPSampler}[sampler](
            seed=run.seed, n_startup_trials=FIRST
        )
        study = optuna.create_study(sampler=made)
        space = {f"x{c}": optuna.distributions.FloatDistribution(0.0, 1.0) for c in range(run.task.X.shape[1])}
        first = [centre(run.task), *run.first] if use_rule and run.task.tokens is not None else run.first
        for i in first:
            study.enqueue_trial({f"x{c}": float(v) for c, v in enumerate(run.task.X[i])})
        for _ in range(4 * int(run.task.budget)):  # what it asks for again is free, but not for ever
            if not run.affords():
                break
            trial = study.ask(space)
            i = run.nearest(np.array([trial.params[f"x{c}"] for c in range(run.task.X.shape[1])]))
            before = run.spent
            study.tell(trial, run.tell(i))
            if run.spent > before:
                run.recommend()

    return arm


def halving(run: Run, eta: int = 3) -> None:
    """ASHA (Li et al., 2020) with one worker: promote the best third of a rung where one is due, else start a new
    configuration.
    """
    k, queue = len(run.task.fidelities), [*run.first, *run.rng.permutation(len(run.task.X)).tolist()]
    rungs: list[dict[int, float]] = [{} for _ in range(k)]
    promoted: list[set[int]] = [set() for _ in range(k)]
    while True:
        job = None
        for j in range(k - 2, -1, -1):
            best = sorted(rungs[j], key=rungs[j].get)[: len(rungs[j]) // eta]
            due = [i for i in best if i not in promoted[j]]
            if due:
                job = due[0], j
                break
        if job:
            (i, j) = job
            promoted[j].add(i)
            j += 1
        else:
            i, j = next((int(c) for c in queue if all(int(c) not in rung for rung in rungs)), None), 0
            if i is None:
                return
        while j < k - 1 and not np.isfinite(run.task.loss[i, j]):  # a gap in the table: the next rung that it has
            j += 1
        if run.spent + run.task.fidelities[j] > run.task.budget * (1 + 1e-9):
            return
        rungs[j][i] = run.tell(i, j)
        run.recommend()


def controller(run: Run, rate: float = 0.15) -> None:
    """REINFORCE on independent categorical settings, baseline a running mean, no model of the loss."""
    task, rng = run.task, run.rng
    logits = [np.zeros(len(levels)) for levels in task.levels]
    seen: list[float] = []
    proposals = list(run.first)
    for _ in range(20 * int(task.budget)):
        if not run.affords():
            break
        if proposals:
            i = proposals.pop(0)
        else:
            chosen = [rng.choice(len(part), p=np.exp(part - np.logaddexp.reduce(part))) for part in logits]
            i = run.nearest(np.array([levels[c] for levels, c in zip(task.levels, chosen, strict=True)]))
        before, loss = run.spent, run.tell(i)
        if run.spent > before:
            run.recommend()
        seen.append(loss)
        spread_of = np.std(seen) + 1e-9
        advantage = float(np.clip((np.median(seen) - loss) / spread_of, -2, 2))
        for part, levels, x in zip(logits, task.levels, task.X[i], strict=True):
            p = np.exp(part - np.logaddexp.reduce(part))
            part += rate * advantage * (np.eye(len(levels))[np.abs(levels - x).argmin()] - p)


def bayes(
    fidelities: bool = False, rl: bool = False, use_rule: bool = False, transfer: bool = False, stops: bool = False
) -> Callable[[Run], None]:
    """This package. fidelities: cheap trials too; rl: the policy; use_rule: relative inputs, first trial by the
    rule; stops: at a price.
    """

    def arm(run: Run) -> None:
        task = run.task
        cheap = fidelities and len(task.fidelities) > 1
        keep = slice(None) if cheap else slice(-1, None)
        shares = task.fidelities[keep]
        inputs = task.relative[:, keep] if use_rule else task.X
        source = (
            Source(*source_rows(load(SIBLING[task.name]), cheap, run.seed))
            if transfer and task.name in SIBLING
            else None
        )
        price = PRICE / 100 * float(np.median(task.full) - task.full.min()) if stops else 0.0
        settings = Settings(PolicySettings() if rl else None, price)
        first = (
            [(centre(task), -1), *((i, 0) for i in run.first)]
            if use_rule and task.tokens is not None
            else [(i, 0) for i in run.first]
        )
        if transfer:
            first = first[:1]
        pool = Pool(inputs, shares)
        step = 0
        while len(run.trials) < MOST_TRIALS and min(shares) <= run.left() * (1 + 1e-9):
            if step < len(first):
                i, j = first[step]
                j = j % len(shares)
                while not np.isfinite(task.loss[:, keep][i, j]):
                    j += 1
                if shares[j] > run.left() * (1 + 1e-9):
                    break
                prediction = None
            else:
                seen, kept = observations(run, pool, keep, source)
                now = Pool(wide(inputs, kept), shares, open=run.open()[:, keep])
                factor = inflation([row[:2] for row in run.predicted], [row[2] for row in run.predicted])
                proposal = propose(now, seen, settings, run.left(), run.seed, step, scale=factor)
                if proposal.action is None:
                    break
                i, j = proposal.candidate, proposal.action % len(shares)
                prediction = proposal
            loss = run.tell(i, j if cheap else None)
            if prediction is not None:
                run.predicted.append((prediction.mean, prediction.sd, loss))
                run.log.append(
                    {"source": prediction.source, "fidelity": j}
                    | {k: round(float(v), 6) for k, v in prediction.log.items()}
                )
            step += 1
            run.recommend()

    return arm


def wide(inputs: np.ndarray, kept: int) -> np.ndarray:
    return np.concatenate([inputs, np.zeros((*inputs.shape[:-1], kept))], axis=-1) if kept else inputs


def observations(run: Run, pool: Pool, keep: slice, source: Source | None) -> tuple[Observations, int]:
    k = len(pool.fidelities)
    rows = pool.rows()[[i * k + (j if k > 1 else 0) for i, j, _ in run.trials]]
    seen = Observations(rows, np.array([loss for *_, loss in run.trials]))
    if source is None:
        return seen, 0
    joined, kept = contextual(seen, [source], k > 1)
    return joined, len(kept)


def source_rows(sibling: Task, cheap: bool, seed: int, n: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """n results of the sibling, drawn with the seed, in relative inputs; half of them at its cheaper fidelities if
    these are asked for.
    """
    rng = np.random.default_rng([seed, 3])
    there = np.argwhere(np.isfinite(sibling.loss))
    full = there[:, 1] == sibling.loss.shape[1] - 1
    chosen = rng.choice(np.flatnonzero(full), size=n // 2 if cheap else n, replace=False)
    if cheap:
        chosen = np.append(chosen, rng.choice(np.flatnonzero(~full), size=n - n // 2, replace=False))
    i, j = there[chosen].T
    X = sibling.relative[i, j]
    return (np.column_stack([X, fidelity_coordinate(np.array(sibling.fidelities)[j])]) if cheap else X), sibling.loss[
        i, j
    ]


ARMS: dict[str, Callable[[Run], None]] = {
    "random": random,
    "TPE": optuna_arm("TPE"),
    "GPSampler": optuna_arm("GPSampler"),
    "ASHA": halving,
    "RL only": controller,
    "BO": bayes(),
    "BO + rate": bayes(fidelities=True),
    "GPSampler + rule": optuna_arm("GPSampler", use_rule=True),
    "BO + rule": bayes(fidelities=True, use_rule=True),
    "BO + RL gated": bayes(fidelities=True, use_rule=True, rl=True),
    "BO + transfer": bayes(fidelities=True, use_rule=True, transfer=True),
    "BO + rule, full": bayes(use_rule=True),
    "BO + transfer, full": bayes(use_rule=True, transfer=True),
    "BO + rate + RL": bayes(fidelities=True, rl=True),
    "BO + transfer + RL": bayes(fidelities=True, use_rule=True, transfer=True, rl=True),
    "BO, stopping": bayes(fidelities=True, use_rule=True, stops=True),
    "BO + RL, stopping": bayes(fidelities=True, use_rule=True, stops=True, rl=True),
}
NEEDS_FIDELITIES = ("ASHA", "BO + rate", "BO + rate + RL")
NEEDS_RULE = (
    "GPSampler + rule",
    "BO + rule",
    "BO + transfer",
    "BO + rule, full",
    "BO + transfer, full",
    "BO + transfer + RL",
)


def applies(arm: str, task: str) -> bool:
    """Whether an arm differs from another one on this task."""
    several = task.startswith("steplaw")
    return (several or arm not in NEEDS_FIDELITIES + NEEDS_RULE) and (
        not arm.startswith("BO + transfer") or task in SIBLING
    )


def execute(task: str, arm: str, seed: int) -> dict:
    run, started = Run(load(task), seed), time.perf_counter()
    ARMS[arm](run)
    return {
        "task": task,
        "arm": arm,
        "seed": seed,
        "cost": [round(c, 4) for c, _ in run.curve],
        "loss": [round(float(run.task.full[i]), 6) for _, i in run.curve],
        "predicted": [[round(float(v), 6) for v in row] for row in run.predicted],
        "log": run.log,
        "seconds": round(time.perf_counter() - started, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0:20", help="first:last + 1")
    parser.add_argument("--arms", default=";".join(ARMS), help="separated by semicolons")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--cache", type=Path, default=Path("refine-tables.jsonl"))
    parser.add_argument("--report", action="store_true", help="run nothing, report what the cache has")
    parser.add_argument("--out", type=Path, default=RESULTS / "refine-tables-cpu.json")
    args = parser.parse_args()
    if not SHARED.is_dir():
        print(f"{SHARED} is absent: skipped")
        return
    torch.set_num_threads(1)
    done = (
        {(r["task"], r["arm"], r["seed"]) for r in map(json.loads, args.cache.read_text().splitlines())}
        if args.cache.exists()
        else set()
    )
    first, last = map(int, args.seeds.split(":"))
    todo = [
        (t, a, s)
        for s in range(first, last)
        for t in args.tasks.split(",")
        for a in args.arms.split(";")
        if applies(a, t)
    ]
    todo = [] if args.report else [item for item in todo if item not in done]
    with args.cache.open("a") as file:
        for n, (task, arm, seed) in enumerate(todo, start=1):
            file.write(json.dumps(execute(task, arm, seed)) + "\n")
            file.flush()
            if n % 20 == 0:
                print(f"{n} of {len(todo)}", flush=True)
    from refine_on_tables_report import report

    report(
        [json.loads(line) for line in args.cache.read_text().splitlines()], args.out, device=f"{platform.machine()} CPU"
    )


if __name__ == "__main__":
    main()
