"""Tasks with known answers, each of which asks for one capability that a validation loss may not show.

    skill = SKILLS["mqar"]
    inputs, targets = skill.batch(32, np.random.default_rng(0))  # int64 [32, T] each; target -100: no answer expected
    for part, test in skill.tests().items(): ...                 # what accuracy is measured on, such as each depth

    mqar     pairs of key and value, then the keys in another order among noise, at gaps that follow a power law: return
             the value of each (multi-query associative recall: Arora et al., 2023, arXiv 2312.04927)
    needle   a marked value at a random depth of noise; the mark comes again at the end: return the value. Tested at 0,
             25, 50, 75 and 100 % of the context
    parity   is the number of ones so far odd? Tested at an eighth, a quarter, a half and all of the length
    s5       a ball under one of five cups, which two moves exchange (a cycle of all, a swap of two): where is it? The
             moves generate the group S5, so this is its word problem (Merrill et al., 2024, arXiv 2404.08819)
    copying  repeat a string after a mark (Jelassi et al., 2024, arXiv 2402.01032). Trained on strings of up to `items`
             tokens, tested at once, twice and four times that

Every answer is determined by the inputs before it. A guess among the possible answers has accuracy `chance`, exactly.
The implementation and its sizes are independent of those papers'. The six tasks of MAD are in `star.data.synthetic`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch

from star.data.synthetic import IGNORE
from star.errors import UserError

LONGEST = 65_536  # tokens of a sequence


@dataclass(frozen=True)
class Skill(ABC):
    """Sizes of one task. Each subclass is a task; its fields are its sizes, with their defaults."""

    name: ClassVar[str]
    from_last: ClassVar[bool] = False  # answers are read where they are asked for
    length: int

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, low = getattr(self, field.name), 2 if field.name in ("symbols", "length") else 1
            if isinstance(value, int) and not isinstance(value, bool) and value < low:
                raise UserError(f"task {self.name}: {field.name} is {value}; it must be at least {low}")
        if self.longest > LONGEST:
            raise UserError(f"task {self.name}: a sequence has {self.longest} tokens; it must have at most {LONGEST}")

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that it is trained or tested on."""
        return self.length

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of token ids."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """Accuracy of a guess among the possible answers."""

    @abstractmethod
    def make(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, int64 [n, T] each, of n random sequences."""

    def tests(self) -> dict[str, Skill]:
        """What accuracy is measured on, by name; their mean is the accuracy of the task."""
        return {"": self}

    def batch(self, n: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """`make` as tensors."""
        inputs, targets = self.make(n, rng)
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    def sized(self, changes: Mapping[str, int | float]) -> Skill:
        """With other sizes. Raises UserError for a size that the task does not have, or that is out of range."""
        legal = [
            field.name
            for field in dataclasses.fields(self)
            if field.name not in ("depth", "last", "exact") and field.init
        ]
        for name, value in changes.items():
            if name not in legal:
                raise UserError(f"task {self.name} has no size {name!r}; it has {', '.join(legal)}")
            if name != "power" and not isinstance(value, int):
                raise UserError(f"task {self.name}: {name} is {value:g}; it must be a whole number")
        return dataclasses.replace(self, **cast(dict[str, Any], changes))


@dataclass(frozen=True)
class MQAR(Skill):
    """Vocabulary: `symbols` keys, `symbols` values, `symbols` noise tokens. No key or value comes twice.

    power: exponent of the gap between the pairs and a query, density proportional to gap ** (power - 1).
    """

    name = "mqar"
    length: int = 24
    pairs: int = 4
    symbols: int = 8
    power: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if self.pairs > self.symbols:
            raise UserError(f"task mqar: pairs is {self.pairs}; with {self.symbols} symbols it must be at most that")
        if not 0 < self.power <= 10:
            raise UserError(f"task mqar: power is {self.power:g}; it must be above 0 and at most 10")
        if self.length < 3 * self.pairs:
            raise UserError(
                f"task mqar: length is {self.length}; {self.pairs} pairs and their queries need at least "
                f"{3 * self.pairs}"
            )

    @property
    def vocab_size(self) -> int:
        return 3 * self.symbols

    @property
    def chance(self) -> float:
        return 1.0 / self.pairs  # a guess among the values of the sequence

    def make(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        keys = _distinct(n, self.symbols, self.pairs, rng)
        values = self.symbols + _distinct(n, self.symbols, self.pairs, rng)
        inputs = 2 * self.symbols + rng.integers(self.symbols, size=(n, self.length))
        targets = np.full((n, self.length), IGNORE)
        start = 2 * self.pairs
        inputs[:, 0:start:2], inputs[:, 1:start:2] = keys, values
        gaps = np.arange(1, self.length - start + 1)
        # Without replacement, with these weights: the largest of log weight + Gumbel noise
        scores = (self.power - 1.0) * np.log(gaps) + rng.gumbel(size=(n, len(gaps)))
        places = start + np.argsort(-scores, axis=1)[:, : self.pairs]
        order = _distinct(n, self.pairs, self.pairs, rng)
        np.put_along_axis(inputs, places, np.take_along_axis(keys, order, axis=1), axis=1)
        np.put_along_axis(targets, places, np.take_along_axis(values, order, axis=1), axis=1)
        return inputs, targets


@dataclass(frozen=True)
class Needle(Skill):
    """Vocabulary: `symbols` values, `symbols` noise tokens, the mark. depth: from 0 (first) to 1; None: random."""

    name = "needle"
    length: int = 64
    symbols: int = 8
    depth: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.length < 7:
            raise UserError(f"task needle: length is {self.length}; five depths need at least 7")

    @property
    def vocab_size(self) -> int:
        return 2 * self.symbols + 1

    @property
    def chance(self) -> float:
        return 1.0 / self.symbols

    def tests(self) -> dict[str, Skill]:
        return {f"{depth:.0%}": dataclasses.replace(self, depth=depth) for depth in (0.0, 0.25, 0.5, 0.75, 1.0)}

    def make(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        rows, mark, last = np.arange(n), 2 * self.symbols, self.length - 3
        inputs = self.symbols + rng.integers(self.symbols, size=(n, self.length))
        targets = np.full((n, self.length), IGNORE)
        at = rng.integers(last + 1, size=n) if self.depth is None else np.full(n, round(self.depth * last))
        values = rng.integers(self.symbols, size=n)
        inputs[rows, at], inputs[rows, at + 1], inputs[:, -1] = mark, values, mark
        targets[:, -1] = values
        return inputs, targets


@dataclass(frozen=True)
class StateTracking(Skill):
    """An answer after every token; last: only after the last one."""

    length: int = 32
    last: bool = False

    def tests(self) -> dict[str, Skill]:
        lengths = sorted({max(2, self.length // share) for share in (8, 4, 2, 1)})
        return {str(length): dataclasses.replace(self, length=length, last=True) for length in lengths}

    def make(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        inputs, states = self.walk(n, rng)
        if self.last:
            states[:, :-1] = IGNORE
        return inputs, states

    @abstractmethod
    def walk(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and the state after each of them, int64 [n, T] each."""


@dataclass(frozen=True)
class Parity(StateTracking):
    """Vocabulary: 0 and 1."""

    name = "parity"

    @property
    def vocab_size(self) -> int:
        return 2

    @property
    def chance(self) -> float:
        return 0.5

    def walk(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        bits = rng.integers(2, size=(n, self.length))
        return bits, np.cumsum(bits, axis=1) % 2


MOVES = np.array([[1, 2, 3, 4, 0], [1, 0, 2, 3, 4]])  # of the ball under each cup: a cycle and a swap


@dataclass(frozen=True)
class S5(StateTracking):
    """Vocabulary: five cups, two moves. The first token says under which cup the ball is, so its place is uniform."""

    name = "s5"

    @property
    def vocab_size(self) -> int:
        return 5 + len(MOVES)

    @property
    def chance(self) -> float:
        return 1 / 5

    def walk(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        moves = rng.integers(len(MOVES), size=(n, self.length - 1))
        states = np.empty((n, self.length), dtype=np.int64)
        states[:, 0] = rng.integers(5, size=n)
        for t in range(1, self.length):
            states[:, t] = MOVES[moves[:, t - 1], states[:, t - 1]]
        return np.concatenate([states[:, :1], 5 + moves], axis=1), states


@dataclass(frozen=True)
class Copying(Skill):
    """Vocabulary: `symbols` tokens, the mark. exact: all strings have `items` tokens, not one to `items`."""

    name = "copying"
    length: int = dataclasses.field(init=False, repr=False)
    items: int = 16
    symbols: int = 16
    exact: bool = False

    def __post_init__(self):
        object.__setattr__(self, "length", 2 * self.items)
        super().__post_init__()

    @property
    def longest(self) -> int:
        return self.length if self.exact else 4 * self.length

    @property
    def vocab_size(self) -> int:
        return self.symbols + 1

    @property
    def chance(self) -> float:
        return 1.0 / self.symbols

    def tests(self) -> dict[str, Skill]:
        return {f"{k}x": dataclasses.replace(self, items=k * self.items, exact=True) for k in (1, 2, 4)}

    def make(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        strings = rng.integers(self.symbols, size=(n, self.items))
        sizes = np.full((n, 1), self.items) if self.exact else rng.integers(1, self.items + 1, size=(n, 1))
        at = np.arange(self.length)  # the string at 0 to size - 1, the mark, the string again but for its last token
        source = np.where(at < sizes, at, at - sizes - 1)
        inside = (at != sizes) & (at < 2 * sizes)
        inputs = np.take_along_axis(strings, np.where(inside, source, 0), axis=1)
        inputs = np.where(inside, inputs, self.symbols)
        asked = (at >= sizes) & (at < 2 * sizes)
        targets = np.take_along_axis(strings, np.where(asked, at - sizes, 0), axis=1)
        return inputs, np.where(asked, targets, IGNORE)


def _distinct(n: int, symbols: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` different numbers below `symbols` in each of n rows, in random order, int64 [n, count]."""
    return rng.permuted(np.tile(np.arange(symbols), (n, 1)), axis=1)[:, :count]


SKILLS: dict[str, Skill] = {skill.name: skill for skill in (MQAR(), Needle(), Parity(), S5(), Copying())}
