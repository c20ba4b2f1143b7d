"""Refine members of a run's front: start a refinement or resume one, with the run's own engine and record.

settings = RefineSettings(choose_members(star.Run("runs/first"), "3"), budget=60)
refine("runs/first", settings)              # the same call resumes after a kill, with the same trials
star.Run("runs/first").refinement()         # the results
"""

import dataclasses
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from star.candidate import Candidate
from star.config import RunConfig
from star.engine import Engine, Outcome
from star.errors import RunFailed, UserError
from star.genome import resolve
from star.refine.planner import Planner
from star.refine.settings import RefineSettings
from star.run import Run
from star.search.events import Callback, Emitter
from star.search.jobs import Candidates, finite
from star.search.outcomes import attempt_number, candidate_seed, settles
from star.search.session import Ending, open_run, stop_on_signals
from star.store import CandidateFiles, Proposal, Record, Refinement, Store, Trial
from star.store.database import disk_full
from star.training.recipe_space import recipe_space

MOST_EVIDENCE = 64  # results of the search that a refinement starts from: the members, the front and the latest
MOST_EARLIER = 80  # latest trials of other refinements of the run that a new one starts from
KEPT = 3  # trials of each member whose weights are kept, besides those measured at the end


def refine(
    run: str | Path,
    settings: RefineSettings,
    workers: int | None = None,
    engine: Engine | None = None,
    callbacks: Iterable[Callback] = (),
    data: str | None = None,
) -> Ending:
    """Train trials until the budget is spent, then measure the best with fresh seeds.

    A refinement with the same settings resumes; a larger budget extends it. data: where the text is now, if it was
    moved. Callbacks get the events of `Refiner`. Raises UserError if a member cannot be refined or the budget is too
    small; RunFailed if nothing works or the disk is full.
    """
    emit = Emitter(callbacks)
    with open_run(run, workers, data) as session:
        config, record, found = session.config, session.record, Run(run)
        members = check_members(found, settings.members)
        state = record.refinements.get(settings.id)
        evidence = state.evidence if state else evidence_of(found, members)
        known = {id: found.candidate(id).genome for id, _ in evidence}
        recipe_space(config.training, settings.ranges)  # a wrong range is an error before any worker starts
        settings.check_budget()
        engine = session.start_engine(engine)
        parallel = state.settings["parallel"] if state else settings.parallel or engine.slots
        settings = dataclasses.replace(settings, parallel=parallel)
        earlier = [] if state else earlier_of(record, settings.id)
        results = [(trial, record.refinements[other].results[trial.id]) for other, trial in earlier]
        candidates = Candidates(config, session.corpus)
        planner = Planner(
            config, found.space, candidates, settings, known, evidence, state.earlier if state else results
        )
        refiner = Refiner(session.path, config, session.store, record, planner, engine, emit)
        about = {"evidence": [list(row) for row in evidence], "earlier": [[other, t.id] for other, t in earlier]}
        with stop_on_signals(refiner):
            return refiner.run(session.about(engine), about)


def choose_members(run: Run, chosen: str = "3") -> tuple[str, ...]:
    """Ids of members: a number of them, evenly from the lowest loss to the knee; or named ones, separated by commas.

    They are chosen by the search's measurements, which never change, so that the same command resumes a refinement.
    """
    front = run.front(searched=True)
    if not front:
        raise UserError(f"{run.path} has no front to refine; star status {run.path} shows its progress")
    if not (chosen.isdigit() and len(chosen) < 4):
        names = [part.strip() for part in chosen.split(",") if part.strip()]
        if not names:
            raise UserError("--members is empty: give a number of members, such as 3, or their ids with commas")
        named = {"best": front[0], "knee": run.knee(searched=True)}
        return tuple(dict.fromkeys((named.get(name) or run.candidate(name)).id for name in names))
    n = int(chosen)
    if not n:
        raise UserError("--members is 0: give at least one")
    knee = [c.id for c in front].index(run.knee(searched=True).id)
    last = min(len(front), max(n, knee + 1)) - 1
    places = [round(i * last / max(1, n - 1)) for i in range(min(n, len(front)))]
    return tuple(front[place].id for place in places)


def check_members(run: Run, ids: Iterable[str]) -> list[Candidate]:
    """The members as candidates. Raises UserError for one that was not trained to the end or no longer builds."""
    members = [run.candidate(id) for id in ids]
    if not members:
        raise UserError(f"{run.path} has no front to refine; star status {run.path} shows its progress")
    for member in members:
        name, hint = f"{run.path}:{member.id}", f"choose other members from star front {run.path}"
        if not member.objectives:
            raise UserError(f"{name} ended as '{member.status}', so there is nothing to refine; {hint}")
        try:
            resolve(member.genome)
        except UserError as error:
            raise UserError(f"{name} no longer builds ({error}); {hint}") from None
    return members


def evidence_of(run: Run, members: Iterable[Candidate]) -> list[tuple[str, float]]:
    """(id, scaled loss) of the search's measurements that a refinement uses, including `star rescore`."""
    loss = next((o for o in run.objectives if not o.cheap), None)
    if loss is None:
        names = ", ".join(o.name for o in run.objectives)
        raise UserError(f"{run.path} has no objective that training changes ({names}): there is nothing to refine")
    good = [c for c in run.candidates() if c.objectives and c.order is not None]
    latest = sorted(good, key=lambda c: c.order or 0)[-MOST_EVIDENCE:]
    chosen = {c.id: c for c in [*members, *run.front(searched=True), *latest]}
    rows = [(c.id, loss.scaled(c.values[loss.name])) for c in chosen.values()]
    for id, repeats in run.repeats().items():
        rows += [
            (id, loss.scaled(row["objectives"][loss.name])) for row in repeats if id in chosen and row["objectives"]
        ]
    return rows


def earlier_of(record: Record, id: str) -> list[tuple[str, Trial]]:
    """(refinement, trial) of the latest good trials of other refinements of this run."""
    others = [other for other in record.refinements.values() if other.id != id]
    pairs = [(other, trial, other.results.get(trial.id)) for other in others for trial in other.trials]
    return [(other.id, trial) for other, trial, result in pairs if result is not None and result.objectives][
        -MOST_EARLIER:
    ]


class Refiner:
    """The coordinator of one refinement. `stop()` may be called at any time, also from a signal handler.

    Events: refine_start (run, refinement, resumed, members, workers, corpus); trial_start (the trial's fields, and
    changed: settings that differ from the search's); trial_end (the same, status, reason, loss, seconds);
    candidate_progress (id of the trial, as in a search); message; refine_end (status, text). Most carry the fields of
    `progress`.
    """

    def __init__(
        self,
        run: Path,
        config: RunConfig,
        store: Store,
        record: Record,
        planner: Planner,
        engine: Engine,
        emit: Callable[..., None],
    ):
        self.path, self.config, self.store, self.record = run, config, store, record
        self.planner, self.engine, self.emit, self.settings = planner, engine, emit, planner.settings
        self.files = CandidateFiles(run, "refined")
        self.running: dict[str, Trial] = {}
        self.stopped = False
        self.began = time.monotonic()
        engine.on_progress = lambda id, progress: emit("candidate_progress", id=id, **progress)

    @property
    def state(self) -> Refinement:
        """What is recorded of this refinement."""
        return self.record.refinements[self.settings.id]

    def stop(self) -> None:
        """End cleanly after the present poll."""
        self.stopped = True

    def run(self, session: dict, about: dict) -> Ending:
        """Work until all is done or `stop` is called. session: its event; about: evidence and earlier trials."""
        id, settings = self.settings.id, self.settings.to_json()
        resumed = id in self.record.refinements
        events = [("session", session)]
        if not resumed or self.state.settings != settings:
            events.append(("refinement", {"id": id, "settings": settings} | about))
        self._commit(events)
        facts = {"members": list(self.settings.members), "workers": self.engine.slots}
        facts["corpus"] = self.planner.candidates.corpus["name"]
        self.emit("refine_start", run=str(self.path), refinement=id, resumed=resumed, **facts, **self.progress())
        self._collect(self._left_behind())
        finished = self._work()
        self._clean()
        text = f"{len(self.state.trials)} trials, {self.state.spent:g} full trainings."
        text = text if finished else f"Stopped after {text[:-1]}; the same command resumes."
        ending = Ending("finished" if finished else "interrupted", text)
        self.emit("refine_end", status=ending.status, text=text, **self.progress())
        return ending

    def progress(self) -> dict:
        """spent, budget (full trainings), trials, elapsed (seconds), eta_seconds (None until a trial has ended)."""
        results = self.state.results
        done = sum(t.share for t in self.state.trials if t.id in results)
        seconds = sum(r.seconds for r in results.values())
        left = max(0.0, self.settings.budget - done) / max(1, self.engine.slots)
        return {
            "spent": self.state.spent,
            "budget": self.settings.budget,
            "trials": len(self.state.trials),
            "elapsed": time.monotonic() - self.began,
            "eta_seconds": seconds / done * left if done else None,
        }

    def _work(self) -> bool:
        """Whether everything is done."""
        while not self.stopped and self._submit():
            self._collect(self.engine.poll(0.5))
        for id in self.running:
            self.engine.cancel(id)  # still in the record: the first to be trained when the refinement resumes
        left, self.running = bool(self.running), {}
        return not left and not self.state.unfinished() and not self.stopped

    def _submit(self) -> bool:
        """Fill the engine; False when there is nothing left to train."""
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
        """Record that the time is up, so that a resumed refinement decides the same."""
        minutes, designed = self.settings.minutes, len(self.state.trials) >= len(self.planner.design)
        if minutes and designed and not self.state.closed and self.progress()["elapsed"] > 60 * minutes:
            reason = f"{minutes:g} minutes are over"
            self._commit([("closed", {"refinement": self.settings.id, "reason": reason})])
            self.emit("message", level="info", text=f"{reason}: the best are measured with fresh seeds.")

    def _decide(self, trials: list[Trial]) -> None:
        """Record what will be trained; the result of a trial that another refinement made already is copied."""
        own, seed = {"refinement": self.settings.id}, self.settings.seed
        others = [
            r for r in self.record.refinements.values() if r.id != self.settings.id and r.settings["seed"] == seed
        ]
        events = []
        for trial in trials:
            events.append(("trial", own | dataclasses.asdict(trial)))
            known = next((other.results[trial.id] for other in others if trial.id in other.results), None)
            if known is not None:
                about = {"id": trial.id, "final": True, "traceback": None, "seconds": 0.0}
                events.append(("trial_end", own | vars(known) | about))
        self._commit(events)

    # Jobs and outcomes.

    def job(self, trial: Trial) -> dict:
        """As of a candidate of the search, under the trial's own recipe."""
        attempt = attempt_number(self.state.tries.get(trial.id, []))
        seed = candidate_seed(self.config.seed, f"{self.settings.seed}/{trial.id}", attempt)
        recipe = dataclasses.asdict(self.planner.recipes.recipe(trial.settings, trial.share)) | {"seed": seed}
        job = self.planner.candidates.job(self._proposal(trial), (), 0, self.files.directory(trial.id))
        keep = self.config.keep != "none" and trial.share == 1.0 and (trial.purpose != "confirm" or self._first(trial))
        own = {"attempt": attempt, "seed": seed, "recipe": recipe, "rung": 0, "stop_tokens": None}
        return job | own | {"checkpoint": None, "keep_weights": keep}

    def _first(self, trial: Trial) -> bool:
        return trial.repeat == self.planner.first_fresh(trial.candidate)

    @staticmethod
    def _proposal(trial: Trial) -> Proposal:
        return Proposal(trial.candidate, trial.genome, "refined", costs=trial.costs)

    def _left_behind(self) -> list[Outcome]:
        """Results that workers wrote after their coordinator had died."""
        found = []
        for trial in self.state.unfinished():
            job = self.job(trial)
            result = self.files.result(trial.id, job["attempt"], job["seed"])
            if result is not None:
                self.running[trial.id] = trial
                seconds = (result.get("metrics") or {}).get("seconds") or 0.0
                status, reason = result.get("status", "ok"), result.get("reason", "")
                found.append(Outcome(trial.id, status, result, reason, seconds=seconds))
        return found

    def _collect(self, ended: Iterable[Outcome]) -> None:
        ended = [outcome for outcome in ended if outcome.job_id in self.running]
        for outcome in ended:
            if outcome.status == "disk_full":
                continue
            trial = self.running.pop(outcome.job_id)
            data = self._ended(trial, outcome)
            events = [("trial_end", data)]
            if curve := (outcome.result or {}).get("curve"):
                events.append(("curve", {"id": trial.id, "attempt": data["attempt"], "points": finite(curve)}))
            self._commit(events)
            loss = data["objectives"] and data["objectives"][self.planner.loss.name]
            shown = {key: data[key] for key in ("status", "reason", "seconds", "final", "objectives")}
            self.emit("trial_end", **self._about(trial), **shown, loss=loss, **self.progress())
        if ended:
            self._clean()
        if any(outcome.status == "disk_full" for outcome in ended):
            raise RunFailed(disk_full(self.path))

    def _ended(self, trial: Trial, outcome: Outcome) -> dict:
        tries = self.state.tries.get(trial.id, [])
        status, reason = outcome.status, outcome.reason
        metrics = finite((outcome.result or {}).get("metrics") or {})
        objectives = self.planner.candidates.measure(self._proposal(trial), metrics) if status == "ok" else None
        if status == "ok" and objectives is None:
            status, reason = "diverged", "an objective is not finite"
        return {
            "refinement": self.settings.id,
            "id": trial.id,
            "attempt": attempt_number(tries),
            "status": status,
            "reason": reason,
            "traceback": outcome.traceback,
            "metrics": metrics,
            "objectives": objectives,
            "seconds": outcome.seconds,
            "worker": outcome.worker,
            "final": settles(status, tries),
        }

    def _clean(self) -> None:
        """Remove results that are in the record, and weights of all but the best of each member."""
        results, keep = self.state.results, set()
        good = [t for t in self.state.trials if t.share == 1.0 and t.id in results and results[t.id].objectives]
        if self.config.keep == "all":
            keep = {t.id for t in good}
        elif self.config.keep == "front":
            keep = {t.id for t in good if t.purpose == "confirm" and self._first(t)}
            for member in self.settings.members:
                mine = [t for t in good if t.member == member and t.purpose != "confirm"]
                mine.sort(key=lambda t: ((results[t.id].objectives or {})[self.planner.loss.name], t.id))
                keep |= {t.id for t in mine[:KEPT]}
        for other in self.record.refinements.values():
            if other.id != self.settings.id:
                keep |= {t.id for t in other.trials if t.share == 1.0}
        self.files.clean(keep_weights=keep, untouched={t.id for t in self.state.unfinished()})

    def _commit(self, events: list[tuple[str, dict]]) -> None:
        """One transaction; then the same events applied to the state in memory."""
        self.store.record(events)
        for kind, data in events:
            self.record.apply(kind, data)

    def _about(self, trial: Trial) -> dict:
        fields = ("id", "candidate", "member", "edits", "share", "repeat", "purpose", "predicted", "source")
        shown = {name: getattr(trial, name) for name in fields}
        changed = self.planner.recipes.changed(trial.settings)
        return shown | {"changed": changed, "edit": trial.kind, "acts": trial.log.get("acts")}
