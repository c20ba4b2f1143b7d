"""Upper bounds on objectives: which are checked before training, and by how much a trained candidate breaks the others.

A bound is a setting `objectives.max_NAME` above 0. A bound on a cheap objective is checked before training. One on a
measured objective (`max_mad`) can be checked only afterwards, so a candidate that breaks it costs a training.
"""

from collections.abc import Mapping
from dataclasses import fields

from star.assess.objectives import load_objectives
from star.config import ObjectivesConfig

SKILLS = ("mqar", "needle", "parity", "s5", "copying", "extrapolation")  # see star.assess.skill_tests


def bounds(config: ObjectivesConfig) -> dict[str, float]:
    """{objective: upper bound}, in the order of the settings."""
    names = [
        f.name.removeprefix("max_") for f in fields(config) if f.name.startswith("max_") and getattr(config, f.name)
    ]
    return {name: float(getattr(config, f"max_{name}")) for name in names}


def measured_bounds(config: ObjectivesConfig) -> dict[str, float]:
    """{objective: upper bound} of the bounds that can be checked only after training."""
    found = bounds(config)
    return {
        o.name: found[o.name] for o in load_objectives(tuple(found) or ("loss",)) if not o.cheap and o.name in found
    }


def measured_violations(metrics: Mapping[str, float], config: ObjectivesConfig) -> dict[str, float]:
    """{objective: value / bound - 1} for each of `measured_bounds`; above 0 the bound is broken.

    0 if nothing was measured: a candidate that failed is infeasible anyway.
    """
    limits = measured_bounds(config)
    values = {o.name: o.measure(metrics) for o in load_objectives(tuple(limits) or ("loss",)) if o.name in limits}
    return {name: values[name] / limit - 1.0 if _measured(values[name]) else 0.0 for name, limit in limits.items()}


def tasks_tokens(config: ObjectivesConfig) -> int | None:
    """Training tokens for each synthetic task (job["tasks"]); None unless an objective or bound needs them."""
    return config.mad_tokens if "mad" in config.names or config.max_mad else None


def skills_of(config: ObjectivesConfig) -> dict | None:
    """The capabilities that an objective or bound needs (job["skills"]): their names, and training tokens for each."""
    names = [name for name in SKILLS if name in config.names or getattr(config, f"max_{name}")]
    return {"names": names, "tokens": config.skill_tokens} if names else None


def _measured(value: object) -> bool:
    return isinstance(value, int | float) and value == value
