"""Six synthetic tasks, each of which tests one skill of a sequence model (MAD: Poli et al., 2024, arXiv 2403.17844).

    task = TASKS["recall"]
    inputs, targets = task.batch(32, np.random.default_rng(0))  # int64 [32, T] each; target -100: no answer expected

    recall        key value key value ...: return the value of every key seen before in the sequence; every sequence
                  has its own pairs
    fuzzy recall  recall with keys and values of one to `motif` tokens
    noisy recall  recall with pairs of noise tokens in between, to be ignored
    copying       repeat `items` tokens, scattered among noise, in their order after a marker
    compression   recover all of the random tokens from the state at the last position (star/assess/synthetic_tasks.py)
    memorisation  return the value of a key under a mapping that is the same in all sequences, so weights must store it

Every target is determined by the inputs before it (memorisation: by the mapping). The implementation and its sizes are
independent of MAD's.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from star.errors import UserError

IGNORE = -100


@dataclass(frozen=True)
class Task:
    """Settings of one task. Vocabulary: `symbols` keys or items, `symbols` values, `symbols` noise tokens, a marker."""

    name: str
    make: Callable[["Task", int, np.random.Generator], tuple[np.ndarray, np.ndarray]]
    length: int = 32
    symbols: int = 8
    noise: float = 0.0  # share of the pairs that are noise
    motif: int = 1  # maximum tokens of a key or a value
    items: int = 8  # tokens to copy
    mapping: int = 0  # random seed of the mapping to memorise

    def __post_init__(self):
        for name, low in (("length", 4), ("symbols", 2), ("motif", 1), ("items", 1)):
            if getattr(self, name) < low:
                raise UserError(f"task {self.name}: {name} is {getattr(self, name)}; it must be at least {low}")
        if not 0 <= self.noise <= 0.9:
            raise UserError(f"task {self.name}: noise is {self.noise}; it must be from 0 to 0.9")
        low = 2 * self.items + 1
        if self.make is _copying and self.length < low:
            raise UserError(
                f"task {self.name}: length is {self.length}; with {self.items} items it must be at least {low}"
            )

    @property
    def vocab_size(self) -> int:
        """Number of token ids, the marker included."""
        return 3 * self.symbols + 1

    @property
    def marker(self) -> int:
        """The id of the marker token."""
        return 3 * self.symbols

    @property
    def chance(self) -> float:
        """Accuracy of a guess among the tokens that can be an answer."""
        return 1.0 / self.symbols

    @property
    def from_last(self) -> bool:
        """Whether all targets are predicted from the state at the last position."""
        return self.make is _compression

    def batch(self, n: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, int64 [n, T] each, of n random sequences."""
        inputs, targets = self.make(self, n, rng)
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    def replace(self, **changes) -> "Task":
        """A copy with changed settings. Raises UserError for a value out of range."""
        return replace(self, **changes)


def _recall(task: Task, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    pairs, rows = task.length // 2, np.arange(n)
    values = task.symbols + rng.integers(task.symbols, size=(n, task.symbols))  # of each key
    inputs, targets = _empty(task, n)
    seen = np.zeros((n, task.symbols), bool)
    for i in range(pairs):
        key, noisy = rng.integers(task.symbols, size=n), rng.random(n) < task.noise
        value = values[rows, key]
        noise = 2 * task.symbols + rng.integers(task.symbols, size=(2, n))
        inputs[:, 2 * i], inputs[:, 2 * i + 1] = np.where(noisy, noise[0], key), np.where(noisy, noise[1], value)
        targets[:, 2 * i] = np.where(~noisy & seen[rows, key], value, IGNORE)
        seen[rows, key] |= ~noisy
    return inputs, targets


def _fuzzy(task: Task, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """No two keys of a sequence share a prefix, so the end of a key is unambiguous."""
    inputs, targets = _empty(task, n)
    for x, y in zip(inputs, targets, strict=True):
        keys = [[first, *rng.integers(task.symbols, size=rng.integers(task.motif))] for first in range(task.symbols)]
        values = [task.symbols + rng.integers(task.symbols, size=1 + rng.integers(task.motif)) for _ in keys]
        seen, at = set(), 0
        while True:
            pick = int(rng.integers(task.symbols))
            pair = [*keys[pick], *values[pick]]
            if at + len(pair) > task.length:
                break
            x[at : at + len(pair)] = pair
            if pick in seen:
                answer = at + len(keys[pick]) - 1  # at the last token of the key, the first of the value is predicted
                y[answer : answer + len(values[pick])] = values[pick]
            seen.add(pick)
            at += len(pair)
    return inputs, targets


def _copying(task: Task, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    inputs, targets = _empty(task, n)
    room = task.length - task.items
    inputs[:, :room] = 2 * task.symbols + rng.integers(task.symbols, size=(n, room))
    items = rng.integers(task.symbols, size=(n, task.items))
    places = np.sort(rng.permuted(np.tile(np.arange(room), (n, 1)), axis=1)[:, : task.items], axis=1)
    np.put_along_axis(inputs, places, items, axis=1)
    targets[:, room:] = items
    return inputs, targets


def _compression(task: Task, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    inputs, targets = _empty(task, n)
    inputs[:, :-1] = targets[:, :-1] = rng.integers(task.symbols, size=(n, task.length - 1))
    return inputs, targets


def _memorisation(task: Task, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    facts = task.symbols + np.random.default_rng([task.mapping, task.symbols]).integers(task.symbols, size=task.symbols)
    inputs, targets = _empty(task, n)
    keys = rng.integers(task.symbols, size=(n, task.length // 2))
    inputs[:, 0 : 2 * keys.shape[1] : 2] = keys
    targets[:, 1 : 2 * keys.shape[1] : 2] = facts[keys]
    return inputs, targets


def _empty(task: Task, n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((n, task.length), task.marker, dtype=np.int64), np.full((n, task.length), IGNORE, dtype=np.int64)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("recall", _recall, length=16, symbols=4),
        Task("fuzzy recall", _fuzzy, length=24, symbols=4, motif=2),
        Task("noisy recall", _recall, length=20, symbols=4, noise=0.2),
        Task("copying", _copying, length=24, items=4),
        Task("compression", _compression, length=8),
        Task("memorisation", _memorisation, length=16, symbols=512),
    )
}
