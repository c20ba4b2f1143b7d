"""Which candidates a step may choose from: the recipes and edits around each member, as a finite list drawn anew at
every step.

Of each member: all that was tried (it may go on to a higher fidelity), recipes from all over the space, recipes near
the best ones, single edits of the best genomes within the trust region, and what was best for the other members.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from star.genome import Genome, Space
from star.refine.edits import Edit, edits
from star.refine.encode import Setup
from star.refine.recipe_space import RecipeSpace

FAR, NEAR, EDITED, BEST = (
    8,
    48,
    32,
    2,
)  # of each member: recipes anywhere; recipes nearby; edits; incumbents of each kind
MOST_TRIED = 80  # latest tried candidates of a member that stay in the list
BOXES = (0.2, 0.4, 0.6, 1.0)  # shares of every range that recipes "anywhere" are drawn from, around one of the best
WIDTHS = (0.05, 0.15, 0.3)  # of the steps of nearby recipes, as shares of their ranges


@dataclass(frozen=True)
class Seen:
    """A candidate that was tried, and its loss (nats; None: failed or still running) at a share of the budget."""

    setup: Setup
    share: float
    loss: float | None


@dataclass(frozen=True)
class Neighbourhood:
    """How lists are drawn. change: "recipes", "edits" or "both"."""

    recipes: RecipeSpace
    genomes: Space
    change: str = "both"

    def around(
        self, member: Setup, seen: Sequence[Seen], others: Sequence[Setup], radius: float, rng: np.random.Generator
    ) -> list[Setup]:
        """Each candidate once; those that were tried first. others: the best of other members. radius: edits that are
        allowed.
        """
        best = incumbents(member, seen)
        tried = [s.setup for s in seen if s.setup.member == member.member]
        new: list[Setup] = []
        if self.change != "edits":
            for setup, width in zip(_drawn(best, len(BOXES), rng), BOXES, strict=True):
                new += [
                    setup.with_settings(settings)
                    for settings in self.recipes.sample(FAR // len(BOXES), rng, setup.settings, width)
                ]
            near = _drawn(best, NEAR, rng)
            new += [
                s.with_settings(self.recipes.perturb(s.settings, rng, WIDTHS[i % len(WIDTHS)]))
                for i, s in enumerate(near)
            ]
            new += [member.with_settings(other.settings) for other in others]
        if self.change != "recipes":
            new += self._edited(best, radius, rng)
        found: dict[str, Setup] = {}
        for setup in (member, *best, *tried[-MOST_TRIED:], *new):
            if len(setup.edits) <= radius:
                found.setdefault(setup.key, setup)
        return list(found.values())

    def _edited(self, best: Sequence[Setup], radius: float, rng: np.random.Generator) -> list[Setup]:
        """Edits of the best, as many of each kind as there are; half with the settings of the best, half with some
        nearby.
        """
        room = [setup for setup in best if len(setup.edits) < radius]
        chosen: list[Setup] = []
        for setup in room:
            groups: dict[str, list[Edit]] = {}
            for edit in all_edits(setup.genome, self.genomes):
                groups.setdefault(edit.kind, []).append(edit)
            each = -(-EDITED // len(room) // max(1, len(groups)))
            for group in groups.values():
                picks = rng.choice(len(group), size=min(each, len(group)), replace=False)
                chosen += [setup.edited(group[i]) for i in picks]
        if self.change == "edits":
            return chosen
        return [s.with_settings(self.recipes.perturb(s.settings, rng)) if i % 2 else s for i, s in enumerate(chosen)]


def incumbents(member: Setup, seen: Sequence[Seen]) -> list[Setup]:
    """The member and its best few at each share of the budget, by their mean loss, best first; each once."""
    mine = [s for s in seen if s.setup.member == member.member and s.loss is not None]
    found: dict[str, Setup] = {}
    for share in sorted({s.share for s in mine}, reverse=True):
        for _, setup in ranked(mine, share)[:BEST]:
            found.setdefault(setup.key, setup)
    found.setdefault(member.key, member)
    return list(found.values())


def ranked(seen: Sequence[Seen], share: float = 1.0) -> list[tuple[float, Setup]]:
    """(mean loss, candidate) of all measured at this share, best first."""
    losses: dict[str, list[float]] = {}
    setups: dict[str, Setup] = {}
    for s in seen:
        if s.share == share and s.loss is not None:
            setups.setdefault(s.setup.key, s.setup)
            losses.setdefault(s.setup.key, []).append(s.loss)
    return sorted(((float(np.mean(losses[key])), setups[key]) for key in setups), key=lambda row: (row[0], row[1].key))


def all_edits(genome: Genome, space: Space) -> list[Edit]:
    return list(_all_edits(genome, space))


@lru_cache(maxsize=64)
def _all_edits(genome: Genome, space: Space) -> tuple[Edit, ...]:
    return tuple(edits(genome, space))


def _drawn(setups: Sequence[Setup], n: int, rng: np.random.Generator) -> list[Setup]:
    return [setups[i] for i in rng.integers(len(setups), size=n)]


def by_member(seen: Sequence[Seen]) -> Mapping[str, list[Seen]]:
    found: dict[str, list[Seen]] = {}
    for s in seen:
        found.setdefault(s.setup.member, []).append(s)
    return found
