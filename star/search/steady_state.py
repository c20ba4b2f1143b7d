"""The base of the steady-state algorithms: one generator, an archive of members, results by id in any order."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from star.config import RunConfig
from star.genome import Space
from star.search.algorithm import Algorithm, Batch, Offspring, Told
from star.search.variation import Counts, Mutations, seed_vectors
from star.surrogate.screening import Surrogate

MOST_TRIES = 100  # rounds of proposals in which nothing is new before the space counts as used up


@dataclass(frozen=True)
class Member:
    """A genome that was told. x [n_var]; F, G as in `Told`."""

    id: str
    x: np.ndarray
    F: np.ndarray
    G: np.ndarray

    @property
    def violation(self) -> float:
        """Sum of the broken constraints; 0 if feasible."""
        return float(np.maximum(self.G, 0.0).sum())


@dataclass(frozen=True)
class Draft:
    """A vector that variation made: ids of its parents, and the operators that changed it."""

    x: np.ndarray
    parents: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()


class SteadyStateAlgorithm(Algorithm):
    """Subclasses say what to draft, and what to do with a result."""

    def __init__(self, space: Space, config: RunConfig, surrogate: Surrogate | None = None):
        self.space, self.config, self.surrogate = space, config, surrogate
        self.rng = np.random.default_rng(np.random.SeedSequence([config.seed, 0]))
        self.mutations = Mutations(space, config.search)
        self.seeds = seed_vectors(space, config.search.seeds)
        self.seen: set[str] = set()
        self.pending: dict[str, np.ndarray] = {}
        self.members: list[Member] = []  # possible parents; the subclass decides which are kept
        self.asked = False

    def draft(self, n: int) -> list[Draft]:
        """n vectors, which need be neither new nor valid."""
        raise NotImplementedError

    def settle(self, member: Member) -> None:
        """Take in one result."""
        raise NotImplementedError

    def ask(self, n: int) -> Batch | None:
        wider = self.config.search.screen if self.surrogate is not None and self.surrogate.ready else 1
        counts = Counts()
        first, self.asked = not self.asked, True
        found: dict[str, Offspring] = {}
        vectors: dict[str, np.ndarray] = {}
        for _ in range(MOST_TRIES):
            missing = n * wider - len(found)
            if missing <= 0:
                break
            if first:
                origins = ["seed"] * len(self.seeds) if not found else []
                rows = [
                    *(self.seeds if not found else ()),
                    *self.space.sample(self.rng, max(0, missing - len(origins))),
                ]
                drafts = [Draft(x) for x in rows]
                origins += ["initial"] * (len(drafts) - len(origins))
            else:
                drafts = self.draft(missing)
                origins = ["offspring" if draft.parents else "initial" for draft in drafts]
            X, changed = self.space.repair(np.array([draft.x for draft in drafts]), self.rng)
            for x, repaired, draft, origin in zip(X, changed, drafts, origins, strict=True):
                genome = self.space.decode(x)
                known = genome.id in self.seen or genome.id in found
                lost = repaired and origin == "offspring" and not self.config.search.repair
                for key, happened in (("generated", True), ("repaired", repaired), ("duplicates", known and not lost)):
                    if happened:
                        counts.add(key, draft.operators)
                if origin != "seed" and not self.space.holds(genome):
                    continue
                if not known and not lost and (origin == "seed" or len(found) < n * wider):
                    found[genome.id] = Offspring(
                        genome.id, genome, origin, draft.parents, draft.operators, bool(repaired)
                    )
                    vectors[genome.id] = x
        chosen = list(found.values())
        if self.surrogate is not None and len(chosen) > n and wider > 1:
            indices, predicted = self.surrogate.choose([child.genome for child in chosen], n, self.rng)
            chosen = [Offspring(**{**vars(chosen[i]), "predicted": p}) for i, p in zip(indices, predicted, strict=True)]
        self.seen.update(child.id for child in chosen)
        self.pending.update((child.id, vectors[child.id]) for child in chosen)
        return Batch(tuple(chosen), **counts.total, by_operator=counts.by_operator) if chosen else None

    def tell(self, told: Sequence[Told]) -> None:
        members = [Member(t.id, self.pending.pop(t.id), np.array(t.F), np.array(t.G)) for t in told]
        for member in members:
            self.settle(member)
        if self.surrogate is not None and members:
            F, good = np.array([m.F for m in members]), np.array([m.violation == 0 for m in members])
            self.surrogate.tell([self.space.decode(m.x) for m in members], F, good, [t.rungs for t in told])

    def promising(self, ids: Sequence[str], F: Sequence[Sequence[float]], rung: int) -> np.ndarray | None:
        if self.surrogate is None:
            return None
        return self.surrogate.promising([self.space.decode(self.pending[id]) for id in ids], np.array(F), rung)

    def mutate(self, x: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        """Another vector, and the operators that made it so: at least one gene changes."""
        for _ in range(MOST_TRIES):
            made, operators = x[None], []
            for name, mutation in self.mutations.now(len(self.seen)).items():
                before, made = made, mutation._do(None, made, random_state=self.rng)
                operators += [name] if (made != before).any() else []
            if operators:
                break
        return made[0], tuple(operators)

    def digest(self) -> str:
        digest = hashlib.sha256()
        for member in self.members:
            for part in (member.x.astype(np.int64), member.F.astype(float), member.G.astype(float)):
                digest.update(part.tobytes())
        rest = [sorted(self.pending), len(self.seen), self.rng.bit_generator.state]
        digest.update(json.dumps(rest, sort_keys=True).encode())
        return digest.hexdigest()[:16]


def places(members: Sequence[Member]) -> list[int]:
    """The place of each member among all, 0 for the best: least violation, then least rank, then least crowded."""
    from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    F = np.array([member.F for member in members])
    key: list[tuple] = [()] * len(members)
    for rank, indices in enumerate(NonDominatedSorting().do(F)):
        crowding = calc_crowding_distance(F[indices])
        for i, distance in zip(indices, crowding, strict=True):
            key[i] = (members[i].violation, rank, -distance, members[i].id)
    order = sorted(range(len(members)), key=key.__getitem__)
    place = [0] * len(members)
    for position, i in enumerate(order):
        place[i] = position
    return place
