"""Results of related tasks (other members, cheaper rungs, the search's own trials) as observations of one contextual
process.

Losses of two tasks differ by an offset, which is taken out, and are alike in shape, which is what is transferred. How
alike is learnt: each source has an input of its own, 1 for its rows, whose length scale the fit decides. A source that
makes the target's leave-one-out predictions worse is dropped, unless it ranks them well: the first trials are often
good and alike, which a process that knows nothing else predicts to the last digit, without a notion of how bad others
may be.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, spearmanr

from star.surrogate.posterior import Observations, fit, winsorised

LEAST = 4  # target observations before a source can be judged
RANKS = 0.5  # rank correlation from which on a source is kept


@dataclass(frozen=True)
class Source:
    """Observations of a related task, rows [m, d] in the inputs of the target; with fidelities, the last column is the
    fidelity.
    """

    X: np.ndarray
    y: np.ndarray


def contextual(seen: Observations, sources: Sequence[Source], fidelity: bool) -> tuple[Observations, list[int]]:
    """Target and sources together, one context column before the fidelity for each source kept; and which were kept.

    Rows of a pool must be widened alike: `widen(rows, len(kept), fidelity)`.
    """
    kept = list(range(len(sources)))
    if len(seen.y) >= LEAST:
        alone = _left_out(seen, [], fidelity)
        kept = [
            i
            for i in kept
            if _left_out(seen, [sources[i]], fidelity) >= alone or _ranks(seen, sources[i], fidelity) >= RANKS
        ]
    return _joined(seen, [sources[i] for i in kept], fidelity), kept


def widen(rows: np.ndarray, n: int, fidelity: bool, which: int | None = None) -> np.ndarray:
    """Rows [m, d] with n context columns of 0, or of 1 in the one of source `which`."""
    context = np.zeros((len(rows), n))
    if which is not None:
        context[:, which] = 1.0
    return np.column_stack([rows[:, :-1], context, rows[:, -1:]]) if fidelity else np.column_stack([rows, context])


def _joined(seen: Observations, sources: Sequence[Source], fidelity: bool) -> Observations:
    """The target's rows first. Source losses are shifted so that the target's lie around what their own process
    predicts for them.
    """
    n = len(sources)
    X, y = [widen(seen.X, n, fidelity)], [seen.y]
    for i, source in enumerate(sources):
        expected, _ = fit(Observations(source.X, source.y), fidelity, samples=0).predict(seen.X)
        finite = np.isfinite(seen.y)
        told, _ = winsorised(seen.y)
        shift = float(np.median((told - expected)[finite])) if finite.any() else 0.0
        X.append(widen(source.X, n, fidelity, i))
        y.append(winsorised(source.y)[0] + shift)
    return Observations(np.vstack(X), np.concatenate(y), widen(seen.pending, n, fidelity), seen.seed_sd, n)


def _ranks(seen: Observations, source: Source, fidelity: bool) -> float:
    """Spearman's correlation of the target's observations with what the source alone expects of them."""
    expected, _ = fit(Observations(source.X, source.y), fidelity, samples=0).predict(seen.X)
    return float(spearmanr(winsorised(seen.y)[0], expected).statistic)


def _left_out(seen: Observations, sources: Sequence[Source], fidelity: bool) -> float:
    """Mean log predictive density of the target's observations, each left out."""
    mean, sd, truth = fit(_joined(seen, sources, fidelity) if sources else seen, fidelity, samples=0).leave_one_out()
    n = len(seen.y)
    return float(norm.logpdf(truth[:n], mean[:n], sd[:n]).mean())
