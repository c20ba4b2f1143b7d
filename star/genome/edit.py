"""Writes what training or refinement has learned back into a genome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from star.genome.classes import PoolClass
from star.genome.genome import Genome
from star.genome.plan import resolve
from star.liv import FAMILIES, Operator
from star.liv.genes import WINDOW_UNIT

# window -> gene, for the windows that searches draw
SPARSITY_GENES = {
    WINDOW_UNIT * 2 ** (code - 2): code for code in FAMILIES["attention"].searched("sparsity") if code > 1
}


def edited_genome(genome: Genome, windows: Mapping[int, int | None]) -> Genome:
    """The genome with shorter attention windows: the same weights and a smaller cache.

    windows: how many keys an attention LIV needs, by its position among the LIVs (from 0); None or no entry: as many as
    now. LIVs that share features or weights must have one window, so they get the largest that any of them needs. No
    window gets longer. If the pool has no class for an operator, one is added ("evolved" in a file). If no window gets
    shorter, the genome itself is returned.
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
    """Sets of LIVs that must have one window, as positions: they share features or weights, directly or via others."""
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
    """The canonical genome with these operators, one per LIV. Raises UserError if LIVs can no longer share."""
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
