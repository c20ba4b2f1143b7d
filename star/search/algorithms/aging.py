"""Regularised evolution (Real et al., 2019, arXiv 1802.01548): the oldest dies, not the worst, so that luck does not
last.

A tournament among members of the population chooses a parent, which is mutated; there is no crossover. With several
objectives the tournament is won by the least dominated, then the least crowded.
"""

from star.config import RunConfig
from star.genome import Space
from star.search.algorithm import Algorithm
from star.search.steady_state import Draft, Member, SteadyStateAlgorithm, places
from star.surrogate.screening import Surrogate


def create(space: Space, config: RunConfig, surrogate: Surrogate | None = None) -> Algorithm:
    """See `star.search.algorithm.load_algorithm`."""
    return AgingEvolution(space, config, surrogate)


class AgingEvolution(SteadyStateAlgorithm):
    """`members` is the population, oldest first."""

    def draft(self, n: int) -> list[Draft]:
        if not self.members:  # asked again before anything was told
            return [Draft(x) for x in self.space.sample(self.rng, n)]
        place = places(self.members)
        drafts = []
        for _ in range(n):
            size = min(self.config.search.tournament, len(self.members))
            winner = min(self.rng.choice(len(self.members), size=size, replace=False), key=place.__getitem__)
            x, operators = self.mutate(self.members[winner].x)
            drafts.append(Draft(x, (self.members[winner].id,), operators))
        return drafts

    def settle(self, member: Member) -> None:
        self.members = [*self.members, member][-self.config.parents :]
