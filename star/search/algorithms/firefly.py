"""The firefly algorithm in a discrete form (Yang, 2008; for integer vectors as in Sayadi et al., 2010).

A firefly moves towards a brighter one: each gene in which they differ is copied with the probability

    beta = beta0 exp(-gamma r^2),    r = share of genes in which they differ   (its attractiveness, which fades with
                                     distance)

and then every gene may mutate (the random step). Brightness is the place by violation, rank and crowding; the brightest
only takes random steps. A firefly that moved replaces what it was, unless it was better before.
"""

import numpy as np

from star.config import RunConfig
from star.genome import Space
from star.search.algorithm import Algorithm
from star.search.steady_state import Draft, Member, SteadyStateAlgorithm, places
from star.surrogate.screening import Surrogate

BETA0, GAMMA = 0.9, 1.0


def create(space: Space, config: RunConfig, surrogate: Surrogate | None = None) -> Algorithm:
    """See `star.search.algorithm.load_algorithm`."""
    return Firefly(space, config, surrogate)


class Firefly(SteadyStateAlgorithm):
    """`members` are the fireflies, in no order; each moves in turn."""

    def __init__(self, space: Space, config: RunConfig, surrogate: Surrogate | None = None):
        super().__init__(space, config, surrogate)
        self.turn = 0

    def draft(self, n: int) -> list[Draft]:
        if not self.members:
            return [Draft(x) for x in self.space.sample(self.rng, n)]
        place = places(self.members)
        drafts = []
        for _ in range(n):
            at = self.turn % len(self.members)
            self.turn += 1
            mover = self.members[at]
            x, parents = mover.x.copy(), [mover.id]
            operators: tuple[str, ...] = ()
            brighter = [i for i in range(len(self.members)) if place[i] < place[at]]
            if brighter:
                target = self.members[int(self.rng.choice(brighter))]
                differ = np.flatnonzero(target.x != x)
                attraction = BETA0 * np.exp(-GAMMA * (len(differ) / len(x)) ** 2)
                copied = differ[self.rng.random(len(differ)) < attraction]
                x[copied] = target.x[copied]
                parents.append(target.id)
                operators = ("attraction",) if len(copied) else ()
            x, steps = self.mutate(x)
            drafts.append(Draft(x, tuple(parents), operators + steps))
        return drafts

    def settle(self, member: Member) -> None:
        """The new member replaces the nearest one, usually the one that moved."""
        if len(self.members) < self.config.parents:
            self.members = [*self.members, member]
            return
        nearest = int(np.argmin([(m.x != member.x).sum() for m in self.members]))
        old = self.members[nearest]
        dominated = bool((old.F <= member.F).all() and (old.F < member.F).any())
        if (old.violation, dominated) >= (member.violation, False) and not (
            old.violation == member.violation and dominated
        ):
            self.members = [*self.members[:nearest], member, *self.members[nearest + 1 :]]

    def digest(self) -> str:
        return f"{super().digest()}-{self.turn}"
