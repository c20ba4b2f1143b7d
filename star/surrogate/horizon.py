"""The quality that a candidate will have at a multiple of its training budget, learned from a ladder.

    horizon = Horizon(ladder, describe)
    mean, sd = horizon.predict(genomes, bpb)     # bits per byte at the larger budget, given those at the run's own
    horizon.error()                              # how well, each candidate of the ladder predicted from all others

A search that ranks by short trainings selects what starts fast: convolutions lead, attention looks worse than it is.
Who gains with tokens is not luck, it follows from size and operators. So the result at the larger
budget is learned by a Gaussian process, from genomes that were trained at both (`star ladder`): its inputs are the
descriptors of a genome (`star.surrogate.descriptors`) and its own result at the smaller one. It is fitted once, before
the search, and does not change while that goes on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from star.genome import Genome, from_json
from star.surrogate.calibration import report
from star.surrogate.gaussian_process import GaussianProcess, fit

LEAST = 16  # genomes in a ladder

Describe = Callable[[Sequence[Genome]], tuple[np.ndarray, np.ndarray]]
"""Genomes -> inputs [n, p], and the group of each input [p]."""


@dataclass(frozen=True)
class Step:
    """One genome of a ladder, and its bits per byte at the budget of the search and at the larger one."""

    genome: dict  # as JSON
    near: float
    far: float


class Horizon:
    """A process fitted to at least `LEAST` steps of a ladder."""

    def __init__(self, steps: Sequence[Step], describe: Describe):
        self.describe = describe
        self.near, self.far = (np.array([getattr(step, name) for step in steps], float) for name in ("near", "far"))
        X, groups = describe([from_json(step.genome) for step in steps])
        self.groups = np.append(groups, groups.max() + 1)
        self.process: GaussianProcess = fit(np.column_stack([X, self.near]), self.far, self.groups)

    def predict(self, genomes: Sequence[Genome], bpb: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """Mean [n] and sd [n] of the bits per byte at the larger budget, given those at the search's own [n]."""
        return self.process.predict(np.column_stack([self.describe(genomes)[0], np.asarray(bpb, float)]))

    def error(self) -> dict[str, float | int | None]:
        """Leave-one-out: the keys of `star.surrogate.calibration.report`, with the order at the search's own budget as
        the proxy.
        """
        mean, sd, far = self.process.leave_one_out()
        return report(np.column_stack([mean, sd]).tolist(), far.tolist(), self.near.tolist())
