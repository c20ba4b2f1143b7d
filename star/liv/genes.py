"""The integers that describe one operator, and what each of them may be.

An operator is named by two levels of integers (STAR, arXiv 2411.17800, section 3):

- the *operator genome*, five integers: featurizer, token mixing, sparsity, nonlinearity, channel mixing;
- the *featurizer genome*, four integers for each feature group: token mixing, channel mixing, expansion, repeat.
  A group of zeros is absent: it is an optional part that this operator does not have.

Every family of operators (one file of this package each) declares which values it can build, and why not the others,
as a `Family`. Validation, sampling, mutation, repair, `star show` and the documentation all read that declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from star.errors import UserError

if TYPE_CHECKING:
    from star.liv.base import LIVConfig

WINDOW_UNIT = 16
TOKEN_MIXING = {1: "diagonal", 2: "low rank", 3: "scaled Toeplitz", 4: "sequentially semi-separable"}
SPARSITY = {1: "none"} | {code: f"banded, window {WINDOW_UNIT * 2 ** (code - 2)}" for code in range(2, 10)}
NONLINEARITY = {1: "none", 2: "softmax", 3: "ReLU", 4: "swish"}
CHANNEL_MIXING = {1: "diagonal", 2: "dense", 3: "grouped (heads)"}
OPERATOR_GENES = {
    "token": TOKEN_MIXING,
    "sparsity": SPARSITY,
    "nonlinearity": NONLINEARITY,
    "channel": CHANNEL_MIXING,
}


class OperatorGenes(NamedTuple):
    """The operator genome: five integers (paper, appendix; `12123` is multi-head attention)."""

    featurizer: int
    token: int
    sparsity: int
    nonlinearity: int
    channel: int


class FeatureGenes(NamedTuple):
    """The featurizer genome of one feature group: four integers; all zero means that the group is absent."""

    token: int
    channel: int
    expansion: int
    repeat: int


ABSENT = FeatureGenes(0, 0, 0, 0)


@dataclass(frozen=True)
class Operator:
    """One LIV class, by its integers alone.

    `family` follows from the featurizer class (the first gene), because that is what decides which feature groups there
    are. `differential` builds two parallel copies whose outputs are subtracted.
    """

    family: str
    genes: OperatorGenes
    features: tuple[tuple[str, FeatureGenes], ...]
    differential: bool = False

    def feature(self, group: str) -> FeatureGenes:
        return dict(self.features).get(group, ABSENT)

    def has(self, group: str) -> bool:
        return self.feature(group) != ABSENT

    @property
    def window(self) -> int | None:
        """Keys that a query sees, itself included; None is all of them."""
        return None if self.genes.sparsity == 1 else WINDOW_UNIT * 2 ** (self.genes.sparsity - 2)

    @property
    def branches(self) -> int:
        return 2 if self.differential else 1


@dataclass(frozen=True)
class GroupSpec:
    """The legal genes of one feature group, and what they do to the module."""

    meaning: str
    token: tuple[int, ...] = (1,)
    channel: tuple[int, ...] = (2,)
    expansion: tuple[int, ...] = (1,)
    repeat: tuple[int, ...] = (1,)
    optional: bool = False
    expansion_means: str = "width of the group over the width of the model"

    def values(self, gene: str) -> tuple[int, ...]:
        return getattr(self, gene)


@dataclass(frozen=True)
class Family:
    """What one family of operators can express.

    `shareable` lists what one bit of a feature-sharing strategy hands over: a tuple of feature groups that travel together.
    `joint` names a group that follows when all of the others are shared, because they fix the same state tensor.
    `sharing_genes` are the operator genes that must agree before a feature can be shared (a window, say).
    """

    name: str
    equation: str
    token: tuple[int, ...]
    nonlinearity: tuple[int, ...]
    channel: tuple[int, ...]
    groups: Mapping[str, GroupSpec]
    shareable: tuple[tuple[str, ...], ...]
    configure: Callable[[Operator, int, int, float], "LIVConfig"]
    sparsity: tuple[int, ...] = (1,)
    joint: Mapping[frozenset[str], str] = field(default_factory=dict)
    sharing_genes: tuple[str, ...] = ()
    why: Mapping[str, str] = field(default_factory=dict)
    differentiable_branches: bool = True

    @property
    def n_strategies(self) -> int:
        """Feature-sharing strategies: 1 is none, 1 + bits the non-empty subsets of `shareable`."""
        return 2 ** len(self.shareable)

    def shared_groups(self, operator: Operator, strategy: int) -> frozenset[str]:
        """Feature groups that a consumer takes from its provider under `strategy` (1 or 0: none)."""
        bits = max(strategy - 1, 0)
        groups = {g for bit, names in enumerate(self.shareable) if bits >> bit & 1 for g in names if operator.has(g)}
        for needed, follower in self.joint.items():
            if needed <= groups and operator.has(follower):
                groups.add(follower)
        return frozenset(groups)

    def share_signature(self, operator: Operator, strategy: int) -> tuple | None:
        """What must be equal between two operators that share under `strategy`; None if this one cannot.

        Equal rows give equal tensor shapes, because every operator of a genome has the same model width and head width.
        """
        bits = max(strategy - 1, 0)
        for bit, names in enumerate(self.shareable):
            if bits >> bit & 1 and not any(operator.has(g) for g in names):
                return None
        shared = self.shared_groups(operator, strategy)
        rows = tuple(sorted((g, tuple(operator.feature(g))) for g in shared))
        genes = tuple(getattr(operator.genes, name) for name in self.sharing_genes)
        joint = tuple(tuple(operator.feature(f)) for needed, f in self.joint.items() if needed <= shared)
        return (self.name, operator.differential, rows, genes, joint)

    def validate(self, operator: Operator, where: str = "operator") -> None:
        """Raise `UserError` naming the gene, its value and what is legal."""
        for gene in OPERATOR_GENES:
            value, legal = getattr(operator.genes, gene), getattr(self, gene)
            if value not in legal:
                names = ", ".join(f"{v} ({OPERATOR_GENES[gene][v]})" for v in legal)
                why = f": {self.why[gene]}" if gene in self.why else ""
                raise UserError(
                    f"{where}: {gene} gene {value} does not go with featurizer {operator.genes.featurizer} "
                    f"({self.name}){why}; legal is {names}"
                )
        known = dict(operator.features)
        for group in known:
            if group not in self.groups:
                raise UserError(f"{where}: unknown feature group '{group}' in {self.name}; legal are {', '.join(self.groups)}")
        for group, spec in self.groups.items():
            row = known.get(group, ABSENT)
            if row == ABSENT:
                if not spec.optional:
                    raise UserError(f"{where}: feature group '{group}' of {self.name} is missing and is not optional")
                continue
            for gene, value in row._asdict().items():
                if value not in spec.values(gene):
                    legal = ", ".join(map(str, spec.values(gene)))
                    raise UserError(f"{where}: {gene} gene {value} of feature group '{group}' ({self.name}) is not legal; legal is {legal}")
        if operator.differential and not self.differentiable_branches:
            raise UserError(f"{where}: {self.name} has no differential form: {self.why.get('differential', '')}")
