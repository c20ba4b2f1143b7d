"""Ways to measure a candidate: each file here is known by its name and defines two functions.

    prepare(config) -> {"name", "fingerprint", "vocab_size", "baselines"}     once, in the coordinator
    assess(job, report) -> result                                             for each candidate, in a worker; it may
                                                                              be a generator that returns the result

    job    {"id", "attempt", "seed", "genome": JSON, "costs": {cheap objective: value}, "corpus", "fingerprint",
            "recipe": {...}, "threads", "timeout": seconds or None, "directory": path or None, "keep_weights"};
            with rungs also "rung": number, "stop_tokens": int or None (whole budget), "checkpoint": path or None;
            with MAD's tasks also "tasks": training tokens for each; with capabilities also "skills": their "names", and
            "tokens" for each; "alone": whether it must not share a
            worker; "side_by_side", if it does: the number of jobs that share one
    report called with {"step", "steps", "tokens", "loss", "val_loss", "tokens_per_second", "eta"}
    result {"status": "ok" | "diverged" | "timeout", "reason", "metrics": {name: number}, "curve": [point, ...]}

metrics["tokens"] counts all training tokens so far, including earlier rungs. A result may have further keys, which are
not recorded.
"""

import importlib
import pkgutil
from types import ModuleType

from star.errors import UserError


def load_evaluation(name: str) -> ModuleType:
    """The module of an evaluation; an engine runs `module.__name__ + ":assess"`. Raises UserError if it is unknown."""
    legal = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in legal:
        raise UserError(f"evaluation is {name!r}; it must be one of {', '.join(legal)}")
    return importlib.import_module(f"{__name__}.{name}")
