"""One candidate on its way: from a genome to a proposal, to a job for the engine, and from an outcome to the record."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from star.assess import load_objectives
from star.config import RunConfig
from star.cost import costs as costs_of
from star.engine import Outcome
from star.genome import Genome, to_json
from star.search import policy
from star.store import Proposal


class Candidates:
    """What all candidates of a run have in common."""

    def __init__(self, config: RunConfig, corpus: Mapping):
        self.config, self.corpus = config, corpus
        self.objectives = load_objectives(config.objectives.names)
        bounds = policy.constraint_names(config.objectives)
        cheap = [o for o in self.objectives if o.cheap] + [o for o in load_objectives(bounds or ("loss",)) if o.cheap]
        self.cheap = tuple({o.name: o for o in cheap}.values())

    def propose(self, genome: Genome, origin: str, **lineage) -> Proposal:
        """With the cheap objectives, which decide about the constraints before anything is trained."""
        costs = costs_of(genome, vocab_size=self.corpus["vocab_size"], seq_len=self.config.objectives.cache_tokens)
        values = {o.name: float(o.measure(costs)) for o in self.cheap}
        broken = {} if origin == "baseline" else policy.violations(values, self.config.objectives)
        return Proposal(genome.id, to_json(genome), origin, costs=values, violations=broken, **lineage)

    def job(self, proposal: Proposal, tries: Sequence[str], directory: Path) -> dict:
        """What `star.assess.evaluations` says a job is."""
        attempt = policy.attempt_number(tries)
        seed = policy.candidate_seed(self.config.seed, proposal.id, attempt)
        recipe = dataclasses.asdict(self.config.training) | {"seed": seed}
        recipe["batch_size"] = max(1, recipe["batch_size"] >> tries.count("oom"))  # the same tokens in smaller batches
        return {
            "id": proposal.id,
            "attempt": attempt,
            "seed": seed,
            "genome": proposal.genome,
            "costs": proposal.costs,
            "corpus": self.config.data.corpus,
            "fingerprint": self.corpus["fingerprint"],
            "recipe": recipe,
            "threads": self.config.engine.threads,
            "timeout": self.config.engine.timeout or None,
            "directory": str(directory.absolute()),
            "keep_weights": self.config.keep != "none",
        }

    def finish(self, proposal: Proposal, outcome: Outcome, tries: Sequence[str]) -> dict:
        """Data of the "finish" event."""
        status, reason = outcome.status, outcome.reason
        metrics = finite((outcome.result or {}).get("metrics") or {})
        objectives = self.measure(proposal, metrics) if status == "ok" else None
        if status == "ok" and objectives is None:
            status, reason = "diverged", "an objective is not finite"
        final = policy.settles(status, tries)
        if final and status == "lost":
            reason += f"; given up after {tries.count('lost') + 1} times"
        return {
            "id": proposal.id,
            "attempt": policy.attempt_number(tries),
            "status": status,
            "reason": reason,
            "traceback": outcome.traceback,
            "metrics": metrics,
            "objectives": objectives,
            "seconds": outcome.seconds,
            "worker": outcome.worker,
            "final": final,
        }

    def measure(self, proposal: Proposal, metrics: Mapping) -> dict[str, float] | None:
        """All objectives of a trained candidate; None if one of them is no finite number."""
        values = {o.name: proposal.costs[o.name] if o.cheap else o.measure(metrics) for o in self.objectives}
        good = all(isinstance(value, int | float) and math.isfinite(value) for value in values.values())
        return {name: float(value) for name, value in values.items()} if good else None


def infeasible(proposal: Proposal) -> dict:
    """Data of the "finish" event of a genome that is not trained because it breaks a bound."""
    broken = [f"{name} is {proposal.costs[name]:,.0f}" for name, by in proposal.violations.items() if by > 0]
    fields = {"id": proposal.id, "attempt": 0, "status": "infeasible", "reason": " and ".join(broken), "traceback": None}
    return fields | {"metrics": {}, "objectives": None, "seconds": 0.0, "worker": "", "final": True}


def finite(data):
    """JSON data with None for every number that is not finite: the record holds no NaN."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
