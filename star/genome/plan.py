"""The plan: a genome resolved into concrete layers. This is the only place that interprets sharing.

The model builder, the cost formulas, the plots and the exporter all read the plan. `Layer.given` are the feature groups
that a layer takes from its provider: it has no weights, no compute and no state for them. `Layer.weights_from` maps a
feature group to the layer whose featurizer weights this one uses on its own input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

from star.errors import UserError
from star.genome.classes import PoolClass
from star.genome.genome import Gene, Genome
from star.liv import FAMILIES, LIVConfig
from star.liv.base import StateEntry, Weight, constant


@dataclass(frozen=True)
class Layer:
    """One LIV of the plan, and the layers that it shares with."""

    index: int
    name: str
    config: LIVConfig
    given: frozenset[str] = frozenset()  # feature groups taken from the provider
    provider: int | None = None  # layer that computes them
    weights_from: dict[str, int] = field(default_factory=dict)  # feature group -> layer that owns its weights
    provides: bool = False  # whether a later layer consumes features of this one

    @property
    def reads_input(self) -> bool:
        """Whether the LIV computes anything from its own input."""
        return self.config.reads_input(self.given)

    def weights(self) -> dict[str, Weight]:
        """The parameter tensors that this layer owns. Every parameter of a model has exactly one owner."""
        return {name: w for name, w in self.config.own_weights(self.given).items() if w.group not in self.weights_from}

    def state(self) -> dict[str, StateEntry]:
        """The decode-state tensors that this layer owns."""
        return self.config.own_state(self.given)


@dataclass(frozen=True)
class BlockConfig:
    """The block around every LIV: its norms and its residual, keys of `NORMS` and `RESIDUALS`."""

    d_model: int
    norm: int = 1
    residual: int = 1

    def weights(self, reads_input: bool = True) -> dict[str, Weight]:
        """Parameter tensors of a block besides its LIV, which needs no norm of its input if it does not read it."""
        norms = {1: ["norm_in"], 2: ["norm_in", "norm_out"], 3: ["norm_out"], 4: ["norm_in"]}[self.norm]
        norms = norms if reads_input else [name for name in norms if name != "norm_in"]
        weights = {name: weight for norm in norms for name, weight in self.norm_weights(norm).items()}
        return weights | ({"gain": Weight((self.d_model,), "block", constant(1.0))} if self.residual == 2 else {})

    def norm_weights(self, name: str) -> dict[str, Weight]:
        """The scale of a norm of the residual stream, and the bias of a LayerNorm."""
        weights = {name: Weight((self.d_model,), "block", constant(1.0))}
        return weights | ({f"{name}_bias": Weight((self.d_model,), "block", constant(0.0))} if self.norm == 4 else {})


@dataclass(frozen=True)
class Plan:
    """A backbone as concrete layers. tied: the head is the embedding; positions: rows of learned positions, or 0."""

    d_model: int
    block: BlockConfig
    layers: tuple[Layer, ...]
    tied: bool = True
    positions: int = 0

    @property
    def backbone_parameters(self) -> int:
        """Parameters of all LIVs, shared weights once, without embedding and block norms (the paper's size)."""
        return sum(math.prod(w.shape) for layer in self.layers for w in layer.weights().values())

    def parameters(self, vocab_size: int, tie_embeddings: bool | None = None) -> int:
        """All parameters of a model with so many tokens. tie_embeddings: None for what the genome says."""
        tied = self.tied if tie_embeddings is None else tie_embeddings
        others = [self.block.weights(layer.reads_input) for layer in self.layers]
        others.append(self.block.norm_weights("final_norm"))
        rows = vocab_size * (1 if tied else 2) + self.positions
        vectors = sum(math.prod(w.shape) for weights in others for w in weights.values())
        return self.backbone_parameters + vectors + rows * self.d_model


def resolve(genome: Genome) -> Plan:
    """The plan of a genome. Raises UserError if a class does not fit the width or a group cannot be shared."""
    genes = genome.canonical().backbone
    configs = [genome.pool[g.class_id - 1].config(genome.d_model, genome.head_dim, genome.rope_theta) for g in genes]
    providers, given = _feature_links(genome, genes)
    layers = []
    owners: dict[tuple[int, str], int] = {}  # (featurizer group, feature group) -> layer that owns the weights
    members: dict[int, int] = {}  # featurizer group -> its first layer
    for index, (gene, config) in enumerate(zip(genes, configs)):
        weights_from = {}
        if gene.shares_weights:
            first = members.setdefault(gene.featurizer_group, index)
            if genome.operator(gene) != genome.operator(genes[first]):
                names = genome.class_names
                raise UserError(
                    f"LIVs {first + 1} ({names[first]}) and {index + 1} ({names[index]}) cannot share featurizer "
                    f"group {gene.featurizer_group}: weights are shared within one class; give them groups of their own"
                )
            groups = {w.group for w in config.own_weights(given[index]).values()} - {"out"}
            for group in sorted(groups):
                owner = owners.setdefault((gene.featurizer_group, group), index)
                if owner != index:
                    weights_from[group] = owner
        name = genome.pool[gene.class_id - 1].name
        layers.append(Layer(index, name, config, given[index], providers[index], weights_from, index in providers))
    block = BlockConfig(genome.d_model, genome.norm, genome.residual)
    return Plan(genome.d_model, block, tuple(layers), genome.embedding == 1, genome.positions)


def _feature_links(genome: Genome, genes: tuple[Gene, ...]) -> tuple[list[int | None], list[frozenset[str]]]:
    """For each LIV its provider, or None, and the feature groups that it takes from there."""
    providers: list[int | None] = [None] * len(genes)
    given: list[frozenset[str]] = [frozenset()] * len(genes)
    first: dict[int, int] = {}
    for index, gene in enumerate(genes):
        if not gene.shares_features:
            continue
        provider = first.setdefault(gene.feature_group, index)
        if provider == index:
            continue
        strategy = genes[provider].feature_strategy  # the strategy belongs to the group
        signature = share_signature(genome, gene, strategy)
        if signature is None or signature != share_signature(genome, genes[provider], strategy):
            names = genome.class_names
            raise UserError(
                f"LIVs {provider + 1} ({names[provider]}) and {index + 1} ({names[index]}) cannot share features "
                f"under strategy {strategy}: family, differential form and the shape of every shared tensor must be "
                "equal; change the strategy or the group"
            )
        providers[index] = provider
        given[index] = genome.family(gene).shared_groups(genome.operator(gene), strategy)
    return providers, given


def share_signature(genome: Genome, gene: Gene, strategy: int) -> tuple | None:
    """What must be equal in two LIVs that share features under `strategy`: the genes that decide their meaning, and the
    shapes of all that is shared. None if this LIV cannot share so.
    """
    sizes = genome.d_model, genome.head_dim, genome.rope_theta
    return _signature(genome.pool[gene.class_id - 1], sizes, strategy)


@lru_cache(maxsize=2**16)
def _signature(pool_class: PoolClass, sizes: tuple[int, int, float], strategy: int) -> tuple | None:
    operator = pool_class.operator
    family = FAMILIES[operator.family]
    signature = family.share_signature(operator, strategy) if strategy <= family.n_strategies else None
    if signature is None:
        return None
    try:
        config = pool_class.config(*sizes)
    except UserError:  # it does not fit the width
        return None
    return signature, config.shared_sizes(family.shared_groups(operator, strategy))
