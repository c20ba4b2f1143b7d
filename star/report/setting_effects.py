"""Which settings of a refinement mattered: a regression, and importances from the Gaussian process that proposed them.

The trials are not a designed experiment: settings that looked good were tried more often, and together. A coefficient
is therefore an association among trials near the best, not an effect.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from scipy.stats import t as student

from star.refine.candidates import Seen, Setup
from star.refine.planner import Planner
from star.refined import Refined
from star.search.jobs import Candidates
from star.surrogate.posterior import Averaged

if TYPE_CHECKING:
    from star.run import Run

# A trial enters the regression if its loss is within so many nats of the best of its member and budget. The first
# limit that leaves enough trials is used.
NEAR = (0.15, 0.3, 0.6, np.inf)
SPARE = 8  # trials needed beyond the number of coefficients
COLLINEAR = 0.2  # share of a column that the earlier ones must leave unexplained: variance inflation of at most 25
SHUFFLES = 20
PLAIN = ("expected loss", "log2 parameters", "depth")  # descriptors in the regression


@dataclass(frozen=True)
class Coefficient:
    """Change of the loss in nats, with its standard error and 95 % interval (HC3).

    It belongs to a doubling of a setting, to a choice compared with the search's, or to one unit of a descriptor.
    """

    name: str
    effect: float
    se: float
    low: float
    high: float

    @property
    def matters(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Regression:
    """loss ~ settings + descriptors, on n trials within `near` nats of the best of their member and budget."""

    coefficients: tuple[Coefficient, ...]
    n: int
    near: float
    r2: float
    residual_sd: float


@dataclass(frozen=True)
class Importance:
    """Importance of one setting or descriptor in the Gaussian process.

    sensitivity: its share of the sum of 1 / length scale^2. permutation: root mean square change of the predicted mean,
    in nats, when its values are shuffled among the trials.
    """

    name: str
    sensitivity: float
    permutation: float


def planner_of(refined: Refined) -> Planner:
    """The planner that a refinement had, rebuilt from the record."""
    run = cast("Run", refined.run)
    evidence = [(id, loss) for id, loss in refined.state.evidence]
    known = {id: run.candidate(id).genome for id, _ in evidence}
    candidates = Candidates(run.config, run.corpus)
    return Planner(run.config, run.space, candidates, refined.settings, known, evidence, refined.state.earlier)


def everything_seen(refined: Refined, planner: Planner) -> list[Seen]:
    """All trials that have ended, as observations."""
    return planner.seen(refined.state, [trial for trial, result in refined.trials if result is not None])


def regression(refined: Refined, planner: Planner) -> Regression | None:
    """Regression of the loss on settings and descriptors; None if there are too few trials for it."""
    seen = [(s, s.loss) for s in everything_seen(refined, planner) if s.loss is not None and s.setup.member]
    best: dict[tuple[str, float], float] = {}
    for s, loss in seen:
        best[s.setup.member, s.share] = min(best.get((s.setup.member, s.share), np.inf), loss)
    for near in NEAR:
        rows = [(s, loss) for s, loss in seen if loss <= best[s.setup.member, s.share] + near]
        names, X = _design([s for s, _ in rows], planner)
        if len(rows) >= X.shape[1] + SPARE:
            y = np.array([loss for _, loss in rows])
            beta, cov, r2, sd = ols_hc3(X, y)
            quantile = float(student.ppf(0.975, len(y) - X.shape[1]))
            rows_of = zip(names, beta.tolist(), np.sqrt(np.diag(cov)).tolist(), strict=True)
            found = [Coefficient(name, b, se, b - quantile * se, b + quantile * se) for name, b, se in rows_of]
            return Regression(tuple(found[1:]), len(y), float(near), r2, sd)
    return None


def ols_hc3(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Least squares of y [n] on X [n, p] of full rank.

    Returns: coefficients [p], their HC3 covariance [p, p] (MacKinnon and White, 1985), R2, residual standard deviation.
    """
    inverse = np.linalg.inv(X.T @ X)
    beta = inverse @ X.T @ y
    residual = y - X @ beta
    leverage = np.einsum("ij,jk,ik->i", X, inverse, X)
    meat = X.T @ (X * (residual / np.maximum(1 - leverage, 1e-9))[:, None] ** 2)
    squares, total = (residual**2).sum(), ((y - y.mean()) ** 2).sum()
    r2 = 1 - squares / total if total > 0 else 0.0
    return beta, inverse @ meat @ inverse, float(r2), float(np.sqrt(squares / max(1, len(y) - X.shape[1])))


def _design(rows: Sequence[Seen], planner: Planner) -> tuple[list[str], np.ndarray]:
    """Names and columns of the inputs that vary and are not collinear with earlier ones; the constant first."""
    encoder = planner.encoder
    columns: list[tuple[str, np.ndarray]] = [("tokens, per doubling", np.log2([s.share for s in rows]))]
    for k, name in enumerate(encoder.columns):
        if name in PLAIN:
            unit = encoder.unit if name == "expected loss" else encoder.span[k - len(planner.recipes.columns)]
            columns.append((name, np.array([encoder.row(s.setup)[k] * unit for s in rows])))
    for d in planner.recipes.open:
        values = [s.setup.settings[d.name] for s in rows]
        if d.choices:
            columns += [(f"{d.name} {c}", np.array([float(v == c) for v in values])) for c in d.choices if c != d.base]
        elif d.off:
            columns.append((f"{d.name} on", np.array([float(v > 0) for v in values])))
        else:
            columns.append((f"{d.name}, per doubling", np.log2(np.array(values) / (d.base or d.low))))
    names, kept = ["constant"], np.ones((len(rows), 1))
    for name, column in columns:
        centered = column - column.mean()
        left = centered - kept @ np.linalg.lstsq(kept, centered, rcond=None)[0]
        if np.linalg.norm(left) > COLLINEAR * np.linalg.norm(centered) and np.ptp(column) > 1e-9:
            names.append(name)
            kept = np.column_stack([kept, centered])
    return names, kept


def importances(planner: Planner, posterior: Averaged, setups: Sequence[Setup], seed: int = 0) -> list[Importance]:
    """Importance of every setting and descriptor, the most important first. setups: all that were tried."""
    process = posterior.processes[0]
    columns, rows = planner.encoder.columns, planner.rows([(setup, 1.0) for setup in setups])
    groups: dict[str, list[int]] = {}
    for k, name in enumerate(columns):
        groups.setdefault(name.split("=")[0].removesuffix(" on"), []).append(k)
    moved = rows.std(axis=0)[: len(columns)] > 1e-9
    inverse = np.where(moved, np.exp(-2 * process.theta[: len(columns)]), 0.0)
    rng, found = np.random.default_rng(seed), []
    mean = process.marginals(rows)[0]
    for name, ks in groups.items():
        changes = []
        for _ in range(SHUFFLES if moved[ks].any() else 0):
            shuffled = rows.copy()
            shuffled[:, ks] = rows[rng.permutation(len(rows))][:, ks]
            changes.append(float(np.sqrt(((process.marginals(shuffled)[0] - mean) ** 2).mean())))
        sensitivity = float(inverse[ks].sum() / max(inverse.sum(), 1e-300))
        found.append(Importance(name, sensitivity, float(np.mean(changes)) if changes else 0.0))
    return sorted(found, key=lambda row: -row.permutation)
