"""What follows from an outcome: another attempt or not, which seed, and what the algorithm is told."""

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

from star.assess import Objective
from star.assess.constraints import bounds, measured_bounds, measured_violations
from star.config import ObjectivesConfig
from star.search.algorithm import Told
from star.store import Proposal, Result, Rung

# Attempts beyond the first. Diverging, running out of time or of memory (training has halved its micro-batch by then)
# are results of the genome and are never repeated; an exception may be bad luck; a lost worker is no fault of the
# genome.
RETRIES = {"failed": 1, "lost": 3}


def settles(status: str, tries: Sequence[str]) -> bool:
    """Whether an attempt that ended so settles its candidate, given how earlier attempts ended."""
    return list(tries).count(status) >= RETRIES.get(status, 0)


def attempt_number(tries: Sequence[str]) -> int:
    """Lost attempts do not count: repeated with the same seed, they give what they would have given."""
    return sum(status != "lost" for status in tries)


def candidate_seed(run_seed: int, id: str, attempt: int) -> int:
    """From the genome, not from its place in the queue: order of arrival changes nothing. 63 bits."""
    digest = hashlib.sha256(f"{run_seed}/{id}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def constraint_names(config: ObjectivesConfig) -> tuple[str, ...]:
    """Bounded objectives in the order of `Told.G`: those known before training, then those measured by it."""
    measured = measured_bounds(config)
    return tuple(name for name in bounds(config) if name not in measured) + tuple(measured)


def violations(costs: Mapping[str, float], config: ObjectivesConfig) -> dict[str, float]:
    """How far beyond each bound that is known before training, in units of the bound (pymoo adds them up); broken where
    above 0.
    """
    measured = measured_bounds(config)
    return {name: costs[name] / bound - 1.0 for name, bound in bounds(config).items() if name not in measured}


def promoted(
    waiting: Sequence[str],
    peers: Sequence[str],
    F: Mapping[str, Sequence[float]],
    share: float,
    gains: Mapping[str, float] | None = None,
) -> list[str]:
    """Those of `waiting` that are among the best `share` of waiting and peers at this rung; at least one of a full
    pool.

    F: scaled objectives of all that ever reached the rung. Best: largest expected gain by the surrogate (`gains` of
    waiting and peers); without one, by non-dominated rank among all of F, then least crowded (Deb et al., 2002), so
    that a generation is also judged by what went before.
    """
    if gains is not None:
        pool = sorted({*waiting, *peers}, key=lambda id: (-gains[id], id))
        best = set(pool[: math.ceil(share * len(pool))])
        return [id for id in waiting if id in best]
    from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    ids = list(F)
    values = np.array([F[id] for id in ids], dtype=float)
    key: dict[str, tuple[float, float, str]] = {}
    for rank, members in enumerate(NonDominatedSorting().do(values)):
        crowding = calc_crowding_distance(values[members])
        key |= {ids[i]: (rank, -distance, ids[i]) for i, distance in zip(members, crowding, strict=True)}
    pool = sorted({*waiting, *peers}, key=key.__getitem__)
    best = set(pool[: math.ceil(share * len(pool))])
    return [id for id in waiting if id in best]


def told(
    proposals: Sequence[Proposal],
    results: Mapping[str, Result],
    rungs: Mapping[str, Sequence[Rung]],
    objectives: Sequence[Objective],
    config: ObjectivesConfig,
) -> list[Told]:
    """Results as numbers, in the order of the proposals.

    pymoo needs finite numbers. An objective that was not measured gets the worst value of this batch, which decides
    nothing because the genome is reported as infeasible. So is a genome that was stopped at a rung, the less the
    further it came: losses of different budgets are never compared.
    """
    scaled = [_scaled(proposal, results[proposal.id], objectives) for proposal in proposals]
    columns = [[row[k] for row in scaled] for k in range(len(objectives))]
    worst = [max((value for value in column if value is not None), default=0.0) for column in columns]
    batch = []
    for proposal, row in zip(proposals, scaled, strict=True):
        result = results[proposal.id]
        F = tuple(worst[k] if value is None else value for k, value in enumerate(row))
        fidelity = result.metrics.get("fidelity", 1.0) if result.status in ("ok", "stopped") else 0.0
        short = 0.0 if result.status in ("ok", "infeasible") else 1.0 - fidelity
        broken = (*proposal.violations.values(), *measured_violations(result.metrics, config).values())
        reached = tuple(scaled_objectives(rung, objectives) for rung in rungs.get(proposal.id, ()))
        batch.append(Told(proposal.id, F, (*broken, short), fidelity, reached))
    return batch


def scaled_objectives(rung: Rung, objectives: Sequence[Objective]) -> tuple[float, ...]:
    """Scaled objectives at a rung."""
    return tuple(objective.scaled(rung.objectives[objective.name]) for objective in objectives)


def _scaled(proposal: Proposal, result: Result, objectives: Sequence[Objective]) -> list[float | None]:
    """By objective; of a stopped candidate, its measurement at the rung."""
    measured = (
        {o.name: o.measure(result.metrics) for o in objectives if not o.cheap} if result.status == "stopped" else {}
    )
    values = result.objectives or {**proposal.costs, **measured}
    return [objective.scaled(values[objective.name]) if objective.name in values else None for objective in objectives]
