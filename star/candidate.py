"""A candidate: one genome of a run with its results, for readers of runs."""

from dataclasses import dataclass, field

from star.genome import Genome, from_json
from star.training.recipe import Recipe


@dataclass(frozen=True)
class Measured:
    """A noisy objective of one candidate in its own unit: the mean of n trainings. fresh: none decided about it.

    low, high: 95 % interval of the mean, from the noise between seeds; None while that is unknown. se: standard error
    (of the scaled objective); while the noise is unknown that of the evaluation alone, and nan if that is unknown too.
    """

    mean: float
    se: float
    n: int
    fresh: bool
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Candidate:
    """One genome of a run with its results.

    origin: "initial", "seed", "offspring" or "baseline". name: of a baseline or seed. parents: ids of candidates.
    operators: what changed it ("crossover", "mutation"). repaired: whether variation had made it invalid.
    status: "pending", "running", or how it ended: "ok", "infeasible", "stopped" (not promoted from a rung), "oom",
        "diverged", "timeout", "failed", "lost".
    objectives: by name, None unless ok. measured: how well each of the noisy ones is known.
    metrics: val_loss_se, tokens, seconds, tokens_per_second, peak_memory, ...
    costs: exact, from the plan. order: place in the order of completion, None until then.
    A refined candidate has origin "refined" and its member as parent; recipe: its own, None: the recipe of
    the run.
    """

    id: str
    genome: Genome
    generation: int
    origin: str
    name: str | None
    parents: list[str]
    operators: list[str]
    repaired: bool
    status: str
    reason: str = ""
    objectives: dict[str, float] | None = None
    metrics: dict = field(default_factory=dict)
    costs: dict = field(default_factory=dict)
    order: int | None = None
    traceback: str | None = None
    recipe: Recipe | None = None
    measured: dict[str, Measured] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, float]:
        """The objectives of a candidate that ended ok. Raises ValueError for any other."""
        if self.objectives is None:
            raise ValueError(f"candidate {self.id} ended as '{self.status}' and has no objectives")
        return self.objectives

    @property
    def trained_genome(self) -> Genome:
        """The genome that its weights belong to, with the windows that sparsification found, if it was used."""
        edited = (self.metrics.get("sparsity") or {}).get("genome")
        return self.genome if edited is None else from_json(edited)
