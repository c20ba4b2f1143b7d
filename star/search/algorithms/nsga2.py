"""NSGA-II: parents and offspring compete by rank, then by crowding (Deb et al., 2002), so the best are never lost."""

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.operators.selection.tournament import TournamentSelection
from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

from star.config import RunConfig
from star.genome import Space
from star.search.algorithm import Algorithm
from star.search.pymoo_adapter import PymooAlgorithm
from star.search.variation import Variation
from star.surrogate.screening import Surrogate


def create(space: Space, config: RunConfig, surrogate: Surrogate | None = None) -> Algorithm:
    """See `star.search.algorithm.load_algorithm`."""
    variation = Variation(space, config.search, surrogate)
    selection = TournamentSelection(func_comp=by_rank_and_crowding, pressure=config.search.tournament)
    algorithm = NSGA2(
        pop_size=config.parents,
        n_offsprings=config.offspring,
        sampling=variation.sampling,
        mating=variation.mating(selection),
        survival=RankAndCrowding(),
        repair=variation.repair,
        eliminate_duplicates=variation.unseen,
        output=None,
    )
    return PymooAlgorithm(algorithm, variation, config)


def by_rank_and_crowding(pop, P: np.ndarray, random_state: np.random.Generator, **_) -> np.ndarray:
    """Winners [n, 1] of tournaments P [n, k]: least violation, then best rank, then least crowded, then at random."""
    violation = np.array([individual.CV[0] for individual in pop])
    rank = np.array([np.inf if individual.CV[0] > 0 else individual.get("rank") for individual in pop], dtype=float)
    crowding = np.array(
        [0.0 if individual.CV[0] > 0 else individual.get("crowding") for individual in pop], dtype=float
    )
    lot = random_state.random(P.shape)
    order = np.lexsort((lot, -crowding[P], rank[P], violation[P]), axis=1)
    return np.take_along_axis(P, order[:, :1], axis=1)
