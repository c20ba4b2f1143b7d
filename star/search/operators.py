"""Variation on int64 vectors: how new genomes come about, and what each of them went through.

Every draw is from the `random_state` that pymoo hands in. Each individual carries "id", "origin", "parents",
"operators" and "repaired" from here to the record.
"""

import math

import numpy as np
from pymoo.core.crossover import Crossover
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.mating import Mating
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.repair import Repair
from pymoo.core.sampling import Sampling

from star.config import SearchConfig
from star.errors import UserError
from star.genome import Space, find_genome
from star.search.surrogate import Surrogate


class Variation:
    """The operators of one search, made new for each algorithm (pymoo's defaults are shared between instances)."""

    def __init__(self, space: Space, config: SearchConfig, surrogate: Surrogate | None = None):
        self.space, self.config, self.surrogate = space, config, surrogate
        self.counts: dict[str, int] = {}
        self.reset_counts()
        self.sampling = SampleAndSeed(space, seed_vectors(space, config.seeds))
        self.repair = CountingRepair(space, self.counts)
        self.unseen = Unseen(space, self.counts)

    def mating(self, selection) -> "TracedMating":
        cuts = np.arange(1, self.space.n_var) if self.config.crossover_inside else self.space.cuts
        return TracedMating(
            selection,
            KPointCrossover(cuts, self.config.crossover_points, prob=self.config.crossover_probability),
            GeneMutation(self.space.values, self.config.mutation_probability),
            LinkMutation(self.space, self.config.link_probability),
            self,
            repair=self.repair,
            eliminate_duplicates=self.unseen,
            n_max_iterations=100,
        )

    def screen(self, offspring: Population, n: int, rng: np.random.Generator) -> Population:
        """The n of these from which the surrogate expects most."""
        chosen, predicted = self.surrogate.choose([self.space.decode(x) for x in offspring.get("X")], n, rng)
        offspring = offspring[chosen]
        offspring.set("predicted", predicted)
        return offspring

    def wider(self) -> int:
        """How many offspring to propose for each one that is wanted."""
        return self.config.screen if self.surrogate is not None and self.surrogate.ready else 1

    def reset_counts(self) -> None:
        self.counts.update(generated=0, repaired=0, duplicates=0)


def seed_vectors(space: Space, names: tuple[str, ...]) -> np.ndarray:
    """Named genomes, scaled to the space [n, n_var]. Raises UserError if one does not fit."""
    rows = []
    for name in names:
        try:
            rows.append(space.encode(space.fit(find_genome(name).genome)))
        except UserError as error:
            raise UserError(f"search.seeds: {name}: {error}") from None
    return np.array(rows, dtype=np.int64).reshape(-1, space.n_var)


class SampleAndSeed(Sampling):
    """The seed genomes, then random ones, all different."""

    def __init__(self, space: Space, seeds: np.ndarray):
        super().__init__()
        self.space, self.seeds = space, seeds
        self.n_samples: int | None = None  # if another number than the population is to be drawn

    def do(self, problem, n_samples, *args, random_state=None, **kwargs):
        n_samples = self.n_samples or n_samples
        rows: dict[bytes, np.ndarray] = {}
        origins = []
        for x in self.seeds:
            rows.setdefault(x.tobytes(), x)
        origins += ["seed"] * len(rows)
        for _ in range(100):  # a small space may not hold n_samples genomes
            if len(rows) >= n_samples:
                break
            for x in self.space.sample(random_state, n_samples - len(rows)):
                rows.setdefault(x.tobytes(), x)
        X = np.array(list(rows.values())[: max(n_samples, len(origins))])
        population = Population.new("X", X)
        population.set("origin", origins + ["initial"] * (len(X) - len(origins)))
        population.set("parents", [()] * len(X))
        population.set("operators", [()] * len(X))
        return population


class KPointCrossover(Crossover):
    """Two children that alternate between two parents at k random cuts. Cuts lie between LIVs, or anywhere."""

    def __init__(self, cuts: np.ndarray, n_points: int, prob: float):
        super().__init__(n_parents=2, n_offsprings=2, prob=prob)
        self.cuts, self.n_points = cuts, min(n_points, len(cuts))

    def _do(self, problem, X, *args, random_state=None, **kwargs):
        _, n_matings, n_var = X.shape  # [2, n_matings, n_var]
        children = X.copy()
        for mating in range(n_matings):
            points = np.sort(random_state.choice(self.cuts, size=self.n_points, replace=False))
            swapped = np.searchsorted(points, np.arange(n_var), side="right") % 2 == 1
            children[:, mating, swapped] = X[::-1, mating, swapped]
        return children


class GeneMutation(Mutation):
    """Each gene, with a small probability, becomes another of the values legal at its position."""

    def __init__(self, values: list[np.ndarray], probability: float):
        super().__init__()
        self.values, self.probability = values, probability

    def _do(self, problem, X, *args, random_state=None, **kwargs):
        X = X.copy()
        for position, legal in enumerate(self.values):
            if len(legal) < 2:
                continue
            hit = np.flatnonzero(random_state.random(len(X)) < self.probability)
            steps = random_state.integers(1, len(legal), size=len(hit))  # 1 .. n - 1 places on: never the same value
            here = np.searchsorted(legal, X[hit, position])
            X[hit, position] = legal[(here + steps) % len(legal)]
        return X


class LinkMutation(Mutation):
    """Lets two LIVs of one class share: featurizer weights, or computed features.

    A link takes equal groups and strategies in two LIVs at once, which changes of single genes hardly ever hit (of
    random genomes 1 % share weights). Breaking a link takes one gene and is left to them.
    """

    def __init__(self, space: Space, probability: float):
        super().__init__()
        self.space, self.probability = space, probability

    def _do(self, problem, X, *args, random_state=None, **kwargs):
        X = X.copy()
        for i in np.flatnonzero(random_state.random(len(X)) < self.probability):
            self._link(X[i], random_state)
        return X

    def _link(self, x: np.ndarray, rng: np.random.Generator) -> None:
        starts = np.array([segment.start for segment in self.space.segments])  # class, then (group, strategy) twice
        classes = x[starts]
        pairs = [(a, b) for a, b in zip(*np.triu_indices(len(starts), 1), strict=True) if classes[a] == classes[b] != 0]
        if not pairs:
            return
        a, b = pairs[rng.integers(len(pairs))]
        group = rng.choice([1, 3])  # position in the segment: featurizer group, feature group
        used = set(x[starts + group])
        free = [g for g in self.space.values[starts[0] + group] if g and g not in used]
        strategies = self.space.values[starts[0] + group + 1]
        existing = next((x[starts[i] + group : starts[i] + group + 2] for i in (a, b) if x[starts[i] + group]), None)
        if existing is None and not free:
            return
        link = existing.copy() if existing is not None else (rng.choice(free), rng.choice(strategies[strategies > 1]))
        for i in (a, b):
            x[starts[i] + group : starts[i] + group + 2] = link


class TracedMating(Mating):
    """Selection, crossover, mutations; notes for every child its parents and the operators that changed it."""

    def __init__(self, selection, crossover, mutation, link, variation, **kwargs):
        super().__init__(selection, crossover, mutation, **kwargs)
        self.link, self.variation = link, variation

    def do(self, problem, pop, n_offsprings, random_state=None, **kwargs):
        wider = self.variation.wider()
        offspring = super().do(problem, pop, n_offsprings * wider, random_state=random_state, **kwargs)
        return self.variation.screen(offspring, n_offsprings, random_state) if len(offspring) > n_offsprings else offspring

    def _do(self, problem, pop, n_offsprings, parents=None, random_state=None, **kwargs):
        n_matings = math.ceil(n_offsprings / self.crossover.n_offsprings)
        parents = self.selection(problem, pop, n_matings, n_parents=2, random_state=random_state, **kwargs)
        children = self.crossover(problem, parents, random_state=random_state, **kwargs)
        crossed = children.get("X").copy()
        children = self.mutation(problem, children, random_state=random_state, **kwargs)
        mutated = children.get("X").copy()
        children = self.link(problem, children, random_state=random_state, **kwargs)
        for i, child in enumerate(children):
            pair = parents[i % n_matings]  # children are ordered: all first ones, then all second ones
            same = [parent for parent in pair if np.array_equal(parent.X, crossed[i])]
            operators = [] if same else ["crossover"]
            operators += [] if np.array_equal(crossed[i], mutated[i]) else ["mutation"]
            operators += [] if np.array_equal(mutated[i], child.X) else ["link"]
            child.set("origin", "offspring")
            child.set("parents", list(dict.fromkeys(parent.get("id") for parent in same[:1] or pair)))
            child.set("operators", operators)
        return children


class CountingRepair(Repair):
    """`Space.repair`, noting which genomes needed it."""

    def __init__(self, space: Space, counts: dict[str, int]):
        super().__init__()
        self.space, self.counts = space, counts

    def do(self, problem, pop, random_state=None, **kwargs):
        X, changed = self.space.repair(pop.get("X"), random_state)
        pop.set("X", X)
        pop.set("repaired", changed)
        self.counts["generated"] += len(pop)
        self.counts["repaired"] += int(changed.sum())
        return pop


class Unseen(DuplicateElimination):
    """Drops every genome that was ever asked, evaluated or not, and those that a batch holds twice."""

    def __init__(self, space: Space, counts: dict[str, int]):
        super().__init__()
        self.space, self.counts = space, counts
        self.ids: set[str] = set()  # asked so far

    def do(self, pop, *others, **kwargs):
        known = {individual.get("id") for other in others for individual in other}
        keep = []
        for i, individual in enumerate(pop):
            id = self.space.decode(individual.X).id
            individual.set("id", id)
            if id not in known and id not in self.ids:
                known.add(id)
                keep.append(i)
        self.counts["duplicates"] += len(pop) - len(keep)
        return pop[keep]
