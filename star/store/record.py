"""The state of a run, folded from its events: the same for the coordinator that resumes and for anyone who reads.

Events, in the order in which they can happen (data keys; `?` may be missing or null):

    session    workers, star, packages                  a coordinator began to work on the run
    ask        generation?, proposals, digest?, duplicates, generated, repaired
               the algorithm proposed genomes (generation null, digest null: baselines, not from the algorithm)
    start      id, attempt, seed                        an attempt was handed to the engine
    finish     id, attempt, status, reason, traceback?, metrics, objectives?, seconds, worker, final
               an attempt ended; final: the candidate is settled, otherwise it will be attempted again
    curve      id, attempt, points                      learning curve of that attempt
    reference  reference, ideal                         hypervolume frame, scaled objectives by name; once
    tell       generation, told: [[id, F, G], ...], digest
               the algorithm was told results, in this order and with these numbers
    retry      ids                                      settled failures are to be attempted again
    exhausted                                           the algorithm has no new genome left

`ask` and `tell` in recorded order rebuild the algorithm exactly; `digest` is its state after the event.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from star.store.database import Event


@dataclass(frozen=True)
class Proposal:
    """A genome that is to be assessed, and where it came from.

    origin: "initial", "seed", "offspring" or "baseline". name: of a baseline or seed. parents: ids.
    operators: those that changed something. repaired: variation had left it invalid.
    costs: what the plan alone tells (objectives, constrained quantities). violations: by constraint, > 0 where broken.
    """

    id: str
    genome: dict
    origin: str
    generation: int = 0
    name: str | None = None
    parents: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()
    repaired: bool = False
    costs: dict = field(default_factory=dict)
    violations: dict = field(default_factory=dict)

    @property
    def infeasible(self) -> bool:
        return any(violation > 0 for violation in self.violations.values())


@dataclass(frozen=True)
class Result:
    """How a candidate ended. order: position in the order of completion, from 0. objectives: None unless ok."""

    id: str
    status: str
    attempt: int = 0
    reason: str = ""
    traceback: str | None = None
    metrics: dict = field(default_factory=dict)
    objectives: dict | None = None
    seconds: float = 0.0
    worker: str = ""
    order: int = 0


class Record:
    """What has happened so far. Apply further events as they are recorded."""

    def __init__(self, events: Iterable[Event] = ()):
        self.proposals: list[Proposal] = []
        self.results: dict[str, Result] = {}  # settled candidates, in order of completion
        self.n_settled = 0
        self.tries: dict[str, list[str]] = {}  # statuses of attempts that did not settle their candidate
        self.started: set[str] = set()  # handed to the engine and not ended, as far as recorded
        self.asked: dict[str, None] = {}  # proposed by the algorithm and not yet told, in order
        self.asks: list[dict] = []  # statistics of each ask, without its proposals
        self.told_generations = 0
        self.frame: dict | None = None  # data of the "reference" event
        self.exhausted = False
        self.sessions: list[dict] = []
        self.last_seq = 0
        for event in events:
            self.apply(event.kind, event.data)
            self.last_seq = event.seq

    def apply(self, kind: str, data: dict) -> None:
        handler = getattr(self, f"_{kind}", None)  # kinds that do not concern this state are skipped
        if handler is not None:
            handler(data)

    @property
    def generation(self) -> int:
        """The generation being worked on, from 0; -1 before the first."""
        return len(self.asks) - 1

    def _session(self, data: dict) -> None:
        self.sessions.append(data)
        self.started.clear()  # whatever an earlier coordinator had running is running no more

    def _ask(self, data: dict) -> None:
        generation = data["generation"]
        for fields in data["proposals"]:
            lists = {"parents": tuple(fields["parents"]), "operators": tuple(fields["operators"])}
            self.proposals.append(Proposal(**{**fields, **lists, "generation": generation or 0}))
        if generation is not None:
            self.asked.update((fields["id"], None) for fields in data["proposals"])
            self.asks.append({key: value for key, value in data.items() if key != "proposals"})

    def _start(self, data: dict) -> None:
        self.started.add(data["id"])

    def _finish(self, data: dict) -> None:
        id = data["id"]
        self.started.discard(id)
        if data["final"]:
            fields = {key: value for key, value in data.items() if key != "final"}
            self.results[id] = Result(**fields, order=self.n_settled)
            self.n_settled += 1
        else:
            self.tries.setdefault(id, []).append(data["status"])

    def _reference(self, data: dict) -> None:
        self.frame = data

    def _tell(self, data: dict) -> None:
        for id, _, _ in data["told"]:
            self.asked.pop(id, None)
        self.told_generations = data["generation"] + 1

    def _retry(self, data: dict) -> None:
        for id in data["ids"]:
            self.results.pop(id, None)
            self.tries[id] = [*self.tries.get(id, []), "failed"]

    def _exhausted(self, data: dict) -> None:
        self.exhausted = True
