"""A run, for reading: also while it is being evolved.

    run = star.Run("runs/a")
    for member in run.front(): print(member.id, member.genome.text, member.objectives)

Nothing here writes.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from star.assess import Frame, Front, load_objectives
from star.assess.noise import Noise, measured, noise_sd
from star.candidate import Candidate
from star.config import RunConfig, load_config
from star.data.tokenizer import TOKENIZER_FILE, ByteTokenizer, SubwordTokenizer, read_tokenizer, token_word
from star.engine.progress import read_progress
from star.errors import UserError
from star.genome import from_json, space_from_json
from star.store import CandidateFiles, Proposal, Record, read_events, read_meta
from star.store.database import exists, read_curves
from star.store.lock import is_held

if TYPE_CHECKING:
    from star.refined import Refined


class Run:
    """The run directory `path`, read as it is now; `refresh` reads on. Raises UserError if there is no run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        meta = read_meta(self.path)
        self.config = RunConfig.from_json(meta["config"])
        self.space = space_from_json(meta["space"])
        self.corpus: dict = meta["corpus"]
        self.versions: dict = meta["packages"]
        self.steps: list[dict] = meta.get("ladder", [])  # what its horizon was learned from, see star.search.ladders
        self.token = token_word(self.corpus)
        objectives = load_objectives(self.config.objectives.names)
        unit = f"nats/{self.token}"
        self.objectives = tuple(replace(o, unit=unit) if o.name == "loss" else o for o in objectives)
        self.files = CandidateFiles(self.path)
        self._record = Record()
        self.refresh()

    @property
    def bits_per_nat(self) -> float:
        """Bits per byte of the text in one nat per token."""
        return 1.0 / math.log(2) / self.corpus.get("bytes_per_token", 1.0)

    @property
    def references(self) -> dict[str, float]:
        """Bits per byte of n-gram models of the same text, by name; empty where there is no text."""
        return {name: loss * self.bits_per_nat for name, loss in self.corpus["baselines"].items()}

    @property
    def tokenizer(self) -> ByteTokenizer | SubwordTokenizer:
        """The tokenizer of its text. Raises UserError if its file is missing or damaged."""
        name = self.corpus.get("tokenizer", "bytes")
        if name == "bytes":
            return ByteTokenizer()
        path = self.path / TOKENIZER_FILE
        if not path.exists():
            raise UserError(
                f"{path}: is missing; it is the tokenizer of the run, so copy it from where the run was made"
            )
        return read_tokenizer(path, name)

    def refresh(self) -> None:
        """Take in what has been recorded since the last look."""
        for event in read_events(self.path, after=self._record.last_seq):
            self._record.take(event)
        for name, value in vars(type(self)).items():
            if isinstance(value, cached_property):
                self.__dict__.pop(name, None)

    def candidates(self, origin: str | None = None) -> list[Candidate]:
        """In order of creation."""
        return [c for c in self._candidates if origin is None or c.origin == origin]

    def settled(self) -> list[Candidate]:
        """The finished candidates of the search in order of completion, without baselines."""
        found = [c for c in self._candidates if c.origin != "baseline" and c.order is not None]
        return sorted(found, key=lambda c: c.order or 0)

    def candidate(self, id: str) -> Candidate:
        """By its id or the beginning of it, refined ones too, or "best" or "knee" of the front.

        Raises UserError if there is none or more than one.
        """
        if id in ("best", "knee"):
            return self.best() if id == "best" else self.knee()
        found = {c.id: c for c in self._candidates if c.id.startswith(id)}
        if not found:
            found = {c.id: c for refined in self.refinements() for c in refined.candidates() if c.id.startswith(id)}
        if len(found) != 1:
            how = "no candidate" if not found else f"{len(found)} candidates"
            raise UserError(
                f"{self.path} has {how} with an id that begins with {id!r}; star front {self.path} lists ids"
            )
        return next(iter(found.values()))

    def front(self, searched: bool = False) -> list[Candidate]:
        """The non-dominated candidates of the search without baselines, lowest first objective (loss) first.

        Once all of them were measured with fresh seeds (`fresh`): those that still are non-dominated, with these means.
        Before that, and if `searched`: with the search's own measurement, one seed each. The two are never mixed.
        """
        return list(self._searched_front if searched or not self.rescored else self._fresh_front)

    @property
    def rescored(self) -> bool:
        """Whether every member of the search's front was trained with fresh seeds, and one of them ended well."""
        members = [c.id for c in self._searched_front]
        return all(id in self._fresh for id in members) and any(map(self.fresh, members))

    def best(self) -> Candidate:
        """The front member with the lowest first objective (loss). Raises UserError if there is none yet."""
        return self._members()[0]

    def knee(self, searched: bool = False) -> Candidate:
        """The front member nearest to the ideal point, each objective scaled to the front's own range.

        Raises UserError if there is none yet.
        """
        members = self._members(searched)
        columns = list(zip(*(self._front([]).scaled(c.values) for c in members), strict=True))
        spans = [(min(column), (max(column) - min(column)) or 1.0) for column in columns]
        distance = [
            math.hypot(*((v - low) / span for v, (low, span) in zip(row, spans, strict=True)))
            for row in zip(*columns, strict=True)
        ]
        return members[distance.index(min(distance))]

    @property
    def reference(self) -> dict[str, float] | None:
        """The fixed hypervolume reference by objective (own units); None until the first generation is complete."""
        frame = self.frame
        return None if frame is None else {o.name: o.unscaled(frame.reference[o.name]) for o in self.objectives}

    def hypervolume(self) -> list[dict]:
        """After each finished candidate of the search: evaluations, tokens (trained so far), seconds, generation,
        hypervolume.

        seconds: of the search, without interruptions. By the search's measurements, one seed each. In units of the box
        from the first generation's best to the reference (see `star.assess.Frame`).
        """
        return [dict(row) for row in self._hypervolumes]

    @cached_property
    def _hypervolumes(self) -> list[dict]:
        if self.frame is None:
            return []
        front, rows, tokens, volume = self._front([]), [], 0, 0.0
        for evaluations, candidate in enumerate(self.settled(), start=1):
            tokens += candidate.metrics.get("tokens") or 0
            if candidate.objectives and front.add(candidate.id, candidate.objectives):
                volume = self.frame.hypervolume(front)
            row = {
                "evaluations": evaluations,
                "tokens": tokens,
                "seconds": self._record.settled_after.get(candidate.id, 0.0),
                "generation": candidate.generation,
                "hypervolume": volume,
            }
            rows.append(row)
        return rows

    def hypervolume_of(self, candidates: Iterable[Candidate]) -> float | None:
        """Of these candidates with the objectives that they have, in the same unit; None before there is a frame."""
        return None if self.frame is None else self.frame.hypervolume(self._front(candidates))

    def fresh(self, id: str) -> list[dict]:
        """Objectives of each training of a candidate with a fresh seed that ended well.

        `star rescore` makes them, and `star refine` of its members and of its best.
        """
        return [objectives for objectives in self._fresh.get(id, ()) if objectives]

    def as_measured(self, candidate: Candidate) -> Candidate:
        """With the means over fresh seeds as its noisy objectives; unchanged if it has none."""
        rows = self.fresh(candidate.id)
        if not rows:
            return candidate
        means = {
            o.name: measured(o, [row[o.name] for row in rows], True, self.noise[o.name], o.error(candidate.metrics))
            for o in self.objectives
            if not o.cheap
        }
        values = {name: found.mean for name, found in means.items()}
        return replace(candidate, objectives=candidate.values | values, measured=means)

    @cached_property
    def noise(self) -> dict[str, Noise | None]:
        """Between seeds, of each noisy objective (scaled), pooled over all that was measured with fresh seeds."""
        groups = [rows for id in self._fresh if (rows := self.fresh(id))]
        noisy = [o for o in self.objectives if not o.cheap]
        return {o.name: noise_sd([[o.scaled(row[o.name]) for row in rows] for rows in groups]) for o in noisy}

    def repeats(self) -> dict[str, list[dict]]:
        """Fresh measurements by `star rescore`, by candidate: repeat, seed, status, objectives (None unless ok),
        metrics, ...
        """
        return {id: list(rows) for id, rows in self._record.repeats.items()}

    def ladder(self) -> list[dict]:
        """Trainings of `star ladder`: id, genome, origin, tokens and width (times those of the search), seed, status,
        bpb (None unless ok), objectives (where tokens and width are 1), ...
        """
        return list(self._record.ladder)

    def protocols(self) -> list[dict]:
        """Protocols of `star evidence`, oldest first: see `star.evidence.design`."""
        return list(self._record.protocols.values())

    def comparisons(self) -> list[dict]:
        """Trainings of `star evidence`: stage ("random", "rate" or "final"), id, genome, budget, rate, number (of the
        seed), status, bpb and test_bpb (None unless ok), objectives (of stage "random"), ...
        """
        return list(self._record.comparisons)

    def capabilities(self) -> list[dict]:
        """Measurements of `star capabilities`: id, task, sizes, tokens, number (of the seed), status, metrics, ...;
        `star.evidence.suite.capability_rows` puts them together.
        """
        return list(self._record.capabilities)

    def refinements(self) -> "list[Refined]":
        """What `star refine` did with this run, oldest first."""
        if not self._record.refinements:
            return []
        from star.refined import Refined  # here: scipy.stats takes a second to import

        return [Refined(self, state) for state in self._record.refinements.values()]

    def refinement(self, id: str | None = None) -> "Refined":
        """The refinement with this id, or the last one. Raises UserError if there is none."""
        found = [refined for refined in self.refinements() if id is None or refined.id == id]
        if not found:
            which = "no refinement" if id is None else f"no refinement {id!r}"
            raise UserError(f"{self.path} has {which}: star refine {self.path} starts one")
        return found[-1]

    def curve(self, id: str) -> list[dict]:
        """Learning curve of a candidate's last attempt: step, tokens, train_loss, val_loss, seconds."""
        curves = read_curves(self.path, id)
        return curves[-1]["points"] if curves else []

    def curves(self) -> dict[str, list[dict]]:
        """The learning curves of all candidates that have one, as `curve` has them, by id."""
        return {data["id"]: data["points"] for data in read_curves(self.path)}

    def weights(self, id: str) -> Path | None:
        """File with the trained weights, if they were kept (`config.keep`); of a refined candidate those of its first
        full trial.
        """
        kept = [CandidateFiles(self.path, "refined").weights(trial) for trial in self._full_trials(id)]
        return self.files.weights(id) or next((path for path in kept if path is not None), None)

    def statistics(self) -> list[dict]:
        """Of each generation: generated, repaired, duplicates (counts of genomes that variation made)."""
        generations = dict.fromkeys(ask["generation"] for ask in self._record.asks)
        return [{"generation": generation} | self._record.counts(generation) for generation in generations]

    def operators(self) -> list[dict]:
        """What each variation operator brought, and the initial population for comparison.

        Rows: operator; generated, repaired, duplicates (genomes that it had a part in); assessed, of which ended ok;
        improved: on the front when they ended. A genome that two operators changed counts for
        both.
        """
        names = dict.fromkeys(["initial", *(name for ask in self._record.asks for name in ask.get("by_operator", ()))])
        zero = {"generated": 0, "repaired": 0, "duplicates": 0, "assessed": 0, "ok": 0, "improved": 0}
        rows = {name: {"operator": name} | zero for name in names}
        for ask in self._record.asks:
            for name, counts in ask.get("by_operator", {}).items():
                for key, number in counts.items():
                    rows[name][key] += number
        front = self._front([])
        for candidate in self.settled():
            joined = bool(candidate.objectives) and front.add(candidate.id, candidate.values)
            for name in candidate.operators or ["initial"]:
                row = rows.setdefault(name, {"operator": name} | zero)
                row["assessed"] += 1
                row["ok"] += candidate.status == "ok"
                row["improved"] += joined
        return list(rows.values())

    def surrogate(self) -> dict[str, dict]:
        """How well the surrogate predicted the candidates that it chose, by objective: see
        `star.surrogate.calibration.report`.

        The proxy that it must beat is the number of parameters: larger models are usually better.
        """
        from star.surrogate.calibration import report  # here: scipy.stats takes a second to import

        predicted = {p.id: p.predicted for p in self._record.proposals if p.predicted}
        found = {}
        for objective in self.objectives:
            name = objective.name
            pairs = [
                (predicted[c.id][name], objective.scaled(c.values[name]), -c.costs.get("parameters", 0.0))
                for c in [c for c in self.settled() if c.objectives]
                if c.id in predicted and name in predicted[c.id]
            ]
            if pairs:
                found[objective.name] = report(*zip(*pairs, strict=True))
        return found

    def status(self) -> dict:
        """Counts by outcome, progress, running candidates, and the time left (seconds; None if unknown)."""
        record, candidates = self._record, self._candidates
        counts = {
            status: sum(c.status == status for c in candidates)
            for status in dict.fromkeys(c.status for c in candidates)
        }
        done, pending, running = len(record.results), counts.get("pending", 0), counts.get("running", 0)
        baselines = len(self.candidates("baseline"))
        total = done + pending + running if record.exhausted else max(self.config.candidates + baselines, done)
        active, good = is_held(self.path), ("ok", "infeasible", "stopped")
        return {
            "done": done,
            "pending": pending,
            "running": running,
            "failed": sum(r.status not in good for r in record.results.values()),
            "total": total,
            "finished": done >= total or (record.exhausted and done == total),
            "active": active,
            "generation": max(record.generation, 0),
            "generations": self.config.search.generations,
            "eta_seconds": record.eta(total - done, record.workers) if record.results else None,
            "workers": record.workers,
            "idle": record.idle(time.time() if active else None),
            "counts": counts,
            "failures": [
                {"id": r.id, "status": r.status, "reason": r.reason}
                for r in record.results.values()
                if r.status not in good
            ],
            "progress": read_progress(self.path / "progress") if active else {},
            "surrogate": self.surrogate(),
            "refinements": [refined.summary() for refined in self.refinements()],
            "baselines": self.corpus["baselines"],
            "corpus": self.corpus["name"],
        }

    @cached_property
    def _fresh(self) -> dict[str, list[dict | None]]:
        """Objectives of each training with a fresh seed, None if it failed, by candidate."""
        found = {
            id: {str(row["repeat"]): row["objectives"] for row in rows} for id, rows in self._record.repeats.items()
        }
        for state in self._record.refinements.values():
            for trial in state.trials:
                if trial.share == 1.0 and trial.purpose in ("member", "confirm") and trial.id in state.results:
                    # By its id, because a refinement takes over the trials of an earlier one.
                    found.setdefault(trial.candidate, {})[trial.id] = state.results[trial.id].objectives
        return {id: list(rows.values()) for id, rows in found.items()}

    @cached_property
    def _searched_front(self) -> list[Candidate]:
        return self._non_dominated([c for c in self.settled() if c.objectives])

    @cached_property
    def _fresh_front(self) -> list[Candidate]:
        return self._non_dominated(self.as_measured(c) for c in self._searched_front if self.fresh(c.id))

    @cached_property
    def _candidates(self) -> list[Candidate]:
        active = is_held(self.path)
        return [self._candidate(proposal, active) for proposal in self._record.proposals]

    def _candidate(self, proposal: Proposal, active: bool) -> Candidate:
        result = self._record.results.get(proposal.id)
        running = active and proposal.id in self._record.started
        objectives = result.objectives if result and not proposal.infeasible else None
        metrics = result.metrics if result else {}
        return Candidate(
            id=proposal.id,
            genome=from_json(proposal.genome, where=f"{self.path}: candidate {proposal.id}"),
            generation=proposal.generation,
            origin=proposal.origin,
            name=proposal.name,
            parents=list(proposal.parents),
            operators=list(proposal.operators),
            repaired=proposal.repaired,
            status=result.status if result else "running" if running else "pending",
            reason=result.reason if result else "",
            objectives=objectives,
            measured={
                o.name: measured(o, [objectives[o.name]], False, self.noise[o.name], o.error(metrics))
                for o in self.objectives
                if objectives and not o.cheap
            },
            metrics=metrics,
            costs=proposal.costs,
            order=result.order if result else None,
            traceback=result.traceback if result else None,
        )

    def _members(self, searched: bool = False) -> list[Candidate]:
        members = self.front(searched)
        if not members:
            raise UserError(f"{self.path} has no finished candidate yet; star status {self.path} shows its progress")
        return members

    def _non_dominated(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        found = {c.id: c for c in candidates}
        front = self._front(found.values())
        return sorted((found[id] for id in front.ids), key=lambda c: (*front.scaled(c.values), c.id))

    def _front(self, candidates: Iterable[Candidate]) -> Front:
        front = Front(self.objectives)
        for candidate in candidates:
            front.add(candidate.id, candidate.values)
        return front

    def _full_trials(self, id: str) -> list[str]:
        states = self._record.refinements.values()
        return [trial.id for state in states for trial in state.trials if trial.candidate == id and trial.share == 1.0]

    @property
    def frame(self) -> Frame | None:
        """The box in which hypervolume is measured; None until the first generation is complete."""
        return Frame(**self._record.frame) if self._record.frame else None


def config_for(
    path: str | Path, preset: str | None = None, file: str | Path | None = None, overrides: dict | None = None
) -> RunConfig:
    """What `star evolve PATH` with these options means: a run that exists keeps its configuration unless told
    otherwise.
    """
    path = Path(path)
    base = RunConfig.from_json(read_meta(path)["config"]) if preset is None and exists(path) else None
    return load_config(preset, file, overrides, base)
