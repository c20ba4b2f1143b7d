"""The search space and the baselines that a configuration describes."""

from pathlib import Path

from star.assess import load_objectives
from star.assess.constraints import bounds
from star.config import RunConfig
from star.cost import costs as costs_of
from star.errors import UserError
from star.genome import PAPER_CLASSES, POOL, Gene, Genome, OperatorSpace, Space, find_genome

ROPE_THETA = 10_000.0  # whether a class fits does not depend on it


def make_space(config: RunConfig) -> Space:
    """The search space of a configuration.

    Classes that the user named must fit every width, or this raises UserError; classes of the default are left out
    where they do not fit (`left_out`).
    """
    settings = config.space
    classes = settings.classes or tuple(c for c in PAPER_CLASSES if c not in left_out(config)) or PAPER_CLASSES
    fields: dict = {"classes": tuple(sorted({0, *classes}))}
    if settings.level == "operator":
        fields["evolved"] = settings.evolved
    kind = OperatorSpace if settings.level == "operator" else Space
    return kind(
        n_slots=settings.slots,
        d_models=settings.d_models,
        head_dim=settings.head_dim,
        norms=settings.norms,
        residuals=settings.residuals,
        max_groups=None if settings.sharing else 0,
        **fields,
    )


def left_out(config: RunConfig) -> dict[int, str]:
    """Classes of the default that do not fit every width, with the reason; empty if the user named classes."""
    found: dict[int, str] = {}
    settings = config.space
    for number in () if settings.classes else filter(None, PAPER_CLASSES):
        for width in settings.d_models:
            try:
                POOL[number - 1].config(width, settings.head_dim, ROPE_THETA)
            except UserError as error:
                found.setdefault(number, str(error))
    return {} if len(found) == len(PAPER_CLASSES) - 1 else found


def check_bounds(space: Space, config: RunConfig, vocab_size: int) -> None:
    """Raises UserError if no genome of the space can meet a bound that is known before training.

    The cheapest genome has as few LIVs as the space allows, all of one class; several bounds that each can be met but
    not together are not noticed here: the run then reports that its genomes break them.
    """
    if not bounds(config.objectives) or isinstance(
        space, OperatorSpace
    ):  # the cheapest operator is not known beforehand
        return
    least = 1 if 0 in space.classes else space.n_slots
    cheapest = [
        Genome((Gene(c),) * least, d_model, space.head_dim, norm, residual, space.rope_theta)
        for c in space.classes
        if c
        for d_model in space.d_models[:1]
        for norm in space.norms
        for residual in space.residuals
    ]
    found = [costs_of(genome, vocab_size=vocab_size, seq_len=config.objectives.cache_tokens) for genome in cheapest]
    for objective in load_objectives(tuple(bounds(config.objectives))):
        bound = bounds(config.objectives)[objective.name]
        if objective.cheap and (smallest := min(objective.measure(cost) for cost in found)) > bound:
            raise UserError(
                f"objectives.max_{objective.name} is {bound:,.0f} and the smallest genome of this space has "
                f"{smallest:,.0f}; "
                "raise the bound, or allow narrower models (space.d_models) or fewer LIVs (class 0)"
            )


def make_baselines(space: Space, config: RunConfig) -> list[tuple[str, Genome]]:
    """Names and genomes of the baselines, scaled to the width and depth of the space; each genome once."""
    found: dict[str, tuple[str, Genome]] = {}
    for name in config.search.baselines:
        named = find_genome(name)
        genome = space.fit(named.genome)
        if not genome.fits:
            raise UserError(
                f"search.baselines: {name} does not fit a width of {genome.d_model}; leave it out or change the width"
            )
        found.setdefault(genome.id, (named.name or Path(name).stem, genome))
    return list(found.values())
