"""The part of a space that a search looks at: ranges of objectives that are known before training.

A front over all sizes rewards ever smaller models, which nobody asked for: most of its hypervolume lies where quality
is poor. A region keeps the search where its user looks: initial genomes are drawn from it, and offspring outside are
dropped before anything is predicted or trained.

    search.region = "parameters=80e3:350e3"          # absolute
    search.region = "parameters=0.5x:1.5x,cache=:2x" # times the smallest baseline : times the largest one
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from star.assess import Objective, load_objectives, objective_names
from star.config import PRESETS, RunConfig
from star.cost import costs as costs_of
from star.errors import UserError
from star.genome import Genome, Space


@dataclass(frozen=True)
class Region:
    """Ranges of cheap objectives: (objective, low, high). Callable: whether a genome lies within all of them."""

    ranges: tuple[tuple[Objective, float, float], ...]
    vocab_size: int
    cache_tokens: int

    def __call__(self, genome: Genome) -> bool:
        costs = costs_of(genome, vocab_size=self.vocab_size, seq_len=self.cache_tokens)
        return all(low <= objective.measure(costs) <= high for objective, low, high in self.ranges)

    def __str__(self) -> str:
        return " and ".join(f"{o.name} from {low:,.0f} to {high:,.0f}" for o, low, high in self.ranges)


def within_region(space: Space, baselines: Sequence[tuple[str, Genome]], config: RunConfig, vocab_size: int) -> Space:
    """The space, limited to `search.region` of the configuration.

    Raises UserError for a region that is misspelt, empty, or relative where there are no baselines; that of a preset is
    then not used.
    """
    parts = [part.strip() for part in config.search.region.split(",") if part.strip()]
    if not parts or unused(config):
        return space
    costs = [costs_of(g, vocab_size=vocab_size, seq_len=config.objectives.cache_tokens) for _, g in baselines]
    ranges = []
    for part in parts:
        name, equals, ends = part.partition("=")
        low, colon, high = ends.partition(":")
        cheap = [n for n in objective_names() if load_objectives((n,))[0].cheap]
        if not equals or not colon or name.strip() not in cheap:
            raise UserError(
                f"search.region is {config.search.region!r}: {part!r} is no range; write NAME=LOW:HIGH with a NAME of "
                f"{', '.join(cheap)}, such as parameters=1e5:3e5 or parameters=0.5x:1.5x"
            )
        (objective,) = load_objectives((name.strip(),))
        values = [float(objective.measure(cost)) for cost in costs]
        least = _end(low, min(values, default=None), 0.0, part, config)
        most = _end(high, max(values, default=None), math.inf, part, config)
        if least > most:
            raise UserError(
                f"search.region is {config.search.region!r}: {part!r} is empty; its low end is above its high end"
            )
        ranges.append((objective, least, most))
    return replace(space, within=Region(tuple(ranges), vocab_size, config.objectives.cache_tokens))


def unused(config: RunConfig) -> bool:
    """Whether a preset's region is left out, because it is relative to baselines and there are none."""
    preset = PRESETS.get(config.preset, {}).get("search.region")
    return not config.search.baselines and config.search.region == preset


def _end(text: str, baseline: float | None, missing: float, part: str, config: RunConfig) -> float:
    """A number, or a multiple of a baseline's; `missing` for an empty text."""
    text = text.strip()
    if not text:
        return missing
    if text.endswith("x") and baseline is None:
        raise UserError(
            f"search.region is {config.search.region!r}: {part!r} is relative and there are no baselines; give "
            "numbers, or search.baselines"
        )
    try:
        number = float(text.removesuffix("x"))
        if math.isfinite(number) and number >= 0 and text.isascii():
            return number * (baseline or 1.0) if text.endswith("x") else number
    except ValueError:
        pass
    raise UserError(
        f"search.region is {config.search.region!r}: {text!r} is no number of at least 0; write such as 1e5 or 0.5x"
    )
