"""Ways to measure a candidate: each file here is known by its name and defines two functions.

    prepare(config) -> {"name", "fingerprint", "vocab_size", "baselines"}      once, in the coordinator
    assess(job, report) -> result                                              for each candidate, where an engine runs
        it

    job    {"id", "attempt", "seed", "genome": JSON, "costs": {cheap objective: value}, "corpus", "fingerprint",
            "recipe": {...}, "threads", "timeout": seconds or None, "directory": path or None, "keep_weights",
            of a run with rungs "rung": number, "stop_tokens": int or None for the whole budget, "checkpoint": path or
            None} if synthetic tasks are asked for "tasks": tokens to train on for each
    report called with {"step", "steps", "tokens", "loss", "val_loss", "tokens_per_second", "eta"}
    result {"status": "ok" | "diverged" | "timeout", "reason", "metrics": {name: number}, "curve": [point, ...]}

metrics["tokens"] counts all tokens trained so far, those of earlier rungs included. A result may have further keys;
they are not recorded.
"""

import importlib
import pkgutil
from types import ModuleType

from star.errors import UserError


def load_evaluation(name: str) -> ModuleType:
    """Raises UserError for an unknown name. `module.__name__ + ":assess"` is what an engine runs."""
    legal = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in legal:
        raise UserError(f"evaluation is {name!r}; it must be one of {', '.join(legal)}")
    return importlib.import_module(f"{__name__}.{name}")
