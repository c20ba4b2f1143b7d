"""Edits that make another genome out of a genome: what training or refinement has learned, written back as genes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from star.genome.classes import PoolClass
from star.genome.genome import Genome
from star.genome.plan import resolve
from star.liv import Operator
from star.liv.genes import SPARSITY, WINDOW_UNIT

SPARSITY_GENES = {WINDOW_UNIT * 2 ** (code - 2): code for code in SPARSITY if code > 1}  # window -> gene


def edited_genome(genome: Genome, windows: Mapping[int, int | None]) -> Genome:
    """The genome with shorter attention windows: the same weights and a smaller cache.

    windows: keys that an attention LIV needs, by its position among the LIVs (from 0); None, or no entry, is all that
    it sees. LIVs that share features or weights must have one window, so they get the largest that one of them needs. A
    window is never made longer. An operator is named by its class where the pool has it; else the pool gets one of its
    own ("evolved" in a file). Where nothing gets shorter the genome itself is returned.
    """
    operators = [genome.operator(gene) for gene in genome.canonical().backbone]
    edited = list(operators)
    for members in together(genome):
        needed = [windows.get(index) if operators[index].family == "attention" else None for index in members]
        known = [w for w in needed if w is not None]
        if len(known) < len(needed):
            continue
        window = next((w for w in SPARSITY_GENES if w >= max(known)), None)
        for index in members:
            now = operators[index].window
            if window is not None and (now is None or window < now):
                edited[index] = operators[index].with_gene("sparsity", SPARSITY_GENES[window])
    return genome if edited == operators else with_operators(genome, edited)


def together(genome: Genome) -> list[list[int]]:
    """Positions of LIVs that must agree in their window: LIVs that share features or weights, directly or through
    others.
    """
    genes = genome.canonical().backbone
    group = list(range(len(genes)))
    for name, active in (("feature_group", "shares_features"), ("featurizer_group", "shares_weights")):
        first: dict[int, int] = {}
        for index, gene in enumerate(genes):
            if getattr(gene, active):
                old, new = group[index], group[first.setdefault(getattr(gene, name), index)]
                group = [new if g == old else g for g in group]
    return [[index for index, g in enumerate(group) if g == name] for name in dict.fromkeys(group)]


def with_operators(genome: Genome, operators: Sequence[Operator]) -> Genome:
    """The canonical genome with these operators, one per LIV. Raises UserError if LIVs that share no longer can."""
    genes, pool = [], list(genome.pool)
    for gene, op in zip(genome.canonical().backbone, operators, strict=True):
        known = next((n for n, c in enumerate(pool, start=1) if c.operator == op), None)
        if known is None:
            pool.append(PoolClass(f"{op.family}-window-{op.window}" if op.window else op.family, op))
            known = len(pool)
        genes.append(gene._replace(class_id=known))
    result = replace(genome, backbone=tuple(genes), pool=tuple(pool)).canonical()
    resolve(result)
    return result
