"""Dominance between candidates, the non-dominated front, and its hypervolume."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from star.assess.objectives import Objective


class Front:
    """The non-dominated among all candidates added so far; objectives are minimised, as `Objective.scaled` has them.

    ids: of the members; F [k, m]: their scaled objectives.
    """

    def __init__(self, objectives: Sequence[Objective]):
        self.objectives = tuple(objectives)
        self.ids: list[str] = []
        self.F = np.empty((0, len(self.objectives)))

    def scaled(self, values: Mapping[str, float]) -> np.ndarray:
        """Scaled objectives [m] in the order of `objectives`."""
        return np.array([objective.scaled(values[objective.name]) for objective in self.objectives])

    def add(self, id: str, values: Mapping[str, float]) -> bool:
        """Add a candidate; returns whether it joins the front. Members that it dominates leave, equal ones stay."""
        new = self.scaled(values)
        if not np.isfinite(new).all() or dominates(self.F, new).any():
            return False
        stay = ~dominates(new, self.F)
        self.ids = [old for old, keep in zip(self.ids, stay, strict=True) if keep] + [id]
        self.F = np.vstack([self.F[stay], new])
        return True


def non_dominated(F: np.ndarray) -> np.ndarray:
    """Which rows [n] of F [n, m] no other row dominates."""
    front = np.empty((0, F.shape[1]))
    found = np.zeros(len(F), bool)
    for i in np.lexsort(F.T[::-1]):  # what dominates a row comes before it, and so does a member of the front that does
        if not dominates(front, F[i]).any():
            found[i] = True
            front = np.vstack([front, F[i]])
    return found


def dominates(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether a [..., m] is at least as good as b [..., m] in all objectives and better in one; broadcasts to [...]."""
    return np.all(a <= b, axis=-1) & np.any(a < b, axis=-1)


@dataclass(frozen=True)
class Frame:
    """The box in which a run measures hypervolume, fixed by its first generation.

    reference, ideal: scaled objectives by name. The hypervolume is in units of the box: a single candidate that equals
    the best of the first generation in every objective has a hypervolume of 1.0.
    """

    reference: dict[str, float]
    ideal: dict[str, float]

    @staticmethod
    def of(values: Sequence[Mapping[str, float]], objectives: Sequence[Objective]) -> "Frame":
        """The box of these candidates. The reference is their worst value plus a tenth of their range."""
        reference, ideal = {}, {}
        for objective in objectives:
            column = [objective.scaled(v[objective.name]) for v in values]
            best, worst = min(column), max(column)
            span = worst - best or abs(worst) or 1.0  # equal candidates still span a box
            reference[objective.name], ideal[objective.name] = worst + 0.1 * span, best
        return Frame(reference, ideal)

    def hypervolume(self, front: Front) -> float:
        """Hypervolume of a front, in units of the box. Members beyond the reference add nothing."""
        from pymoo.indicators.hv import HV  # here: readers that only list candidates need not import pymoo

        names = [objective.name for objective in front.objectives]
        reference, ideal = (np.array([box[name] for name in names]) for box in (self.reference, self.ideal))
        if not len(front.F):
            return 0.0
        return float(HV(ref_point=np.ones(len(names)))((front.F - ideal) / (reference - ideal)))
