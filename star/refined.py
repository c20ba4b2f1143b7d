"""The results of a refinement, read from the record, also while it runs.

    refined = star.Run("runs/first").refinement()
    for row in refined.members(): print(row.member, row.loss.mean, "->", row.candidate, row.refined.mean)

The loss of a candidate is the mean of its fresh measurements: those that did not decide about it. Without any, it is
the measurement of its first trial, which is too good on average if the candidate was chosen for it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy.stats import t as student

from star.assess import Frame, Front, Objective
from star.assess.noise import Noise, noise_sd
from star.candidate import Candidate
from star.config import RunConfig
from star.genome import from_json
from star.refine.settings import RefineSettings
from star.store import Refinement, Trial, TrialResult
from star.training.recipe_space import recipe_space


class SearchResults(Protocol):
    """What a refinement reads of its run: `star.Run` is one."""

    path: Path
    config: RunConfig
    objectives: tuple[Objective, ...]

    @property
    def frame(self) -> Frame | None:
        """In which hypervolume is measured."""

    def candidate(self, id: str) -> Candidate:
        """By its id."""

    def front(self) -> list[Candidate]:
        """The non-dominated candidates."""

    def repeats(self) -> dict[str, list[dict]]:
        """Fresh measurements by candidate."""


@dataclass(frozen=True)
class Measured:
    """Loss of one candidate at full length, scaled: mean and standard error of n trainings; fresh: none decided about
    it.
    """

    mean: float
    se: float
    n: int
    fresh: bool


@dataclass(frozen=True)
class MemberRow:
    """A member of the front and the best candidate made from it that is no larger.

    candidate: None where nothing was measured with fresh seeds. difference: refined minus member, nats, with its 95 %
    interval low, high; None without fresh seeds of both. perplexity: ratio of perplexities, exp(difference).
    """

    member: str
    searched: float
    loss: Measured | None
    candidate: str | None = None
    edits: tuple[str, ...] = ()
    changed: dict = field(default_factory=dict)
    refined: Measured | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def perplexity(self) -> float | None:
        """exp(difference)."""
        return None if self.difference is None else math.exp(self.difference)


class Refined:
    """A refinement of a run: settings, spent (full trainings), and trials [(trial, result or None)] in order."""

    def __init__(self, run: SearchResults, state: Refinement):
        self.run, self.state, self.id, self.spent = run, state, state.id, state.spent
        self.settings = RefineSettings(**state.settings)
        self.space = recipe_space(run.config.training, self.settings.ranges)
        self.loss = next(o for o in run.objectives if not o.cheap)
        self.trials: list[tuple[Trial, TrialResult | None]] = [(t, state.results.get(t.id)) for t in state.trials]

    @property
    def finished(self) -> bool:
        """Whether the last measurements are done."""
        return bool(self.trials) and self.trials[-1][0].purpose == "confirm" and not self.state.unfinished()

    def summary(self) -> dict:
        """id, trials, spent and budget (full trainings), finished, and perplexity (ratio) by member."""
        facts = {"id": self.id, "trials": len(self.trials), "spent": self.spent, "budget": self.settings.budget}
        return facts | {"finished": self.finished, "perplexity": {m.member: m.perplexity for m in self.members()}}

    def value(self, result: TrialResult | None) -> float | None:
        """The loss of a result, scaled; None if it has none."""
        return None if result is None or not result.objectives else self._scaled(result.objectives)

    def measured(self, candidate: str) -> Measured | None:
        """At full length; of a member also its fresh measurements by `star rescore`."""
        pairs = [(t, v) for t, v in self._full() if t.candidate == candidate]
        repeats = [
            self._scaled(row["objectives"]) for row in self.run.repeats().get(candidate, ()) if row["objectives"]
        ]
        fresh = [v for t, v in pairs if t.purpose in ("confirm", "member")] + repeats
        values = fresh or [v for _, v in pairs]
        if not values:
            return None
        se = self.noise.sd / math.sqrt(len(values)) if self.noise else math.nan
        return Measured(float(np.mean(values)), se, len(values), bool(fresh))

    @property
    def noise(self) -> Noise | None:
        """Between seeds at full length, pooled over everything measured with fresh seeds."""
        groups: dict[str, list[float]] = {}
        for t, v in self._full():
            if t.purpose in ("confirm", "member"):
                groups.setdefault(t.candidate, []).append(v)
        return noise_sd(groups)

    def members(self) -> list[MemberRow]:
        """One row for each member that was refined."""
        rows, noise = [], self.noise
        for id in self.settings.members:
            member, loss = self.run.candidate(id), self.measured(id)
            row = MemberRow(id, self._scaled(member.objectives or {}), loss)
            options = [c for c in self.candidates() if c.parents == [id] and self._no_larger(c, member)]
            fresh = [(m.mean, c.id, m) for c in options if (m := self.measured(c.id)) and m.fresh]
            if fresh and loss is not None:
                _, best, refined = min(fresh)
                trial = next(t for t, _ in self.trials if t.candidate == best)
                difference, low, high = refined.mean - loss.mean, None, None
                if noise and loss.fresh:
                    sd = noise.sd * math.sqrt(1 / loss.n + 1 / refined.n)
                    half = float(student.ppf(0.975, noise.degrees)) * sd
                    low, high = difference - half, difference + half
                changed = self.space.changed(trial.settings)
                row = MemberRow(id, row.searched, loss, best, trial.edits, changed, refined, difference, low, high)
            rows.append(row)
        return rows

    def candidates(self) -> list[Candidate]:
        """All with a recipe or genome of their own that were trained to the end; objectives as `measured`."""
        known = {id for id, _ in self.state.evidence}
        first = {t.candidate: t for t, _ in reversed(self.trials) if t.candidate not in known}
        found = []
        for trial in [t for t, _ in self.trials if first.get(t.candidate) is t]:
            measured = self.measured(trial.candidate)
            if measured is None:
                continue
            full = [
                r for t, r in self.trials if t.candidate == trial.candidate and t.share == 1.0 and r and r.objectives
            ]
            exact = {o.name: trial.costs[o.name] for o in self.run.objectives if o.cheap}
            values = {
                **((full[0].objectives or {}) if full else {}),
                **exact,
                self.loss.name: self.loss.unscaled(measured.mean),
            }
            metrics = {"trainings": measured.n, "fresh": measured.fresh, "tokens": self.run.config.training.tokens}
            sparsity = next((r.metrics["sparsity"] for r in full if r.metrics.get("sparsity")), None)
            found.append(
                Candidate(
                    id=trial.candidate,
                    genome=from_json(trial.genome, where=f"{self.run.path}: candidate {trial.candidate}"),
                    generation=0,
                    origin="refined",
                    name=None,
                    parents=[trial.member],
                    operators=list(trial.edits),
                    repaired=False,
                    status="ok",
                    objectives={o.name: float(values[o.name]) for o in self.run.objectives},
                    metrics=metrics | ({"sparsity": sparsity} if sparsity else {}),
                    costs=trial.costs,
                    recipe=self.space.recipe(trial.settings),
                )
            )
        return found

    def front(self) -> list[Candidate]:
        """The front of the search and of everything measured with fresh seeds, best loss first."""
        fresh = [c for c in self.candidates() if c.metrics["fresh"]]
        found = {c.id: c for c in [*map(self._as_measured, self.run.front()), *fresh]}
        front = self._front(found.values())
        return sorted((found[id] for id in front.ids), key=lambda c: (*front.scaled(c.values), c.id))

    def hypervolume(self) -> tuple[float, float] | None:
        """Of the search's front, with fresh losses where known, and of the refined one, in the run's own frame."""
        if self.run.frame is None:
            return None
        searched = self._front(self._as_measured(c) for c in self.run.front())
        return self.run.frame.hypervolume(searched), self.run.frame.hypervolume(self._front(self.front()))

    def progress(self) -> list[dict]:
        """After each settled trial: cost (full trainings so far), purpose, hypervolume (as measured; None without a
        frame), and best: by member the lowest loss at full length so far.
        """
        front = self._front(self.run.front())
        best = {id: self._scaled(self.run.candidate(id).objectives or {}) for id in self.settings.members}
        rows, cost = [], 0.0
        for trial, result in self.trials:
            cost += trial.share
            if result is None:
                continue
            value = self.value(result)
            if trial.share == 1.0 and value is not None:
                best[trial.member] = min(best.get(trial.member, math.inf), value)
                front.add(trial.id, result.objectives or {})
            volume = None if self.run.frame is None else self.run.frame.hypervolume(front)
            rows.append({"cost": cost, "purpose": trial.purpose, "hypervolume": volume, "best": dict(best)})
        return rows

    def forecasts(self) -> tuple[list[tuple[float, float]], list[float]]:
        """Predictions [mean, sd] recorded before their results, and those results, in order; failed trials left out."""
        pairs = [(t.predicted, v) for t, r in self.trials if t.predicted and (v := self.value(r)) is not None]
        return [p for p, _ in pairs], [v for _, v in pairs]

    def decisions(self) -> list[dict]:
        """The log of each proposal (source, acts, gain, low, entropy, kl, ...), and realised: how much the best loss
        fell.
        """
        best: dict[tuple[str, float], float] = {}
        rows = []
        for trial, result in self.trials:
            value, key = self.value(result), (trial.member, trial.share)
            gain = max(0.0, best[key] - value) if value is not None and key in best else 0.0
            if value is not None:
                best[key] = min(best.get(key, math.inf), value)
            if trial.purpose == "proposal":
                about = {"id": trial.id, "source": trial.source, "share": trial.share, "kind": trial.kind}
                rows.append(about | {"realised": gain} | trial.log)
        return rows

    def _scaled(self, objectives: dict[str, float]) -> float:
        return self.loss.scaled(objectives[self.loss.name])

    def _full(self) -> list[tuple[Trial, float]]:
        """Trials at full length with their losses."""
        return [(t, v) for t, r in self.trials if t.share == 1.0 and (v := self.value(r)) is not None]

    def _front(self, candidates) -> Front:
        front = Front(self.run.objectives)
        for candidate in candidates:
            front.add(candidate.id, candidate.values)
        return front

    def _as_measured(self, candidate: Candidate) -> Candidate:
        """With its fresh loss, where it has one."""
        measured = self.measured(candidate.id)
        if measured is None:
            return candidate
        loss = {self.loss.name: self.loss.unscaled(measured.mean)}
        return replace(candidate, objectives={**(candidate.objectives or {}), **loss})

    def _no_larger(self, candidate: Candidate, member: Candidate) -> bool:
        names: Sequence[str] = [o.name for o in self.run.objectives if o.cheap]
        own, other = candidate.objectives or {}, member.objectives or {}
        return all(own[name] <= other[name] * (1 + 1e-9) for name in names)
