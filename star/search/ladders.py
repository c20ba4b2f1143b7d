"""The ladders that a search can learn a horizon from: one that is shipped for a recipe, or that of an earlier run.

A ladder file is what `star ladder RUN --json` prints; of it are read

    {"recipe": {...}, "corpus": name, "rows": [{"genome": {...}, "tokens": times, "width": times, "bpb": number}, ...]}
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from star.config import RunConfig
from star.cost import costs as costs_of
from star.errors import UserError
from star.genome import Genome, from_json, to_json
from star.run import Run
from star.store.database import exists
from star.surrogate.descriptors import describe
from star.surrogate.horizon import LEAST, Horizon, Step
from star.training.recipe import Recipe

# Settings of a recipe that change nothing about what is learned, or nothing that a ladder depends on
FREE = {"seed", "device", "compile", "dtype", "eval_interval"}


def table_of(run: Run) -> dict:
    """The ladder of a run as a file has it. Rows with width 1 and tokens 1 are the search's own results."""
    rows, ladder = [], [row for row in run.ladder() if row["status"] == "ok"]
    climbed = {row["id"] for row in ladder}
    for c in run.candidates():
        if c.id in climbed and c.objectives and "bpb" in c.metrics:
            rows.append({"id": c.id, "genome": to_json(c.genome), "tokens": 1.0, "width": 1.0, "bpb": c.metrics["bpb"]})
    for row in ladder:
        facts = {key: row[key] for key in ("id", "genome", "tokens", "width")}
        rows.append(facts | {"bpb": row["bpb"]})
    return {"recipe": dataclasses.asdict(run.config.training), "corpus": run.corpus["name"], "rows": rows}


def steps_of(config: RunConfig) -> list[dict]:
    """The steps from the budget of the search to `search.horizon` times it, as JSON; empty without a horizon.

    Raises UserError if there is no ladder for this recipe, or if it is too small or has no such budget.
    """
    times = config.search.horizon
    if not times:
        return []
    if times <= 1:
        raise UserError(f"search.horizon is {times:g}; it must be above 1, in training budgets of the search, or 0")
    if config.search.rungs:
        raise UserError(
            "search.horizon and search.rungs exclude each other: a horizon is predicted from whole trainings"
        )
    source = config.search.ladder
    found = _read(Path(source)) if source else _shipped(config.training)
    name = source or "the shipped ladder"
    wrong = differences(Recipe(**found["recipe"]), config.training)
    if wrong:
        key, theirs, ours = wrong[0]
        raise UserError(f"{name}: was trained with {key} {theirs} and this search has {ours}; {_ADVICE}")
    near, far = ({r["id"]: r for r in found["rows"] if r["width"] == 1 and r["tokens"] == t} for t in (1.0, times))
    both = [id for id in near if id in far]
    if len(both) < LEAST:
        budgets = sorted({f"{r['tokens']:g}" for r in found["rows"] if r["width"] == 1 and r["tokens"] != 1})
        raise UserError(
            f"{name}: has {len(both)} genomes at {times:g} times the budget and a horizon needs {LEAST}; it has the "
            f"budgets {', '.join(budgets) or '(none)'}; {_ADVICE}"
        )
    return [{"genome": near[id]["genome"], "near": near[id]["bpb"], "far": far[id]["bpb"]} for id in both]


_ADVICE = "make one: star ladder on a run with this recipe, and give that run as search.ladder"


def make_horizon(steps: Sequence[dict], vocab_size: int, cache_tokens: int) -> Horizon | None:
    """The horizon of a run from its stored steps; None if there are none."""
    if not steps:
        return None

    def described(genomes: Sequence[Genome]) -> tuple[np.ndarray, np.ndarray]:
        return describe(genomes, [costs_of(g, vocab_size=vocab_size, seq_len=cache_tokens) for g in genomes])

    return Horizon([Step(**step) for step in steps], described)


def differences(a: Recipe, b: Recipe) -> list[tuple[str, object, object]]:
    """Settings in which two recipes differ that a ladder depends on."""
    pairs = zip(dataclasses.asdict(a).items(), dataclasses.asdict(b).values(), strict=True)
    return [(key, x, y) for (key, x), y in pairs if key not in FREE and x != y]


def _shipped(recipe: Recipe) -> dict:
    for path in sorted(Path(__file__).parent.glob("ladder-*.json")):
        found = _read(path)
        if not differences(Recipe(**found["recipe"]), recipe):
            return found
    raise UserError(f"no ladder is shipped for this recipe, so search.horizon cannot be used; {_ADVICE}")


def _read(path: Path) -> dict:
    """A ladder from a run or a file. Raises UserError if it is none."""
    if exists(path):
        found = table_of(Run(path))
        if not found["rows"]:
            raise UserError(f"{path}: has no ladder; star ladder {path} makes one")
        return found
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
        for row in found["rows"]:
            from_json(row["genome"])
            float(row["bpb"]), float(row["tokens"]), float(row["width"]), str(row["id"])
        Recipe(**found["recipe"])
        return found
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give a run, or a file of star ladder --json"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is no ladder ({error}); give a run, or a file of star ladder --json") from None
