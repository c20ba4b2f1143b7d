"""A pymoo algorithm behind our interface: vectors in and out become genomes, results arrive by id in any order."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from pymoo.config import Config
from pymoo.core.algorithm import Algorithm as Pymoo
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.problems.static import StaticProblem

from star.config import RunConfig
from star.search.algorithm import Algorithm, Batch, Offspring, Told
from star.search.outcomes import constraint_names
from star.search.variation import Variation

Config.warnings["not_compiled"] = False  # pymoo prints this to standard output; its compiled parts are not needed


class PymooAlgorithm(Algorithm):
    """Drives `algorithm` by setup, ask and tell. The loop owns the budget, so pymoo's own termination is off.

    n_objectives: how many of the objectives, from the first on, the algorithm sees; all by default.
    """

    def __init__(self, algorithm: Pymoo, variation: Variation, config: RunConfig, n_objectives: int | None = None):
        self.n_objectives = n_objectives or len(config.objectives.names)
        self.algorithm, self.variation, self.space = algorithm, variation, variation.space
        self.problem = Problem(
            n_var=self.space.n_var,
            n_obj=self.n_objectives,
            n_ieq_constr=len(constraint_names(config.objectives)) + 1,
            xl=self.space.lower,
            xu=self.space.upper,
            vtype=int,
        )
        self.pending: dict[str, Any] = {}  # id -> pymoo Individual, asked and not yet told
        seed = np.random.SeedSequence([config.seed, 0])
        algorithm.setup(self.problem, termination=NoTermination(), seed=seed)

    def ask(self, n: int) -> Batch | None:
        self.variation.counts.reset()
        self.algorithm.n_offsprings = self.variation.sampling.n_samples = n  # of offspring; the first time, of samples
        population = self.algorithm.ask()
        if population is None or len(population) == 0:
            return None
        offspring = []
        for individual in population:
            id = individual.get("id")
            self.pending[id] = individual
            self.variation.unseen.ids.add(id)
            origin, parents, operators, repaired = individual.get("origin", "parents", "operators", "repaired")
            genome, predicted = self.space.decode(individual.X), individual.get("predicted")
            offspring.append(Offspring(id, genome, origin, tuple(parents), tuple(operators), bool(repaired), predicted))
        return Batch(tuple(offspring), **self.variation.counts.total, by_operator=self.variation.counts.by_operator)

    def tell(self, told: Sequence[Told]) -> None:
        infills = Population.create(*(self.pending.pop(result.id) for result in told))
        F, G = np.array([result.F for result in told]), np.array([result.G for result in told])
        self.algorithm.evaluator.eval(StaticProblem(self.problem, F=F[:, : self.n_objectives], G=G), infills)
        self.algorithm.tell(infills=infills)
        if self.variation.surrogate is not None:
            genomes = [self.space.decode(x) for x in infills.get("X")]
            self.variation.surrogate.tell(genomes, F, np.all(G <= 0, axis=1), [result.rungs for result in told])

    def promising(self, ids: Sequence[str], F: Sequence[Sequence[float]], rung: int) -> np.ndarray | None:
        if self.variation.surrogate is None:
            return None
        return self.variation.surrogate.promising(
            [self.space.decode(self.pending[id].get("X")) for id in ids], np.array(F), rung
        )

    def digest(self) -> str:
        """Of population (X, F, G, rank, crowding), pending genomes, number of genomes seen, and generator."""
        digest = hashlib.sha256()
        for individual in self.algorithm.pop if self.algorithm.pop is not None else ():
            digest.update(np.asarray(individual.X, dtype=np.int64).tobytes())
            for key in ("F", "G", "rank", "crowding"):
                value = individual.get(key)
                digest.update(np.asarray(np.nan if value is None else value, dtype=np.float64).tobytes())
        generator = self.algorithm.random_state.bit_generator.state
        rest = [sorted(self.pending), len(self.variation.unseen.ids), generator]
        digest.update(json.dumps(rest, sort_keys=True).encode())
        return digest.hexdigest()[:16]
