"""A free stand-in for training: a loss computed from the genome's hash and costs. For tests and engine benchmarks."""

import math

from star.engine.protocol import Report


def prepare(config) -> dict:
    return {"name": "none", "fingerprint": "", "vocab_size": 256, "baselines": {}}


def assess(job: dict, report: Report) -> dict:
    """Larger models and caches are better on the whole; the hash of the genome decides between equals."""
    luck = int(job["id"], 16) / 16 ** len(job["id"])  # uniform in [0, 1)
    scale = sum(math.log10(1.0 + value) for value in job["costs"].values())
    report({"step": 1, "steps": 1, "loss": luck})
    return {"status": "ok", "metrics": {"val_loss": 4.0 - 0.1 * scale + 0.5 * luck, "tokens": 0}, "curve": []}
