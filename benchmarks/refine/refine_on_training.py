"""What refinement brings in real training, against Optuna and others at equal cost.

    star evolve runs/first                                             # any run with a front
    python benchmarks/refine/refine_on_training.py runs/first --cache real.jsonl     # the same command goes on where it
        stopped; several may share a cache
    python benchmarks/refine/refine_on_training.py runs/first --cache real.jsonl --report

Every pair of a member of the front and a seed is one task: lower this member's loss, at no more parameters and cache,
with so many full trainings. Arms get the same member, the same settings and edits to choose from
(`star.training.recipe_space`, `star.genome.local_edits`), the same budget, and their own random numbers:

    random               a recipe from all over the space, and one edit or none
    TPE, GPSampler       Optuna, defaults, the member's own recipe first; "+ portfolio": and the recipes that a
                         refinement begins with
    halving              ASHA with one worker: random candidates at a quarter of the tokens, the best quarter of them in
                         full
    RL only              a REINFORCE controller over the settings, no model of the loss
    BO                   `star refine --no-policy`
    BO + RL gated        `star refine`: the policy may choose the next trial where it gains in simulations
    BO + earlier         BO that has seen the refinements of the other members with the same seed (taken as had: no
                         cost), as `star refine` does
    recipes, edits       BO with only one of the two open

What an arm recommends at the end is trained with fresh seeds that decided nothing, and so is the member under the
search's recipe: outside the budget, the same for all. A training is named by what it is (genome, settings, share of the
tokens, seed), so that arms that ask for the same one share it; each pays for it all the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

import star
from star.assess.evaluations import load_evaluation
from star.engine.worker import run_job
from star.genome.local_edits import Edit
from star.refine.candidates import Setup, all_edits
from star.refine.coordinator import choose_members, evidence_of
from star.refine.planner import Planner
from star.refine.settings import RefineSettings
from star.search import outcomes
from star.search.jobs import Candidates
from star.store import Proposal, Refinement, Trial, TrialResult

RESULTS = Path(__file__).parent / "results"
BUDGET = 20.0  # full trainings that decide
FRESH = 3  # trainings of the recommendation that do not
LEVELS = 5  # of each setting, for the controller
EXPLORE = 0.5  # probability of an edit in a random candidate


class Lab:
    """Trains what arms ask for, once; results live in a file that processes share."""

    def __init__(self, run: star.Run, cache: Path, members: tuple[str, ...] = ()):
        self.run, self.cache, self.members, self.known = run, cache, members, {}
        evaluation = load_evaluation(run.config.evaluation)
        self.config = run.config.replace({"engine.threads": 1})
        self.candidates = Candidates(self.config, evaluation.prepare(self.config))
        self.function = f"{evaluation.__name__}:assess"
        self.loss = next(o for o in self.candidates.objectives if not o.cheap)
        self._read()

    def planner(
        self, member: str, seed: int, change: str = "both", use_policy: bool = True, earlier: Sequence = ()
    ) -> Planner:
        """Of `star refine` for one member; its last measurements are left to this benchmark."""
        settings = RefineSettings((member,), change=change, policy=use_policy, seed=seed, confirm=2, parallel=1)
        settings = dataclasses.replace(settings, budget=BUDGET + settings.confirm_cost)
        evidence = evidence_of(self.run, [self.run.candidate(member)])
        return Planner(
            self.config,
            self.run.space,
            self.candidates,
            settings,
            {id: self.run.candidate(id).genome for id, _ in evidence},
            evidence,
            earlier,
        )

    def train(self, planner: Planner, trial: Trial) -> TrialResult:
        key = f"{trial.candidate}/{trial.share:g}/{trial.repeat}/{planner.settings.seed}"
        if key not in self.known:
            self._read()
        if key not in self.known:
            seed = outcomes.candidate_seed(self.config.seed, f"{planner.settings.seed}/{trial.id}", 0)
            recipe = dataclasses.asdict(planner.recipes.recipe(trial.settings, trial.share)) | {"seed": seed}
            proposal = Proposal(trial.candidate, trial.genome, "refined", costs=trial.costs)
            job = self.candidates.job(proposal, (), 0, Path()) | {
                "seed": seed,
                "recipe": recipe,
                "rung": 0,
                "stop_tokens": None,
            }
            started = time.process_time()
            outcome = run_job(
                self.function,
                job | {"checkpoint": None, "directory": None, "keep_weights": False},
                lambda progress: None,
            )
            metrics = (outcome.get("result") or {}).get("metrics") or {}
            objectives = self.candidates.measure(proposal, metrics) if outcome["status"] == "ok" else None
            self.write(
                {
                    "trial": key,
                    "status": outcome["status"],
                    "objectives": objectives,
                    "seconds": time.process_time() - started,
                }
            )
        row = self.known[key]
        return TrialResult(row["status"], objectives=row["objectives"], seconds=row["seconds"])

    def value(self, result: TrialResult) -> float:
        return self.loss.scaled(result.objectives[self.loss.name]) if result.objectives else math.inf

    def write(self, row: dict) -> None:
        with self.cache.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(json.dumps(row) + "\n")
        self._take(row)

    def _read(self) -> None:
        if self.cache.exists():
            for line in self.cache.read_text().splitlines():
                self._take(json.loads(line))

    def _take(self, row: dict) -> None:
        self.known[row["trial"] if "trial" in row else (row["arm"], row["member"], row["seed"])] = row


class Task:
    """One member and one seed: what an arm may ask for, and what it has spent."""

    def __init__(self, lab: Lab, planner: Planner):
        self.lab, self.planner, self.spent = lab, planner, 0.0
        self.member = next(iter(planner.members.values()))
        self.rng = np.random.default_rng([planner.settings.seed, 7])
        self.tried: list[tuple[Setup, float, float]] = []  # candidate, share, loss
        groups: dict[str, list[Edit]] = {}
        for edit in all_edits(self.member.genome, planner.space):
            edited = self.member.edited(edit)
            if planner._allowed(edited):
                groups.setdefault(edit.kind, []).append(edit)
        self.edits = groups

    def affords(self, share: float = 1.0) -> bool:
        return self.spent + share <= BUDGET * (1 + 1e-9)

    def tell(self, setup: Setup, share: float = 1.0) -> float:
        trial = self.planner.trial(setup, share)
        loss = self.lab.value(self.lab.train(self.planner, trial))
        self.spent += share
        self.tried.append((setup, share, loss))
        return loss

    def best(self) -> Setup:
        """The lowest loss of a full training."""
        return min((row for row in self.tried if row[1] == 1.0), key=lambda row: row[2])[0]

    def setup(self, settings: dict, kind: str = "none", place: float = 0.0) -> Setup:
        """A recipe and an edit: the one at this place, in [0, 1), of all of its kind."""
        setup = self.member
        if kind != "none":
            group = self.edits[kind]
            setup = setup.edited(group[min(int(place * len(group)), len(group) - 1)])
        recipes = self.planner.recipes
        return setup.with_settings({d.name: recipes.mend(d, settings[d.name]) for d in recipes.dimensions})

    def random(self) -> Setup:
        settings = self.planner.recipes.sample(1, self.rng)[0]
        kind = self.rng.choice(sorted(self.edits)) if self.edits and self.rng.random() < EXPLORE else "none"
        return self.setup(settings, kind, self.rng.random())


def random(task: Task) -> Setup:
    task.tell(task.member)
    while task.affords():
        task.tell(task.random())
    return task.best()


def optuna_arm(sampler: str, portfolio: bool = False) -> Callable[[Task], Setup]:
    def arm(task: Task) -> Setup:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(sampler=getattr(optuna.samplers, sampler)(seed=task.planner.settings.seed))
        space = task.planner.recipes
        for settings in [space.start(), *(space.portfolio() if portfolio else ())]:
            study.enqueue_trial(suggestions(space, settings) | {"edit": "none"})
        while task.affords():
            trial = study.ask()
            settings = dict(space.start())
            for d in space.open:
                if d.choices:
                    settings[d.name] = trial.suggest_categorical(d.name, d.choices)
                elif d.off and trial.suggest_categorical(f"{d.name} on", (False, True)) is False:
                    settings[d.name] = 0.0
                else:
                    settings[d.name] = trial.suggest_float(d.name, d.low, d.high, log=True)
            kind = trial.suggest_categorical("edit", ("none", *sorted(task.edits)))
            place = trial.suggest_float(f"which {kind}", 0.0, 1.0) if kind != "none" else 0.0
            loss = task.tell(task.setup(settings, kind, place))
            study.tell(
                trial,
                loss if math.isfinite(loss) else None,
                state=None if math.isfinite(loss) else optuna.trial.TrialState.FAIL,
            )
        return task.best()

    return arm


def suggestions(space, settings: dict) -> dict:
    found = {}
    for d in space.open:
        if d.off:
            found[f"{d.name} on"] = bool(settings[d.name])
        if d.choices or settings[d.name]:
            found[d.name] = settings[d.name] if d.choices else min(max(settings[d.name], d.low), d.high)
    return found


def halving(task: Task, eta: int = 4) -> Setup:
    """ASHA (Li et al., 2020), one worker, two rungs."""
    cheap: list[tuple[float, int]] = []
    setups, promoted = [task.member], set()
    while task.affords(0.25):
        due = [i for _, i in sorted(cheap)[: len(cheap) // eta] if i not in promoted]
        if due:
            if not task.affords():
                break
            promoted.add(due[0])
            task.tell(setups[due[0]])
            continue
        i = len(cheap)
        if i == len(setups):
            setups.append(task.random())
        cheap.append((task.tell(setups[i], 0.25), i))
    return task.best()


def controller(task: Task, rate: float = 0.15) -> Setup:
    """REINFORCE on independent categorical choices, the first the member's own; baseline: the median so far."""
    space, rng = task.planner.recipes, task.rng
    names = [*(d.name for d in space.open), "edit"]
    levels = [
        [d.decode((k + 0.5) / LEVELS) for k in range(LEVELS)] if not d.choices else list(d.choices) for d in space.open
    ]
    levels.append(["none", *sorted(task.edits)])
    logits = [np.zeros(len(part)) for part in levels]
    seen = [task.tell(task.member)]
    while task.affords():
        chosen = [int(rng.choice(len(part), p=np.exp(part - np.logaddexp.reduce(part)))) for part in logits]
        picked = {name: part[c] for name, part, c in zip(names, levels, chosen, strict=True)}
        loss = task.tell(
            task.setup(space.start() | {k: v for k, v in picked.items() if k != "edit"}, picked["edit"], rng.random())
        )
        seen.append(loss)
        finite = [value for value in seen if math.isfinite(value)]
        advantage = float(np.clip((np.median(finite) - min(loss, max(finite))) / (np.std(finite) + 1e-9), -2, 2))
        for part, c in zip(logits, chosen, strict=True):
            part += rate * advantage * (np.eye(len(part))[c] - np.exp(part - np.logaddexp.reduce(part)))
    return task.best()


def refinement(learns: bool = False) -> Callable[[Task], Setup]:
    def arm(task: Task) -> Setup:
        lab, planner = task.lab, task.planner
        if learns:
            others = [
                lab.planner(id, planner.settings.seed, use_policy=False)
                for id in lab.members
                if id != task.member.member
            ]
            states = [decide(lab, other) for other in others]
            earlier = [
                (t, state.results[t.id]) for state in states for t in state.trials if state.results[t.id].objectives
            ]
            planner = lab.planner(task.member.member, planner.settings.seed, use_policy=False, earlier=earlier)
        state = decide(lab, planner)
        task.spent = state.spent
        task.tried = [(planner.setup(t), t.share, lab.value(state.results[t.id])) for t in state.trials]
        predicted = [(t, lab.value(state.results[t.id])) for t in state.trials if t.predicted]
        task.log = [
            {"source": t.source, "share": t.share, "predicted": t.predicted, "loss": loss} | t.log
            for t, loss in predicted
        ]
        seen = planner.seen(state, state.trials)
        found = planner.best(seen, planner.posterior(seen))
        return found[0] if found else task.member

    return arm


def decide(lab: Lab, planner: Planner) -> Refinement:
    """A refinement up to its last measurements."""
    state = Refinement(planner.settings.id, planner.settings.to_json(), planner.evidence, planner.earlier)
    while (trials := planner.next(state)) and trials[0].purpose != "confirm":
        for trial in trials:
            state.trials.append(trial)
            state.results[trial.id] = lab.train(planner, trial)
    return state


ARMS: dict[str, tuple[Callable[[Task], Setup], dict]] = {
    "BO": (refinement(), {"use_policy": False}),
    "BO + RL gated": (refinement(), {}),
    "TPE": (optuna_arm("TPESampler"), {}),
    "GPSampler": (optuna_arm("GPSampler"), {}),
    "TPE + portfolio": (optuna_arm("TPESampler", portfolio=True), {}),
    "GPSampler + portfolio": (optuna_arm("GPSampler", portfolio=True), {}),
    "random": (random, {}),
    "halving": (halving, {}),
    "RL only": (controller, {}),
    "BO + earlier": (refinement(learns=True), {"use_policy": False}),
    "recipes": (refinement(), {"use_policy": False, "change": "recipes"}),
    "edits": (refinement(), {"use_policy": False, "change": "edits"}),
}


def execute(lab: Lab, arm: str, member: str, seed: int) -> None:
    run, options = ARMS[arm]
    task = Task(lab, lab.planner(member, seed, **options))
    started = time.process_time()
    chosen = run(task)
    overhead = time.process_time() - started
    judge = lab.planner(member, 1000 + seed)  # other seeds than any that decided
    fresh = [lab.value(lab.train(judge, judge.trial(chosen, 1.0, repeat))) for repeat in range(FRESH)]
    before = [
        lab.value(lab.train(judge, judge.trial(next(iter(judge.members.values())), 1.0, repeat)))
        for repeat in range(FRESH)
    ]
    lab.write(
        {
            "arm": arm,
            "member": member,
            "seed": seed,
            "spent": task.spent,
            "fresh": fresh,
            "before": before,
            "edits": list(chosen.edits),
            "changed": task.planner.recipes.changed(chosen.settings),
            "log": getattr(task, "log", []),
            "cpu_seconds": round(overhead, 1),
            "curve": [[share, loss] for _, share, loss in task.tried],
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--members", default="3", help="as of star refine")
    parser.add_argument("--seeds", default="0:3", help="first:last + 1")
    parser.add_argument("--arms", default=";".join(ARMS), help="separated by semicolons")
    parser.add_argument("--cache", type=Path, default=Path("refine-real.jsonl"))
    parser.add_argument("--report", action="store_true", help="run nothing, report what the cache has")
    parser.add_argument("--out", type=Path, default=RESULTS / "refine-real-cpu.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    run = star.Run(args.run)
    lab = Lab(run, args.cache, choose_members(run, args.members))
    first, last = map(int, args.seeds.split(":"))
    for seed in range(first, last) if not args.report else ():
        for member in lab.members:
            for arm in args.arms.split(";"):
                lab._read()
                if (arm, member, seed) not in lab.known:
                    execute(lab, arm, member, seed)
                    row = lab.known[arm, member, seed]
                    print(
                        f"{seed} {member} {arm:16} {np.mean(row['before']):.3f} -> {np.mean(row['fresh']):.3f}  "
                        f"{row['cpu_seconds']:.0f} s",
                        flush=True,
                    )
    if args.report:
        from refine_on_training_report import report

        report([row for row in lab.known.values() if "trial" in row or row["member"] in lab.members], args.out)


if __name__ == "__main__":
    main()
