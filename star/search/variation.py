"""Variation on int64 vectors: how new genomes come about, and what each of them went through.

Every draw is from the `random_state` that pymoo hands in. Each individual carries "id", "origin", "parents",
"operators" and "repaired" from here to the record.
"""

import math
from collections.abc import Sequence

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
from star.genome import OperatorSpace, Space, find_genome
from star.search.slots import AlignedCrossover, SlotMutation
from star.surrogate.screening import Surrogate


class Variation:
    """The operators of one search, made new for each algorithm (pymoo's defaults are shared between instances)."""

    def __init__(self, space: Space, config: SearchConfig, surrogate: Surrogate | None = None):
        self.space, self.config, self.surrogate = space, config, surrogate
        self.counts = Counts()
        self.sampling = SampleAndSeed(space, seed_vectors(space, config.seeds))
        self.repair = CountingRepair(space, self.counts)
        self.unseen = Unseen(space, self.counts, mend=config.repair)

    def mating(self, selection) -> "TracedMating":
        """The mating of pymoo with these operators."""
        return TracedMating(
            selection,
            self.crossover(),
            Mutations(self.space, self.config),
            self,
            repair=self.repair,
            eliminate_duplicates=self.unseen,
        )

    def crossover(self) -> Crossover:
        """The configured crossover."""
        config = self.config
        if config.crossover == "aligned":
            return AlignedCrossover(self.space, config.crossover_points, prob=config.crossover_probability)
        cuts = np.arange(1, self.space.n_var) if config.crossover_inside else self.space.cuts
        return KPointCrossover(cuts, config.crossover_points, prob=config.crossover_probability)

    def screen(self, offspring: Population, n: int, rng: np.random.Generator) -> Population:
        """The n offspring with the largest gain that the surrogate expects."""
        assert self.surrogate is not None
        chosen, predicted = self.surrogate.choose([self.space.decode(x) for x in offspring.get("X")], n, rng)
        offspring = offspring[chosen]
        offspring.set("predicted", predicted)
        return offspring

    def wider(self) -> int:
        """How many offspring to propose for each one needed."""
        return self.config.screen if self.surrogate is not None and self.surrogate.ready else 1


class Counts:
    """Counts of one ask, in total and by operator: genomes generated, repaired, and duplicates."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Start a new ask."""
        self.total = {"generated": 0, "repaired": 0, "duplicates": 0}
        self.by_operator: dict[str, dict[str, int]] = {}

    def add(self, key: str, operators: Sequence[str]) -> None:
        """Count genomes, in total and for each operator that changed them."""
        for row in (
            self.total,
            *(self.by_operator.setdefault(name, dict.fromkeys(self.total, 0)) for name in operators),
        ):
            row[key] += 1


class Mutations:
    """The mutations of one search by name, in the order in which they are applied; those with probability 0 are left
    out.

    A search of the operator level may have two stages: first only operators mutate, then only backbones, which keep the
    operators that were found (`operator_generations`). Crossover recombines both at all times.
    """

    def __init__(self, space: Space, config: SearchConfig):
        slots = {
            name: SlotMutation(space, name, getattr(config, f"{name}_probability"))
            for name in ("insert", "delete", "swap")
        }
        genes, links = (
            GeneMutation(space.values, config.mutation_probability),
            LinkMutation(space, config.link_probability),
        )
        every = slots | {"mutation": genes, "link": links}
        self.first = self.then = {name: mutation for name, mutation in every.items() if mutation.probability}
        self.n_first = 0  # genomes that are asked in the first stage
        if isinstance(space, OperatorSpace) and config.operator_generations:
            operators = range(space.sections[0].start, space.offset)
            self.n_first = config.population + (config.operator_generations - 1) * (
                config.offspring or config.population
            )
            self.first = {"mutation": GeneMutation(space.values, config.mutation_probability, operators)}
            backbone = [p for p in range(space.n_var) if p not in operators]
            self.then = self.then | {"mutation": GeneMutation(space.values, config.mutation_probability, backbone)}

    def now(self, n_asked: int) -> dict[str, Mutation]:
        """Those to apply once so many genomes have been asked."""
        return self.first if n_asked < self.n_first else self.then


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
        """Random vectors of the space, after the seeds."""
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
    """Each gene, with a small probability, becomes another of the values legal at its position. positions: which; all
    by default.
    """

    def __init__(self, values: list[np.ndarray], probability: float, positions: Sequence[int] | None = None):
        super().__init__()
        self.values, self.probability = values, probability
        self.positions = range(len(values)) if positions is None else positions

    def _do(self, problem, X, *args, random_state=None, **kwargs):
        X = X.copy()
        for position in self.positions:
            legal = self.values[position]
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

    def __init__(self, selection, crossover, mutations: Mutations, variation: Variation, **kwargs):
        super().__init__(selection, crossover, None, n_max_iterations=100, **kwargs)
        self.mutations, self.variation = mutations, variation

    def do(self, problem, pop, n_offsprings, random_state=None, **kwargs):
        """Mating that remembers parents and operators."""
        wider = self.variation.wider()
        offspring = super().do(problem, pop, n_offsprings * wider, random_state=random_state, **kwargs)
        return (
            self.variation.screen(offspring, n_offsprings, random_state) if len(offspring) > n_offsprings else offspring
        )

    def _do(self, problem, pop, n_offsprings, parents=None, random_state=None, **kwargs):
        n_matings = math.ceil(n_offsprings / self.crossover.n_offsprings)
        parents = self.selection(problem, pop, n_matings, n_parents=2, random_state=random_state, **kwargs)
        children = self.crossover(problem, parents, random_state=random_state, **kwargs)
        stages = [children.get("X").copy()]
        mutations = self.mutations.now(len(self.variation.unseen.ids))
        for mutation in mutations.values():
            children = mutation(problem, children, random_state=random_state, **kwargs)
            stages.append(children.get("X").copy())
        for i, child in enumerate(children):
            pair = parents[i % n_matings]  # children are ordered: all first ones, then all second ones
            same = [parent for parent in pair if np.array_equal(parent.X, stages[0][i])]
            changed = [
                name
                for name, before, after in zip(mutations, stages, stages[1:], strict=False)
                if (before[i] != after[i]).any()
            ]
            child.set("origin", "offspring")
            child.set("parents", list(dict.fromkeys(parent.get("id") for parent in same[:1] or pair)))
            child.set("operators", ([] if same else ["crossover"]) + changed)
        return children


class CountingRepair(Repair):
    """`Space.repair`, noting which genomes needed it."""

    def __init__(self, space: Space, counts: Counts):
        super().__init__()
        self.space, self.counts = space, counts

    def do(self, problem, pop, random_state=None, **kwargs):
        """Repair that counts what it changed."""
        X, changed = self.space.repair(pop.get("X"), random_state)
        pop.set("X", X)
        pop.set("repaired", changed)
        for individual in pop:
            operators = individual.get("operators") or ()
            self.counts.add("generated", operators)
            if individual.get("repaired"):
                self.counts.add("repaired", operators)
        return pop


class Unseen(DuplicateElimination):
    """Drops every genome that was ever asked for, evaluated or not, and duplicates within a batch.

    mend: whether offspring that variation left invalid may take part, as repaired; without it they are lost too, so
    that a run shows what repair is worth.
    """

    def __init__(self, space: Space, counts: Counts, mend: bool = True):
        super().__init__()
        self.space, self.counts, self.mend = space, counts, mend
        self.ids: set[str] = set()  # asked so far

    def do(self, pop, *others, **kwargs):
        """Drop what was seen before, and what lies outside the region of the search."""
        known = {individual.get("id") for other in others for individual in other}
        keep = []
        for i, individual in enumerate(pop):
            genome = self.space.decode(individual.X)
            id = genome.id
            individual.set("id", id)
            if individual.get("origin") != "seed" and not self.space.holds(genome):
                continue
            if individual.get("repaired") and individual.get("origin") == "offspring" and not self.mend:
                continue
            if id not in known and id not in self.ids:
                known.add(id)
                keep.append(i)
            else:
                self.counts.add("duplicates", individual.get("operators") or ())
        return pop[keep]
