"""The loop: ask for genomes, have them assessed, record what came of it, tell the algorithm; until the budget is spent.

Everything that matters is in the record before it is acted upon, so the process may be killed at any instruction.
"""

import collections
import dataclasses
import shutil
from collections.abc import Container, Sequence
from pathlib import Path

from star.assess import Frame, Front
from star.config import RunConfig
from star.engine import Engine, Outcome
from star.errors import RunFailed
from star.genome import Genome
from star.search import outcomes
from star.search.algorithm import Algorithm
from star.search.events import Emitter
from star.search.jobs import Candidates, finite, infeasible
from star.search.pacing import make_pacing
from star.store import CandidateFiles, Proposal, Record, Store
from star.store.database import disk_full

MOST_FAILURES = 3  # generations' worth of candidates that fail one after the other before the run gives up
LOW_DISK = 200 * 2**20  # bytes; a generation that begins with less says so


class Loop:
    """The coordinator of one run. `stop()` may be called at any time, also from a signal handler."""

    def __init__(
        self,
        run: Path,
        config: RunConfig,
        corpus: dict,
        store: Store,
        record: Record,
        algorithm: Algorithm,
        engine: Engine,
        emit: Emitter,
    ):
        self.run_path, self.config, self.emit = run, config, emit
        self.store, self.record, self.algorithm, self.engine = store, record, algorithm, engine
        self.candidates = Candidates(config, corpus)
        self.pacing = make_pacing(config)
        self.objectives = self.candidates.objectives
        self.files = CandidateFiles(run)
        self.front = Front(self.objectives)
        self.proposals: dict[str, Proposal] = {}
        self.n_baselines = 0  # that the search has not proposed too
        self.running: dict[str, Proposal] = {}
        self.stopped = False
        self.unrecorded: list[tuple[str, dict]] = []  # events that are in `record` and not yet on the disk
        self.unsaid: list[tuple[str, dict]] = []  # what is shown once they are
        self.failing: list[str] = []  # candidates that failed since one last succeeded, in this session
        engine.on_progress = self._progress
        for proposal in record.proposals:
            self._note(proposal)

    def start(self, baselines: Sequence[tuple[str, Genome]], session: dict) -> None:
        """Enter a session in the record; ask for the first generation, or take up what an earlier session left."""
        self._commit([("session", session)])
        if not self.record.asks:
            rows = [self.candidates.propose(genome, "baseline", name=name) for name, genome in baselines]
            asked = {"generation": None, "digest": None, "proposals": [dataclasses.asdict(row) for row in rows]}
            self._commit([("ask", asked), *self._ask(self.pacing.wanted(self.record, self.engine.slots))])
        elif self._first_generation_failed():
            self._commit([("retry", {"ids": list(self.record.asked)})])
        self._collect(self._left_behind())
        self._save()
        self._clean()

    def run(self) -> bool:
        """Work until the budget is spent, the space is exhausted, or `stop`. Returns whether anything is left to do.

        Raises RunFailed if the whole first generation fails, or the disk is full.
        """
        try:
            while not self.stopped:
                if self.pacing.ahead(self.engine.slots):
                    self._submit(self.record.asked)  # at once: while they train, the algorithm works
                while self._advance():
                    pass
                self._submit(self.proposals)
                if self.unsaid:
                    self._save()
                if not self.running:
                    break
                self._collect(self.engine.poll(0.5))
        finally:
            self._save()
        for id in self.running:
            self.engine.cancel(id)  # still asked in the record: the first to be run when the run is resumed
        self.running.clear()
        return bool(self._waiting())

    def stop(self) -> None:
        """End cleanly after the present poll."""
        self.stopped = True

    def budget(self) -> dict:
        """How far the run is: done and total count candidates, baselines included."""
        done, total = len(self.record.results), len(self.proposals)
        if not self.record.exhausted:
            total = max(total, self.config.candidates + self.n_baselines)
        return {"done": done, "total": total, "eta_seconds": self.record.eta(total - done, self.engine.slots)}

    # Ask and tell.

    def _advance(self) -> bool:
        """The next step that needs no worker: judge at a rung, or tell and ask. Whether there was one."""
        if self.stopped:
            return False
        if self._first_generation_failed():
            raise RunFailed(self._commonest_failure(list(self.record.asked), "of the first generation"))
        if len(self.failing) >= MOST_FAILURES * self.config.search.population:
            raise RunFailed(self._commonest_failure(self.failing, "in a row"))
        waiting, peers = self.pacing.judged(self.record)
        if waiting:
            self._commit(self._judge(waiting, peers))
            return True
        due = self.pacing.due(self.record)
        wanted = 0 if self.record.exhausted else self.pacing.wanted(self.record, self.engine.slots)
        if not due and not wanted:
            return False
        complete = self.pacing.completes(self.record, len(due)) if due else None
        events = self._tell(due, complete) if due else []
        self._commit(events + (self._ask(wanted) if wanted else []))
        if complete is not None:
            self._generation_end(complete)
        return True

    def _judge(self, waiting: Sequence[str], peers: Sequence[str]) -> list[tuple[str, dict]]:
        """Decide which candidates at a rung continue. The others are settled and never join the front."""
        rung = self.record.stage(waiting[0])
        reached = {id: rungs[rung] for id, rungs in self.record.rungs.items() if len(rungs) > rung}
        F = {id: outcomes.scaled_objectives(result, self.objectives) for id, result in reached.items()}
        gains = None
        if not peers:  # peers that are told already are beyond what the algorithm can judge again
            expected = self.algorithm.promising(waiting, [F[id] for id in waiting], rung)
            gains = None if expected is None else dict(zip(waiting, map(float, expected), strict=True))
        good = outcomes.promoted(waiting, peers, F, self.config.search.promote, gains)
        stopped = [self.candidates.stop(self.proposals[id], reached[id]) for id in waiting if id not in good]
        return [("promote", {"ids": good}), *(("finish", finish) for finish in stopped)]

    def _tell(self, due: Sequence[str], complete: int | None) -> list[tuple[str, dict]]:
        told = outcomes.told(
            [self.proposals[id] for id in due],
            self.record.results,
            self.record.rungs,
            self.objectives,
            self.config.objectives,
        )
        self.algorithm.tell(told)
        rows = [[t.id, t.F, t.G, t.fidelity, t.rungs] for t in told]
        events = [("tell", {"generation": complete, "told": rows, "digest": self.algorithm.digest()})]
        if self.record.frame is None and complete is not None:
            initial = [p.id for p in self.proposals.values() if p.origin != "baseline" and p.generation == 0]
            good = [r.objectives for id in initial if (r := self.record.results.get(id)) and r.objectives]
            events += [("reference", dataclasses.asdict(Frame.of(good, self.objectives)))] if good else []
        return events

    def _ask(self, wanted: int) -> list[tuple[str, dict]]:
        batch = self.algorithm.ask(wanted)
        if batch is None:
            self.emit("message", level="info", text="The search space is exhausted: all its genomes were assessed.")
            return [("exhausted", {"wanted": wanted})]
        rows = [
            self.candidates.propose(
                child.genome,
                child.origin,
                generation=self.pacing.generation(self.record, i),
                parents=child.parents,
                operators=child.operators,
                repaired=child.repaired,
                predicted=child.predicted,
            )
            for i, child in enumerate(batch.offspring)
        ]
        broken = [row for row in rows if row.infeasible and row.id not in self.proposals]
        self._remark(len(rows), len(broken), wanted)
        counts = {key: getattr(batch, key) for key in ("generated", "repaired", "duplicates", "by_operator")}
        fields = {"proposals": [dataclasses.asdict(row) for row in rows], "digest": self.algorithm.digest()}
        asked = {"generation": self.pacing.generation(self.record), "wanted": wanted, **fields, **counts}
        return [("ask", asked), *(("finish", infeasible(row)) for row in broken)]

    def _remark(self, proposed: int, broken: int, wanted: int) -> None:
        if proposed < wanted:
            self.emit(
                "message", level="info", text=f"The search space is almost used up: {proposed} new genomes found."
            )
        if broken:
            self.emit(
                "message", level="info", text=f"{broken} of {proposed} genomes break a bound and are not trained."
            )
        if shutil.disk_usage(self.run_path).free < LOW_DISK:
            self.emit("message", level="warning", text=f"The disk that holds {self.run_path} is almost full.")

    # Candidates.

    def _waiting(self) -> list[Proposal]:
        """To be run, in order. Baselines last: they fill workers that would idle at the end of a generation."""
        ids = [*self.record.asked, *(p.id for p in self.proposals.values() if p.origin == "baseline")]
        done = self.record.results
        return [
            self.proposals[id] for id in ids if id not in done and id not in self.running and not self.record.waits(id)
        ]

    def _job(self, proposal: Proposal) -> dict:
        tries = self.record.tries.get(proposal.id, [])
        return self.candidates.job(proposal, tries, self.record.stage(proposal.id), self.files.directory(proposal.id))

    def _submit(self, among: Container[str]) -> None:
        """Start candidates `among` these, as many as there is room for."""
        free = max(self.engine.slots - len(self.running), 0)
        waiting = [proposal for proposal in self._waiting() if proposal.id in among] if free else []
        batch = [(proposal, self._job(proposal)) for proposal in waiting[:free]]
        if not batch:
            return
        self._commit([("start", {key: job[key] for key in ("id", "attempt", "seed", "rung")}) for _, job in batch])
        self._save()
        for proposal, job in batch:
            self.running[proposal.id] = proposal
            self.engine.submit(proposal.id, job)
            self.emit("candidate_start", **_about(proposal), attempt=job["attempt"], costs=proposal.costs)

    def _left_behind(self) -> list[Outcome]:
        """Results that workers wrote after their coordinator had died."""
        found = []
        for proposal in self._waiting():
            job = self._job(proposal)
            result = self.files.result(proposal.id, job["attempt"], job["seed"], job["rung"])
            if result is not None:
                self.running[proposal.id] = proposal
                seconds = (result.get("metrics") or {}).get("seconds") or 0.0
                status, reason = result.get("status", "ok"), result.get("reason", "")
                found.append(Outcome(proposal.id, status, result, reason, seconds=seconds))
        return found

    def _collect(self, outcomes: Sequence[Outcome]) -> None:
        """Record outcomes, each once, whatever order they arrive in."""
        outcomes = [outcome for outcome in outcomes if outcome.job_id in self.running]
        ended = [outcome for outcome in outcomes if outcome.status != "disk_full"]
        events, finishes = [], []
        for outcome in ended:
            proposal = self.running.pop(outcome.job_id)
            tries, stage = self.record.tries.get(proposal.id, []), self.record.stage(proposal.id)
            kind, data = self.candidates.ended(proposal, outcome, tries, stage)
            events.append((kind, data))
            if kind == "finish":
                finishes.append((proposal, data))
            if curve := (outcome.result or {}).get("curve"):
                events.append(("curve", {"id": proposal.id, "attempt": data["attempt"], "points": finite(curve)}))
        self._commit(events)
        for proposal, finish in finishes:
            if finish["final"]:
                self.failing = [*self.failing, proposal.id] if finish["status"] not in ("ok", "infeasible") else []
            fields = {key: value for key, value in finish.items() if key not in ("id", "traceback")}
            fields |= {"on_front": proposal.id in self.front.ids}
            self.unsaid.append(("candidate_end", _about(proposal) | fields | self.budget()))
        if len(ended) < len(outcomes):
            raise RunFailed(disk_full(self.run_path))

    def _clean(self) -> None:
        """Remove results that are in the record, and the weights of all but front members."""
        unfinished = self.proposals.keys() - self.record.results.keys()  # also those that wait at a rung
        keep = {"all": self.record.results, "front": self.front.ids, "none": ()}[self.config.keep]
        self.files.clean(keep_weights=keep, untouched=unfinished)

    # The record, the front and the display.

    def _save(self) -> None:
        """One transaction with all events since the last one; then they are shown, and files that they replace removed.

        Nothing is handed to a worker before.
        """
        events, self.unrecorded = self.unrecorded, []
        self.store.record(events)
        unsaid, self.unsaid = self.unsaid, []
        for kind, data in unsaid:
            self.emit(kind, **data)
        if any(kind in ("rung", "finish") for kind, _ in events):
            self._clean()

    def _commit(self, events: Sequence[tuple[str, dict]]) -> None:
        """Apply events to the state in memory; the next `_save` records them."""
        self.unrecorded += events
        known = len(self.record.proposals)
        for kind, data in events:
            self.record.apply(kind, data)
        for proposal in self.record.proposals[known:]:
            self._note(proposal)
        for kind, data in events:
            if kind == "finish":
                self._consider(data["id"])

    def _note(self, proposal: Proposal) -> None:
        """A baseline that the search proposes too is the search's from then on; its result serves for both."""
        earlier = self.proposals.get(proposal.id)
        if earlier is None or earlier.origin == "baseline":
            self.n_baselines += (proposal.origin == "baseline") - (earlier is not None)
            self.proposals[proposal.id] = proposal
            self._consider(proposal.id)

    def _consider(self, id: str) -> None:
        """Put a settled candidate of the search on the front, if it belongs there."""
        result, proposal = self.record.results.get(id), self.proposals[id]
        eligible = proposal.origin != "baseline" and not proposal.infeasible and id not in self.front.ids
        if eligible and result is not None and result.objectives:
            self.front.add(id, result.objectives)

    def _first_generation_failed(self) -> bool:
        results = [self.record.results.get(id) for id in self.record.asked]
        failed = [r is not None and r.status not in ("ok", "infeasible", "stopped") for r in results]
        return self.record.n_told == 0 and bool(failed) and all(failed)

    def _commonest_failure(self, ids: Sequence[str], which: str) -> str:
        failures = [self.record.results[id] for id in ids]
        texts = [f"{failure.status} ({failure.reason})" for failure in failures]
        text, count = collections.Counter(texts).most_common(1)[0]
        trace = failures[texts.index(text)].traceback
        lines = [
            f"All {len(failures)} candidates {which} failed; {count} of them: {text}.",
            *([trace.rstrip()] if trace else []),
            f"Fix the cause and run the same command again: it resumes {self.run_path}.",
        ]
        return "\n\n".join(lines)

    def _generation_end(self, generation: int) -> None:
        values = [self.record.results[id].objectives or {} for id in self.front.ids]
        best = {o.name: min((v[o.name] for v in values), key=o.scaled) for o in self.objectives} if values else {}
        frame = Frame(**self.record.frame) if self.record.frame else None
        data = {
            "generation": generation,
            "generations": self.config.search.generations,
            "front": list(self.front.ids),
            "hypervolume": frame.hypervolume(self.front) if frame else None,
            "best": best,
        }
        self.unsaid.append(("generation_end", data | self.record.counts(generation) | self.budget()))

    def _progress(self, id: str, progress: dict) -> None:
        self.emit("candidate_progress", id=id, **progress)
        if self.stopped:
            self.engine.cancel(id)  # an in-process job stops here; workers are stopped by the loop


def _about(proposal: Proposal) -> dict:
    text = proposal.genome.get("backbone", "")
    about = {"id": proposal.id, "text": text, "origin": proposal.origin}
    return about | {"name": proposal.name, "generation": proposal.generation}
