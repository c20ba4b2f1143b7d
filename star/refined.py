"""The results of a refinement, read from the record, also while it runs.

    refined = star.Run("runs/first").refinement()
    for row in refined.members(): print(row.member, row.loss.mean, "->", row.candidate, row.refined.mean)

The loss of a candidate is the mean of its fresh measurements (`star.Run.fresh`): those that did not decide about it.
Without any, it is the measurement of its trials, which is too good on average if the candidate was chosen for it.
Fronts and hypervolumes never mix the two.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from scipy.special import stdtrit

from star.assess import Frame, Front, Objective
from star.assess.noise import Noise, measured
from star.candidate import Candidate, Measured
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
    def bits_per_nat(self) -> float:
        """Bits per byte of the text in one nat per token."""

    @property
    def frame(self) -> Frame | None:
        """In which hypervolume is measured."""

    @property
    def noise(self) -> Mapping[str, Noise | None]:
        """Between seeds, by objective."""

    def candidate(self, id: str) -> Candidate:
        """By its id."""

    def candidates(self) -> list[Candidate]:
        """In order of creation."""

    def front(self, searched: bool = False) -> list[Candidate]:
        """The non-dominated candidates."""

    def fresh(self, id: str) -> list[dict]:
        """Objectives of each training with a fresh seed."""

    def as_measured(self, candidate: Candidate) -> Candidate:
        """With the means over fresh seeds."""


@dataclass(frozen=True)
class MemberRow:
    """A member of the front and the best candidate made from it that is no larger.

    searched: loss in the search. candidate: None where nothing was measured with fresh seeds. difference: refined minus
    member, with its 95 % interval low, high; None without fresh seeds of both. perplexity: ratio of perplexities per
    token. nats: in one unit of the loss.
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
    nats: float = 1.0

    @property
    def perplexity(self) -> float | None:
        """exp(difference in nats)."""
        return None if self.difference is None else math.exp(self.difference * self.nats)


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
        """Its loss at full length."""
        fresh = self.run.fresh(candidate)
        rows = fresh or [r.objectives for t, r in self._full() if t.candidate == candidate and r.objectives]
        values = [row[self.loss.name] for row in rows]
        return measured(self.loss, values, bool(fresh), self.noise) if values else None

    @property
    def noise(self) -> Noise | None:
        """Of the loss between seeds, as of the run."""
        return self.run.noise[self.loss.name]

    def searched_members(self) -> dict[str, Candidate]:
        """The members as the search made them, but for those whose result a damaged record has lost."""
        found = {c.id: c for c in self.run.candidates() if c.objectives}
        return {id: found[id] for id in self.settings.members if id in found}

    def members(self) -> list[MemberRow]:
        """One row for each member that was refined."""
        rows, noise = [], self.noise
        for id, member in self.searched_members().items():
            loss = self.measured(id)
            row = MemberRow(id, member.values[self.loss.name], loss)
            options = [c for c in self.candidates() if c.parents == [id] and self._no_larger(c, member)]
            fresh = [(self.loss.scaled(m.mean), c.id, m) for c in options if (m := self.measured(c.id)) and m.fresh]
            if fresh and loss is not None:
                value, best, refined = min(fresh)
                trial = next(t for t, _ in self.trials if t.candidate == best)
                difference, low, high = value - self.loss.scaled(loss.mean), None, None
                if noise and loss.fresh:
                    sd = noise.sd * math.sqrt(1 / loss.n + 1 / refined.n)
                    half = float(stdtrit(noise.degrees, 0.975)) * sd
                    low, high = difference - half, difference + half
                changed = self.space.changed(trial.settings)
                nats = 1.0 / self.run.bits_per_nat if self.loss.name == "bpb" else 1.0
                row = MemberRow(
                    id, row.searched, loss, best, trial.edits, changed, refined, difference, low, high, nats
                )
            rows.append(row)
        return rows

    def candidates(self) -> list[Candidate]:
        """All with a recipe or genome of their own that were trained to the end; objectives as `measured`."""
        known = {id for id, _ in self.state.evidence}
        first = {t.candidate: t for t, _ in reversed(self.trials) if t.candidate not in known}
        found = []
        for trial in [t for t, _ in self.trials if first.get(t.candidate) is t]:
            loss = self.measured(trial.candidate)
            if loss is None:
                continue
            full = [
                r for t, r in self.trials if t.candidate == trial.candidate and t.share == 1.0 and r and r.objectives
            ]
            exact = {o.name: trial.costs[o.name] for o in self.run.objectives if o.cheap}
            values = {
                **((full[0].objectives or {}) if full else {}),
                **exact,
                self.loss.name: loss.mean,
            }
            metrics = {"trainings": loss.n, "fresh": loss.fresh, "tokens": self.run.config.training.tokens}
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
                    measured={self.loss.name: loss},
                )
            )
        return found

    def front(self) -> list[Candidate]:
        """The front of everything measured with fresh seeds, best loss first; members of the search's front without
        any are `unmeasured`.
        """
        fresh = [c for c in self.candidates() if c.metrics["fresh"]]
        found = {c.id: c for c in [*self._searched(), *fresh]}
        front = self._front(found.values())
        return sorted((found[id] for id in front.ids), key=lambda c: (*front.scaled(c.values), c.id))

    def unmeasured(self) -> list[Candidate]:
        """Members of the search's front without fresh seeds: nothing of `front` can be compared with them."""
        return [c for c in self.run.front(searched=True) if not self.run.fresh(c.id)]

    def hypervolume(self) -> tuple[float, float] | None:
        """Of the members of the search's front that were measured with fresh seeds, and of `front`.

        In the run's own frame; None before there is one.
        """
        if self.run.frame is None:
            return None
        before, after = (self._front(found) for found in (self._searched(), self.front()))
        return self.run.frame.hypervolume(before), self.run.frame.hypervolume(after)

    def progress(self) -> list[dict]:
        """After each settled trial: cost (full trainings so far), purpose, hypervolume (None without a frame), and by
        member the best loss at full length so far (scaled).

        With one seed each: the search's measurements and the first of each candidate made here.
        """
        front = self._front(self.run.front(searched=True))
        best = {id: self._scaled(member.values) for id, member in self.searched_members().items()}
        seen = {id for id, _ in self.state.evidence}
        rows, cost = [], 0.0
        for trial, result in self.trials:
            cost += trial.share
            if result is None:
                continue
            if trial.share == 1.0 and result.objectives and trial.candidate not in seen:
                seen.add(trial.candidate)
                front.add(trial.candidate, result.objectives)
                best[trial.member] = min(best.get(trial.member, math.inf), self._scaled(result.objectives))
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

    def _full(self) -> list[tuple[Trial, TrialResult]]:
        """Trials at full length that ended well."""
        return [(t, r) for t, r in self.trials if t.share == 1.0 and r is not None and r.objectives]

    def _front(self, candidates) -> Front:
        front = Front(self.run.objectives)
        for candidate in candidates:
            front.add(candidate.id, candidate.values)
        return front

    def _searched(self) -> list[Candidate]:
        """Members of the search's front that were measured with fresh seeds, with these means."""
        return [self.run.as_measured(c) for c in self.run.front(searched=True) if self.run.fresh(c.id)]

    def _no_larger(self, candidate: Candidate, member: Candidate) -> bool:
        names: Sequence[str] = [o.name for o in self.run.objectives if o.cheap]
        own, other = candidate.objectives or {}, member.objectives or {}
        return all(own[name] <= other[name] * (1 + 1e-9) for name in names)
