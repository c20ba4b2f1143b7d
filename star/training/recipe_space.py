"""What a refinement may change about a recipe: one table of typed dimensions, with ranges around the recipe of the
search.

    space = recipe_space(config.training, {"learning_rate": "1e-3:1e-2", "schedule": "linear,wsd"})
    settings = space.base                     # {"learning_rate": 0.004, "batch_tokens": 256, "schedule": "linear", ...}
    recipe = space.recipe(settings)           # a star.training.Recipe

Settings are tuned; rules turn them into a recipe. The rules contain what is known beforehand, so that
the settings are independent of each other and of the budget:

    batch_tokens         of the full budget; a share s of it takes s^0.5 times the batch
    learning_rate        at the batch of the search; a batch b times as large takes b^0.35 times the rate
    *_half_life          of Adam's averages, in tokens; the betas per step follow from the batch
    weight_decay         at the batch of the search; it stays the same per token

Exponents are from a quadratic fit of loss on (N, D, rate, batch) to the step-law grid (arXiv 2503.04715).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from star.errors import UserError
from star.training.recipe import OPTIMIZERS, Recipe
from star.training.schedule import SCHEDULES

RATE_OF_BATCH = 0.35
BATCH_OF_TOKENS = 0.5
DIGITS = 3  # significant ones of a setting: legible, and equal settings are equal text
GROWTH = 4  # a micro-batch may grow by this factor over the search's before micro-batches are accumulated

Settings = dict[str, Any]  # numbers, and choices as text, by name


@dataclass(frozen=True)
class Dimension:
    """One setting. Numbers lie in [low, high] on a logarithmic scale; choices are text.

    off: 0 is legal too and switches the technique off. base: the value under the search's recipe, which may lie
    outside.
    """

    name: str
    doc: str
    base: float | str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str, ...] = ()
    off: bool = False

    @property
    def fixed(self) -> bool:
        """Whether there is only one legal value."""
        return len(self.choices) == 1 if self.choices else self.low == self.high and not (self.off and self.low > 0)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the inputs that this setting is for a Gaussian process."""
        if self.choices:
            return (
                tuple(f"{self.name}={choice}" for choice in self.choices)
                if len(self.choices) > 2
                else (f"{self.name}={self.choices[-1]}",)
            )
        return (f"{self.name} on", self.name) if self.off else (self.name,)

    def encode(self, value: Any) -> list[float]:
        """Inputs in [0, 1]: a number's place in its range (0.5 where switched off), a choice as 0 and 1."""
        if self.choices:
            hot = [float(value == choice) for choice in self.choices]
            return [h / math.sqrt(2) for h in hot] if len(hot) > 2 else hot[-1:]
        place = math.log(value / self.low) / math.log(self.high / self.low) if value and self.high > self.low else 0.5
        return [float(value > 0), place] if self.off else [place]

    def decode(self, place: float) -> Any:
        """The value at a place in [0, 1): of choices, and of off and on, each has an equal part of it."""
        if self.choices:
            return self.choices[min(int(place * len(self.choices)), len(self.choices) - 1)]
        if self.off:
            if place < 0.5:
                return 0.0
            place = 2 * place - 1
        return rounded(self.low * (self.high / self.low) ** place)


@dataclass(frozen=True)
class RecipeSpace:
    """The open dimensions around one recipe."""

    around: Recipe
    dimensions: tuple[Dimension, ...]
    base: Settings = field(init=False)  # the search's own recipe

    def __post_init__(self):
        object.__setattr__(self, "base", {d.name: d.base for d in self.dimensions})

    @property
    def open(self) -> tuple[Dimension, ...]:
        """Dimensions that are not fixed."""
        return tuple(d for d in self.dimensions if not d.fixed)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the inputs of the Gaussian process."""
        return tuple(name for d in self.open for name in d.columns)

    def encode(self, settings: Mapping[str, Any]) -> list[float]:
        """Inputs in [0, 1]."""
        return [x for d in self.open for x in d.encode(settings[d.name])]

    def changed(self, settings: Mapping[str, Any]) -> Settings:
        """Settings that differ from the search's recipe."""
        return {name: value for name, value in settings.items() if value != self.base[name]}

    def sample(
        self, n: int, rng: np.random.Generator, around: Mapping[str, Any] | None = None, width: float = 1.0
    ) -> list[Settings]:
        """n settings that fill a box of this share of every range evenly (a Latin hypercube; McKay et al., 1979).

        The box lies around some settings, by default those of the search; a choice is drawn again with probability
        `width`.
        """
        open_ = {d.name for d in self.open}
        around = self.start() | {name: value for name, value in (around or {}).items() if name in open_}
        strata = [(rng.permutation(n) + rng.random(n)) / n for _ in self.open]
        found = []
        for row in range(n):
            settings = dict(around)
            for d, places in zip(self.open, strata, strict=True):
                if d.choices or d.off:
                    value = d.decode(places[row]) if rng.random() < width else settings[d.name]
                else:
                    low = min(max(d.encode(settings[d.name])[0] - width / 2, 0.0), 1.0 - width)
                    value = d.decode(low + width * places[row])
                settings[d.name] = self.mend(d, value)
            found.append(settings)
        return found

    def portfolio(self) -> list[Settings]:
        """Changes of the search's recipe that have helped elsewhere (`PORTFOLIO`), within the ranges; each once, none
        that changes nothing.
        """
        start, found = self.start(), []
        for moves in PORTFOLIO:
            settings = dict(start)
            for d in self.open:
                move = moves.get(d.name)
                if isinstance(move, str):
                    settings[d.name] = move if move in d.choices else settings[d.name]
                elif move and settings[d.name]:
                    settings[d.name] = self.mend(d, rounded(min(max(settings[d.name] * move, d.low), d.high)))
            if settings != start and settings not in found:
                found.append(settings)
        return found

    def perturb(self, settings: Mapping[str, Any], rng: np.random.Generator, width: float = 0.15) -> Settings:
        """Settings nearby: one to three of them changed, numbers by a normal step of `width` of their range."""
        changed = dict(settings)
        for i in rng.choice(len(self.open), size=min(len(self.open), int(rng.integers(1, 4))), replace=False):
            d = self.open[i]
            if d.choices or (d.off and (not settings[d.name] or rng.random() < 0.3)):
                value = d.decode(rng.random())
                if value == settings[d.name] and d.choices:
                    value = d.choices[(d.choices.index(value) + 1) % len(d.choices)]
            else:
                place = float(np.clip(d.encode(settings[d.name])[-1] + width * rng.standard_normal(), 0.0, 1.0))
                value = rounded(d.low * (d.high / d.low) ** place)
            changed[d.name] = self.mend(d, value)
        return changed

    def start(self) -> Settings:
        """The search's recipe, but for what a range has fixed."""
        return self.base | {d.name: d.choices[0] if d.choices else d.low for d in self.dimensions if d.fixed}

    def mend(self, dimension: Dimension, value: Any) -> Any:
        """The nearest value that can be carried out: batches are those of the search times a power of two, of whole
        sequences.
        """
        if dimension.name != "batch_tokens":
            return value
        return self.around.seq_len * _sequences(self.around, value / (self.around.micro_batch * self.around.accumulate))

    def recipe(self, settings: Mapping[str, Any], share: float = 1.0) -> Recipe:
        """The recipe at a share of the search's training budget."""
        around = self.around
        s = self.base | dict(settings)
        step = around.micro_batch * around.accumulate  # tokens of one optimizer step in the search
        n = _sequences(around, s["batch_tokens"] / step * share**BATCH_OF_TOKENS)
        ratio = n * around.seq_len / step
        micro = _micro_batch(around, n)
        changes = {
            "tokens": max(1, round(share * around.tokens)),
            "batch_size": micro,
            "accumulate": n // micro,
            "learning_rate": s["learning_rate"] * ratio**RATE_OF_BATCH,
            "weight_decay": s["weight_decay"] * ratio ** (1 - RATE_OF_BATCH),
            "betas": tuple(_beta(n * around.seq_len, s[f"beta{k}_half_life"]) for k in (1, 2)),
            "momentum": min(around.momentum**ratio, 0.9999),
            "adaptive": s["precision"] > 0,
            "precision": s["precision"] or around.precision,
            "accumulate_max": max(around.accumulate_max, n // micro),
        }
        changes |= {name: s[name] for name in DIRECT}
        if s == self.base and share == 1.0:
            return around  # bit-identical to the search
        return Recipe(**asdict(around) | changes)


# Factors on the search's settings, most promising first: where an initial design begins, before it spreads. Chosen by
# hand after trying one setting at a time on one small member of a front, and after an earlier refinement of three
# others, in which rates above the search's and larger embedding multipliers had won. One of those three is a member of
# benchmarks/refine/refine_on_training.py.
PORTFOLIO: tuple[dict[str, Any], ...] = (
    {"learning_rate": 2.0},
    {"optimizer": "muon", "learning_rate": 3.0},
    {"learning_rate": 2.0, "embedding_multiplier": 2.0, "beta1_half_life": 0.5},
    {"learning_rate": 0.5},
    {"optimizer": "muon", "learning_rate": 2.0, "layer_decay": 1.5, "embedding_multiplier": 2.0},
    {"learning_rate": 3.0, "beta1_half_life": 0.5},
)

# Settings that a recipe takes as they are.
DIRECT = "embedding_multiplier head_multiplier vector_multiplier layer_decay warmup schedule optimizer sparsify".split()


def recipe_space(around: Recipe, ranges: Mapping[str, str] | None = None) -> RecipeSpace:
    """The dimensions around a recipe. ranges: `LOW:HIGH`, a single value, choices with commas, or `off`, by name of a
    dimension.

    Raises UserError for an unknown name, and for a range that is empty, inverted or beyond what a recipe may be.
    """
    table = {d.name: d for d in dimensions(around)}
    for name, text in (ranges or {}).items():
        if name not in table:
            raise UserError(
                f"--range {name}={text}: there is no setting {name!r} to refine; settings are {', '.join(table)}"
            )
        table[name] = _ranged(table[name], str(text).strip())
    space = RecipeSpace(around, tuple(table.values()))
    for d in space.dimensions:
        for value in d.choices or (d.low, d.high):
            try:
                space.recipe(space.base | {d.name: space.mend(d, value)})
            except UserError as error:
                raise UserError(f"--range {d.name}: {error}") from None
    return space


def dimensions(around: Recipe) -> tuple[Dimension, ...]:
    """Every setting with its range around a recipe; those without effect in a run's models are fixed."""
    r, step = around, around.micro_batch * around.accumulate
    live1, live2 = (_half_life(step, beta) for beta in r.betas)
    most, head = r.tokens / 4, r.head_multiplier  # tokens; longer averages would span the run
    eps = r.precision if r.adaptive else 0.0
    numbers: list[tuple[str, float, float, float, str, bool]] = [
        (
            "learning_rate",
            r.learning_rate,
            r.learning_rate / 4,
            r.learning_rate * 4,
            "peak, at the search's batch",
            False,
        ),
        (
            "embedding_multiplier",
            r.embedding_multiplier,
            0.5,
            16,
            "learning rate of the embedding over the hidden one",
            False,
        ),
        (
            "head_multiplier",
            head,
            head,
            head,
            "learning rate of an output head of its own; a run's heads are tied",
            False,
        ),
        ("vector_multiplier", r.vector_multiplier, 0.25, 4, "learning rate of norms, gates and filters", False),
        ("layer_decay", r.layer_decay, 0.3, 3, "gamma of the layer-wise rate gamma^(l / L)", False),
        ("weight_decay", r.weight_decay, 0.01, 0.3, "of matrices, at the search's batch", not r.weight_decay),
        ("warmup", r.warmup, 0.005, 0.2, "share of the tokens over which the rate rises", not r.warmup),
        ("schedule", 0, 0, 0, "shape of the learning rate", False),
        ("batch_tokens", step, max(r.seq_len, step / 4), step * 4, "tokens of an optimizer step", False),
        (
            "beta1_half_life",
            live1,
            live1 / 4,
            max(live1, min(live1 * 4, most)),
            "of Adam's first average, tokens",
            False,
        ),
        (
            "beta2_half_life",
            live2,
            live2 / 8,
            max(live2, min(live2 * 8, most)),
            "of Adam's second average, tokens",
            False,
        ),
        ("optimizer", 0, 0, 0, "of hidden matrices", False),
        ("precision", eps, 0.3, 3, "eps of adaptive accumulation", True),
        ("sparsify", r.sparsify, 0, 0, "tau of attention sparsification; the smaller cache is not counted", True),
    ]
    choices = {"schedule": (r.schedule, SCHEDULES), "optimizer": (r.optimizer, OPTIMIZERS)}
    return tuple(
        Dimension(name, doc, choices[name][0], choices=choices[name][1])
        if name in choices
        else Dimension(name, doc, rounded(base), rounded(low), rounded(high), (), off)
        for name, base, low, high, doc, off in numbers
    )


def rounded(value: float) -> float:
    """To `DIGITS` significant digits."""
    return float(f"{value:.{DIGITS}g}") if value < 10**DIGITS else float(round(value))


def _ranged(d: Dimension, text: str) -> Dimension:
    where = f"--range {d.name}={text}"
    if d.choices:
        chosen = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        legal = SCHEDULES if d.name == "schedule" else OPTIMIZERS
        if not chosen or any(choice not in legal for choice in chosen):
            raise UserError(f"{where}: give one or more of {', '.join(legal)}, with commas")
        return replace(d, choices=tuple(c for c in legal if c in chosen))
    if text == "off" and d.off:
        return replace(d, low=0.0, high=0.0)
    parts = text.split(":")
    try:
        low, high = float(parts[0]), float(parts[-1])
    except ValueError:
        low = high = math.nan
    if len(parts) > 2 or not (math.isfinite(low) and math.isfinite(high)):
        example = f"{d.name}={d.low or 0.005:g}:{d.high or 0.05:g}"
        raise UserError(f"{where}: write LOW:HIGH in numbers, such as {example}, or one value to keep it fixed")
    if low <= 0:
        raise UserError(f"{where}: this range must lie above 0")
    if len(parts) == 2 and low > high:
        raise UserError(f"{where}: this range is inverted: the first number must be the smaller one")
    if len(parts) == 2 and low == high:
        raise UserError(f"{where}: this range is empty: its two ends are equal")
    return replace(d, low=low, high=high, off=d.off and len(parts) == 2)


def _sequences(around: Recipe, ratio: float) -> int:
    """Sequences per step: those of the search times the power of two that is nearest to the ratio; at least one."""
    n = around.batch_size * around.accumulate
    power = round(math.log2(max(ratio, 1e-9)))
    return max(1, n << power if power >= 0 else round(n / 2**-power))


def _micro_batch(around: Recipe, n: int) -> int:
    """Sequences of a micro-batch, a divisor of n: as large as the search's, or a few times that where it did not
    accumulate.
    """
    most = around.batch_size * (GROWTH if around.accumulate == 1 else 1)
    return next(size for size in range(min(n, most), 0, -1) if n % size == 0)


def _half_life(step_tokens: int, beta: float) -> float:
    return step_tokens * math.log(2) / -math.log(min(max(beta, 1e-6), 0.999999))


def _beta(step_tokens: int, half_life: float) -> float:
    return min(0.5 ** (step_tokens / half_life), 0.99999)


def settings_text(settings: Mapping[str, Any]) -> str:
    """learning_rate 0.008, schedule wsd, precision off"""

    def shown(name: str, value: Any) -> str:
        off = name in ("precision", "sparsify") and not value
        return "off" if off else value if isinstance(value, str) else f"{value:g}"

    return ", ".join(f"{name} {shown(name, value)}" for name, value in settings.items())
