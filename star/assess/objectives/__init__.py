"""Objectives: each file here defines one, as `OBJECTIVE`, and its name is the file name.

Your own objective needs no file here: name it "module:NAME", where NAME is an `Objective` in an importable module.
"""

import importlib
import math
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from star.errors import UserError

QUALITY = ("bpb_horizon", "bpb", "loss")  # what is the quality of a model, the first one that is known


@dataclass(frozen=True)
class Objective:
    """A number by which candidates are compared.

    measure: reads it from `star.cost.Costs` if cheap, else from the metrics of a trained candidate.
    direction: "min" or "max". cheap: exact, and known before training.
    log_scale: spans orders of magnitude, so algorithms and the hypervolume use log10(1 + value).
    error: reads the standard error of the evaluation from the metrics, if it is known.
    """

    name: str
    unit: str
    doc: str
    measure: Callable[[Any], float]
    direction: str = "min"
    cheap: bool = False
    log_scale: bool = False
    error: Callable[[dict], float | None] = lambda metrics: None

    def scaled(self, value: float) -> float:
        """The value as algorithms see it: smaller is better, evenly spread."""
        value = math.log10(1.0 + value) if self.log_scale else float(value)
        return value if self.direction == "min" else -value

    def unscaled(self, value: float) -> float:
        """The inverse of `scaled`."""
        value = value if self.direction == "min" else -value
        return 10.0**value - 1.0 if self.log_scale else value


def objective_names() -> list[str]:
    """Names of the objectives that come with the package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load_objectives(names: Sequence[str]) -> tuple[Objective, ...]:
    """The objectives with these names. Raises UserError for an unknown or repeated name."""
    found = tuple(_load(name) for name in names)
    if not found or len({objective.name for objective in found}) != len(found):
        raise UserError(f"objectives.names is {', '.join(names) or 'empty'}; give at least one objective, each once")
    return found


def _load(name: str) -> Objective:
    module, _, attribute = name.partition(":")
    if attribute:
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UserError(f"objectives.names holds {name!r}, which cannot be imported: {error}") from None
        if not isinstance(found, Objective):
            raise UserError(f"objectives.names holds {name!r}, which is not a star.assess.Objective")
        return found
    legal = objective_names()
    if name not in legal:
        raise UserError(f"objectives.names holds {name!r}; it may hold {', '.join(legal)}, or module:NAME")
    return importlib.import_module(f"{__name__}.{name}").OBJECTIVE
