"""A free stand-in for training: a loss computed from the genome's hash and costs. For tests and engine benchmarks."""

import hashlib
import math

from star.engine.protocol import Report

LOSS_AT_START = 5.5  # of a learning curve, about a uniform guess over bytes
RANK_NOISE = 0.6  # how far the start of a curve may be from the value that its end suggests


def prepare(config) -> dict:
    """There is no corpus; the facts are those of a corpus of bytes."""
    return {"name": "none", "fingerprint": "", "vocab_size": 256, "baselines": {}}


def assess(job: dict, report: Report) -> dict:
    """The loss from the costs and the hash of the genome: larger models and caches tend to be better.

    At a rung, a point of a learning curve that ends at this loss, and whose beginning ranks genomes badly.
    """
    report({"step": 1, "steps": 1, "loss": final_loss(job)})
    total = job.get("recipe", {}).get("tokens", 0)
    stop = job.get("stop_tokens")
    share = 1.0 if stop is None or not total else min(1.0, stop / total)
    loss = loss_at(job, share)
    metrics = {"val_loss": loss, "bpb": loss / math.log(2), "tokens": round(share * total)}
    if job.get("tasks"):
        metrics["mad"] = uniform("tasks", job)
    metrics |= {name: uniform(name, job) for name in (job.get("skills") or {}).get("names", ())}
    return {"status": "ok", "metrics": metrics, "curve": []}


def final_loss(job: dict) -> float:
    """The loss of a genome at the end of training."""
    luck = int(job["id"], 16) / 16 ** len(job["id"])  # uniform in [0, 1)
    scale = sum(math.log10(1.0 + value) for value in job["costs"].values())
    return 4.0 - 0.1 * scale + 0.5 * luck


def loss_at(job: dict, share: float) -> float:
    """The loss after this share of the budget: a power law down to the final loss, plus an error that decays to 0."""
    left = share**-0.3 - 1.0  # 0 at the end
    error = 2.0 * uniform("early", job) - 1.0
    end = final_loss(job)
    return end + min(1.0, left) * (0.3 * (LOSS_AT_START - end) + RANK_NOISE * error)


def uniform(purpose: str, job: dict) -> float:
    """A number in [0, 1) from the hash of the genome and a purpose."""
    return int.from_bytes(hashlib.sha256(f"{purpose}/{job['id']}".encode()).digest()[:8], "big") / 2**64
