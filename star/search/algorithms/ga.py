"""A genetic algorithm for one objective, the first: tournaments by feasibility, then by value; parents and offspring
compete.

The other objectives are measured and shown but steer nothing. The paper found it slightly better than NSGA-II on the
one objective, and less diverse.
"""

import numpy as np
from pymoo.algorithms.soo.nonconvex.ga import GA, FitnessSurvival
from pymoo.operators.selection.tournament import TournamentSelection

from star.config import RunConfig
from star.genome import Space
from star.search.algorithm import Algorithm
from star.search.pymoo_adapter import PymooAlgorithm
from star.search.variation import Variation
from star.surrogate.screening import Surrogate


def create(space: Space, config: RunConfig, surrogate: Surrogate | None = None) -> Algorithm:
    """See `star.search.algorithm.load_algorithm`."""
    if surrogate is not None:
        surrogate.seen = 1
    variation = Variation(space, config.search, surrogate)
    algorithm = GA(
        pop_size=config.parents,
        n_offsprings=config.offspring,
        sampling=variation.sampling,
        mating=variation.mating(TournamentSelection(func_comp=by_fitness, pressure=config.search.tournament)),
        survival=FitnessSurvival(),
        repair=variation.repair,
        eliminate_duplicates=variation.unseen,
        output=None,
    )
    return PymooAlgorithm(algorithm, variation, config, n_objectives=1)


def by_fitness(pop, P: np.ndarray, random_state: np.random.Generator, **_) -> np.ndarray:
    """Winners [n, 1] of tournaments P [n, k]: least violation, then least objective, then at random."""
    violation = np.array([individual.CV[0] for individual in pop])
    value = np.array([individual.F[0] for individual in pop])
    lot = random_state.random(P.shape)
    order = np.lexsort((lot, value[P], violation[P]), axis=1)
    return np.take_along_axis(P, order[:, :1], axis=1)
