"""One candidate on its way: from a genome to a proposal, to a job for the engine, and from an outcome to the record."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from star.assess import load_objectives
from star.assess.constraints import measured_bounds, measured_violations, skills_of, tasks_tokens
from star.config import RunConfig
from star.cost import costs as costs_of
from star.engine import Outcome
from star.genome import Genome, from_json, to_json
from star.search import outcomes
from star.search.ladders import make_horizon
from star.store import Proposal, Rung

LADDER_SEED = 1 << 20  # number of the repeat whose seed a ladder uses; star rescore counts from 0

SKILL_SEED = 2 << 20  # number of the repeat from which on the seeds of star capabilities count


class Candidates:
    """What all candidates of a run have in common."""

    def __init__(self, config: RunConfig, corpus: Mapping):
        self.config, self.corpus = config, corpus
        self.objectives = load_objectives(config.objectives.names)
        self.horizon = make_horizon(
            corpus.get("ladder", ()), corpus.get("vocab_size", 0), config.objectives.cache_tokens
        )
        bounds = outcomes.constraint_names(config.objectives)
        cheap = [o for o in (*self.objectives, *load_objectives(bounds or ("loss",))) if o.cheap]
        self.cheap = tuple({o.name: o for o in cheap}.values())

    def propose(self, genome: Genome, origin: str, **lineage) -> Proposal:
        """With the cheap objectives, which decide about the constraints before anything is trained."""
        values = self.costs(genome)
        broken = {} if origin == "baseline" else outcomes.violations(values, self.config.objectives)
        return Proposal(genome.id, to_json(genome), origin, costs=values, violations=broken, **lineage)

    def costs(self, genome: Genome) -> dict[str, float]:
        """Costs of a genome at the run's vocabulary and cache length."""
        costs = costs_of(genome, vocab_size=self.corpus["vocab_size"], seq_len=self.config.objectives.cache_tokens)
        return {o.name: float(o.measure(costs)) for o in self.cheap}

    def job(self, proposal: Proposal, tries: Sequence[str], stage: int, directory: Path) -> dict:
        """What `star.assess.evaluations` says a job is. stage: the rung to train up to; the number of rungs: to the
        end.
        """
        attempt = outcomes.attempt_number(tries)
        rungs = () if proposal.origin == "baseline" else self.config.search.rungs
        tokens = self.config.training.tokens
        seed = outcomes.candidate_seed(self.config.seed, proposal.id, attempt)
        recipe = dataclasses.asdict(self.config.training) | {"seed": seed}
        return {
            "id": proposal.id,
            "attempt": attempt,
            "seed": seed,
            "genome": proposal.genome,
            "costs": proposal.costs,
            "corpus": self.config.data.corpus,
            "tokenizer": self.config.data.tokenizer,
            "fingerprint": self.corpus["fingerprint"],
            "recipe": recipe,
            "rung": stage,
            "stop_tokens": max(1, round(rungs[stage] * tokens)) if stage < len(rungs) else None,
            "checkpoint": str(directory.absolute() / f"checkpoint-{attempt}.safetensors") if rungs else None,
            "tasks": tasks_tokens(self.config.objectives),
            "skills": skills_of(self.config.objectives),
            "threads": self.config.engine.threads,
            "timeout": self.config.engine.timeout or None,
            "directory": str(directory.absolute()),
            "keep_weights": self.config.keep != "none",
            "alone": bool(tries),
        }

    def repeat(self, proposal: Proposal, repeat: int) -> dict:
        """The job that measures a settled candidate once more: another seed, the whole budget, nothing kept."""
        seed = outcomes.candidate_seed(self.config.seed, proposal.id, -1 - repeat)  # attempts count from 0 upwards
        job = self.job(proposal, (), len(self.config.search.rungs), Path())
        recipe = job["recipe"] | {"seed": seed}
        fresh = {"attempt": -1 - repeat, "seed": seed, "recipe": recipe}
        return job | fresh | {"stop_tokens": None, "checkpoint": None, "directory": None, "keep_weights": False}

    def larger(self, proposal: Proposal, times: float) -> dict:
        """The job that trains a genome on `times` the budget of the run; nothing is kept.

        Its seed is a new one: that of the search may have been lucky.
        """
        job = self.repeat(proposal, LADDER_SEED)
        recipe = job["recipe"] | {"tokens": round(times * self.config.training.tokens)}
        return job | {"recipe": recipe, "timeout": job["timeout"] and job["timeout"] * max(1.0, times)}

    def compared(self, proposal: Proposal, times: float, rate: float, number: int, test: bool) -> dict:
        """The job of a comparison: as `larger`, with `rate` times the learning rate and seed number `number`.

        All genomes have the same seed under one number, so that they see the same batches. test: whether the model is
        then measured on the test text too.
        """
        seed = outcomes.candidate_seed(self.config.seed, "comparison", number)
        job = self.larger(proposal, times)
        recipe = job["recipe"] | {"seed": seed, "learning_rate": rate * self.config.training.learning_rate}
        return job | {"seed": seed, "recipe": recipe, "test": test}

    def again(self, proposal: Proposal, outcome: Outcome) -> dict:
        """What the record keeps of a candidate that was trained once more: status, reason, objectives, metrics, ..."""
        metrics = finite((outcome.result or {}).get("metrics") or {})
        objectives = self.measure(proposal, metrics) if outcome.status == "ok" else None
        return {
            "status": outcome.status if objectives or outcome.status != "ok" else "diverged",
            "reason": outcome.reason,
            "objectives": objectives,
            "metrics": metrics,
            "seconds": outcome.seconds,
            "worker": outcome.worker,
        }

    def examined(self, outcome: Outcome) -> dict:
        """What the record keeps of a measurement of a capability: status, reason, metrics, seconds, worker."""
        status, metrics = outcome.status, finite((outcome.result or {}).get("metrics") or {})
        reason = outcome.reason
        if status == "ok" and None in metrics.values():
            status, reason = "diverged", "a score is not finite"
        seconds = {"seconds": outcome.seconds, "worker": outcome.worker}
        return {"status": status, "reason": reason, "metrics": metrics} | seconds

    def ended(self, proposal: Proposal, outcome: Outcome, tries: Sequence[str], stage: int) -> tuple[str, dict]:
        """The event that an outcome is: "rung" if it trained well up to a rung, else "finish"."""
        status, reason = outcome.status, outcome.reason
        metrics = finite((outcome.result or {}).get("metrics") or {})
        objectives = self.measure(proposal, metrics) if status == "ok" else None
        if status == "ok" and objectives is None:
            status, reason = "diverged", "an objective is not finite"
        broken = (
            {k: by for k, by in measured_violations(metrics, self.config.objectives).items() if by > 0}
            if status == "ok"
            else {}
        )
        if broken and proposal.origin != "baseline":
            limits = measured_bounds(self.config.objectives)
            status = "infeasible"
            reason = " and ".join(
                f"{name} is {(objectives or {}).get(name, limits[name] * (1 + by)):.3g}, above {limits[name]:g}"
                for name, by in broken.items()
            )
            objectives = None
        facts = {
            "id": proposal.id,
            "attempt": outcomes.attempt_number(tries),
            "metrics": metrics,
            "objectives": objectives,
        }
        facts |= {"seconds": outcome.seconds, "worker": outcome.worker}
        rungs = () if proposal.origin == "baseline" else self.config.search.rungs
        if status == "ok" and stage < len(rungs):
            return "rung", facts | {"rung": stage}
        final = outcomes.settles(status, tries)
        if final and status == "lost":
            reason += f"; given up after {tries.count('lost') + 1} times"
        return "finish", facts | {"status": status, "reason": reason, "traceback": outcome.traceback, "final": final}

    def stop(self, proposal: Proposal, rung: Rung) -> dict:
        """Data of the "finish" event of a candidate that is not promoted from a rung."""
        share = self.config.search.rungs[rung.rung]
        reason = f"not among the best {self.config.search.promote:.0%} after {share:.0%} of the training budget"
        fields = {"id": proposal.id, "attempt": rung.attempt, "status": "stopped", "reason": reason, "traceback": None}
        metrics = rung.metrics | {"fidelity": share}
        return fields | {"metrics": metrics, "objectives": None, "seconds": 0.0, "worker": rung.worker, "final": True}

    def foresee(self, proposal: Proposal, metrics: dict) -> None:
        """Add what the horizon predicts to the metrics of a trained candidate, if the run has a horizon."""
        if self.horizon is not None and isinstance(metrics.get("bpb"), float):
            (mean,), (sd,) = self.horizon.predict([from_json(proposal.genome)], [metrics["bpb"]])
            metrics |= {"bpb_horizon": float(mean), "bpb_horizon_se": float(sd)}

    def measure(self, proposal: Proposal, metrics: dict) -> dict[str, float] | None:
        """All objectives of a trained candidate; None if one of them is no finite number. Predictions join the metrics.

        Training may have found shorter attention windows, and then the candidate is what it has become.
        """
        self.foresee(proposal, metrics)
        edited = (metrics.get("sparsity") or {}).get("genome")
        costs = proposal.costs if edited is None else self.costs(from_json(edited))
        values = {o.name: costs[o.name] if o.cheap else o.measure(metrics) for o in self.objectives}
        good = all(isinstance(value, int | float) and math.isfinite(value) for value in values.values())
        return {name: float(value) for name, value in values.items()} if good else None


def infeasible(proposal: Proposal) -> dict:
    """Data of the "finish" event of a genome that is not trained because it breaks a bound."""
    broken = [f"{name} is {proposal.costs[name]:,.0f}" for name, by in proposal.violations.items() if by > 0]
    fields = {
        "id": proposal.id,
        "attempt": 0,
        "status": "infeasible",
        "reason": " and ".join(broken),
        "traceback": None,
    }
    return fields | {"metrics": {}, "objectives": None, "seconds": 0.0, "worker": "", "final": True}


def finite(data):
    """JSON data with None for every number that is not finite: the record holds no NaN."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
