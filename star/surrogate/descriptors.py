"""Genomes as vectors for the surrogates: which operators, in which order, how large, and what is shared.

Similar architectures must have similar vectors. Class ids do not allow that: SA-1 and SA-2 have different ids and are
nearly the same operator. So each LIV is described by the integers of its operator, which also covers evolved operators.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from star.cost import Costs
from star.genome import Genome
from star.liv import FAMILIES, Operator

FAMILY_NAMES = tuple(sorted(FAMILIES))
GROUPS = ("composition", "order", "size", "sharing")


def describe(genomes: Sequence[Genome], costs: Sequence[Costs]) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [n, p] for a Gaussian process, and the index of each input [p] in `GROUPS`."""
    parts = [_parts(genome, cost) for genome, cost in zip(genomes, costs, strict=True)]
    blocks = [np.array([part[g] for part in parts], dtype=float).reshape(len(parts), -1) for g in range(len(GROUPS))]
    return np.concatenate(blocks, axis=1), np.repeat(np.arange(len(GROUPS)), [block.shape[1] for block in blocks])


def _parts(genome: Genome, cost: Costs) -> tuple[list[float], ...]:
    genes = [gene for gene in genome.backbone if gene.class_id]
    operators = [genome.operator(gene) for gene in genes]
    kinds = [FAMILY_NAMES.index(operator.family) for operator in operators]
    depth, n = len(genes), len(FAMILY_NAMES)

    attributes = np.array([_attributes(operator) for operator in operators])  # [depth, a]
    composition = [*attributes.sum(axis=0), *attributes.mean(axis=0)]

    order: list[float] = []
    for kind in range(n):
        places = [i / max(1, depth - 1) for i, k in enumerate(kinds) if k == kind]
        order += [sum(places) / len(places) if places else 0.5, float(kinds[0] == kind), float(kinds[-1] == kind)]
    pairs = np.zeros((n, n))
    np.add.at(pairs, (kinds[:-1], kinds[1:]), 1.0)
    order += list(pairs.ravel())

    amounts = (cost.backbone_parameters, cost.cache_bytes, cost.train_flops_per_token)
    size = [depth, math.log(depth), math.log(genome.d_model), *(math.log10(1.0 + amount) for amount in amounts)]

    weights = [gene.featurizer_group for gene in genes if gene.shares_weights]
    features = [gene.feature_group for gene in genes if gene.shares_features]
    tied = [
        operator.family
        for gene, operator in zip(genes, operators, strict=True)
        if gene.shares_weights or gene.shares_features
    ]
    sharing = [
        len(weights) - len(set(weights)),
        len(features) - len(set(features)),
        *(tied.count(name) for name in FAMILY_NAMES),
    ]
    scheme = [float(genome.norm == k) for k in (1, 2, 3)] + [float(genome.residual == k) for k in (1, 2)]
    return composition, order, size, sharing + scheme


@lru_cache(maxsize=4096)
def _attributes(operator: Operator) -> tuple[float, ...]:
    """Attributes [a] of one LIV: its family, and the integers that differ within a family; sizes on a log scale."""
    rows = dict(operator.features)
    repeat, expansion = (
        max((math.log2(max(1, getattr(row, name))) for row in rows.values()), default=0.0)
        for name in ("repeat", "expansion")
    )
    filtered = any(row.token == 3 for row in rows.values())
    window = 0.0 if operator.window is None else 1.0 / math.log2(operator.window)
    optional = [float(name in rows) for name in ("norm", "gate", "delta", "beta", "skip", "poles")]
    family = [float(operator.family == name) for name in FAMILY_NAMES]
    nonlinear = [float(operator.genes.nonlinearity == k) for k in (2, 3, 4)]
    return (*family, float(operator.differential), repeat, expansion, float(filtered), window, *optional, *nonlinear)


# Inputs of a refinement, each with its smallest range: smaller differences are not stretched to all of [0, 1].
SUMMARY = {
    "log2 parameters": 1.0,
    "log2 cache": 2.0,
    "log2 FLOPs": 1.0,
    "depth": 2.0,
    **{f"share of {name}": 0.5 for name in FAMILY_NAMES},
    "first mixer": 0.5,
    "differential": 0.5,
    "log2 repeat": 1.0,
    "log2 expansion": 1.0,
    "window": 0.2,
    "shared weights": 2.0,
    "shared features": 2.0,
}


def summarise(genome: Genome, cost: Costs) -> list[float]:
    """The inputs named in `SUMMARY`, in their own units: sizes, families, and what is shared.

    They are fewer than in `describe`, because a refinement fits a length scale for each. "first mixer" is the position
    of the first LIV that mixes tokens, as a share of the depth.
    """
    genes = genome.canonical().backbone
    operators = [genome.operator(gene) for gene in genes]
    depth, families = len(genes), [operator.family for operator in operators]
    rows = [dict(operator.features).values() for operator in operators]
    repeat, expansion = (
        sum(max((math.log2(max(1, getattr(row, name))) for row in features), default=0.0) for features in rows) / depth
        for name in ("repeat", "expansion")
    )
    mixers = [i for i, name in enumerate(families) if name != "memoryless"]
    groups = [
        [getattr(gene, name) for gene in genes if getattr(gene, active)]
        for name, active in (("featurizer_group", "shares_weights"), ("feature_group", "shares_features"))
    ]
    return [
        math.log2(1 + cost.backbone_parameters),
        math.log2(1 + cost.cache_bytes),
        math.log2(cost.train_flops_per_token),
        depth,
        *(families.count(name) / depth for name in FAMILY_NAMES),
        mixers[0] / depth if mixers else 1.0,
        sum(operator.differential for operator in operators) / depth,
        repeat,
        expansion,
        sum(1 / math.log2(operator.window) for operator in operators if operator.window) / depth,
        *(len(group) - len(set(group)) for group in groups),
    ]
