"""Candidates of a refinement, and the one encoding by which a Gaussian process sees all of them.

    setup = Setup(member.id, member.genome, space.base)
    encoder = Encoder(space, vocab_size, cache_tokens, evidence)
    encoder.row(setup)       # [recipe coordinates | genome descriptors | expected loss], about [0, 1]
    encoder.prior(rows)      # the expected loss in nats

The expected loss of a genome is what the search's own surrogate says of it under the search's recipe, with all of the
search's results. It is the prior mean of the refinement's process, so what that has to learn is only what settings and
edits change; the losses of different members differ by ten times more than that.

The member is no input of its own: two candidates with the same genome and settings are the same, whatever member they
came from, so what is learned about one member speaks about the others by how alike they are. The share of the budget is
appended by `Pool`.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np

from star.cost import Costs
from star.cost import costs as costs_of
from star.genome import Genome
from star.liv import FAMILIES
from star.refine.edits import RECIPE, Edit
from star.refine.recipe_space import RecipeSpace, Settings
from star.surrogate.descriptors import describe as search_descriptors
from star.surrogate.gaussian_process import fit

FAMILY_NAMES = tuple(sorted(FAMILIES))
DESCRIPTORS = (
    "log2 parameters", "log2 cache", "log2 FLOPs", "depth", *(f"share of {name}" for name in FAMILY_NAMES), "first mixer", "differential",
    "log2 repeat", "log2 expansion", "window", "shared weights", "shared features",
)  # fmt: skip


@dataclass(frozen=True)
class Setup:
    """A genome and the settings of its recipe. member: id of the front member; edits: from it to here, as text; kind:
    of the last.
    """

    member: str
    genome: Genome
    settings: Settings = field(hash=False)
    kind: str = RECIPE
    edits: tuple[str, ...] = ()

    def with_settings(self, settings: Settings) -> "Setup":
        return replace(self, settings=settings)

    def edited(self, edit: Edit) -> "Setup":
        return replace(self, genome=edit.genome, kind=edit.kind, edits=(*self.edits, edit.text))

    @cached_property
    def key(self) -> str:
        return json.dumps([self.genome.key, sorted(self.settings.items())])

    def id(self, base: Settings) -> str:
        """That of its genome if trained as in the search; else r and 11 hexadecimal digits."""
        return self.genome.id if self.settings == base else "r" + hashlib.sha256(self.key.encode()).hexdigest()[:11]


class Encoder:
    """evidence: (genome, loss in nats) of the search that is refined: descriptors are scaled by it, and losses expected
    from it.
    """

    def __init__(
        self, space: RecipeSpace, vocab_size: int, cache_tokens: int, evidence: Sequence[tuple[Genome, float]]
    ):
        self.space, self.vocab_size, self.cache_tokens = space, vocab_size, cache_tokens
        genomes, losses = [genome for genome, _ in evidence], np.array([loss for _, loss in evidence])
        table = np.array([self._descriptors(genome) for genome in genomes])
        low, high = table.min(axis=0), table.max(axis=0)
        self.low, self.span = low, np.maximum(high - low, LEAST_SPAN)
        self.level, self.unit = float(losses.min()), float(np.ptp(losses)) or 1.0
        X, groups = search_descriptors(genomes, [self.costs(genome) for genome in genomes])
        self.search = fit(X, losses, groups) if len(losses) >= LEAST_EVIDENCE else None

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.space.columns, *DESCRIPTORS, "expected loss")

    @lru_cache(maxsize=8192)  # noqa: B019  one encoder for each refinement
    def expected(self, genome: Genome) -> float:
        """Loss in nats of a genome under the search's recipe."""
        if self.search is None:
            return self.level + 0.5 * self.unit
        return float(self.search.marginals(search_descriptors([genome], [self.costs(genome)])[0])[0][0])

    def prior(self, rows: np.ndarray) -> np.ndarray:
        """Expected losses [n] of rows [n, d] or, with a fidelity, [n, d + 1]."""
        return self.level + self.unit * rows[:, len(self.columns) - 1]

    def row(self, setup: Setup) -> np.ndarray:
        """[d]; beyond [0, 1] where a genome is beyond all that the search knew."""
        place = (self._descriptors(setup.genome) - self.low) / self.span
        expected = (self.expected(setup.genome) - self.level) / self.unit
        return np.array([*self.space.encode(setup.settings), *np.clip(place, -0.5, 1.5), expected])

    def rows(self, setups: Sequence[Setup]) -> np.ndarray:
        return np.array([self.row(setup) for setup in setups])

    def costs(self, genome: Genome) -> Costs:
        return _costs(genome, self.vocab_size, self.cache_tokens)

    def _descriptors(self, genome: Genome) -> np.ndarray:
        return np.array(describe(genome, self.costs(genome)))


# Differences within a search that are smaller than this are not stretched to the whole of [0, 1].
LEAST_EVIDENCE = 8
LEAST_SPAN = np.array([1.0, 2.0, 1.0, 2.0, *([0.5] * len(FAMILY_NAMES)), 0.5, 0.5, 1.0, 1.0, 0.2, 2.0, 2.0])


@lru_cache(maxsize=8192)
def _costs(genome: Genome, vocab_size: int, cache_tokens: int) -> Costs:
    return costs_of(genome, vocab_size=vocab_size, seq_len=cache_tokens)


def describe(genome: Genome, cost: Costs) -> list[float]:
    """`DESCRIPTORS` of a genome in their own units: sizes, which families in what shares, and what is shared.

    Fewer than the search's (`star.surrogate.descriptors`), because a refinement has a length scale for each. "first
    mixer" is where the first LIV that mixes tokens stands, as a share of the depth.
    """
    genes = genome.canonical().backbone
    operators = [genome.operator(gene) for gene in genes]
    depth = len(genes)
    families = [operator.family for operator in operators]
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
