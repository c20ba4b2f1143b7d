"""Local edits of a genome: each changes one thing, is valid by the genome's own rules, and is found by enumeration.

    for edit in edits(genome, space):        # a Space says which classes, depths and widths are legal
        edit.kind, edit.text, edit.genome    # "class swap", "LIV 2: GMemless -> SA-1", Genome

An edit that leaves a sharing group invalid is repaired as after variation in a search (`star.genome.repair`), with
random choices that depend on the genome alone. Results that cannot be built at their width, or equal the genome, are
left out.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from star.errors import UserError
from star.genome.edit import together, with_operators
from star.genome.genome import Gene, Genome
from star.genome.plan import resolve, share_signature
from star.genome.repair import repair
from star.genome.space import Space
from star.liv import FAMILIES, Operator
from star.liv.genes import SPARSITY, FeatureGenes

# What a candidate changes about its member: the recipe alone, or the genome too.
KINDS = RECIPE, SWAP, SIZE, SHARING, WINDOW, SHAPE = (
    "recipe",
    "class swap",
    "repeat or expansion",
    "sharing",
    "heads or window",
    "depth or width",
)
STEPS = 2  # of a gene's legal values, either way: the nearest may not fit the width
Changes = Iterator[tuple[str, str, Genome]]


@dataclass(frozen=True)
class Edit:
    """kind: one of `KINDS`; text: the change in words; genome: the result, canonical."""

    kind: str
    text: str
    genome: Genome


def edits(genome: Genome, space: Space) -> list[Edit]:
    """All single edits in a fixed order, each result once (the first way to reach it)."""
    genome = genome.canonical()
    found: dict[str, Edit] = {genome.id: Edit(RECIPE, "", genome)}
    parts = _classes(genome, space), _operators(genome), _unlinked(genome), _linked(genome), _shapes(genome, space)
    for kind, text, changed in itertools.chain(*parts):
        try:
            mended, _ = repair(changed, np.random.default_rng(int(changed.id, 16)))
            resolve(mended)
        except UserError:  # cannot be built
            continue
        found.setdefault(mended.id, Edit(kind, text, mended))
    return list(found.values())[1:]


def _legal_classes(genome: Genome, space: Space) -> list[int]:
    """Classes of the space, and operators that this genome has of its own."""
    own = {gene.class_id for gene in genome.backbone} - set(space.classes)
    return sorted({c for c in space.classes if c} | own)


def _classes(genome: Genome, space: Space) -> Changes:
    """One LIV becomes another class; it no longer shares what the new class cannot share."""
    for i, gene in enumerate(genome.backbone):
        for c in _legal_classes(genome, space):
            if c != gene.class_id:
                changed = gene._replace(class_id=c)
                if gene.feature_strategy > genome.family(changed).n_strategies:
                    changed = changed._replace(feature_group=0, feature_strategy=0)
                text = f"LIV {i + 1}: {_name(genome, gene.class_id)} -> {_name(genome, c)}"
                yield SWAP, text, _with_genes(genome, {i: changed})


def _operators(genome: Genome) -> Changes:
    """A gene of a LIV's operator a step or two up or down (expansion, repeat, window); of all LIVs that must agree."""
    genes = genome.backbone
    for members in together(genome):
        before = genome.operator(genes[members[0]])
        if any(genome.operator(genes[k]) != before for k in members):
            continue
        for kind, text, operator in _steps(before):
            operators = [operator if k in members else genome.operator(gene) for k, gene in enumerate(genes)]
            try:
                changed = with_operators(genome, operators)
            except UserError:
                continue
            yield kind, f"LIV {', '.join(str(k + 1) for k in members)}: {text}", changed


def _steps(operator: Operator) -> Iterator[tuple[str, str, Operator]]:
    family, name = FAMILIES[operator.family], operator.family
    sizes = [f"{group}.{gene}" for group, _ in operator.features for gene in ("expansion", "repeat")]
    for address in ["sparsity", *sizes]:
        now = operator.gene(address)
        assert isinstance(now, int)
        # repeat 0: one for all, beyond any number
        legal = sorted({*family.searched(address), now}, key=lambda v: (v == 0, v))
        at = legal.index(now)
        values = [*legal[max(0, at - STEPS) : at], *legal[at + 1 : at + 1 + STEPS]]
        if address == "sparsity" and at == 0:
            values.append(legal[-1])
        heads = address == "sparsity" or (name == "attention" and address.endswith("repeat"))
        for value in values:
            changed = _obeying(operator.with_gene(address, value), address)
            if changed is not None:
                yield WINDOW if heads else SIZE, f"{name} {_shown(address, now)} -> {_shown(address, value)}", changed


def _shown(address: str, value: int) -> str:
    return SPARSITY[value].removeprefix("banded, ") if address == "sparsity" else f"{address} {value}"


def _obeying(operator: Operator, address: str) -> Operator | None:
    """With the partners of the edited gene set as its family's rules ask; None if nothing legal has this value."""
    family = FAMILIES[operator.family]
    for rule in family.rules:
        if rule.named or rule.holds(operator):
            continue
        partner = {rule.first: rule.second, rule.second: rule.first}.get(address)
        if partner is None:
            return None
        legal = [value for value in family.legal(partner) if not isinstance(value, FeatureGenes)]
        found = next((o for value in legal if rule.holds(o := operator.with_gene(partner, value))), None)
        if found is None:
            return None
        operator = found
    try:
        family.validate(operator)
    except UserError:
        return None
    return operator


def _unlinked(genome: Genome) -> Changes:
    """A LIV leaves its sharing group."""
    for i, gene in enumerate(genome.backbone):
        if gene.shares_weights:
            own = gene._replace(featurizer_group=0, featurizer_strategy=0)
            yield SHARING, f"LIV {i + 1}: weights of its own", _with_genes(genome, {i: own})
        if gene.shares_features:
            own = gene._replace(feature_group=0, feature_strategy=0)
            yield SHARING, f"LIV {i + 1}: features of its own", _with_genes(genome, {i: own})


def _linked(genome: Genome) -> Changes:
    """Two LIVs form a sharing group, or one joins the group of the other."""
    genes = genome.backbone
    fresh = len(genes) + 1
    for i, j in itertools.combinations(range(len(genes)), 2):
        a, b = genes[i], genes[j]
        if genome.operator(a) == genome.operator(b) and not (a.shares_weights and b.shares_weights):
            group = a.featurizer_group if a.shares_weights else b.featurizer_group if b.shares_weights else fresh
            linked = {k: genes[k]._replace(featurizer_group=group, featurizer_strategy=2) for k in (i, j)}
            yield SHARING, f"LIV {j + 1} uses the weights of LIV {i + 1}", _with_genes(genome, linked)
        if a.shares_features or b.shares_features or genome.operator(a).family != genome.operator(b).family:
            continue
        family = genome.family(a)
        for strategy in range(2, family.n_strategies + 1):
            signatures = {share_signature(genome, g, strategy) for g in (a, b)}
            if len(signatures) == 1 and None not in signatures:
                linked = {k: genes[k]._replace(feature_group=fresh, feature_strategy=strategy) for k in (i, j)}
                what = ", ".join(sorted(family.shared_groups(genome.operator(a), strategy)))
                yield SHARING, f"LIV {j + 1} takes {what} from LIV {i + 1}", _with_genes(genome, linked)


def _shapes(genome: Genome, space: Space) -> Changes:
    """A LIV is inserted or deleted, two exchange places, or the width changes."""
    genes = genome.backbone
    if len(genes) < space.n_slots:
        for i, c in itertools.product(range(len(genes) + 1), _legal_classes(genome, space)):
            longer = replace(genome, backbone=(*genes[:i], Gene(c), *genes[i:]))
            yield SHAPE, f"{_name(genome, c)} inserted as LIV {i + 1}", longer
    if len(genes) > 1 and 0 in space.classes:
        for i, gene in enumerate(genes):
            shorter = replace(genome, backbone=(*genes[:i], *genes[i + 1 :]))
            yield SHAPE, f"LIV {i + 1} ({_name(genome, gene.class_id)}) deleted", shorter
    for i, j in itertools.combinations(range(len(genes)), 2):
        yield SHAPE, f"LIVs {i + 1} and {j + 1} exchanged", _with_genes(genome, {i: genes[j], j: genes[i]})
    for width in space.d_models:
        if width != genome.d_model:
            yield SHAPE, f"width {genome.d_model} -> {width}", replace(genome, d_model=width)


def _with_genes(genome: Genome, genes: dict[int, Gene]) -> Genome:
    return replace(genome, backbone=tuple(genes.get(i, gene) for i, gene in enumerate(genome.backbone)))


def _name(genome: Genome, class_id: int) -> str:
    return genome.pool[class_id - 1].name
