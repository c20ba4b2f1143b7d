"""Candidates of a refinement: what they are, how the Gaussian process sees them, and which ones a step chooses from.

    setup = Setup(member.id, member.genome, space.base)
    encoder = Encoder(space, vocab_size, cache_tokens, evidence)
    encoder.row(setup)                    # [recipe coordinates | genome descriptors | expected loss], about [0, 1]
    encoder.prior(rows)                   # the expected loss in nats
    around(setup, seen, [], space, genomes, "both", rng)       # a finite list, sampled anew at every step

The expected loss of a genome is the prediction of the search's own surrogate, from all results of the search. It is the
prior mean of the refinement's process, which so has to learn only what settings and edits change: losses of different
members differ ten times more. The member is no input: what is learned about one member applies to the others, the more
the more alike they are.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np

from star.cost import Costs
from star.cost import costs as costs_of
from star.genome import Genome, Space
from star.genome.local_edits import RECIPE, Edit, edits
from star.surrogate.descriptors import SUMMARY, summarise
from star.surrogate.descriptors import describe as search_descriptors
from star.surrogate.gaussian_process import fit
from star.training.recipe_space import RecipeSpace, Settings

# Of each member: recipes anywhere; recipes nearby; edits; incumbents of each kind
FAR, NEAR, EDITED, BEST = 8, 48, 32, 2
MOST_TRIED = 80  # latest tried candidates of a member that stay in the list
MOST_EDITS = 2  # between a member and a candidate: further away is another search
BOXES = (0.2, 0.4, 0.6, 1.0)  # shares of every range that recipes "anywhere" are sampled from, around one of the best
WIDTHS = (0.05, 0.15, 0.3)  # of the steps of nearby recipes, as shares of their ranges
LEAST_EVIDENCE = 8  # results of the search from which losses are predicted


@dataclass(frozen=True)
class Setup:
    """A genome and the settings of its recipe. member: id of the front member; edits: from it, as text; kind: of the
    last.
    """

    member: str
    genome: Genome
    settings: Settings = field(hash=False)
    kind: str = RECIPE
    edits: tuple[str, ...] = ()

    def with_settings(self, settings: Settings) -> "Setup":
        """The same genome under other settings."""
        return replace(self, settings=settings)

    def edited(self, edit: Edit) -> "Setup":
        """The edited genome under the same settings."""
        return replace(self, genome=edit.genome, kind=edit.kind, edits=(*self.edits, edit.text))

    @cached_property
    def key(self) -> str:
        """Equal for equal genome and settings."""
        return json.dumps([self.genome.key, sorted(self.settings.items())])

    def id(self, base: Settings) -> str:
        """The genome's id if trained as in the search; else r and 11 hexadecimal digits."""
        return self.genome.id if self.settings == base else "r" + hashlib.sha256(self.key.encode()).hexdigest()[:11]


@dataclass(frozen=True)
class Seen:
    """A candidate that was tried, and its loss (nats; None: failed or still running) at a share of the budget."""

    setup: Setup
    share: float
    loss: float | None


class Encoder:
    """evidence: (genome, loss in nats) of the search: descriptors are scaled by it, and losses predicted from it."""

    def __init__(
        self, space: RecipeSpace, vocab_size: int, cache_tokens: int, evidence: Sequence[tuple[Genome, float]]
    ):
        self.space, self.vocab_size, self.cache_tokens = space, vocab_size, cache_tokens
        genomes, losses = [genome for genome, _ in evidence], np.array([loss for _, loss in evidence])
        table = np.array([summarise(genome, self.costs(genome)) for genome in genomes])
        self.low = table.min(axis=0)
        self.span = np.maximum(table.max(axis=0) - self.low, list(SUMMARY.values()))
        self.level, self.unit = float(losses.min()), float(np.ptp(losses)) or 1.0
        X, groups = search_descriptors(genomes, [self.costs(genome) for genome in genomes])
        self.search = fit(X, losses, groups) if len(losses) >= LEAST_EVIDENCE else None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return (*self.space.columns, *SUMMARY, "expected loss")

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
        place = (np.array(summarise(setup.genome, self.costs(setup.genome))) - self.low) / self.span
        expected = (self.expected(setup.genome) - self.level) / self.unit
        return np.array([*self.space.encode(setup.settings), *np.clip(place, -0.5, 1.5), expected])

    def rows(self, setups: Sequence[Setup]) -> np.ndarray:
        """[n, d]."""
        return np.array([self.row(setup) for setup in setups])

    def costs(self, genome: Genome) -> Costs:
        """Costs at the vocabulary and cache length of the run."""
        return _costs(genome, self.vocab_size, self.cache_tokens)


@lru_cache(maxsize=8192)
def _costs(genome: Genome, vocab_size: int, cache_tokens: int) -> Costs:
    return costs_of(genome, vocab_size=vocab_size, seq_len=cache_tokens)


# Which candidates a step chooses from.


def around(
    member: Setup,
    seen: Sequence[Seen],
    others: Sequence[Setup],
    recipes: RecipeSpace,
    genomes: Space,
    change: str,
    rng: np.random.Generator,
) -> list[Setup]:
    """Candidates around one member, each once: what was tried (it may continue at a higher fidelity), recipes from the
    whole space and near the best ones, single edits of the best genomes, and the settings of the best of other members.

    others: the best of other members. change: "recipes", "edits" or "both".
    """
    best = incumbents(member, seen)
    tried = [s.setup for s in seen if s.setup.member == member.member]
    new: list[Setup] = []
    if change != "edits":
        for setup, width in zip(_sampled(best, len(BOXES), rng), BOXES, strict=True):
            boxed = recipes.sample(FAR // len(BOXES), rng, setup.settings, width)
            new += [setup.with_settings(settings) for settings in boxed]
        for i, setup in enumerate(_sampled(best, NEAR, rng)):
            new.append(setup.with_settings(recipes.perturb(setup.settings, rng, WIDTHS[i % len(WIDTHS)])))
        new += [member.with_settings(other.settings) for other in others]
    if change != "recipes":
        edited = _edited(best, genomes, rng)
        if change == "both":
            edited = [s.with_settings(recipes.perturb(s.settings, rng)) if i % 2 else s for i, s in enumerate(edited)]
        new += edited
    found: dict[str, Setup] = {}
    for setup in (member, *best, *tried[-MOST_TRIED:], *new):
        if len(setup.edits) <= MOST_EDITS:
            found.setdefault(setup.key, setup)
    return list(found.values())


def incumbents(member: Setup, seen: Sequence[Seen]) -> list[Setup]:
    """The member and its best few at each share of the budget, by their mean loss, best first; each once."""
    mine = [s for s in seen if s.setup.member == member.member and s.loss is not None]
    shares = sorted({s.share for s in mine}, reverse=True)
    best = [setup for share in shares for _, setup in ranked(mine, share)[:BEST]]
    return list({setup.key: setup for setup in [*best, member]}.values())


def ranked(seen: Sequence[Seen], share: float = 1.0) -> list[tuple[float, Setup]]:
    """(mean loss, candidate) of all measured at this share, best first."""
    losses: dict[str, list[float]] = {}
    for s in seen:
        if s.share == share and s.loss is not None:
            losses.setdefault(s.setup.key, []).append(s.loss)
    setups = {s.setup.key: s.setup for s in reversed(seen)}
    return sorted(((float(np.mean(losses[key])), setups[key]) for key in losses), key=lambda row: (row[0], row[1].key))


def _edited(best: Sequence[Setup], genomes: Space, rng: np.random.Generator) -> list[Setup]:
    """Edits of the best, as many of each kind as of the others."""
    room = [setup for setup in best if len(setup.edits) < MOST_EDITS]
    chosen: list[Setup] = []
    for setup in room:
        groups: dict[str, list[Edit]] = {}
        for edit in all_edits(setup.genome, genomes):
            groups.setdefault(edit.kind, []).append(edit)
        each = -(-EDITED // len(room) // max(1, len(groups)))
        for group in groups.values():
            picks = rng.choice(len(group), size=min(each, len(group)), replace=False)
            chosen += [setup.edited(group[i]) for i in picks]
    return chosen


@lru_cache(maxsize=64)
def all_edits(genome: Genome, space: Space) -> tuple[Edit, ...]:
    """`edits`, remembered."""
    return tuple(edits(genome, space))


def _sampled(setups: Sequence[Setup], n: int, rng: np.random.Generator) -> list[Setup]:
    return [setups[i] for i in rng.integers(len(setups), size=n)]
