"""The operator level of search: operators evolve together with the backbone (STAR, section 3, hierarchy of genomes).

    [ header | operator 1 | ... | operator K | LIV 1 | ... | LIV n_slots ]
    operator: featurizer, token, sparsity, nonlinearity, channel, differential, four integers for each feature group

A LIV names a class of the fixed pool, or one of the K operators that the vector itself defines. A section is as long as
the largest family needs, with zeros for what a smaller family does not have. In canonical form unused operators are
zero, the others are in order of first use, and an operator that equals a class of the pool becomes that class. So equal
architectures are equal rows here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from star.errors import UserError
from star.genome.classes import FEATURIZERS, POOL, PoolClass, random_operator
from star.genome.genome import Gene, Genome
from star.genome.repair import repair
from star.genome.space import GENES, HEADER, Space
from star.liv import ABSENT, FAMILIES, FeatureGenes, Operator, OperatorGenes

MOST_GROUPS = max(len(family.searched_groups) for family in FAMILIES.values())
OPERATOR = ("featurizer", "token", "sparsity", "nonlinearity", "channel", "differential")
WIDTH = len(OPERATOR) + len(FeatureGenes._fields) * MOST_GROUPS
MOST_DRAWS = 1000  # random operators to try until one fits the width


@dataclass(frozen=True)
class OperatorSpace(Space):
    """A `Space` with `evolved` operators as part of the genome. classes: the fixed classes that LIVs may also name."""

    evolved: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.evolved <= 64:
            raise UserError(f"evolved is {self.evolved}; legal is 1 to 64 operators")
        if self.classes == (0,):
            object.__setattr__(self, "classes", (0, 1))  # the checks of `Space` need one class
            super().__post_init__()
            object.__setattr__(self, "classes", (0,))
        else:
            super().__post_init__()

    # The vector.

    @property
    def offset(self) -> int:
        return len(HEADER) + WIDTH * self.evolved

    @property
    def sections(self) -> list[slice]:
        """One slice per evolving operator."""
        return [slice(len(HEADER) + WIDTH * k, len(HEADER) + WIDTH * (k + 1)) for k in range(self.evolved)]

    @property
    def evolved_classes(self) -> tuple[int, ...]:
        """The class ids by which LIVs name the evolving operators."""
        return tuple(range(len(POOL) + 1, len(POOL) + 1 + self.evolved))

    @property
    def slot_classes(self) -> tuple[int, ...]:
        """Class ids that a slot may hold: the fixed classes, then the evolving operators."""
        return (*self.classes, *self.evolved_classes)

    @cached_property
    def names(self) -> list[str]:
        """The name of each position."""
        genes = [*OPERATOR, *(f"group{g + 1}.{gene}" for g in range(MOST_GROUPS) for gene in FeatureGenes._fields)]
        return [*HEADER, *(f"operator{k + 1}.{gene}" for k in range(self.evolved) for gene in genes), *self._slot_names]

    @cached_property
    def values(self) -> list[np.ndarray]:
        """Legal values of each position. Not every combination is legal: see `star.liv.genes`."""
        families = FAMILIES.values()
        section: list[set[int]] = [{0, *FEATURIZERS}]
        section += [{0}.union(*(family.searched(gene) for family in families)) for gene in OPERATOR[1:5]] + [{0, 1}]
        for g in range(MOST_GROUPS):
            groups = [(f, name) for f in families for name in f.searched_groups[g : g + 1]]
            section += [
                {0}.union(*(f.searched(f"{name}.{gene}") for f, name in groups)) for gene in FeatureGenes._fields
            ]
        rows = [
            *self._header_values,
            *[sorted(v) for v in section] * self.evolved,
            *self._slot_values(self.slot_classes) * self.n_slots,
        ]
        return [np.array(list(v), dtype=np.int64) for v in rows]

    @property
    def _n_strategies(self) -> int:
        return max(family.n_strategies for family in FAMILIES.values())

    @property
    def cuts(self) -> np.ndarray:
        """Before each operator and each LIV."""
        return np.array([s.start for s in (*self.sections, *self.segments)])

    def encode(self, genome: Genome) -> np.ndarray:
        fixed = {POOL[c - 1].operator: c for c in self.classes if c}
        genome = genome.canonical()
        own: dict[Operator, int] = {}
        genes = []
        for gene in genome.backbone:
            op = genome.operator(gene)
            if op not in fixed:
                if not FAMILIES[op.family].is_searched(op):
                    name = genome.pool[gene.class_id - 1].name
                    raise UserError(
                        f"genome {genome.id}: operator {name} has genes that no search draws; allow its class "
                        "(space.classes) if the pool has it"
                    )
                own.setdefault(op, self.evolved_classes[0] + len(own))
            genes.append(gene._replace(class_id=fixed.get(op) or own[op]))
        if len(own) > self.evolved:
            raise UserError(
                f"genome {genome.id} has {len(own)} operators beyond the fixed classes and the space holds "
                f"{self.evolved}; raise evolved"
            )
        plain = self._plain.encode(replace(genome, backbone=(Gene(1),) * len(genes)))  # checks width, scheme, depth
        x = np.zeros(self.n_var, dtype=np.int64)
        x[: len(HEADER)] = plain[: len(HEADER)]
        x[self.offset :][: len(GENES) * len(genes)] = [n for g in genes for n in g]
        for op, section in zip(own, self.sections, strict=False):
            x[section] = to_integers(op)
        return x

    def decode(self, x: np.ndarray) -> Genome:
        """The genome of a vector with valid operators, as `repair` returns it; its sharing may still need `repair`."""
        operators = {
            c: from_integers(x[section])
            for c, section in zip(self.evolved_classes, self.sections, strict=True)
            if x[section.start]
        }
        return self._genome(x, operators)

    def _genome(self, x: np.ndarray, operators: Mapping[int, Operator]) -> Genome:
        rows = np.asarray(x[self.offset :]).reshape(-1, len(GENES))
        genes = [Gene(*(int(n) for n in row)) for row in rows if row[0]]
        used = [c for c in dict.fromkeys(gene.class_id for gene in genes) if c in operators]
        pool = POOL + tuple(
            PoolClass(f"{operators[c].family}-evolved-{k + 1}", operators[c]) for k, c in enumerate(used)
        )
        renamed = {c: len(POOL) + 1 + k for k, c in enumerate(used)}
        kept = []
        for gene in genes:
            gene = gene._replace(class_id=renamed.get(gene.class_id, gene.class_id))
            limit = FAMILIES[pool[gene.class_id - 1].operator.family].n_strategies
            kept.append(gene._replace(feature_strategy=0) if gene.feature_strategy > limit else gene)
        width, norm, residual = (int(v) for v in x[: len(HEADER)])
        return Genome(tuple(kept), self.d_models[width], self.head_dim, norm, residual, self.rope_theta, pool)

    @cached_property
    def _plain(self) -> Space:
        """The space of the backbone level, to encode everything except operators."""
        names = ("n_slots", "d_models", "head_dim", "norms", "residuals", "rope_theta", "max_groups")
        return Space(classes=(0, 1), **{name: getattr(self, name) for name in names})

    # Valid vectors.

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """As in `Space`, with random operators, which half of the LIVs name."""
        X = np.stack([rng.choice(values, size=n) for values in self.values], axis=1)
        fixed = [c for c in self.classes if c]
        least = -(-self.n_slots // 2) if 0 in self.classes else self.n_slots
        for row, depth in zip(X, rng.integers(least, self.n_slots + 1, size=n), strict=True):
            for section in self.sections:
                row[section] = to_integers(self._random(rng))
            own = rng.random(self.n_slots) < (0.5 if fixed else 1.1)
            chosen = [rng.choice(self.evolved_classes) if mine else rng.choice(fixed) for mine in own]
            row[self.offset :: len(GENES)] = [c if slot < depth else 0 for slot, c in enumerate(chosen)]
        return self.repair(X, rng)[0]

    def repair(self, X: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        rows, flags = [], []
        for row in np.asarray(X):
            fixed = self._nearest(row)
            changed = bool((fixed != row).any())
            if not fixed[self.offset :: len(GENES)].any():
                fixed[self.offset], changed = rng.choice([c for c in self.slot_classes if c]), True
            operators = {}
            for c, section in zip(self.evolved_classes, self.sections, strict=True):
                if c in fixed[self.offset :: len(GENES)]:
                    operators[c] = self._mended(fixed[section], rng)
                    changed |= not np.array_equal(to_integers(operators[c]), fixed[section])
            genome, mended = repair(self._genome(fixed, operators), rng)
            rows.append(self.encode(genome))
            flags.append(changed or mended)
        return np.array(rows, dtype=np.int64).reshape(-1, self.n_var), np.array(flags, dtype=bool)

    def _mended(self, integers: np.ndarray, rng: np.random.Generator) -> Operator:
        """The operator of a section; genes that are illegal in its family are drawn again, then `Family.mend`."""
        featurizer = int(integers[0])
        if featurizer == 0:
            return self._random(rng)
        family = FAMILIES[FEATURIZERS[featurizer]]
        numbers = [int(n) for n in integers]
        genes = [
            value if value in family.searched(gene) else int(rng.choice(family.searched(gene)))
            for gene, value in zip(OPERATOR[1:5], numbers[1:5], strict=True)
        ]
        rows = []
        for g, name in enumerate(family.searched_groups):
            row = numbers[len(OPERATOR) + 4 * g : len(OPERATOR) + 4 * g + 4]
            if family.groups[name].optional and not row[0]:
                continue  # the first integer says whether an optional group is there
            legal = [family.searched(f"{name}.{gene}") for gene in FeatureGenes._fields]
            row = [v if v in choice else int(rng.choice(choice)) for v, choice in zip(row, legal, strict=True)]
            rows.append((name, FeatureGenes(*row)))
        differential = bool(numbers[5]) and family.differentiable_branches
        changed = Operator(family.name, OperatorGenes(featurizer, *genes), tuple(sorted(rows)), differential)
        mended = family.mend(changed, rng)
        return mended if self._fits(mended) else self._random(rng)

    def _random(self, rng: np.random.Generator) -> Operator:
        for _ in range(MOST_DRAWS):
            drawn = random_operator(rng)
            if self._fits(drawn):
                return drawn
        raise UserError(
            f"no random operator fits widths {self.d_models} with heads of {self.head_dim}; choose other widths"
        )

    def _fits(self, op: Operator) -> bool:
        """Whether the operator can be built at every width of the space."""
        try:
            for d_model in self.d_models:
                FAMILIES[op.family].validate(op)
                PoolClass("operator", op).config(d_model, self.head_dim, self.rope_theta)
        except UserError:
            return False
        return True


def to_integers(op: Operator) -> list[int]:
    """The section of an operator: `WIDTH` integers, four zeros for each group that it does not have."""
    rows = [n for name in FAMILIES[op.family].searched_groups for n in op.feature(name)]
    rows += [0] * (len(FeatureGenes._fields) * MOST_GROUPS - len(rows))
    return [*op.genes, int(op.differential), *rows]


def from_integers(integers: np.ndarray) -> Operator:
    """The operator of a section that `to_integers` wrote."""
    numbers = [int(n) for n in integers]
    family = FAMILIES[FEATURIZERS[numbers[0]]]
    rows = []
    for g, name in enumerate(family.searched_groups):
        row = FeatureGenes(*numbers[len(OPERATOR) + 4 * g : len(OPERATOR) + 4 * g + 4])
        if row != ABSENT:
            rows.append((name, row))
    return Operator(family.name, OperatorGenes(*numbers[:5]), tuple(sorted(rows)), bool(numbers[5]))


def space_from_json(data: dict[str, Any]) -> Space:
    """The space that `to_json` wrote: of the operator level if there is a key "evolved"."""
    kind = OperatorSpace if "evolved" in data else Space
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return kind(**fields)
