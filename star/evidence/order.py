"""Does the order of a search hold at larger budgets, and who gains or loses places with more tokens?

ladder = Ladder(Run("runs/first"))
ladder.correlations()        # of the search's order with each rung's, with 95 % intervals
ladder.smallest()            # the smallest budget whose order holds at the largest one
ladder.families()            # which kinds of operator gain or lose places with more tokens
"""

import numpy as np
from scipy.special import stdtrit

from star.genome import Genome, from_json
from star.liv import FAMILIES
from star.run import Run
from star.surrogate.calibration import correlation

HOLDS = 0.9  # rank correlation from which an order counts as holding
Rung = tuple[float, float]  # tokens and width, times those of the search


class Ladder:
    """What the ladder of a run says. rungs: those that were trained, the search's own first.

    values: of each rung, by id: the quality by which the search ranks at its own rung, bits per byte at all others.
    """

    def __init__(self, run: Run):
        self.run = run
        self.quality = next(o for o in run.objectives if not o.cheap)
        self.values: dict[Rung, dict[str, float]] = {}
        self.measured: dict[str, float] = {}  # bits per byte at the budget of the search, by id
        self.genomes: dict[str, Genome] = {}
        self.origins: dict[str, str] = {}
        rows = run.ladder()
        searched = {c.id: c for c in run.candidates() if c.objectives}
        for row in rows:
            self.genomes[row["id"]] = from_json(row["genome"])
            self.origins[row["id"]] = row["origin"]
        base = {id: searched[id].values[self.quality.name] for id in self.genomes if id in searched}
        if rows:
            self.values[1.0, 1.0] = base
        self.measured = {id: searched[id].metrics["bpb"] for id in base if "bpb" in searched[id].metrics}
        for row in rows:
            rung = row["tokens"], row["width"]
            if row["bpb"] is not None and rung == (1.0, 1.0):
                base[row["id"]] = row["objectives"][self.quality.name]
                self.measured[row["id"]] = row["bpb"]
            elif row["bpb"] is not None:
                self.values.setdefault(rung, {})[row["id"]] = row["bpb"]
        front = {c.id for c in run.front(searched=True)}
        self.front = {id for id in self.genomes if id in front or self.origins[id] == "baseline"}
        self.rungs: list[Rung] = sorted(self.values, key=lambda rung: (rung[1], rung[0]))

    @property
    def budgets(self) -> list[float]:
        """Of the rungs of the search's width, rising."""
        return [tokens for tokens, width in self.rungs if width == 1]

    def correlation(self, a: Rung, b: Rung, among: set[str] | None = None) -> dict[str, float | None]:
        """Spearman's correlation of the orders at two rungs: n, spearman, spearman_low, spearman_high."""
        ids = sorted(
            self.values[a].keys() & self.values[b].keys() & (among if among is not None else set(self.genomes))
        )
        x, y = (np.array([self.values[rung][id] for id in ids]) for rung in (a, b))
        return {"n": len(ids)} | correlation("spearman", x, y)

    def correlations(self) -> list[dict]:
        """One row for each rung above the search's: tokens, width, and `correlation` with the search's order.

        Also under "front", among members of the front and baselines alone; and under "measured", of the order by the
        bits per byte that were measured, where the search ranks by predicted ones.
        """
        base = (1.0, 1.0)
        return [
            {"tokens": rung[0], "width": rung[1]}
            | self.correlation(base, rung)
            | {"front": self.correlation(base, rung, self.front), "measured": self._measured(rung)}
            for rung in self.rungs
            if rung != base
        ]

    def _measured(self, rung: Rung) -> dict[str, float | None] | None:
        if self.measured == self.values[1.0, 1.0]:
            return None
        ids = sorted(self.measured.keys() & self.values[rung].keys())
        x, y = (np.array([values[id] for id in ids]) for values in (self.measured, self.values[rung]))
        return {"n": len(ids)} | correlation("spearman", x, y)

    def smallest(self, holds: float = HOLDS) -> float | None:
        """The smallest budget whose order correlates with that of the largest by at least `holds`; None if none."""
        *lower, top = self.budgets or [1.0]
        for budget in lower:
            found = self.correlation((budget, 1.0), (top, 1.0))["spearman"]
            if found is not None and found >= holds:
                return budget
        return None

    def families(self) -> list[dict]:
        """Places that a genome made of one family alone gains from the search's budget to the largest one.

        By least squares of the gained places on the share of each family among the LIVs: family, gain, low, high (95 %
        intervals). Only families that occur in at least three genomes; empty with fewer than twice as many genomes.
        """
        if len(self.budgets) < 2:
            return []
        ids = sorted(self.values[1.0, 1.0].keys() & self.values[self.budgets[-1], 1.0].keys())
        before, after = (
            np.argsort(np.argsort([self.values[rung][id] for id in ids]))
            for rung in ((1.0, 1.0), (self.budgets[-1], 1.0))
        )
        shares = {family: np.array([_share(self.genomes[id], family) for id in ids]) for family in sorted(FAMILIES)}
        names = [family for family, share in shares.items() if (share > 0).sum() >= 3]
        if len(ids) < 2 * len(names) + 2 or not names:
            return []
        X = np.column_stack([shares[family] for family in names])
        gain = (before - after).astype(float)
        solution, _, rank, _ = np.linalg.lstsq(X, gain, rcond=None)
        degrees = len(ids) - rank
        variance = ((gain - X @ solution) ** 2).sum() / degrees
        errors = np.sqrt(np.maximum(np.diag(np.linalg.pinv(X.T @ X)) * variance, 0.0)) * float(stdtrit(degrees, 0.975))
        return [
            {"family": name, "gain": float(g), "low": float(g - e), "high": float(g + e)}
            for name, g, e in sorted(zip(names, solution, errors, strict=True), key=lambda row: -row[1])
        ]


def _share(genome: Genome, family: str) -> float:
    """Share of a family among the LIVs of a genome."""
    genes = [gene for gene in genome.backbone if gene.class_id]
    return sum(genome.operator(gene).family == family for gene in genes) / len(genes)
