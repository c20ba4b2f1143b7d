"""A search space: genomes as int64 vectors of fixed length, for algorithms that evolve integers.

    [ width index, norm, residual | class, featurizer group, strategy, feature group, strategy | ... n_slots times ]

Every position has its own list of legal values. Class 0 leaves a slot empty, so one length holds any depth. The vectors
that `sample`, `repair` and `encode` return are valid and canonical, so equal architectures are equal rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from star.errors import UserError
from star.genome.classes import PAPER_CLASSES, POOL
from star.genome.genome import NORMS, RESIDUALS, Gene, Genome
from star.genome.repair import repair

MOST_DRAWS = 300  # rounds of random genomes in which enough must lie within the limits
HEADER = ("d_model", "norm", "residual")
GENES = Gene._fields


@dataclass(frozen=True)
class Space:
    """The genomes that a search may visit.

    Args:
        n_slots: LIV slots, the greatest depth. d_models: legal widths. head_dim: width of every head.
        classes: pool ids that a slot may hold (0 for empty). norms, residuals: legal block schemes.
        max_groups: sharing groups of each kind, by default half the slots; with 0 nothing is shared.
        within: what else must be true of a genome that is sampled or bred, such as a range of sizes; not in JSON.
    Raises: UserError for illegal values, and for a class that does not fit every width.
    """

    n_slots: int
    d_models: tuple[int, ...]
    head_dim: int = 64
    classes: tuple[int, ...] = PAPER_CLASSES
    norms: tuple[int, ...] = (1,)
    residuals: tuple[int, ...] = (1,)
    rope_theta: float = 10_000.0
    max_groups: int | None = None
    within: Callable[[Genome], bool] | None = field(default=None, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        if not 1 <= self.n_slots <= 512:
            raise UserError(f"n_slots is {self.n_slots}; legal is 1 to 512")
        for name in ("d_models", "classes", "norms", "residuals"):
            values = tuple(getattr(self, name))
            if not values or len(set(values)) != len(values):
                raise UserError(f"{name} is {list(values)}; give at least one value and each only once")
            object.__setattr__(self, name, tuple(sorted(values)))
        for name, legal in (("norms", NORMS), ("residuals", RESIDUALS), ("classes", range(len(POOL) + 1))):
            for value in getattr(self, name):
                if value not in legal:
                    raise UserError(f"{name} holds {value}; legal is {', '.join(map(str, legal))}")
        if self.classes == (0,):
            raise UserError("classes holds only 0 (no operator); give at least one operator class")
        for d_model in self.d_models:
            for c in self.classes:
                if c:
                    POOL[c - 1].config(d_model, self.head_dim, self.rope_theta)

    # The vector.

    @property
    def offset(self) -> int:
        """The position of the first slot."""
        return len(HEADER)

    @cached_property
    def names(self) -> list[str]:
        """The name of each position."""
        return list(HEADER) + self._slot_names

    @property
    def _slot_names(self) -> list[str]:
        return [f"liv{slot + 1}.{gene}" for slot in range(self.n_slots) for gene in GENES]

    @cached_property
    def values(self) -> list[np.ndarray]:
        """Legal values of each position."""
        rows = [*self._header_values, *self._slot_values(self.classes) * self.n_slots]
        return [np.array(list(v), dtype=np.int64) for v in rows]

    @property
    def _header_values(self) -> list:
        return [range(len(self.d_models)), self.norms, self.residuals]

    def _slot_values(self, classes: tuple[int, ...]) -> list:
        groups = range(1 + (max(1, self.n_slots // 2) if self.max_groups is None else self.max_groups))
        strategies = (range(3), range(self._n_strategies + 1)) if len(groups) > 1 else (range(1), range(1))
        return [classes, groups, strategies[0], groups, strategies[1]]

    @property
    def _n_strategies(self) -> int:
        return max(self._strategies_of.values())

    @property
    def n_var(self) -> int:
        """Length of a vector."""
        return self.offset + len(GENES) * self.n_slots

    @property
    def lower(self) -> np.ndarray:
        """Smallest legal value of each position [n_var]."""
        return np.array([v[0] for v in self.values])

    @property
    def upper(self) -> np.ndarray:
        """Largest legal value of each position [n_var]."""
        return np.array([v[-1] for v in self.values])

    @property
    def segments(self) -> list[slice]:
        """One slice per LIV slot."""
        width = len(GENES)
        return [slice(self.offset + width * s, self.offset + width * (s + 1)) for s in range(self.n_slots)]

    @property
    def cuts(self) -> np.ndarray:
        """Positions where a crossover may cut: before each LIV."""
        return np.array([s.start for s in self.segments])

    def encode(self, genome: Genome) -> np.ndarray:
        """The vector int64 [n_var] of a genome. Raises UserError if the genome is not in this space."""
        genes = genome.canonical().backbone
        if len(genes) > self.n_slots:
            raise UserError(
                f"genome {genome.id} has {len(genes)} LIVs and the space {self.n_slots} slots; enlarge n_slots or "
                "scale the genome"
            )
        for name, value, legal in (
            ("d_model", genome.d_model, self.d_models),
            ("head_dim", genome.head_dim, (self.head_dim,)),
            ("norm", genome.norm, self.norms),
            ("residual", genome.residual, self.residuals),
            ("embedding", genome.embedding, (1,)),
            ("positions", genome.positions, (0,)),
            *(("class", g.class_id, self.classes) for g in genes),
        ):
            if value not in legal:
                raise UserError(
                    f"genome {genome.id}: {name} {value} is not in the space; legal is {', '.join(map(str, legal))}"
                )
        header = [self.d_models.index(genome.d_model), genome.norm, genome.residual]
        body = [n for gene in genes for n in gene]
        return np.array(header + body + [0] * (self.n_var - len(header) - len(body)), dtype=np.int64)

    def decode(self, x: np.ndarray) -> Genome:
        """The genome of a vector with a legal value at every position; its sharing may still need `repair`."""
        numbers = [int(v) for v in x]
        width = len(GENES)
        body = numbers[len(HEADER) :]
        genes = []
        for i in range(0, len(body), width):
            gene = Gene(*body[i : i + width])
            if gene.class_id:
                limit = self._strategies_of[gene.class_id]
                genes.append(gene._replace(feature_strategy=0) if gene.feature_strategy > limit else gene)
        d_model = self.d_models[numbers[0]]
        return Genome(tuple(genes), d_model, self.head_dim, numbers[1], numbers[2], self.rope_theta)

    @cached_property
    def _strategies_of(self) -> dict[int, int]:
        probe = Genome((Gene(1),))
        return {c: probe.family(Gene(c)).n_strategies for c in self.classes if c}

    # Valid vectors.

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Random genomes [n, n_var], repaired, that lie `within`.

        Raises UserError if there are hardly any.
        """
        found = self.draw(rng, n)
        if self.within is None:
            return found
        for _ in range(MOST_DRAWS):
            found = found[[self.holds(self.decode(row)) for row in found]]
            if len(found) >= n:
                return found[:n]
            found = np.concatenate([found, self.draw(rng, n + 8)])
        raise UserError(f"hardly any genome of this space has {self.within}; widen search.region or the space")

    def holds(self, genome: Genome) -> bool:
        """Whether a genome lies `within`."""
        return self.within is None or self.within(genome)

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Random genomes [n, n_var], repaired: depth uniform from half the slots to all, other genes over their values.

        The depth is drawn first: if class 0 were as likely as any other, nearly all genomes would be almost full. And
        with depths from 1, a small population is all small models, from which a short search improves little (measured
        on the default run: hypervolume 1.17 times that of the initial population, against 1.7 times).
        """
        X = np.stack([rng.choice(values, size=n) for values in self.values], axis=1)
        operators = [c for c in self.classes if c]
        least = -(-self.n_slots // 2) if 0 in self.classes else self.n_slots
        for row, depth in zip(X, rng.integers(least, self.n_slots + 1, size=n)):
            filled = [0 if slot >= depth else rng.choice(operators) for slot in range(self.n_slots)]
            row[self.offset :: len(GENES)] = filled
        return self.repair(X, rng)[0]

    def repair(self, X: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Valid canonical rows [n, n_var], and bool [n]: which rows needed more than renumbering. Idempotent."""
        rows, flags = [], []
        for row in np.asarray(X):
            row, clamped = self._clamp(row, rng)
            genome, changed = repair(self.decode(row), rng)
            rows.append(self.encode(genome))
            flags.append(changed or clamped)
        return np.array(rows, dtype=np.int64).reshape(-1, self.n_var), np.array(flags, dtype=bool)

    def _clamp(self, row: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
        """The nearest vector with legal values and at least one LIV, and whether it is another one."""
        fixed = self._nearest(row)
        clamped = bool((fixed != row).any())
        classes = fixed[self.offset :: len(GENES)]
        if not classes.any():
            fixed[self.offset] = rng.choice([c for c in self.classes if c])
            clamped = True
        return fixed, clamped

    def _nearest(self, row: np.ndarray) -> np.ndarray:
        """The nearest legal value at every position."""
        return np.array([v[np.argmin(np.abs(v - x))] for v, x in zip(self.values, row, strict=True)], dtype=np.int64)

    def to_json(self) -> dict[str, Any]:
        """A dictionary for JSON, which `space_from_json` reads back."""
        return {key: value for key, value in asdict(replace(self, within=None)).items() if key != "within"}

    def fit(self, genome: Genome) -> Genome:
        """The genome at the nearest width and depth of this space, to seed a search or as a baseline."""
        d_model = min(self.d_models, key=lambda d: abs(d - genome.d_model))
        depth = min(genome.depth, self.n_slots) if genome.d_model == d_model else self.n_slots
        return replace(genome.scaled(d_model, depth, self.head_dim), rope_theta=self.rope_theta)
