"""What a refinement brought, as anyone may read it, also while it is going on.

    refined = star.Run("runs/first").refinement()
    for row in refined.members(): print(row.member, row.loss.mean, "->", row.candidate, row.refined.mean)

A candidate's loss is the mean of its fresh measurements: those that did not decide about it. Of one that has none, what
it measured when it was tried, which is too good on average if it was chosen for it.
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
from star.refine.recipe_space import recipe_space
from star.refine.settings import RefineSettings
from star.store import Refinement, Trial, TrialResult


class SearchResults(Protocol):
    """What a refinement reads of the run that it belongs to: `star.Run` is one."""

    path: Path
    config: RunConfig
    objectives: Sequence[Objective]

    @property
    def frame(self) -> Frame | None: ...
    def candidate(self, id: str) -> Candidate: ...
    def front(self) -> list[Candidate]: ...
    def repeats(self) -> dict[str, list[dict]]: ...


@dataclass(frozen=True)
class Measured:
    """Loss of one candidate at full length, scaled: mean and standard error of n trainings; fresh: none of them decided
    about it.
    """

    mean: float
    se: float
    n: int
    fresh: bool


@dataclass(frozen=True)
class MemberRow:
    """A member of the front, and the best that was made of it without being larger.

    candidate: None where nothing was measured afresh. difference: refined minus member, nats, with its 95 % interval;
    None without fresh seeds of both. perplexity: ratio of perplexities, exp(difference).
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
        return None if self.difference is None else math.exp(self.difference)


class Refined:
    """A refinement of a run: its settings, its trials in order, and what follows from them."""

    def __init__(self, run: "SearchResults", state: Refinement):
        self.run, self.state, self.id = run, state, state.id
        self.settings = RefineSettings.from_json(state.settings)
        self.space = recipe_space(run.config.training, self.settings.ranges)
        self.loss = next(o for o in run.objectives if not o.cheap)
        self.trials: list[tuple[Trial, TrialResult | None]] = [(t, state.results.get(t.id)) for t in state.trials]
        self.spent = state.spent

    @property
    def finished(self) -> bool:
        return bool(self.trials) and self.trials[-1][0].purpose == "confirm" and not self.state.unfinished()

    def summary(self) -> dict:
        """How far it is, and what it brought: id, trials, spent and budget (full trainings), finished, perplexity
        (ratio, by member).
        """
        facts = {
            "id": self.id,
            "trials": len(self.trials),
            "spent": self.spent,
            "budget": self.settings.budget,
            "finished": self.finished,
        }
        return facts | {"perplexity": {row.member: row.perplexity for row in self.members()}}

    def value(self, result: TrialResult | None) -> float | None:
        """The loss of a result, scaled; None if it has none."""
        return None if result is None or not result.objectives else self.loss.scaled(result.objectives[self.loss.name])

    def measured(self, candidate: str) -> Measured | None:
        """At full length; of a member also its fresh measurements by `star rescore`."""
        every = [
            (t, v)
            for t, r in self.trials
            if t.candidate == candidate and t.share == 1.0 and (v := self.value(r)) is not None
        ]
        fresh = [v for t, v in every if t.purpose in ("confirm", "member")] + self._rescored(candidate)
        values = fresh or [v for _, v in every]
        if not values:
            return None
        noise = self.noise
        return Measured(
            float(np.mean(values)), noise.sd / math.sqrt(len(values)) if noise else math.nan, len(values), bool(fresh)
        )

    @property
    def noise(self) -> Noise | None:
        """Between seeds at full length, pooled over everything measured afresh."""
        groups: dict[str, list[float]] = {}
        for t, r in self.trials:
            if t.share == 1.0 and t.purpose in ("confirm", "member") and (v := self.value(r)) is not None:
                groups.setdefault(t.candidate, []).append(v)
        return noise_sd(groups)

    def members(self) -> list[MemberRow]:
        rows = []
        noise = self.noise
        for id in self.settings.members:
            member = self.run.candidate(id)
            searched, loss = self.loss.scaled(member.objectives[self.loss.name]), self.measured(id)
            options = [c for c in self.candidates() if c.parents == [id] and self._no_larger(c, member)]
            fresh = [(m.mean, c.id, m) for c in options if (m := self.measured(c.id)) and m.fresh]
            if not fresh or loss is None:
                rows.append(MemberRow(id, searched, loss))
                continue
            _, best, refined = min(fresh)
            trial = next(t for t, _ in self.trials if t.candidate == best)
            difference, half = refined.mean - loss.mean, math.nan
            if noise and loss.fresh:
                half = float(student.ppf(0.975, noise.degrees)) * noise.sd * math.sqrt(1 / loss.n + 1 / refined.n)
            ends = (None, None) if math.isnan(half) else (difference - half, difference + half)
            rows.append(
                MemberRow(
                    id,
                    searched,
                    loss,
                    best,
                    trial.edits,
                    self.space.changed(trial.settings),
                    refined,
                    difference,
                    *ends,
                )
            )
        return rows

    def candidates(self) -> list[Candidate]:
        """Everything that was trained to the end under a recipe or with a genome of its own; objectives as `measured`."""
        found = []
        known = {id for id, _ in self.state.evidence}
        for trial in {t.candidate: t for t, _ in self.trials if t.candidate not in known}.values():
            measured = self.measured(trial.candidate)
            if measured is None:
                continue
            exact = {o.name: trial.costs[o.name] for o in self.run.objectives if o.cheap}
            others = next(
                (
                    r.objectives
                    for t, r in self.trials
                    if t.candidate == trial.candidate and t.share == 1.0 and r and r.objectives
                ),
                {},
            )
            objectives = {**others, **exact, self.loss.name: self.loss.unscaled(measured.mean)}
            metrics = {"trainings": measured.n, "fresh": measured.fresh, "tokens": self.run.config.training.tokens}
            sparsity = next(
                (
                    r.metrics["sparsity"]
                    for t, r in self.trials
                    if t.candidate == trial.candidate and t.share == 1 and r and r.metrics.get("sparsity")
                ),
                None,
            )
            metrics |= {"sparsity": sparsity} if sparsity else {}
            recipe = self.space.recipe(trial.settings)
            genome = from_json(trial.genome, where=f"{self.run.path}: candidate {trial.candidate}")
            values = {o.name: float(objectives[o.name]) for o in self.run.objectives}
            about = {
                "origin": "refined",
                "name": None,
                "parents": [trial.member],
                "operators": list(trial.edits),
                "repaired": False,
                "status": "ok",
            }
            found.append(
                Candidate(
                    trial.candidate,
                    genome,
                    0,
                    **about,
                    objectives=values,
                    metrics=metrics,
                    costs=trial.costs,
                    recipe=recipe,
                )
            )
        return found

    def front(self) -> list[Candidate]:
        """The front of the search and of all that was measured afresh, best loss first: members with their fresh losses
        where known.
        """
        found = {
            c.id: c
            for c in [*map(self._as_measured, self.run.front()), *(c for c in self.candidates() if c.metrics["fresh"])]
        }
        front = Front(self.run.objectives)
        for candidate in found.values():
            front.add(candidate.id, candidate.objectives)
        return sorted((found[id] for id in front.ids), key=lambda c: (*front.scaled(c.objectives), c.id))

    def hypervolume(self) -> tuple[float, float] | None:
        """Of the search's front, members with their fresh losses, and of the refined one, in the run's own frame."""
        if self.run.frame is None:
            return None
        volumes = []
        for members in ([self._as_measured(c) for c in self.run.front()], self.front()):
            front = Front(self.run.objectives)
            for c in members:
                front.add(c.id, c.objectives)
            volumes.append(self.run.frame.hypervolume(front))
        return volumes[0], volumes[1]

    def progress(self) -> list[dict]:
        """After each settled trial: cost (full trainings so far), purpose, hypervolume (as measured; None without a
        frame), and
        best: by member the lowest loss at full length so far."""
        front = Front(self.run.objectives)
        for c in self.run.front():
            front.add(c.id, c.objectives)
        best = {id: self.loss.scaled(self.run.candidate(id).objectives[self.loss.name]) for id in self.settings.members}
        rows, cost = [], 0.0
        for trial, result in self.trials:
            cost += trial.share
            if result is None:
                continue
            value = self.value(result)
            if trial.share == 1.0 and value is not None:
                best[trial.member] = min(best.get(trial.member, math.inf), value)
                front.add(trial.id, result.objectives)
            volume = None if self.run.frame is None else self.run.frame.hypervolume(front)
            rows.append({"cost": cost, "purpose": trial.purpose, "hypervolume": volume, "best": dict(best)})
        return rows

    def forecasts(self) -> tuple[list[tuple[float, float]], list[float]]:
        """Predictions [mean, sd] that were recorded before their results, and those results, in order; failed trials
        left out.
        """
        pairs = [(t.predicted, v) for t, r in self.trials if t.predicted and (v := self.value(r)) is not None]
        return [p for p, _ in pairs], [v for _, v in pairs]

    def decisions(self) -> list[dict]:
        """What was logged with each proposal: source, acts, gain, low, entropy, kl, ...; and realised: how much lower
        the best loss became.
        """
        best: dict[tuple[str, float], float] = {}
        rows = []
        for trial, result in self.trials:
            value, key = self.value(result), (trial.member, trial.share)
            gain = max(0.0, best[key] - value) if value is not None and key in best else 0.0
            if value is not None:
                best[key] = min(best.get(key, math.inf), value)
            if trial.purpose == "proposal":
                rows.append(
                    {"id": trial.id, "source": trial.source, "share": trial.share, "kind": trial.kind, "realised": gain}
                    | trial.log
                )
        return rows

    def _as_measured(self, candidate: Candidate) -> Candidate:
        measured = self.measured(candidate.id)
        if measured is None:
            return candidate
        return replace(
            candidate, objectives={**candidate.objectives, self.loss.name: self.loss.unscaled(measured.mean)}
        )

    def _rescored(self, candidate: str) -> list[float]:
        return [
            self.loss.scaled(row["objectives"][self.loss.name])
            for row in self.run.repeats().get(candidate, ())
            if row["objectives"]
        ]

    def _no_larger(self, candidate: Candidate, member: Candidate) -> bool:
        names: Sequence[str] = [o.name for o in self.run.objectives if o.cheap]
        return all(candidate.objectives[name] <= member.objectives[name] * (1 + 1e-9) for name in names)
