"""What can be tried, a finite pool of valid candidates at a few fidelities, and what has been seen.

An *action* is one candidate trained at one fidelity: number a = candidate * len(fidelities) + fidelity.
"""

from dataclasses import dataclass, field

import numpy as np

# What is changed about a member of the front: its recipe alone, or a local edit of its genome as well.
KINDS = ("recipe", "class swap", "repeat or expansion", "sharing", "heads or window", "depth or width")
LEAST_SHARE = 0.01  # of a full training: fidelity coordinate 0


def fidelity_coordinate(share: np.ndarray | float) -> np.ndarray:
    """A share of the full training's tokens as an input of the Gaussian process: 0.01 -> 0, 1 -> 1, logarithmic
    between.
    """
    return 1.0 - np.log(np.maximum(np.asarray(share, float), LEAST_SHARE)) / np.log(LEAST_SHARE)


@dataclass(frozen=True)
class Pool:
    """n candidates at k fidelities. What a caller does not know may be left out.

    The last fidelity is the full training (1.0); the one objective that is modelled, the loss, matters there alone.
    """

    # [n, d] inputs in [0, 1], or [n, k, d] where they depend on the fidelity (a learning rate relative to a rule for
    # its tokens)
    X: np.ndarray
    fidelities: tuple[float, ...] = (1.0,)  # shares of the full training's tokens, ascending
    cost: np.ndarray | None = None  # [n, k] in full trainings, or [n] of a full one; default: the fidelities
    exact: np.ndarray | None = None  # [n, m] the other objectives, scaled, smaller is better; default: none
    kind: np.ndarray | None = None  # [n] index into KINDS; default: recipe
    member: np.ndarray | None = None  # [n] index of the member of the front that it came from
    distance: np.ndarray | None = None  # [n] edits from that member
    inherits: np.ndarray | None = None  # [n] whether it starts from that member's weights
    open: np.ndarray | None = None  # [n, k] whether it may be tried: neither done, pending nor invalid
    n: int = field(init=False)

    def __post_init__(self):
        n, k = len(self.X), len(self.fidelities)
        if (
            list(self.fidelities) != sorted(set(self.fidelities))
            or self.fidelities[-1] != 1.0
            or self.fidelities[0] <= 0
        ):
            raise ValueError(f"fidelities must ascend to 1.0, not {self.fidelities}")
        shares = np.asarray(self.fidelities)
        cost = shares[None] * np.ones((n, 1)) if self.cost is None else np.asarray(self.cost, float)
        put = object.__setattr__  # once, in a frozen dataclass
        put(self, "n", n)
        X = np.asarray(self.X, float)
        put(self, "X", np.repeat(X[:, None], k, axis=1) if X.ndim == 2 else X)
        put(self, "cost", cost[:, None] * shares if cost.ndim == 1 else cost)
        put(self, "exact", np.zeros((n, 0)) if self.exact is None else np.asarray(self.exact, float))
        for name in ("kind", "member", "distance", "inherits"):
            value = getattr(self, name)
            put(self, name, np.zeros(n, int) if value is None else np.asarray(value))
        put(self, "open", np.ones((n, k), bool) if self.open is None else np.asarray(self.open, bool))
        if self.cost.shape != (n, k) or self.open.shape != (n, k) or not (self.cost > 0).all():
            raise ValueError("cost and open must be [candidates, fidelities], costs above 0")
        if self.X.shape[:2] != (n, k):
            raise ValueError(f"inputs must be [n, d] or [n, {k}, d], not {np.shape(self.X)}")

    @property
    def n_actions(self) -> int:
        return self.n * len(self.fidelities)

    def rows(self) -> np.ndarray:
        """Inputs of every action [n * k, d + 1]; the last column, the fidelity, is there only if there are several."""
        k = len(self.fidelities)
        flat = self.X.reshape(self.n * k, -1)
        return (
            flat if k == 1 else np.column_stack([flat, np.tile(fidelity_coordinate(np.array(self.fidelities)), self.n)])
        )

    def full(self) -> np.ndarray:
        """The actions [n] at full fidelity."""
        k = len(self.fidelities)
        return np.arange(self.n) * k + k - 1
