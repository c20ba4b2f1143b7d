"""The integers that describe one operator, and their legal values.

There are two levels of integers (STAR, arXiv 2411.17800, section 3):

- the *operator genome*, five integers: featurizer, token mixing, sparsity, nonlinearity, channel mixing;
- the *featurizer genome*, four integers for each feature group: token mixing, channel mixing, expansion, repeat.
  Four zeros mean that the operator does not have this (optional) group.

Every family of operators (one file of this package each) declares as a `Family` which values it can build, and why it
cannot build others. Validation, sampling, mutation, repair, `star show` and the documentation read this declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from star.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from star.liv.base import LIVConfig

WINDOW_UNIT = 16
TOKEN_MIXING = {1: "diagonal", 2: "low rank", 3: "scaled Toeplitz", 4: "sequentially semi-separable"}
SPARSITY = {1: "none"} | {code: f"banded, window {WINDOW_UNIT * 2 ** (code - 2)}" for code in range(2, 11)}
NONLINEARITY = {1: "none", 2: "softmax", 3: "ReLU", 4: "swish", 5: "GELU", 6: "normal CDF"}
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
    """One LIV class, as integers.

    `family` follows from the featurizer class (the first gene), which decides which feature groups there are.
    `differential` builds two parallel branches and subtracts their outputs.
    """

    family: str
    genes: OperatorGenes
    features: tuple[tuple[str, FeatureGenes], ...]
    differential: bool = False

    def feature(self, group: str) -> FeatureGenes:
        """The genes of a feature group; ABSENT if the operator does not have it."""
        return dict(self.features).get(group, ABSENT)

    def has(self, group: str) -> bool:
        """Whether the operator has this feature group."""
        return self.feature(group) != ABSENT

    def gene(self, address: str) -> int | FeatureGenes | None:
        """The gene at an address: "token", "k.repeat" (None if k is absent), or "norm" for the row of a whole group."""
        group, _, name = address.partition(".")
        if group in OPERATOR_GENES:
            return getattr(self.genes, group)
        row = self.feature(group)
        return row if not name else None if row == ABSENT else getattr(row, name)

    def with_gene(self, address: str, value: Any) -> Operator:
        """The same operator with another value of a gene; not validated."""
        group, _, name = address.partition(".")
        if group in OPERATOR_GENES:
            return replace(self, genes=self.genes._replace(**{group: value}))
        row = self.feature(group)._replace(**{name: value}) if name else value
        rows = {**dict(self.features), group: row}
        return replace(self, features=tuple(sorted((g, r) for g, r in rows.items() if r != ABSENT)))

    @property
    def window(self) -> int | None:
        """How many keys a query sees, its own included; None for all."""
        return None if self.genes.sparsity == 1 else WINDOW_UNIT * 2 ** (self.genes.sparsity - 2)

    @property
    def branches(self) -> int:
        """2 for a differential operator, else 1."""
        return 2 if self.differential else 1


@dataclass(frozen=True)
class GroupSpec:
    """The legal genes of one feature group, and their meaning."""

    meaning: str
    token: tuple[int, ...] = (1,)
    channel: tuple[int, ...] = (2,)
    expansion: tuple[int, ...] = (1,)
    repeat: tuple[int, ...] = (1,)
    optional: bool = False
    expansion_means: str = "width of the group over the width of the model"

    def values(self, gene: str) -> tuple[int, ...]:
        """The legal values of a gene of this group."""
        return getattr(self, gene)


BIAS_GROUP = GroupSpec("a bias for every map: y = T(x) x + c(x)", channel=(1,), optional=True)


@dataclass(frozen=True)
class Rule:
    """Two genes that restrict each other, by address (see `Operator.gene`); `holds` says whether an operator obeys.

    named: only searches obey; a named class may break it.
    """

    first: str
    second: str
    holds: Callable[[Operator], bool]
    why: str
    named: bool = False

    @staticmethod
    def equal(first: str, second: str, why: str) -> Rule:
        """Two genes that must be equal if their groups are both present."""

        def holds(operator: Operator) -> bool:
            a, b = operator.gene(first), operator.gene(second)
            return None in (a, b) or a == b

        return Rule(first, second, holds, why)

    def draw(self, operator: Operator, first: Any, second: Any) -> Operator:
        """The operator with other values of the two genes."""
        return operator.with_gene(self.first, first).with_gene(self.second, second)


@dataclass(frozen=True)
class Family:
    """What one family of operators can express.

    token, sparsity, nonlinearity, channel: legal operator genes. groups: its feature groups.
    shareable: for each bit of a feature-sharing strategy, the groups that are shared together.
    joint: a group that is shared as soon as all of the others are, because together they fix one state tensor.
    sharing_genes: operator genes that must be equal before features can be shared, such as the window.
    configure: (operator, d_model, head_dim, rope_theta) -> its sizes; raises UserError if it does not fit the width.
    rules: pairs of genes that restrict each other. why: for each gene, why no other value can be built.
    named_only: by address, legal values that no search draws: layouts of public models need them. A whole group: ().
    private: groups with which an operator shares no features. differentiable_branches: whether there is a differential
    form.
    """

    name: str
    equation: str
    token: tuple[int, ...]
    nonlinearity: tuple[int, ...]
    channel: tuple[int, ...]
    groups: Mapping[str, GroupSpec]
    shareable: tuple[tuple[str, ...], ...]
    configure: Callable[[Operator, int, int, float], LIVConfig]
    sparsity: tuple[int, ...] = (1,)
    joint: Mapping[frozenset[str], str] = field(default_factory=dict)
    sharing_genes: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    why: Mapping[str, str] = field(default_factory=dict)
    named_only: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    private: tuple[str, ...] = ()
    differentiable_branches: bool = True

    @property
    def n_strategies(self) -> int:
        """Number of feature-sharing strategies: 1 shares nothing, 1 + bits shares a subset of `shareable`."""
        return 2 ** len(self.shareable)

    def shared_groups(self, operator: Operator, strategy: int) -> frozenset[str]:
        """The feature groups that a consumer takes from its provider under `strategy` (0 and 1: none)."""
        bits = max(strategy - 1, 0)
        groups = {g for bit, names in enumerate(self.shareable) if bits >> bit & 1 for g in names if operator.has(g)}
        for needed, follower in self.joint.items():
            if needed <= groups and operator.has(follower):
                groups.add(follower)
        return frozenset(groups)

    def share_signature(self, operator: Operator, strategy: int) -> tuple | None:
        """The genes that must be equal in two operators that share under `strategy`; None if this one cannot share.

        The shapes must be equal too: see `LIVConfig.shared_sizes` and `star.genome.plan.share_signature`.
        """
        if any(operator.has(group) for group in self.private):
            return None
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
        """Raises UserError naming the gene, its value and the legal values."""
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
                raise UserError(
                    f"{where}: unknown feature group '{group}' in {self.name}; legal are {', '.join(self.groups)}"
                )
        for group, spec in self.groups.items():
            row = known.get(group, ABSENT)
            if row == ABSENT:
                if not spec.optional:
                    raise UserError(f"{where}: feature group '{group}' of {self.name} is missing and is not optional")
                continue
            for gene, value in row._asdict().items():
                if value not in spec.values(gene):
                    raise UserError(
                        f"{where}: {gene} gene {value} of feature group '{group}' ({self.name}) is not legal; legal "
                        f"is {as_ranges(spec.values(gene))}"
                    )
        if operator.differential and not self.differentiable_branches:
            raise UserError(f"{where}: {self.name} has no differential form: {self.why.get('differential', '')}")
        for rule in self.rules:
            if not rule.named and not rule.holds(operator):
                raise UserError(f"{where}: {self._conflict(rule, operator)}")

    def _conflict(self, rule: Rule, operator: Operator) -> str:
        first, second = operator.gene(rule.first), operator.gene(rule.second)
        with_first = [_shown(v) for v in self.legal(rule.second) if rule.holds(rule.draw(operator, first, v))]
        with_second = [_shown(v) for v in self.legal(rule.first) if rule.holds(rule.draw(operator, v, second))]
        ways = [f"{rule.second} {' or '.join(with_first)} with this {rule.first}"] if with_first else []
        ways += [f"{rule.first} {' or '.join(with_second)} with this {rule.second}"] if with_second else []
        return (
            f"gene {rule.first} = {_shown(first)} conflicts with gene {rule.second} = {_shown(second)} "
            f"({self.name}): {rule.why}; legal is {', or '.join(ways)}"
        )

    def legal(self, address: str) -> tuple:
        """The legal values of a gene; for a whole group, ABSENT (if optional) and one row that stands for present."""
        group, _, name = address.partition(".")
        if group in OPERATOR_GENES:
            return getattr(self, group)
        spec = self.groups[group]
        if name:
            return spec.values(name)
        present = FeatureGenes(*(spec.values(gene)[0] for gene in FeatureGenes._fields))
        return (ABSENT, present) if spec.optional else (present,)

    def searched(self, address: str) -> tuple:
        """The values of a gene that searches draw: the legal ones without `named_only`."""
        group = address.partition(".")[0]
        if group in self.named_only and group in self.groups:
            return (ABSENT,)
        named = frozenset(self.named_only.get(address, ()))
        return tuple(value for value in self.legal(address) if value not in named)

    @property
    def searched_groups(self) -> list[str]:
        """The feature groups that searches draw."""
        return [group for group in self.groups if group not in self.named_only]

    def is_searched(self, operator: Operator) -> bool:
        """Whether a search can draw this operator."""
        rows = [f"{group}.{gene}" for group, _ in operator.features for gene in FeatureGenes._fields]
        genes = [*OPERATOR_GENES, *(row for row in rows if row.partition(".")[0] not in self.named_only)]
        return (
            all(operator.gene(gene) in self.searched(gene) for gene in genes)
            and all(rule.holds(operator) for rule in self.rules)
            and not any(operator.has(group) for group in self.named_only if group in self.groups)
        )

    def sample(self, featurizer: int, rng: np.random.Generator) -> Operator:
        """A random operator of this family: every gene uniform over the values that are searched, then `mend`."""
        genes = OperatorGenes(featurizer, *(_choice(self.searched(gene), rng) for gene in OPERATOR_GENES))
        rows = []
        for group in sorted(self.searched_groups):
            if not self.groups[group].optional or rng.random() < 0.5:
                values = (self.searched(f"{group}.{gene}") for gene in FeatureGenes._fields)
                rows.append((group, FeatureGenes(*(_choice(v, rng) for v in values))))
        differential = self.differentiable_branches and bool(rng.random() < 0.5)
        return self.mend(Operator(self.name, genes, tuple(rows), differential), rng)

    def mend(self, operator: Operator, rng: np.random.Generator) -> Operator:
        """The operator with every pair of conflicting genes drawn again from the pairs that obey the rule.

        Changes only one gene of a pair where that is enough. A legal operator is unchanged and draws no random numbers.
        """
        for _ in range(100):
            broken = [rule for rule in self.rules if not rule.holds(operator)]
            if not broken:
                return operator
            rule = broken[0]
            now = operator.gene(rule.first), operator.gene(rule.second)
            drawn = product(self.searched(rule.first), self.searched(rule.second))
            pairs = [pair for pair in drawn if rule.holds(rule.draw(operator, *pair))]
            near = [pair for pair in pairs if pair[0] == now[0] or pair[1] == now[1]]
            operator = rule.draw(operator, *_choice(near or pairs, rng))
        raise RuntimeError(f"the rules of {self.name} cannot be satisfied together: {[rule.why for rule in broken]}")


def count_heads(family: str, width: int, head_dim: int, repeat: int) -> tuple[int, int]:
    """Heads of one branch, and groups of `repeat` heads (0: one group). Raises UserError if the width does not fit."""
    unit = head_dim * max(repeat, 1)
    if width % unit:
        raise UserError(
            f"{family}: width {width} is no multiple of head width {head_dim} x repeat {max(repeat, 1)}; choose a "
            "width that is, or a smaller repeat"
        )
    n_heads = width // head_dim
    return n_heads, n_heads // repeat if repeat else 1


def as_ranges(values: tuple[int, ...]) -> str:
    """Values as text, such as "12 to 96" or "1, 2, 4": runs of six or more are written as a range."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 5 else ", ".join(map(str, run)) for run in runs)


def _choice(values: tuple | list, rng: np.random.Generator) -> Any:
    return values[int(rng.integers(len(values)))]


def _shown(value: Any) -> str:
    """A gene value as text; a whole row is "absent" or its four digits."""
    if isinstance(value, FeatureGenes):
        return "absent (0000)" if value == ABSENT else f"present ({' '.join(map(str, value))})"
    return str(value)
