"""Random search: the baseline that every other algorithm must beat at equal budget."""

from star.config import RunConfig
from star.genome import Space
from star.search.algorithm import Algorithm
from star.search.steady_state import Draft, Member, SteadyStateAlgorithm
from star.surrogate.screening import Surrogate


def create(space: Space, config: RunConfig, surrogate: Surrogate | None = None) -> Algorithm:
    """See `star.search.algorithm.load_algorithm`."""
    return RandomSearch(space, config, surrogate)


class RandomSearch(SteadyStateAlgorithm):
    """Samples of the space, each new. With a surrogate: the most promising of many samples."""

    def draft(self, n: int) -> list[Draft]:
        return [Draft(x) for x in self.space.sample(self.rng, n)]

    def settle(self, member: Member) -> None:
        pass  # nothing is learned from it
