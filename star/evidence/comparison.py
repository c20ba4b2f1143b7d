"""A comparison under a protocol: what is trained next, and what has been found so far.

    compare("runs/first", protocol)              # trains; the same call resumes after a kill
    comparison = Comparison(Run("runs/first"))   # reads: arms, rates, values, sizes

The trainings follow from the protocol and the results so far, in three stages: random genomes at the search's budget,
learning rates, and the seeds that decide.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from star.engine import Engine, outcomes_of
from star.errors import UserError
from star.evidence.design import RANDOM, measure
from star.evidence.matching import matched
from star.genome import Genome, from_json, to_json
from star.run import Run
from star.search.events import Callback, Emitter
from star.search.jobs import Candidates
from star.search.session import open_run

Key = tuple[str, str, float, float, int]


@dataclass(frozen=True)
class Training:
    """One training of a comparison. number: of the seed. stage: "random", "rate" or "final"."""

    stage: str
    genome: Genome
    budget: float
    rate: float
    number: int

    @property
    def key(self) -> Key:
        """Equal for trainings that are the same, also of another protocol."""
        return self.stage, self.genome.id, self.budget, self.rate, self.number


@dataclass(frozen=True)
class Arm:
    """One side of a comparison. genome: as the search has it, before it is brought to a size."""

    name: str
    origin: str
    genome: Genome


class Comparison:
    """The state of a protocol: the last one of the run unless given. Raises UserError if there is none."""

    def __init__(self, run: Run, protocol: dict | None = None):
        found = run.protocols()
        if protocol is None and not found:
            raise UserError(f"{run.path} has no evidence yet: star evidence {run.path} makes it")
        self.run, self.protocol = run, protocol or found[-1]
        self.rows: dict[Key, dict] = {_key(row): row for row in run.comparisons()}
        self.matchings: dict[str, dict] = {m["name"]: m for m in self.protocol["matchings"]}

    @cached_property
    def _random(self) -> list[Training]:
        genomes = map(from_json, self.protocol["random"])
        return [Training("random", genome, 1.0, 1.0, 0) for genome in genomes]

    @property
    def arms(self) -> list[Arm]:
        """The best random genome among them as soon as it is known."""
        arms = [Arm(arm["name"], arm["origin"], from_json(arm["genome"])) for arm in self.protocol["arms"]]
        rows = [self.rows.get(training.key) for training in self._random]
        if not rows or None in rows:
            return arms
        objective = next(o for o in self.run.objectives if o.name == self.protocol["quality"])
        ended = [row for row in rows if row and row["objectives"]]
        if ended:
            best = min(ended, key=lambda row: (objective.scaled(row["objectives"][objective.name]), row["id"]))
            arms.append(Arm(RANDOM, "random", from_json(best["genome"])))
        return arms

    def sized(self, arm: Arm, matching: str) -> Genome | None:
        """The genome of an arm at the size of a matching; None if its width cannot reach it."""
        if arm.name == self.protocol["at"]:
            return arm.genome
        key = arm.genome.id, matching
        if key not in self._sized:
            target = self.matchings[matching]["target"]
            self._sized[key] = matched(arm.genome, measure(self.run, matching), target)
        return self._sized[key]

    @cached_property
    def _sized(self) -> dict[tuple[str, str], Genome | None]:
        return {}

    def _rates(self, arm: Arm) -> list[Training]:
        """The trainings that decide about the learning rate of an arm: at the first matching that it can reach."""
        rates = self.protocol["rates"]
        genome = next((g for name in self.matchings if (g := self.sized(arm, name)) is not None), None)
        if genome is None or len(rates) == 1:
            return []
        return [Training("rate", genome, self.protocol["budget"], rate, 0) for rate in rates]

    def rate(self, arm: Arm) -> float | None:
        """The learning rate of an arm, times the recipe's; None before it is known, or if no training ended well."""
        trainings = self._rates(arm)
        if not trainings:
            return float(self.protocol["rates"][0])
        rows = [self.rows.get(training.key) for training in trainings]
        ended = [row for row in rows if row and row["bpb"] is not None]
        return None if None in rows or not ended else float(min(ended, key=lambda row: row["bpb"])["rate"])

    def _finals(self, arm: Arm, matching: str) -> list[Training]:
        genome, rate = self.sized(arm, matching), self.rate(arm)
        if genome is None or rate is None:
            return []
        numbers = range(1, self.matchings[matching]["seeds"] + 1)
        return [Training("final", genome, self.protocol["budget"], rate, number) for number in numbers]

    def values(self, arm: Arm, matching: str) -> list[float | None] | None:
        """Bits per byte of test text of each seed, None for one that did not end well (or not yet); None if the arm
        does not reach the size.
        """
        if self.sized(arm, matching) is None:
            return None
        rows = [self.rows.get(training.key) for training in self._finals(arm, matching)]
        return [row["test_bpb"] if row else None for row in rows]

    def wanted(self) -> list[Training]:
        """What is still to be trained of the first stage that is not complete; empty at the end."""
        for stage in (self._random, None):
            trainings = stage if stage is not None else [t for arm in self.arms for t in self._rates(arm)]
            if missing := self._missing(trainings):
                return missing
        return self._missing([t for name in self.matchings for arm in self.arms for t in self._finals(arm, name)])

    def _missing(self, trainings: Iterable[Training]) -> list[Training]:
        return list({t.key: t for t in trainings if t.key not in self.rows}.values())

    def most(self) -> dict[float, int]:
        """The largest number of trainings still to come, by budget: what remains to be known may make some the same."""
        arms = len(self.protocol["arms"]) + bool(self._random)
        rates = len(self.protocol["rates"]) if len(self.protocol["rates"]) > 1 else 0
        seeds = sum(m["seeds"] for m in self.matchings.values())
        done = [row for row in self.rows.values() if row["stage"] != "random"]
        longest = max(0, arms * (rates + seeds) - len(done))
        return {1.0: len(self._missing(self._random)), self.protocol["budget"]: longest}


def compare(
    run: str | Path,
    protocol: dict,
    workers: int | None = None,
    engine: Engine | None = None,
    callbacks: Iterable[Callback] = (),
    data: str | None = None,
) -> int:
    """Train all that a protocol (`star.evidence.design`) asks for; returns how many trainings were made.

    The protocol is recorded before the first of them. Callbacks get "comparison_end" events: the data of the record's
    "comparison" event, done and total of its stage. Raises UserError as `star.search.session.open_run` does.
    """
    emit, made = Emitter(callbacks), 0
    with open_run(run, workers, data) as session:
        candidates, found = Candidates(session.config, session.corpus), Run(run)
        if protocol["id"] not in session.record.protocols:
            session.store.record([("protocol", protocol)])
        engine = session.start_engine(engine)
        session.store.record([("session", session.about(engine))])
        while True:
            found.refresh()
            wanted = {"-".join(map(str, t.key)): t for t in Comparison(found, protocol).wanted()}
            if not wanted:
                return made
            proposals = {key: candidates.propose(t.genome, "baseline") for key, t in wanted.items()}
            jobs = [(key, _job(candidates, proposals[key], training)) for key, training in wanted.items()]
            for done, outcome in enumerate(outcomes_of(engine, jobs), 1):
                training = wanted[outcome.job_id]
                facts: dict = {"stage": training.stage, "id": training.genome.id, "genome": to_json(training.genome)}
                facts |= {"budget": training.budget, "rate": training.rate, "number": training.number}
                facts |= candidates.again(proposals[outcome.job_id], outcome)
                ended = facts["status"] == "ok"
                facts |= {name: facts["metrics"].get(name) if ended else None for name in ("bpb", "test_bpb")}
                if training.stage != "random":  # nothing is to be predicted from it
                    facts["objectives"] = None
                session.store.record([("comparison", facts)])
                emit("comparison_end", **facts, done=done, total=len(jobs))
                made += 1


def _job(candidates: Candidates, proposal, training: Training) -> dict:
    if training.stage == "random":
        return candidates.larger(proposal, training.budget)
    final = training.stage == "final"
    return candidates.compared(proposal, training.budget, training.rate, training.number, test=final)


def _key(row: dict) -> Key:
    return row["stage"], row["id"], float(row["budget"]), float(row["rate"]), row["number"]
