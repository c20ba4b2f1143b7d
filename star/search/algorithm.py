"""The interface between the loop and a search algorithm. A new algorithm is one file in star/search/algorithms."""

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from star.config import RunConfig
from star.errors import UserError
from star.genome import Genome, Space
from star.search import algorithms
from star.surrogate.screening import Surrogate


@dataclass(frozen=True)
class Offspring:
    """A genome that the algorithm wants assessed. Fields as in `star.store.Proposal`."""

    id: str
    genome: Genome
    origin: str
    parents: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()
    repaired: bool = False
    predicted: dict | None = None


@dataclass(frozen=True)
class Batch:
    """What one `ask` proposes, and counts of genomes that were generated, repaired and duplicates."""

    offspring: tuple[Offspring, ...]
    generated: int
    repaired: int
    duplicates: int
    by_operator: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """The result of one genome. F: finite, minimised, one number per objective.

    G: one number per constraint and last one for failure; the genome is feasible if none is above 0.
    fidelity: the share of the training budget that F was measured after; 0 if it was not measured.
    rungs: the scaled objectives at each rung that it reached.
    """

    id: str
    F: tuple[float, ...]
    G: tuple[float, ...]
    fidelity: float = 1.0
    rungs: tuple[tuple[float, ...], ...] = ()


class Algorithm(Protocol):
    """Everything random comes from one generator, so that repeating the same asks and tells repeats the state."""

    def ask(self, n: int) -> Batch | None:
        """n new genomes, or fewer if there are no more, none of which was asked before; None once there are none."""

    def tell(self, told: Sequence[Told]) -> None:
        """Results of genomes asked before, of any of them, in any order."""

    def promising(
        self, ids: Sequence[str], F: Sequence[Sequence[float]], rung: int
    ) -> Sequence[float] | np.ndarray | None:
        """What is to be gained by training these pending genomes to the end, given their objectives at a rung.

        None from an algorithm that cannot tell. Changes nothing in its state.
        """

    def digest(self) -> str:
        """A hash of the whole state: population and generator."""


def load_algorithm(space: Space, config: RunConfig, surrogate: Surrogate | None = None) -> Algorithm:
    """surrogate: screens offspring, `config.search.screen` for each one asked. Raises UserError for an unknown name."""
    legal = sorted(module.name for module in pkgutil.iter_modules(algorithms.__path__))
    name = config.search.algorithm
    if name not in legal:
        raise UserError(f"search.algorithm is {name!r}; it must be one of {', '.join(legal)}")
    return importlib.import_module(f"{algorithms.__name__}.{name}").create(space, config, surrogate)
