"""Refine members of a run's front: start a refinement, or go on with one, through the run's own engine and record.

settings = RefineSettings(choose_members(star.Run("runs/first"), "3"), budget=60)
refine("runs/first", settings)              # the same call goes on after a kill, to the same trials
star.Run("runs/first").refinement()         # what it brought
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from star.config import RunConfig
from star.engine import Engine, Outcome
from star.errors import RunFailed, UserError
from star.genome import resolve
from star.refine.planner import Planner
from star.refine.recipe_space import recipe_space
from star.refine.settings import RefineSettings
from star.run import Candidate, Run
from star.search import outcomes
from star.search.events import Callback, Emitter
from star.search.jobs import Candidates, finite
from star.search.session import Ending, open_run, stop_on_signals
from star.store import CandidateFiles, Proposal, Record, Refinement, Store, Trial
from star.store.database import disk_full

MOST_EVIDENCE = 64  # results of the search that a refinement takes as known: the members, and the latest
MOST_EARLIER = 80  # trials of other refinements of the run that one learns from, the latest
KEPT = 3  # trials of each member whose weights stay on the disk, the front apart


def refine(
    run: str | Path,
    settings: RefineSettings,
    workers: int | None = None,
    engine: Engine | None = None,
    callbacks: Iterable[Callback] = (),
) -> Ending:
    """Train trials until the budget is spent, and measure the best with fresh seeds.

    A refinement with the same settings goes on where it had come to; a larger budget takes it further. Callbacks get
    refine_start, trial_start, candidate_progress, trial_end, message and refine_end events (see `Refiner`). Raises
    UserError if a member cannot be refined or the budget is too small; RunFailed if nothing works or the disk is full.
    """
    emit = Emitter(callbacks)
    with open_run(run, workers) as session:
        config, corpus, record, found = session.config, session.corpus, session.record, Run(run)
        members = check_members(found, settings.members)
        state = record.refinements.get(settings.id)
        evidence = state.evidence if state else evidence_of(found, members)
        known = {id: found.candidate(id).genome for id, _ in evidence}
        recipe_space(config.training, settings.ranges)  # a wrong range is an error before any worker starts
        check_budget(settings)
        engine = session.start_engine(engine)
        parallel = state.settings["parallel"] if state else settings.parallel or engine.slots
        settings = dataclasses.replace(settings, parallel=parallel)
        earlier = [] if state else earlier_of(record, settings.id)
        learnt = (
            state.earlier
            if state
            else [(trial, record.refinements[other].results[trial.id]) for other, trial in earlier]
        )
        planner = Planner(config, found.space, Candidates(config, corpus), settings, known, evidence, learnt)
        refiner = Refiner(session.path, config, session.store, record, planner, engine, emit)
        with stop_on_signals(refiner):
            return refiner.run(
                session.about(engine),
                [[id, loss] for id, loss in evidence],
                [[other, trial.id] for other, trial in earlier],
            )


def choose_members(run: Run, chosen: str = "3") -> tuple[str, ...]:
    """Ids of members: so many of the front, evenly from the lowest loss to the knee; or those named, with commas."""
    front = run.front()
    if not front:
        raise UserError(f"{run.path} has no front to refine; star status {run.path} shows how far it is")
    if not (chosen.isdigit() and len(chosen) < 4):
        names = [part.strip() for part in chosen.split(",") if part.strip()]
        if not names:
            raise UserError("--members is empty: give a number of members, such as 3, or their ids with commas")
        return tuple(dict.fromkeys(run.knee().id if name == "knee" else run.candidate(name).id for name in names))
    n = int(chosen)
    if not n:
        raise UserError("--members is 0: give at least one")
    knee = [c.id for c in front].index(run.knee().id)
    last = min(len(front), max(n, knee + 1)) - 1
    places = [round(i * last / max(1, n - 1)) for i in range(min(n, len(front)))]
    return tuple(front[place].id for place in places)


def check_members(run: Run, ids: Iterable[str]) -> list[Candidate]:
    """The members as candidates. Raises UserError for one that was not trained to the end or no longer builds."""
    members = [run.candidate(id) for id in ids]
    if not members:
        raise UserError(f"{run.path} has no front to refine; star status {run.path} shows how far it is")
    for member in members:
        if not member.objectives:
            raise UserError(
                f"{run.path}:{member.id} ended as '{member.status}', so there is nothing to refine; give ids of star front {run.path}"
            )
        try:
            resolve(member.genome)
        except UserError as error:
            raise UserError(
                f"{run.path}:{member.id} no longer builds ({error}); refine other members, see star front {run.path}"
            ) from None
    return members


def check_budget(settings: RefineSettings) -> None:
    if settings.budget < settings.least_budget:
        raise UserError(
            f"a budget of {settings.budget:g} full trainings is too small: the initial design of {len(settings.members)} members takes "
            f"{settings.design_cost:g} and the last measurements {settings.confirm_cost:g}; give at least {settings.least_budget:g}, fewer members or fewer seeds"
        )


def evidence_of(run: Run, members: Iterable[Candidate]) -> list[tuple[str, float]]:
    """(id, scaled loss) of every measurement of the search that is taken as known, fresh ones of `star rescore` too."""
    loss = next((o for o in run.objectives if not o.cheap), None)
    if loss is None:
        raise UserError(
            f"{run.path} has no objective that training decides ({', '.join(o.name for o in run.objectives)}): there is nothing to refine"
        )
    good = [c for c in run.candidates() if c.objectives and c.order is not None]
    latest = sorted(good, key=lambda c: c.order)[-MOST_EVIDENCE:]
    chosen = {c.id: c for c in [*members, *run.front(), *latest]}
    rows = [(c.id, loss.scaled(c.objectives[loss.name])) for c in chosen.values()]
    for id, repeats in run.repeats().items():
        rows += [
            (id, loss.scaled(row["objectives"][loss.name])) for row in repeats if id in chosen and row["objectives"]
        ]
    return rows


def earlier_of(record: Record, id: str) -> list[tuple[str, Trial]]:
    """(refinement, trial) of the latest good trials of other refinements of this run: what a new one learns from."""
    found = [(other.id, trial) for other in record.refinements.values() if other.id != id for trial in other.trials]
    good = [
        (other, trial)
        for other, trial in found
        if (r := record.refinements[other].results.get(trial.id)) is not None and r.objectives
    ]
    return good[-MOST_EARLIER:]


class Refiner:
    """One coordinator at work on one refinement. `stop()` may be called at any time, also from a signal handler.

    Events for a display: refine_start (run, refinement, resumed, members, workers, corpus, plus those of `progress`);
    trial_start (the trial's fields, changed: settings that differ from the search's); trial_end (the same, and status,
    reason, loss, seconds, plus those of `progress`); candidate_progress (id of the trial, as in a search); message;
    refine_end (status, text). progress: spent, budget (full trainings), trials, elapsed (seconds), eta_seconds.
    """

    def __init__(
        self,
        run: Path,
        config: RunConfig,
        store: Store,
        record: Record,
        planner: Planner,
        engine: Engine,
        emit: Callable,
    ):
        self.path, self.config, self.store, self.record = run, config, store, record
        self.planner, self.engine, self.emit, self.settings = planner, engine, emit, planner.settings
        self.files = CandidateFiles(run, "refined")
        self.running: dict[str, Trial] = {}
        self.stopped = False
        self.began, self.earlier = time.monotonic(), 0.0
        engine.on_progress = lambda id, progress: emit("candidate_progress", id=id, **progress)

    @property
    def state(self) -> Refinement:
        return self.record.refinements[self.settings.id]

    def stop(self) -> None:
        self.stopped = True

    def run(self, session: dict, evidence: list, earlier: list) -> Ending:
        resumed = self.settings.id in self.record.refinements
        events = [("session", session)]
        if not resumed or self.state.settings != self.settings.to_json():
            events.append(
                (
                    "refinement",
                    {
                        "id": self.settings.id,
                        "settings": self.settings.to_json(),
                        "evidence": evidence,
                        "earlier": earlier,
                    },
                )
            )
        self._commit(events)
        self.emit(
            "refine_start", run=str(self.path), refinement=self.settings.id, resumed=resumed, members=list(self.settings.members),
            workers=self.engine.slots, corpus=self.planner.candidates.corpus["name"], **self.progress(),
        )  # fmt: skip
        self._collect(self._left_behind())
        finished = self._work()
        self._clean()
        text = f"{len(self.state.trials)} trials, {self.state.spent:g} full trainings."
        text = text if finished else f"Stopped after {text[:-1]}; the same command goes on from here."
        ending = Ending("finished" if finished else "interrupted", text)
        self.emit("refine_end", status=ending.status, text=text, **self.progress())
        return ending

    def progress(self) -> dict:
        spent, elapsed = self.state.spent, self.earlier + time.monotonic() - self.began
        seconds = [r.seconds for r in self.state.results.values()]
        done = sum(t.share for t in self.state.trials if t.id in self.state.results)
        per = sum(seconds) / done if done else None
        left = None if per is None else per * max(0.0, self.settings.budget - done) / max(1, self.engine.slots)
        return {
            "spent": spent,
            "budget": self.settings.budget,
            "trials": len(self.state.trials),
            "elapsed": elapsed,
            "eta_seconds": left,
        }

    def _work(self) -> bool:
        """Whether everything is done."""
        while not self.stopped:
            if not self._submit():
                break
            self._collect(self.engine.poll(0.5))
        for id in self.running:
            self.engine.cancel(id)  # still in the record: the first to be run when the refinement goes on
        left, self.running = bool(self.running), {}
        return not left and not self.state.unfinished() and not self.stopped

    def _submit(self) -> bool:
        """Fill the engine; False when there is nothing left to run."""
        self._watch_clock()
        while len(self.state.unfinished()) < max(self.settings.parallel, self.engine.slots):
            trials = self.planner.next(self.state)
            if not trials:
                break
            self._decide(trials)
        for trial in self.state.unfinished():
            if len(self.running) >= self.engine.slots or self.stopped:
                break
            if trial.id not in self.running:
                self.running[trial.id] = trial
                self.engine.submit(trial.id, self.job(trial))
                self.emit("trial_start", **self._about(trial))
        return bool(self.running)

    def _watch_clock(self) -> None:
        """The time is up: recorded, since what follows from it must not depend on when it is looked at again."""
        minutes = self.settings.minutes
        if (
            minutes
            and not self.state.closed
            and self.progress()["elapsed"] > 60 * minutes
            and len(self.state.trials) >= len(self.planner.design)
        ):
            self._commit([("closed", {"refinement": self.settings.id, "reason": f"{minutes:g} minutes are over"})])
            self.emit(
                "message", level="info", text=f"{minutes:g} minutes are over: the best are measured with fresh seeds."
            )

    def _decide(self, trials: list[Trial]) -> None:
        """Record what is to be trained; what another refinement has trained already is taken from there."""
        events = []
        for trial in trials:
            events.append(("trial", {"refinement": self.settings.id} | dataclasses.asdict(trial)))
            for other in self.record.refinements.values():
                result = other.results.get(trial.id)
                if result is not None and other.id != self.settings.id and other.settings["seed"] == self.settings.seed:
                    data = (
                        {"refinement": self.settings.id, "id": trial.id, "final": True, "traceback": None}
                        | vars(result)
                        | {"seconds": 0.0}
                    )
                    events.append(("trial_end", data))
                    break
        self._commit(events)

    # Jobs and outcomes.

    def job(self, trial: Trial) -> dict:
        """As of a candidate of the search, under the trial's own recipe."""
        tries = self.state.tries.get(trial.id, [])
        attempt = outcomes.attempt_number(tries)
        seed = outcomes.candidate_seed(self.config.seed, f"{self.settings.seed}/{trial.id}", attempt)
        recipe = self.planner.recipes.recipe(trial.settings, trial.share)
        directory = self.files.directory(trial.id)
        job = self.planner.candidates.job(
            Proposal(trial.candidate, trial.genome, "refined", costs=trial.costs), (), 0, directory
        )
        keep = (
            self.config.keep != "none"
            and trial.share == 1.0
            and (trial.purpose != "confirm" or trial.repeat == self.planner.first_fresh(trial.candidate))
        )
        own = {
            "attempt": attempt,
            "seed": seed,
            "recipe": dataclasses.asdict(recipe) | {"seed": seed},
            "rung": 0,
            "stop_tokens": None,
        }
        return job | own | {"checkpoint": None, "keep_weights": keep}

    def _left_behind(self) -> list[Outcome]:
        """Results that workers finished writing when their coordinator was dead."""
        found = []
        for trial in self.state.unfinished():
            job = self.job(trial)
            result = self.files.result(trial.id, job["attempt"], job["seed"])
            if result is not None:
                self.running[trial.id] = trial
                seconds = (result.get("metrics") or {}).get("seconds") or 0.0
                found.append(
                    Outcome(trial.id, result.get("status", "ok"), result, result.get("reason", ""), seconds=seconds)
                )
        return found

    def _collect(self, outcomes: Iterable[Outcome]) -> None:
        outcomes = [outcome for outcome in outcomes if outcome.job_id in self.running]
        full = [outcome for outcome in outcomes if outcome.status == "disk_full"]
        for outcome in outcomes:
            if outcome in full:
                continue
            trial = self.running.pop(outcome.job_id)
            data = self._ended(trial, outcome)
            events = [("trial_end", data)]
            if curve := (outcome.result or {}).get("curve"):
                events.append(("curve", {"id": trial.id, "attempt": data["attempt"], "points": finite(curve)}))
            self._commit(events)
            loss = data["objectives"] and data["objectives"][self.planner.loss.name]
            told = {key: data[key] for key in ("status", "reason", "seconds", "final", "objectives")}
            self.emit("trial_end", **self._about(trial), **told, loss=loss, **self.progress())
        if outcomes:
            self._clean()
        if full:
            raise RunFailed(disk_full(self.path))

    def _ended(self, trial: Trial, outcome: Outcome) -> dict:
        tries = self.state.tries.get(trial.id, [])
        status, reason = outcome.status, outcome.reason
        metrics = finite((outcome.result or {}).get("metrics") or {})
        proposal = Proposal(trial.candidate, trial.genome, "refined", costs=trial.costs)
        objectives = self.planner.candidates.measure(proposal, metrics) if status == "ok" else None
        if status == "ok" and objectives is None:
            status, reason = "diverged", "an objective is not finite"
        final = outcomes.settles(status, tries)
        return {
            "refinement": self.settings.id, "id": trial.id, "attempt": outcomes.attempt_number(tries), "status": status, "reason": reason,
            "traceback": outcome.traceback, "metrics": metrics, "objectives": objectives, "seconds": outcome.seconds, "worker": outcome.worker,
            "final": final,
        }  # fmt: skip

    def _clean(self) -> None:
        """Remove results that are in the record, and weights of all but the best of each member."""
        good = {
            t.id: (t, r)
            for t in self.state.trials
            if t.share == 1.0 and (r := self.state.results.get(t.id)) and r.objectives
        }
        keep = {"all": set(good), "none": set()}.get(self.config.keep)
        if keep is None:
            keep = {
                id
                for id, (trial, _) in good.items()
                if trial.purpose == "confirm" and trial.repeat == self.planner.first_fresh(trial.candidate)
            }
            for member in self.settings.members:
                mine = [
                    (r.objectives[self.planner.loss.name], id)
                    for id, (t, r) in good.items()
                    if t.member == member and t.purpose != "confirm"
                ]
                keep |= {id for _, id in sorted(mine)[:KEPT]}
        for other in self.record.refinements.values():
            if other.id != self.settings.id:
                keep |= {t.id for t in other.trials if t.share == 1.0}
        self.files.clean(keep_weights=keep, untouched={t.id for t in self.state.unfinished()})

    def _commit(self, events: list[tuple[str, dict]]) -> None:
        """One transaction; then the same events applied to the state in memory."""
        self.store.record(events)
        for kind, data in events:
            self.record.apply(kind, data)

    def _about(self, trial: Trial) -> Mapping:
        fields = ("id", "candidate", "member", "edits", "share", "repeat", "purpose", "predicted", "source")
        return {name: getattr(trial, name) for name in fields} | {
            "changed": self.planner.recipes.changed(trial.settings),
            "edit": trial.kind,
            "acts": trial.log.get("acts"),
        }
