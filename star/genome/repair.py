"""Repairs sharing after variation (STAR, section 4; the paper gives no order, so it is ours).

Crossover and mutation may put LIVs that cannot share into one group. Repair splits groups by compatibility; draws a
feature strategy again from the strategies that are legal for all members; dissolves the group if there is none; drops
groups of one; and makes the genome canonical. Repairing a repaired genome changes nothing and draws no random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace

import numpy as np

from star.genome.genome import Gene, Genome, canonical_genes
from star.genome.plan import share_signature


def repair(genome: Genome, rng: np.random.Generator) -> tuple[Genome, bool]:
    """A valid canonical genome, and whether more than the names of groups had to change."""
    genes = list(canonical_genes(genome.backbone))
    changed = _split(genes, genome, _weight_key, "featurizer_group", lambda g: g.shares_weights)
    changed |= _split(genes, genome, _feature_key, "feature_group", lambda g: g.shares_features)
    changed |= _agree_on_strategy(genes, genome, rng)
    return replace(genome, backbone=canonical_genes(tuple(genes))), changed


def _weight_key(genome: Genome, gene: Gene) -> Hashable:
    """LIVs can share weights if their operators are equal."""
    return genome.operator(gene)


def _feature_key(genome: Genome, gene: Gene) -> Hashable:
    """LIVs can only share features within one family and differential form."""
    return genome.operator(gene).family, genome.operator(gene).differential


def _split(genes: list[Gene], genome: Genome, key: Callable, name: str, active: Callable[[Gene], bool]) -> bool:
    """Moves members that are incompatible with the first of their group into new groups, in place."""
    groups: dict[tuple[int, Hashable], int] = {}
    first_key: dict[int, Hashable] = {}
    changed = False
    fresh = max((getattr(g, name) for g in genes), default=0)
    for index, gene in enumerate(genes):
        if not active(gene):
            continue
        group = getattr(gene, name)
        k = key(genome, gene)
        if first_key.setdefault(group, k) == k:
            continue
        if (group, k) not in groups:
            fresh += 1
            groups[group, k] = fresh
        genes[index] = gene._replace(**{name: groups[group, k]})
        changed = True
    return changed


def _agree_on_strategy(genes: list[Gene], genome: Genome, rng: np.random.Generator) -> bool:
    """Gives every feature group one legal strategy, or dissolves it, in place."""
    members: dict[int, list[int]] = {}
    for index, gene in enumerate(genes):
        if gene.shares_features:
            members.setdefault(gene.feature_group, []).append(index)
    changed = False
    for indices in members.values():
        if len(indices) < 2:
            continue
        family = genome.family(genes[indices[0]])
        legal = [s for s in range(2, family.n_strategies + 1) if _all_can(genome, [genes[i] for i in indices], s)]
        strategy = genes[indices[0]].feature_strategy
        if strategy not in legal:
            strategy = int(rng.choice(legal)) if legal else 0
        for i in indices:
            if genes[i].feature_strategy != strategy:
                genes[i] = genes[i]._replace(feature_strategy=strategy)
                changed = True
    return changed


def _all_can(genome: Genome, genes: list[Gene], strategy: int) -> bool:
    signatures = {share_signature(genome, g, strategy) for g in genes}
    return len(signatures) == 1 and None not in signatures
