"""Which offspring of a search are worth training, by a model of the objectives that need training.

Many offspring are proposed for each one that is trained. Those with the highest expected gain in hypervolume are chosen
(`star.surrogate.acquisition.expected_gain`). Cheap objectives are exact, so only the others are uncertain.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from star.assess import Objective, load_objectives
from star.assess.pareto import non_dominated
from star.config import RunConfig
from star.cost import costs as costs_of
from star.genome import Genome
from star.surrogate.acquisition import expected_gain
from star.surrogate.descriptors import describe
from star.surrogate.gaussian_process import GaussianProcess, fit

LEAST = 8  # finished trainings before predictions are used
MOST = 400  # results that are fitted: the latest, and the front
EXPLORE = 0.1  # share of candidates chosen at random, to try what the model misjudges

Describe = Callable[[Sequence], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Genomes -> inputs [n, p], group of each input [p], scaled objectives [n, m], NaN where training is needed."""


class Surrogate:
    """Gaussian processes over the results so far, one for each objective that needs training."""

    def __init__(self, objectives: Sequence[Objective], describe: Describe):
        self.modelled = [k for k, objective in enumerate(objectives) if not objective.cheap]
        self.names = [objective.name for objective in objectives]
        self.describe = describe
        self.seen = len(self.names)  # a gain counts in the first `seen` objectives
        self.X: list[np.ndarray] = []
        self.F: list[np.ndarray] = []
        self.groups = np.zeros(0, int)
        self.models: dict[int, GaussianProcess] = {}
        self.curves: dict[int, Curves] = {}  # by rung
        self.stopped: list[tuple[int, np.ndarray, np.ndarray]] = []  # rung, inputs, values there
        self.fresh = False  # whether the models are fitted to all results

    def tell(
        self, genomes: Sequence, F: np.ndarray, good: np.ndarray, rungs: Sequence[Sequence[Sequence[float]]] = ()
    ) -> None:
        """Add results F [n, m], scaled. good [n]: whether trained to the end and within all bounds.

        rungs: for each genome, the objectives [r, m] at the rungs that it reached. A candidate that was stopped at a
        rung counts with its predicted final value, according to those that continued. Other failures are ignored.
        """
        if not len(genomes):
            return
        X, self.groups, _ = self.describe(genomes)
        for i, (x, f, ok) in enumerate(zip(X, np.asarray(F, float), good, strict=True)):
            reached = [np.asarray(row, float) for row in rungs[i]] if i < len(rungs) else []
            if ok:
                self.X.append(x)
                self.F.append(f)
                for rung, at in enumerate(reached):
                    self.curves.setdefault(rung, Curves(self.modelled)).add(x, at, f)
            elif reached:
                self.stopped.append((len(reached) - 1, x, reached[-1]))
        self.fresh = False

    @property
    def ready(self) -> bool:
        """Whether there are enough results to fit a model."""
        return len(self.X) >= LEAST and bool(self.modelled) and self.modelled[0] < self.seen

    def predict(self, genomes: Sequence) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """Scaled objectives [n, m], means if they are modelled, and the covariance [n, n] of each modelled one."""
        self._fit()
        X, _, F = self.describe(genomes)
        covariances = {}
        for k, model in self.models.items():
            F[:, k], covariances[k], _ = model.joint(X)
        return F, covariances

    def choose(
        self, genomes: Sequence, n: int, rng: np.random.Generator
    ) -> tuple[list[int], list[dict[str, list[float]]]]:
        """Indices of n genomes to train, and a prediction for each: {objective: [mean, sd]}, scaled, noise included."""
        F, covariances = self.predict(genomes)
        low, span, front = self._front()
        points, first = (F[:, : self.seen] - low) / span, self.modelled[0]
        covariance = covariances[first] / span[first] ** 2
        open, chosen = np.ones(len(genomes), bool), []
        for draw in rng.random(n):
            if draw < EXPLORE:
                pick = int(rng.choice(np.flatnonzero(open)))
            else:
                sd = np.sqrt(np.maximum(np.diag(covariance), 1e-12))
                gain = np.where(open, expected_gain(points, sd, first, front), -1.0)
                # If no genome is expected to gain anything, the most uncertain one
                pick = int(gain.argmax()) if gain.max() > 1e-12 else int(np.where(open, sd, -1.0).argmax())
            chosen.append(pick)
            open[pick] = False
            front = _non_dominated(np.vstack([front, points[pick]]))  # assumes the predicted result (Kriging believer)
            column = covariance[:, pick]
            covariance = covariance - np.outer(column, column) / (column[pick] + 1e-9)
        predictions = []
        for i in chosen:
            sds = {k: math.sqrt(max(covariances[k][i, i], 0.0) + self.models[k].noise) for k in self.modelled}
            predictions.append({self.names[k]: [float(F[i, k]), sds[k]] for k in self.modelled})
        return chosen, predictions

    def promising(self, genomes: Sequence, F: np.ndarray, rung: int) -> np.ndarray | None:
        """Expected gain [n] of training to the end, given objectives F [n, m] at a rung; None with too few results."""
        curves = self.curves.get(rung)
        if curves is None or not curves.ready or not self.ready:
            return None
        X, groups, exact = self.describe(genomes)
        mean, sd = curves.predict(X, F, groups)
        points, first = np.where(np.isnan(exact), mean, exact)[:, : self.seen], self.modelled[0]
        low, span, front = self._front()
        return expected_gain((points - low) / span, sd[:, first] / span[first], first, front)

    def _front(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lowest value and range [m] of the results so far, and their front [k, m] in these units."""
        F = np.array(self.F)[:, : self.seen]
        low, high = F.min(axis=0), F.max(axis=0)
        span = np.where(high > low, high - low, 1.0)
        return low, span, (_non_dominated(F) - low) / span

    def _fit(self) -> None:
        if self.fresh:
            return
        X, F = np.array(self.X), np.array(self.F)
        for rung, curves in self.curves.items():
            mine = [(x, f) for at, x, f in self.stopped if at == rung]
            if mine and curves.ready:
                inputs, values = (np.array(part) for part in zip(*mine, strict=True))
                X, F = np.vstack([X, inputs]), np.vstack([F, curves.predict(inputs, values, self.groups)[0]])
        if len(X) > MOST:
            on_front = np.flatnonzero(non_dominated(F))
            keep = sorted({*on_front[-MOST // 2 :], *range(len(X) - MOST // 2, len(X))})
            X, F = X[keep], F[keep]
        for k in self.modelled:
            start = self.models[k].theta if k in self.models else None
            self.models[k] = fit(X, _winsorised(F[:, k]), self.groups, start)
        self.fresh = True


class Curves:
    """Predicts the final objectives of a candidate from those at one rung, which is an input of the process."""

    def __init__(self, modelled: Sequence[int]):
        self.modelled = modelled
        self.X: list[np.ndarray] = []
        self.at: list[np.ndarray] = []
        self.end: list[np.ndarray] = []
        self.models: dict[int, GaussianProcess] | None = None

    def add(self, x: np.ndarray, at: np.ndarray, end: np.ndarray) -> None:
        """Add one candidate: inputs x [p], objectives at the rung [m] and at the end [m]."""
        self.X.append(x)
        self.at.append(at)
        self.end.append(end)
        self.models = None

    @property
    def ready(self) -> bool:
        """Whether there are enough candidates to fit a model."""
        return len(self.X) >= LEAST

    def predict(self, X: np.ndarray, at: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and sd [n, m] at the end, given inputs X [n, p] and objectives `at` [n, m] at the rung.

        The process models the change from the rung to the end, which is similar for most candidates. Objectives that
        are not modelled keep their value, with sd 0.
        """
        wider = np.append(groups, groups.max() + 1)
        if self.models is None:
            known, ends = np.array(self.at), np.array(self.end)
            inputs = np.array(self.X)
            self.models = {
                k: fit(np.column_stack([inputs, known[:, k]]), ends[:, k] - known[:, k], wider) for k in self.modelled
            }
        mean, sd = np.array(at, float), np.zeros(np.shape(at))
        for k, model in self.models.items():
            change, covariance, noise = model.joint(np.column_stack([X, mean[:, k]]))
            mean[:, k] += change
            sd[:, k] = np.sqrt(np.maximum(np.diag(covariance), 0.0) + noise)
        return mean, sd


def make_surrogate(config: RunConfig, vocab_size: int) -> Surrogate | None:
    """The surrogate of a search over genomes; None unless screening is on and an objective needs training."""
    objectives = load_objectives(config.objectives.names)
    if config.search.screen <= 1 or all(objective.cheap for objective in objectives):
        return None

    def describe_genomes(genomes: Sequence[Genome]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        costs = [costs_of(genome, vocab_size=vocab_size, seq_len=config.objectives.cache_tokens) for genome in genomes]
        F = [[o.scaled(o.measure(cost)) if o.cheap else np.nan for o in objectives] for cost in costs]
        return *describe(genomes, costs), np.array(F, dtype=float)

    return Surrogate(objectives, describe_genomes)


def _non_dominated(F: np.ndarray) -> np.ndarray:
    return np.unique(F[non_dominated(F)], axis=0)


def _winsorised(y: np.ndarray) -> np.ndarray:
    """y [n] with values far above the rest reduced: one training that nearly diverged must not distort the fit."""
    middle = np.median(y)
    return np.minimum(y, middle + 4.0 * max(middle - np.quantile(y, 0.1), 1e-9))
