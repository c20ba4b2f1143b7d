"""Which candidates of a run a ladder trains again: some of all kinds, good and bad.

Correlations of an order depend on the range of what is ordered, so the sample covers that range evenly: members of the
front and dominated candidates at even distances in quality, all baselines, and random genomes of the space, which no
search has chosen.
"""

from collections.abc import Sequence

import numpy as np

from star.candidate import Candidate
from star.errors import UserError
from star.genome import Genome, Space
from star.run import Run

RANDOM = 1 / 6  # least share of random genomes
FRONT = 0.45  # largest share of members of the front
LEAST = 8  # candidates that a run must have trained


def sample(run: Run, n: int) -> tuple[list[Candidate], list[Genome]]:
    """Candidates of the run and random genomes of its space, n in all.

    Raises UserError if the run has trained too few candidates, or its space has too few genomes.
    """
    quality = next(o for o in run.objectives if not o.cheap).name
    trained = sorted((c for c in run.candidates() if c.objectives), key=lambda c: (c.values[quality], c.id))
    if len(trained) < LEAST:
        raise UserError(
            f"{run.path} has trained {len(trained)} candidates and a ladder needs {LEAST}; let the search go on first: "
            f"star evolve {run.path}"
        )
    baselines = [c for c in trained if c.origin == "baseline"]
    on_front = {c.id for c in run.front(searched=True)}
    front = spread([c for c in trained if c.id in on_front], round(FRONT * n))
    rest = [c for c in trained if c.id not in on_front and c.origin != "baseline"]
    room = max(0, n - len(baselines) - len(front) - round(RANDOM * n))
    chosen = [*front, *spread(rest, room), *baselines][:n]
    return chosen, random_genomes(run, n - len(chosen))


def spread(ordered: Sequence[Candidate], n: int) -> list[Candidate]:
    """At most n of these, at even distances, the first and the last among them."""
    if len(ordered) <= n:
        return list(ordered)
    return [ordered[round(float(i))] for i in np.linspace(0, len(ordered) - 1, n)] if n > 1 else list(ordered[:n])


def random_genomes(run: Run, n: int, space: Space | None = None, stream: int = 1) -> list[Genome]:
    """Genomes of the space that the run has not proposed. They follow from the seed of the run and the stream.

    space: that of the run unless given, such as the part of it that the search looked at.
    """
    rng, space = np.random.default_rng(np.random.SeedSequence([run.config.seed, stream])), space or run.space
    known, found = {c.id for c in run.candidates()}, dict[str, Genome]()
    for _ in range(100):
        for x in space.sample(rng, n):
            genome = space.decode(x)
            if genome.id not in known:
                found.setdefault(genome.id, genome)
        if len(found) >= n:
            break
    else:
        raise UserError(f"{run.path}: its space has no {n} genomes that it has not tried; ask for fewer with --genomes")
    return list(found.values())[:n]
