"""When the algorithm is told and asked: a generation at a time, or one candidate at a time.

Both read only the record, so a resumed run continues where it stopped.
"""

from typing import Protocol

from star.config import RunConfig
from star.store import Record

SLOTS_PER_SPARE = 4  # in a steady state, for each of which one more genome is asked for in advance


class Pacing(Protocol):
    """When the algorithm is told, asked, and rungs are judged."""

    def due(self, record: Record) -> list[str]:
        """Candidates that the algorithm is to be told of now, in this order."""

    def completes(self, record: Record, n: int) -> int | None:
        """The generation that is complete once n more candidates are told, or None."""

    def wanted(self, record: Record, slots: int) -> int:
        """How many genomes to ask for now, all that is due having been told; 0: none."""

    def ahead(self, slots: int) -> int:
        """How many genomes are asked for before a worker is free for them."""

    def generation(self, record: Record, i: int = 0) -> int:
        """Of the i-th of the genomes that are asked for next."""

    def judged(self, record: Record) -> tuple[list[str], list[str]]:
        """Candidates that wait at a rung and are to be judged now, and earlier ones that share their quota."""


def make_pacing(config: RunConfig) -> Pacing:
    """The pacing that the configuration asks for."""
    return SteadyState(config) if config.search.asynchronous else Generational(config)


class Generational(Pacing):
    """All of a generation are settled before any is told, in the order in which they were asked.

    The order in which results arrive therefore changes nothing, and a run repeats bit for bit. The price is idle
    workers at the end of each generation.
    """

    def __init__(self, config: RunConfig):
        self.config = config

    def due(self, record: Record) -> list[str]:
        asked = list(record.asked)
        return asked if all(id in record.results for id in asked) else []

    def completes(self, record: Record, n: int) -> int | None:
        return record.told_generations

    def wanted(self, record: Record, slots: int) -> int:
        open = [id for id in record.asked if id not in record.results]
        if open or len(record.asks) >= self.config.search.generations:
            return 0
        return self.config.offspring if record.asks else self.config.search.population

    def ahead(self, slots: int) -> int:
        return 0

    def generation(self, record: Record, i: int = 0) -> int:
        return record.generation + 1

    def judged(self, record: Record) -> tuple[list[str], list[str]]:
        """All that reached a rung, once nobody is still on the way to it."""
        open = [id for id in record.asked if id not in record.results]
        waiting = [id for id in open if record.waits(id)]
        return (waiting if len(waiting) == len(open) else []), []


class SteadyState(Pacing):
    """Each result is told as it arrives and a new genome asked for at once, so that no worker idles.

    With two workers or more, some genomes are asked for in advance: the algorithm works while all workers train.

    What is found depends on the order of arrival, which the record keeps: the run can be replayed, not repeated.
    """

    def __init__(self, config: RunConfig):
        self.config = config

    def due(self, record: Record) -> list[str]:
        ended = {record.results[id].status for id in record.asked if id in record.results}
        if not record.n_told and not ended & {"ok", "infeasible", "stopped"}:
            return []  # not while all that ended have failed: a first generation of failures ends the run
        settled = [id for id in record.asked if id in record.results]
        return sorted(settled, key=lambda id: record.results[id].order)

    def completes(self, record: Record, n: int) -> int | None:
        after = self._generation_of(record.n_told + n) - 1
        return after if after >= record.told_generations else None

    def wanted(self, record: Record, slots: int) -> int:
        if not record.asks:
            return self.config.search.population
        open = sum(id not in record.results for id in record.asked)
        begun = record.n_told or self.due(record)
        room = slots + self.ahead(slots) - open
        return max(0, min(room, self.config.candidates - record.n_asked)) if begun else 0

    def ahead(self, slots: int) -> int:
        """So that a freed worker need not wait while the algorithm proposes: a fit of the surrogate takes 0.1 to 0.2 s.

        Few, because a genome that is asked for later is proposed with more results. None for one slot: that may be
        this process.
        """
        return -(-slots // SLOTS_PER_SPARE) if slots > 1 else 0

    def generation(self, record: Record, i: int = 0) -> int:
        return self._generation_of(record.n_asked + i)

    def judged(self, record: Record) -> tuple[list[str], list[str]]:
        """One at a time, compared with the latest that reached this rung before it (Li et al., 2020, ASHA, in its
        stopping form).
        """
        waiting = next((id for id in record.asked if record.waits(id)), None)
        if waiting is None:
            return [], []
        rung = record.stage(waiting)
        earlier = [
            id for id, rungs in record.rungs.items() if id != waiting and len(rungs) > rung and not record.waits(id)
        ]
        return [waiting], earlier[-2 * self.config.search.population :]

    def _generation_of(self, n: int) -> int:
        """Of candidate n, from 0."""
        initial, offspring = self.config.search.population, self.config.offspring
        return 0 if n < initial else 1 + (n - initial) // offspring
