"""The ladders that a search can learn a horizon from: one that is shipped for a recipe, or that of an earlier run.

A ladder file is what `star ladder RUN --json` prints; of it are read

    {"recipe": {...}, "tokenizer": name,
     "rows": [{"id": text, "genome": {...}, "tokens": times, "width": times, "bpb": number}, ...]}
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from star.config import PRESETS, RunConfig
from star.cost import costs as costs_of
from star.errors import UserError
from star.genome import Genome, from_json, to_json
from star.run import Run
from star.store.database import exists, read_meta
from star.surrogate.descriptors import describe
from star.surrogate.horizon import LEAST, Horizon, Step
from star.training.recipe import Recipe

BYTES = 256  # tokens of the vocabulary of bytes
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
    return {
        "recipe": dataclasses.asdict(run.config.training),
        "tokenizer": run.config.data.tokenizer,
        "corpus": run.corpus["name"],
        "rows": rows,
    }


def with_horizon(config: RunConfig, run: Path | None = None) -> tuple[RunConfig, str]:
    """The configuration with the objective that its horizon means, and a sentence on what it was learned from.

    run: if it exists, its horizon was learned when it began, and no ladder is read again. A preset's horizon is
    switched off, with a reason, where no shipped ladder fits the recipe. Raises UserError for a horizon that was
    asked for and cannot be had.
    """
    search, names = config.search, config.objectives.names
    if "bpb_horizon" in names and not search.horizon:
        raise UserError(
            "objectives.names holds bpb_horizon and there is no search.horizon; set it, such as --horizon 10"
        )
    if not search.horizon or not {"bpb", "bpb_horizon"} & set(names):
        return config.replace({"search.horizon": 0.0}) if search.horizon else config, ""
    if search.horizon <= 1:
        raise UserError(
            f"search.horizon is {search.horizon:g}; it must be above 1, in training budgets of the search, or 0"
        )
    if search.rungs:
        raise UserError("search.horizon and search.rungs exclude each other: set search.horizon=0 or search.rungs=")
    try:
        stored = read_meta(run).get("ladder") if run is not None and exists(run) else None
        steps = stored or steps_of(config)
    except UserError as error:
        if search.ladder or search.horizon != PRESETS.get(config.preset, {}).get("search.horizon"):
            raise
        reason = f"ranked by what is measured at the budget, because {error}"
        return config.replace({"search.horizon": 0.0}), reason
    changed = tuple("bpb_horizon" if name == "bpb" else name for name in names)
    return config.replace({"objectives.names": changed}), about(config, steps)


def about(config: RunConfig, steps: Sequence[dict], vocab_size: int = BYTES) -> str:
    """How well the horizon predicts, each genome of the ladder from all others."""
    horizon = make_horizon(steps, vocab_size, config.objectives.cache_tokens)
    assert horizon is not None
    error, times = horizon.error(), config.search.horizon
    return (
        f"ranked by the bits per byte predicted for {times:g} times the budget ({times * config.training.tokens:,.0f} "
        f"tokens), learned from {error['n']} genomes that were trained so long: rank correlation "
        f"{error['spearman']:.2f} [{error['spearman_low']:.2f}, {error['spearman_high']:.2f}], each predicted from the "
        f"others, {error['proxy_spearman']:.2f} by what is measured at the budget"
    )


def steps_of(config: RunConfig) -> list[dict]:
    """The steps from the budget of the search to `search.horizon` times it, as JSON; empty without a horizon.

    Raises UserError if there is no ladder for this recipe, or if it is too small or has no such budget.
    """
    times = config.search.horizon
    if not times:
        return []
    name = config.search.ladder or "the shipped ladder"
    found = _read(Path(config.search.ladder)) if config.search.ladder else _shipped(config)
    if wrong := differences(found, config):
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


_ADVICE = "star ladder makes one of a run with search.horizon=0; give that run as search.ladder"


def make_horizon(steps: Sequence[dict], vocab_size: int, cache_tokens: int) -> Horizon | None:
    """The horizon of a run from its stored steps; None if there are none."""
    if not steps:
        return None

    def described(genomes: Sequence[Genome]) -> tuple[np.ndarray, np.ndarray]:
        return describe(genomes, [costs_of(g, vocab_size=vocab_size, seq_len=cache_tokens) for g in genomes])

    return Horizon([Step(**step) for step in steps], described)


def differences(ladder: dict, config: RunConfig) -> list[tuple[str, object, object]]:
    """Settings in which a ladder and a search differ, and which decide about a ladder: (name, theirs, the search's)."""
    theirs, ours = dataclasses.asdict(Recipe()) | ladder["recipe"], dataclasses.asdict(config.training)
    found = [
        (key, theirs.get(key), ours[key])
        for key in ours
        if key not in FREE and _plain(theirs.get(key)) != _plain(ours[key])
    ]
    widths = {row["genome"]["d_model"] for row in ladder["rows"] if row["width"] == 1}
    if not set(config.space.d_models) <= widths:
        found.append(("width", ", ".join(map(str, sorted(widths))), ", ".join(map(str, config.space.d_models))))
    if config.data.tokenizer != ladder["tokenizer"]:
        found.append(("tokenizer", ladder["tokenizer"], config.data.tokenizer))
    return found


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _shipped(config: RunConfig) -> dict:
    ladders = [_read(path) for path in sorted(Path(__file__).parent.glob("ladder-*.json"))]
    if not ladders:
        raise UserError(f"no ladder is shipped; {_ADVICE}")
    near = min(ladders, key=lambda ladder: len(differences(ladder, config)))
    if wrong := differences(near, config):
        key, theirs, ours = wrong[0]
        raise UserError(f"no ladder is shipped for {key} {ours} (only for {theirs}); {_ADVICE}")
    return near


def _read(path: Path) -> dict:
    """A ladder from a run or a file. Raises UserError if it is none."""
    if path.is_dir() and exists(path):
        found = table_of(Run(path))
        if not found["rows"]:
            raise UserError(f"{path}: has no ladder; star ladder {path} makes one")
        return found
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
        for row in found["rows"]:
            from_json(row["genome"])
            float(row["bpb"]), float(row["tokens"]), float(row["width"]), str(row["id"])
        str(found["tokenizer"]), Recipe(**found["recipe"])
        return found
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give a run, or a file of star ladder --json"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is no ladder ({error}); give a run, or a file of star ladder --json") from None
