"""The state of a run, computed from its events, both for a coordinator that resumes and for readers.

Events, in the order in which they can happen (data keys; `?` may be missing or null):

    session    workers, star, packages                  a coordinator started to work on the run
    ask        generation?, wanted, proposals, digest?, duplicates, generated, repaired, by_operator
               the algorithm was asked for `wanted` genomes and proposed these (generation, digest null: baselines)
    start      id, attempt, seed, rung                  an attempt was submitted to the engine
    rung       id, attempt, rung, objectives, metrics, seconds, worker
               an attempt has trained up to a rung below the full budget, and waits there
    promote    ids                                      these continue beyond the rung at which they wait
    finish     id, attempt, status, reason, traceback?, metrics, objectives?, seconds, worker, final
               an attempt ended; final: the candidate is settled, otherwise it will be attempted again
               (status "stopped", final: it was not promoted from the rung at which it waited)
    curve      id, attempt, points                      learning curve of that attempt
    reference  reference, ideal                         corners of the hypervolume, scaled objectives by name; once
    tell       generation?, told: [[id, F, G, fidelity, rungs], ...], digest
               the algorithm received these results, in this order (generation: the one that this completes, if any)
    retry      ids                                      settled failures are to be attempted again
    exhausted                                           the algorithm has no new genome left
    repeat     id, repeat, seed, status, reason, objectives?, metrics, seconds, worker
               a settled candidate was measured again with a new seed; its first result does not change
    ladder     id, genome, origin, tokens, width, seed, status, reason, bpb?, objectives?, metrics, seconds, worker
               a genome was trained on `tokens` times the budget, `width` times as wide (objectives: where both are 1);
               other results do not change
    protocol   what a comparison of models will be, see `star.evidence.design`; before its first training
    comparison stage, id, genome, budget, rate, number, status, reason, bpb?, test_bpb?, objectives?, metrics, seconds,
               worker: one training of a comparison (objectives: of stage "random"); other results do not change
    capability id, task, sizes, tokens?, number, seed, weights, status, reason, metrics, seconds, worker
               a candidate was measured on a task (`star.evidence.suite`), a model trained for it on `tokens` (null: the
               model of the search; weights: its own, not trained again); number: of the seed; other results do not
               change
    refinement, trial, trial_end, closed                see `star.store.refinements`

Replaying `ask` and `tell` in recorded order rebuilds the algorithm exactly; `digest` is its state after the event.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from star.store.database import Event
from star.store.refinements import Refinements

# Kinds of events of the search itself
SEARCHING = {"ask", "start", "rung", "promote", "finish", "tell", "reference", "retry", "exhausted"}


@dataclass(frozen=True)
class Proposal:
    """A genome to be assessed, and its origin.

    origin: "initial", "seed", "offspring" or "baseline". name: of a baseline or seed. parents: ids.
    operators: variation operators that changed something. repaired: whether variation had made it invalid.
    costs: quantities known without training (objectives, constrained quantities). violations: by constraint, positive
    where a bound is broken. predicted: [mean, sd] of scaled objectives by name, if a surrogate chose the genome.
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
    predicted: dict | None = None

    @property
    def infeasible(self) -> bool:
        """Whether the genome breaks a bound that is known without training."""
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


@dataclass(frozen=True)
class Rung:
    """A candidate's result after part of the training budget. rung: its index, from 0."""

    id: str
    attempt: int
    rung: int
    objectives: dict
    metrics: dict
    seconds: float = 0.0
    worker: str = ""


class Record:
    """The state after the events so far. Apply further events as they are recorded."""

    def __init__(self, events: Iterable[Event] = ()):
        self.proposals: list[Proposal] = []
        self.results: dict[str, Result] = {}  # settled candidates, in order of completion
        self.n_settled = 0
        self.tries: dict[str, list[str]] = {}  # statuses of attempts that did not settle their candidate
        self.rungs: dict[str, list[Rung]] = {}  # results at rungs, lowest first
        self.promotions: dict[str, int] = {}  # how many rungs a candidate was allowed to go beyond
        self.repeats: dict[str, list[dict]] = {}  # data of "repeat" events
        self.ladder: list[dict] = []  # data of "ladder" events
        self.protocols: dict[str, dict] = {}  # data of "protocol" events, by id
        self.comparisons: list[dict] = []  # data of "comparison" events
        self.capabilities: list[dict] = []  # data of "capability" events
        self.refinements = Refinements()
        self.seconds: dict[str, float] = {}  # worker time of a candidate, over all attempts and rungs
        self.settled_after: dict[str, float] = {}  # seconds of all sessions so far when a candidate was settled
        self.started: set[str] = set()  # submitted to the engine, without a recorded end
        self.asked: dict[str, None] = {}  # proposed by the algorithm, which has no result for them yet; in order
        self.asks: list[dict] = []  # statistics of each ask, without its proposals
        self.n_asked = self.n_told = 0  # candidates of the algorithm
        self.told_generations = 0
        self.frame: dict | None = None  # data of the "reference" event
        self.exhausted = False
        # Of the search; those of later measurements have no "last". With "began", "last" (Unix seconds of its first and
        # its last event) and "busy" (seconds of all workers)
        self.sessions: list[dict] = []
        self.last_seq = 0
        for event in events:
            self.take(event)

    def take(self, event: Event) -> None:
        """Apply an event read from the database, which has a time and a number."""
        self.apply(event.kind, event.data)
        self.last_seq = event.seq
        if self.sessions:
            self.sessions[-1].setdefault("began", event.time)
            if event.kind in SEARCHING:
                self.sessions[-1]["last"] = event.time
            if event.kind == "finish" and event.data["final"]:
                searched = [s["last"] - s["began"] for s in self.sessions if "last" in s]
                self.settled_after[event.data["id"]] = sum(max(0.0, seconds) for seconds in searched)

    def apply(self, kind: str, data: dict) -> None:
        """Apply a new event."""
        handler = getattr(self, f"_{kind}", None)  # other kinds do not change this state
        if handler is not None:
            handler(data)
        self.refinements.apply(kind, data)
        if kind in ("rung", "finish"):
            self.seconds[data["id"]] = self.seconds.get(data["id"], 0.0) + data["seconds"]
            if self.sessions:
                self.sessions[-1]["busy"] += data["seconds"]

    @property
    def generation(self) -> int:
        """The current generation, from 0; -1 before the first."""
        return self.asks[-1]["generation"] if self.asks else -1

    def stage(self, id: str) -> int:
        """The rung that a candidate trains for next; the number of rungs if it trains to the end."""
        return self.promotions.get(id, 0)

    def waits(self, id: str) -> bool:
        """Whether a candidate waits at a rung to be promoted or stopped."""
        return id not in self.results and len(self.rungs.get(id, ())) > self.stage(id)

    def counts(self, generation: int) -> dict[str, int]:
        """Genomes "generated" for a generation, and how many of them were "repaired" and were "duplicates"."""
        asks = [ask for ask in self.asks if ask["generation"] == generation]
        return {key: sum(ask[key] for ask in asks) for key in ("generated", "repaired", "duplicates")}

    def eta(self, left: int, workers: int) -> float:
        """Seconds for `left` more candidates, if they take as long as the last twenty did."""
        recent = [self.seconds.get(id, 0.0) for id in list(self.results)[-20:]]
        return sum(recent) / max(len(recent), 1) * left / max(1, min(workers, left))

    @property
    def workers(self) -> int:
        """Of the last session of the search."""
        return next((s["workers"] for s in reversed(self.sessions) if "last" in s), 1)

    def idle(self, now: float | None = None) -> float | None:
        """Share of the workers' time in which they were idle, over all sessions of the search; None before there is
        any.

        now: Unix seconds, if the last session is still running. Clocks that were set back are ignored.
        """
        present = busy = 0.0
        for session in self.sessions:
            if "last" not in session:
                continue
            end = max(session["last"], now) if now is not None and session is self.sessions[-1] else session["last"]
            present += session["workers"] * max(0.0, end - session["began"])
            busy += session["busy"]
        return max(0.0, 1.0 - busy / present) if present else None

    def _session(self, data: dict) -> None:
        self.sessions.append(data | {"busy": 0.0})
        self.started.clear()  # jobs of an earlier coordinator no longer run

    def _ask(self, data: dict) -> None:
        generation = data["generation"]
        for fields in data["proposals"]:
            lists = {"parents": tuple(fields["parents"]), "operators": tuple(fields["operators"])}
            self.proposals.append(Proposal(**{**fields, **lists}))
        if generation is not None:
            self.asked.update((fields["id"], None) for fields in data["proposals"])
            self.n_asked += len(data["proposals"])
            self.asks.append({key: value for key, value in data.items() if key != "proposals"})

    def _start(self, data: dict) -> None:
        self.started.add(data["id"])

    def _rung(self, data: dict) -> None:
        self.started.discard(data["id"])
        self.rungs.setdefault(data["id"], []).append(Rung(**data))

    def _promote(self, data: dict) -> None:
        for id in data["ids"]:
            self.promotions[id] = self.stage(id) + 1

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
        for id, *_ in data["told"]:
            self.asked.pop(id, None)
        self.n_told += len(data["told"])
        if data["generation"] is not None:
            self.told_generations = data["generation"] + 1

    def _retry(self, data: dict) -> None:
        for id in data["ids"]:
            self.results.pop(id, None)
            self.tries[id] = [*self.tries.get(id, []), "failed"]

    def _exhausted(self, data: dict) -> None:
        self.exhausted = True

    def _repeat(self, data: dict) -> None:
        self.repeats.setdefault(data["id"], []).append(data)

    def _ladder(self, data: dict) -> None:
        self.ladder.append(data)

    def _protocol(self, data: dict) -> None:
        self.protocols[data["id"]] = data

    def _comparison(self, data: dict) -> None:
        self.comparisons.append(data)

    def _capability(self, data: dict) -> None:
        self.capabilities.append(data)
