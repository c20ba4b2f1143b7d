"""The genome of a language-model backbone: five integers per LIV, the pool that they index, and a few global numbers.

    1 class | 2 featurizer group | 3 featurizer strategy | 4 feature group | 5 feature strategy

LIVs in one featurizer group (strategy 2) use the same featurizer *weights*, each on its own input. LIVs in one feature
group use the same computed *tensors*: the first LIV provides them, the others consume them (STAR, section 3.3).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from star.errors import UserError
from star.genome.classes import POOL, PoolClass
from star.liv import FAMILIES, Family, Operator

MAX_DEPTH = 1024
MAX_WIDTH = 65_536
NORMS = {
    1: "pre: x + f(norm(x))",
    2: "sandwich: x + norm(f(norm(x)))",
    3: "post: x + norm(f(x))",
    4: "pre, with LayerNorm and its bias",
}
RESIDUALS = {1: "plain", 2: "a learned gain per channel on every branch"}


EMBEDDINGS = {1: "tied: the head is the embedding", 2: "untied: the head has weights of its own"}
MAX_POSITIONS = 1_048_576


class Gene(NamedTuple):
    """One LIV of the backbone genome."""

    class_id: int
    featurizer_group: int = 0
    featurizer_strategy: int = 0
    feature_group: int = 0
    feature_strategy: int = 0

    @property
    def shares_weights(self) -> bool:
        """Whether this LIV shares featurizer weights."""
        return self.class_id > 0 and self.featurizer_group > 0 and self.featurizer_strategy == 2

    @property
    def shares_features(self) -> bool:
        """Whether this LIV shares computed features."""
        return self.class_id > 0 and self.feature_group > 0 and self.feature_strategy > 1


@dataclass(frozen=True)
class Genome:
    """An architecture. Genomes are equal if their canonical forms are, so names of sharing groups do not matter.

    Args:
        backbone: one `Gene` per slot, class 0 for an empty slot.
        d_model: width of the residual stream. head_dim: width of an attention or recurrence head.
        norm, residual: block scheme, keys of `NORMS` and `RESIDUALS`. rope_theta: base of the rotary embedding.
        pool: class id c > 0 is `pool[c - 1]`. embedding: a key of `EMBEDDINGS`. positions: learned positions, which are
        added to the embedding; a sequence can have so many tokens. 0 for none, and any length.
    Raises: UserError naming the gene, its value and the legal values.
    """

    backbone: tuple[Gene, ...]
    d_model: int = 768
    head_dim: int = 64
    norm: int = 1
    residual: int = 1
    rope_theta: float = 10_000.0
    pool: tuple[PoolClass, ...] = field(default=POOL, repr=False)
    embedding: int = 1
    positions: int = 0

    def __post_init__(self) -> None:
        for gene, value, low, high in (
            ("d_model", self.d_model, 1, MAX_WIDTH),
            ("head_dim", self.head_dim, 2, 1024),
            ("positions", self.positions, 0, MAX_POSITIONS),
        ):
            if not low <= value <= high:
                raise UserError(f"{gene} is {value}; legal is {low} to {high}")
        if self.head_dim % 2:
            raise UserError(
                f"head_dim is {self.head_dim}; the rotary embedding rotates pairs of channels, make it even"
            )
        if not 1.0 <= self.rope_theta <= 1e9:
            raise UserError(f"rope_theta is {self.rope_theta}; legal is 1 to 1e9")
        for gene, legal in (("norm", NORMS), ("residual", RESIDUALS), ("embedding", EMBEDDINGS)):
            value = getattr(self, gene)
            if value not in legal:
                choices = ", ".join(f"{k} ({v})" for k, v in legal.items())
                raise UserError(f"gene '{gene}' is {value}; legal is {choices}")
        if len(self.backbone) > MAX_DEPTH:
            raise UserError(f"the backbone has {len(self.backbone)} LIVs; at most {MAX_DEPTH} are allowed")
        for index, liv in enumerate(self.backbone, start=1):
            self._check(index, liv)
        if not any(liv.class_id for liv in self.backbone):
            raise UserError("the backbone has no LIV: every class gene is 0; give at least one class")

    def _check(self, index: int, gene: Gene) -> None:
        def refuse(name: str, value: int, legal: str) -> None:
            raise UserError(f"LIV {index}: gene '{name}' is {value}; legal is {legal}")

        if not 0 <= gene.class_id <= len(self.pool):
            refuse("class", gene.class_id, f"0 (no operator) to {len(self.pool)}")
        for name, value in (("featurizer group", gene.featurizer_group), ("feature group", gene.feature_group)):
            if not 0 <= value <= MAX_DEPTH:
                refuse(name, value, f"0 (none) to {MAX_DEPTH}")
        if gene.featurizer_strategy not in (0, 1, 2):
            refuse("featurizer strategy", gene.featurizer_strategy, "0 or 1 (none), 2 (all weights)")
        n_strategies = self.family(gene).n_strategies if gene.class_id else 8
        if not 0 <= gene.feature_strategy <= n_strategies:
            name = self.pool[gene.class_id - 1].name if gene.class_id else "an empty slot"
            refuse("feature strategy", gene.feature_strategy, f"0 to {n_strategies} for {name}")

    def operator(self, gene: Gene) -> Operator:
        """The operator that a gene names."""
        return self.pool[gene.class_id - 1].operator

    def family(self, gene: Gene) -> Family:
        """The family of the operator that a gene names."""
        return FAMILIES[self.operator(gene).family]

    def canonical(self) -> Genome:
        """The genome without empty slots and without ineffective sharing, its groups renumbered by first use."""
        return replace(self, backbone=canonical_genes(self.backbone))

    @property
    def text(self) -> str:
        """The canonical backbone as text (see `star.genome.codec`), such as `21200-30012-21200-30012`."""
        return "-".join(_segment(gene) for gene in canonical_genes(self.backbone))

    @property
    def depth(self) -> int:
        """Number of LIVs."""
        return sum(gene.class_id > 0 for gene in self.backbone)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the operators, in order."""
        return tuple(self.pool[gene.class_id - 1].name for gene in self.backbone if gene.class_id)

    @cached_property
    def key(self) -> str:
        """Text that is equal for equal architectures: the integers of the operators, not their names."""
        head = [self.d_model, self.head_dim, self.norm, self.residual, self.rope_theta]
        if (self.embedding, self.positions) != (1, 0):  # genes that came later: the ids of older genomes stay
            head += [self.embedding, self.positions]
        livs = []
        for gene in canonical_genes(self.backbone):
            operator = self.operator(gene)
            livs.append([operator.genes, operator.features, operator.differential, gene[1:]])  # tuples become lists
        return json.dumps([head, livs], separators=(",", ":"))

    @cached_property
    def id(self) -> str:
        """12 hexadecimal digits of the hash of `key`."""
        return hashlib.sha256(self.key.encode()).hexdigest()[:12]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Genome) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def scaled(self, d_model: int | None = None, depth: int | None = None, head_dim: int | None = None) -> Genome:
        """The same pattern at another size: cut to `depth` LIVs, or repeated to reach it.

        Every repeat has sharing groups of its own. Without `head_dim` the head width stays if it fits the new width,
        else it is halved until every class fits.
        """
        genes = canonical_genes(self.backbone)
        if depth is not None:
            if not 1 <= depth <= MAX_DEPTH:
                raise UserError(f"depth is {depth}; legal is 1 to {MAX_DEPTH}")
            repeats = range(-(-depth // len(genes)))
            genes = canonical_genes(tuple(copy_gene(gene, n, genes) for n in repeats for gene in genes)[:depth])
        width = d_model or self.d_model
        scaled = replace(self, backbone=genes, d_model=width, head_dim=head_dim or self.head_dim)
        while head_dim is None and scaled.head_dim > 8 and not scaled.fits:
            scaled = replace(scaled, head_dim=scaled.head_dim // 2)
        return scaled

    @property
    def fits(self) -> bool:
        """Whether every class can be built at this width."""
        return not self.misfit

    @property
    def misfit(self) -> str:
        """Why the first class that cannot be built at this width cannot; "" if all can."""
        try:
            for gene in self.backbone:
                if gene.class_id:
                    self.pool[gene.class_id - 1].config(self.d_model, self.head_dim, self.rope_theta)
        except UserError as error:
            return str(error)
        return ""


def _segment(gene: Gene) -> str:
    if max(gene) < 10:
        return "".join(map(str, gene))
    return ".".join(map(str, gene)) if any(gene[1:]) or gene.class_id > 99 else str(gene.class_id)


def copy_gene(gene: Gene, n: int, genes: tuple[Gene, ...]) -> Gene:
    """Copy n of a gene of canonical `genes`: the copies with one n share with each other, and with no other copy."""
    featurizer_groups, feature_groups = (max(group) for group in list(zip(*genes))[1:4:2])
    return gene._replace(
        featurizer_group=gene.featurizer_group and gene.featurizer_group + n * featurizer_groups,
        feature_group=gene.feature_group and gene.feature_group + n * feature_groups,
    )


def canonical_genes(genes: tuple[Gene, ...]) -> tuple[Gene, ...]:
    """The canonical form of a backbone: `21211-31112-21221-32112` becomes `21200-30012-21200-30012`."""
    genes = tuple(g for g in genes if g.class_id)
    weight_members = [g.featurizer_group for g in genes if g.shares_weights]
    feature_members = [g.feature_group for g in genes if g.shares_features]
    weight_names: dict[int, int] = {}
    feature_names: dict[int, int] = {}
    result = []
    for gene in genes:
        new = Gene(gene.class_id)
        if gene.shares_weights and weight_members.count(gene.featurizer_group) > 1:
            name = weight_names.setdefault(gene.featurizer_group, len(weight_names) + 1)
            new = new._replace(featurizer_group=name, featurizer_strategy=gene.featurizer_strategy)
        if gene.shares_features and feature_members.count(gene.feature_group) > 1:
            name = feature_names.setdefault(gene.feature_group, len(feature_names) + 1)
            new = new._replace(feature_group=name, feature_strategy=gene.feature_strategy)
        result.append(new)
    return tuple(result)
