"""Variation that sees a genome as a sequence of LIVs: crossover between aligned parents, and changes of depth and
order.
"""

from collections.abc import Sequence

import numpy as np
from pymoo.core.crossover import Crossover
from pymoo.core.mutation import Mutation

from star.genome import Space

MATCH, MISMATCH, GAP = 1.0, -0.4, -0.5  # of the alignment; two gaps cost more than a mismatch, two matches repay them
GROUPS = (1, 3)  # positions in a LIV's segment that name a sharing group


def livs(space: Space, x: np.ndarray) -> list[np.ndarray]:
    """The segments of a vector that hold a LIV, in order."""
    return [x[segment].copy() for segment in space.segments if x[segment.start]]


def with_livs(space: Space, x: np.ndarray, rows: Sequence[np.ndarray]) -> np.ndarray:
    """The vector with these LIVs in its slots, from the first; what does not fit is cut off."""
    x = x.copy()
    for i, segment in enumerate(space.segments):
        x[segment] = rows[i] if i < len(rows) else 0
    return x


def align(a: Sequence[int], b: Sequence[int]) -> list[tuple[int | None, int | None]]:
    """A best global alignment of two class sequences (Needleman and Wunsch, 1970): columns (index in a, index in b)."""
    n, m = len(a), len(b)
    score = np.zeros((n + 1, m + 1))
    score[:, 0], score[0, :] = GAP * np.arange(n + 1), GAP * np.arange(m + 1)
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            pair = MATCH if a[i - 1] == b[j - 1] else MISMATCH
            score[i, j] = max(score[i - 1, j - 1] + pair, score[i - 1, j] + GAP, score[i, j - 1] + GAP)
    columns: list[tuple[int | None, int | None]] = []
    i, j = n, m
    while i or j:
        pair = MATCH if i and j and a[i - 1] == b[j - 1] else MISMATCH
        if i and j and score[i, j] == score[i - 1, j - 1] + pair:
            i, j = i - 1, j - 1
            columns.append((i, j))
        elif i and score[i, j] == score[i - 1, j] + GAP:
            i -= 1
            columns.append((i, None))
        else:
            j -= 1
            columns.append((None, j))
    return columns[::-1]


class AlignedCrossover(Crossover):
    """Two children that alternate between two parents at k cuts of their alignment, so that like LIVs change places
    with like.

    In parents of different depth, the same slot holds unrelated LIVs after the first insertion, and cuts by position
    tear what belongs together. Sharing links stay inside the part they came with: groups of the two parents never meet.
    """

    def __init__(self, space: Space, n_points: int, prob: float):
        super().__init__(n_parents=2, n_offsprings=2, prob=prob)
        self.space, self.n_points = space, n_points

    def _do(self, problem, X, *args, random_state=None, **kwargs):
        children = X.copy()  # [2, n_matings, n_var]
        for mating in range(X.shape[1]):
            children[:, mating] = self._cross(X[0, mating], X[1, mating], random_state)
        return children

    def _cross(self, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        a, b = livs(self.space, x), livs(self.space, y)
        columns = align([row[0] for row in a], [row[0] for row in b])
        k = min(self.n_points, max(1, len(columns) - 1))
        points = np.sort(rng.choice(np.arange(1, max(2, len(columns))), size=k, replace=False))
        sides = np.searchsorted(points, np.arange(len(columns)), side="right") % 2  # 0: from its own parent
        first: list[tuple] = []
        second: list[tuple] = []
        for (i, j), side in zip(columns, sides, strict=True):
            for child, swapped in ((first, side), (second, 1 - side)):
                if swapped and j is not None:
                    child.append((1, b[j]))
                elif not swapped and i is not None:
                    child.append((0, a[i]))
        head_x, head_y = (x, y) if rng.random() < 0.5 else (y, x)  # width and block scheme
        return np.stack(
            [with_livs(self.space, head, self._apart(child)) for head, child in ((head_x, first), (head_y, second))]
        )

    def _apart(self, rows: list[tuple[int, np.ndarray]]) -> list[np.ndarray]:
        """The LIVs with sharing groups renamed so that those of different parents differ; more than there are names: no
        group.
        """
        legal = [set(self.space.values[self.space.segments[0].start + g]) for g in GROUPS]
        names: list[dict[tuple[int, int], int]] = [{}, {}]
        result = []
        for parent, row in rows:
            row = row.copy()
            for g, known, allowed in zip(GROUPS, names, legal, strict=True):
                if row[g]:
                    name = known.setdefault((parent, int(row[g])), len(known) + 1)
                    row[g] = name if name in allowed else 0
            result.append(row)
        return result


class SlotMutation(Mutation):
    """Inserts, deletes or exchanges whole LIVs, each with a probability of its own per genome."""

    def __init__(self, space: Space, kind: str, probability: float):
        super().__init__()
        self.space, self.probability = space, probability
        self.change = {"insert": self.insert, "delete": self.delete, "swap": self.swap}[kind]

    def _do(self, problem, X, *args, random_state=None, **kwargs):
        X = X.copy()
        for i in np.flatnonzero(random_state.random(len(X)) < self.probability):
            X[i] = with_livs(self.space, X[i], self.change(livs(self.space, X[i]), random_state))
        return X

    def insert(self, rows: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
        """A LIV of any class, unshared, at any place, if a slot is free."""
        segment = self.space.segments[0]
        classes = [c for c in self.space.values[segment.start] if c]
        if len(rows) >= len(self.space.segments):
            return rows
        new = np.zeros(segment.stop - segment.start, dtype=np.int64)
        new[0] = rng.choice(classes)
        at = int(rng.integers(len(rows) + 1))
        return [*rows[:at], new, *rows[at:]]

    def delete(self, rows: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
        """Any LIV, if one stays and the space allows empty slots."""
        if len(rows) < 2 or 0 not in self.space.values[self.space.segments[0].start]:
            return rows
        at = int(rng.integers(len(rows)))
        return [*rows[:at], *rows[at + 1 :]]

    def swap(self, rows: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
        """Two LIVs change places."""
        if len(rows) < 2:
            return rows
        i, j = rng.choice(len(rows), size=2, replace=False)
        rows[i], rows[j] = rows[j], rows[i]
        return rows
