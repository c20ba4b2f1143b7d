"""Refinements of a run, computed from their events: the trials that were decided on, and their results.

refinement  id, settings, evidence, earlier
            a refinement started, or continues with another budget (settings: `star.refine.settings`). It learns
            from evidence: [[candidate of the search, loss], ...] and earlier: [[another refinement, trial], ...]
trial       refinement, id, candidate, member, genome, settings, kind, edits, share, repeat, purpose, costs,
            predicted?, source?, log
            a training that was decided on; predicted: [mean, sd] of its loss, before it had any result
trial_end   refinement, id, attempt, status, reason, traceback?, metrics, objectives?, seconds, worker, final
            an attempt ended; final: the trial is settled, otherwise it will be attempted again
closed      refinement, reason
            no more proposals: only the final measurements are left
"""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Trial:
    """One training in a refinement.

    candidate: id of (genome, settings). member: id of its front member. edits: the changes to the member, as text.
    kind: of the last edit (`star.genome.local_edits.KINDS`). share: of the search's training budget. repeat: index of
    the seed, from 0. purpose: "member" (as the search trained it), "design", "proposal" or "confirm". costs: cheap
    objectives. source: "bayes" or "policy". log: facts about the proposal (`star.refine.propose`).
    """

    id: str
    candidate: str
    member: str
    genome: dict
    settings: dict
    kind: str = "recipe"
    edits: tuple[str, ...] = ()
    share: float = 1.0
    repeat: int = 0
    purpose: str = "proposal"
    costs: dict = field(default_factory=dict)
    predicted: tuple[float, float] | None = None
    source: str | None = None
    log: dict = field(default_factory=dict)


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended. objectives: None unless ok."""

    status: str
    reason: str = ""
    objectives: dict | None = None
    metrics: dict = field(default_factory=dict)
    seconds: float = 0.0
    worker: str = ""
    attempt: int = 0


class Refinement:
    """The state of one refinement."""

    def __init__(self, id: str, settings: dict, evidence: list, earlier: Sequence[tuple[Trial, TrialResult]] = ()):
        self.id, self.settings, self.evidence, self.earlier = id, settings, evidence, list(earlier)
        self.trials: list[Trial] = []  # in the order in which they were decided
        self.results: dict[str, TrialResult] = {}  # settled trials
        self.tries: dict[str, list[str]] = {}  # statuses of attempts that did not settle their trial
        self.closed = ""  # why there are no more proposals

    @property
    def spent(self) -> float:
        """Budget of all trials so far, in full trainings."""
        return sum(trial.share for trial in self.trials)

    def unfinished(self) -> list[Trial]:
        """Trials without a result."""
        return [trial for trial in self.trials if trial.id not in self.results]

    def settled(self, id: str) -> list[Trial]:
        """The trial of this id, if it has a result; else none."""
        return [trial for trial in self.trials if trial.id == id and id in self.results]

    def take_trial(self, data: dict) -> None:
        """Apply a trial event."""
        fields = {key: value for key, value in data.items() if key != "refinement"}
        predicted = fields.get("predicted")
        tuples = {"edits": tuple(fields["edits"]), "predicted": predicted and tuple(predicted)}
        self.trials.append(Trial(**fields | tuples))

    def take_end(self, data: dict) -> None:
        """Apply a trial_end event."""
        if not data["final"]:
            self.tries.setdefault(data["id"], []).append(data["status"])
            return
        names = ("status", "reason", "objectives", "metrics", "seconds", "worker", "attempt")
        self.results[data["id"]] = TrialResult(**{name: data[name] for name in names})


class Refinements(dict):
    """Refinements by id, in the order in which they started."""

    def apply(self, kind: str, data: dict) -> None:
        """Apply an event; kinds that are not of refinements are ignored, and refinements whose beginning was lost."""
        if kind == "refinement":
            known = self.get(data["id"])
            if known is None:
                pairs = [(self[other], trial) for other, trial in data.get("earlier", ()) if other in self]
                found = [(t, state.results[t.id]) for state, trial in pairs for t in state.settled(trial)]
                self[data["id"]] = Refinement(data["id"], data["settings"], data["evidence"], found)
            else:
                known.settings, known.closed = data["settings"], ""
        elif kind in ("trial", "trial_end", "closed") and (state := self.get(data["refinement"])) is not None:
            match kind:
                case "trial":
                    state.take_trial(data)
                case "trial_end":
                    state.take_end(data)
                case _:
                    state.closed = data["reason"]
