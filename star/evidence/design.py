"""What a comparison of models will be, fixed and recorded before anything of it is trained.

    protocol(Run("runs/first"), members=("best", "knee"), baselines=("samba-hybrid",))

The arms are chosen members of the front, the best of the first population, the best of as many random genomes as the
search has trained, and all baselines. For each matching every arm is brought to the same size by its width
(`star.evidence.matching`) and trained on the same tokens, `budget` times those of the search. The learning rate of an
arm is the best of `rates`, by one training each at the first matching, on validation text; test text alone decides.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from star.candidate import Candidate
from star.errors import UserError
from star.evidence.matching import MATCHINGS, measure_of
from star.evidence.sampling import random_genomes
from star.genome import Genome, find_genome, from_json, layout_name, to_json
from star.run import Run
from star.search.region import within_region
from star.search.spaces import make_baselines

WIN = 0.005  # nats per byte that a difference must have to count
LEVEL = 0.01  # largest p of a difference that counts
RANDOM = "best random genome"
INITIAL = "best of the first population"


def protocol(
    run: Run,
    members: Sequence[str] = ("best", "knee"),
    baselines: Sequence[str] = (),
    matchings: Sequence[str] = tuple(MATCHINGS),
    at: str = "best",
    budget: float = 10.0,
    rates: Sequence[float] = (0.5, 1.0, 2.0),
    seeds: int = 3,
    headline: int = 5,
) -> dict:
    """The protocol as JSON, with an id that follows from all of it.

    members: ids of candidates, "best" or "knee". baselines: names or files, beside those of the run; NAME@LIVS for
        another depth than that of the space. at: the arm whose
    size the others are brought to, a member or a baseline. rates: times the recipe's. seeds: trainings of each arm;
    headline: at the first matching. Raises UserError for what cannot be compared.
    """
    _check(matchings, budget, rates, seeds, headline)
    quality = next(o for o in run.objectives if not o.cheap).name
    trained = [c for c in run.candidates() if c.objectives and c.origin != "baseline"]
    arms: dict[str, dict] = {}  # by genome: one that is two things is trained once

    def add(name: str, origin: str, genome: Genome) -> None:
        arms.setdefault(genome.id, {"name": name, "origin": origin, "genome": to_json(genome)})

    for id in members:
        member = run.candidate(id)
        if member.objectives is None:
            raise UserError(f"{run.path}:{member.id} ended as '{member.status}'; choose members that star front lists")
        add(member.id, "front", member.genome)
    first = [c for c in trained if c.generation == 0]
    add(INITIAL, "initial", _best(run, first, quality).genome)
    space = within_region(run.space, make_baselines(run.space, run.config), run.config, run.corpus["vocab_size"])
    for name, genome in make_baselines(run.space, run.config):
        add(layout_name(name), "baseline", genome)
    for name, genome in map(partial(_baseline, run), baselines):
        add(name, "baseline", genome)
    fields: dict = {
        "arms": list(arms.values()),
        "random": [to_json(genome) for genome in random_genomes(run, len(trained), space, stream=2)],
        "quality": quality,
        "at": _find(run, at, list(arms.values())),
        "budget": float(budget),
        "rates": sorted(float(rate) for rate in rates),
        "win": WIN * run.bits_per_nat * run.corpus.get("bytes_per_token", 1.0),
        "level": LEVEL,
    }
    reference = next(arm for arm in arms.values() if arm["name"] == fields["at"])
    fields["matchings"] = [
        {"name": name, "target": measure(run, name)(from_json(reference["genome"])), "seeds": seeds if k else headline}
        for k, name in enumerate(matchings)
    ]
    return {"id": hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]} | fields


def measure(run: Run, matching: str):
    """What a matching makes equal, at the vocabulary and the lengths of the run."""
    return measure_of(
        matching, run.corpus["vocab_size"], run.config.training.seq_len, run.config.objectives.cache_tokens
    )


def describe(protocol: dict, word: str = "tokens") -> list[str]:
    """The protocol in sentences."""
    names = ", ".join(arm["name"] for arm in protocol["arms"])
    seeds = ", ".join(f"{m['seeds']} at equal {m['name']}" for m in protocol["matchings"])
    rates = ", ".join(f"{rate:g}" for rate in protocol["rates"])
    return [
        f"arms: {names}, and the best of {len(protocol['random'])} random genomes of the space, trained and chosen as "
        "the search does",
        f"size: every arm is brought by its width to that of {protocol['at']}; {protocol['budget']:g} times the "
        f"search's {word}",
        f"learning rate: the best of {rates} times the recipe's for each arm, by validation text, one training each "
        f"at equal {protocol['matchings'][0]['name']}"
        if len(protocol["rates"]) > 1
        else "learning rate: the recipe's",
        f"seeds: {seeds}, the same for all arms; measured on test text, which decided nothing",
        f"a win is at least {protocol['win']:.4f} bits/byte at p < {protocol['level']:g} (paired by seed, variance "
        "pooled over the arms)",
    ]


def _baseline(run: Run, text: str) -> tuple[str, Genome]:
    """Name and genome of NAME or NAME@LIVS; without a depth, as deep as the space."""
    name, at, depth = text.partition("@")
    named = find_genome(name)
    genome = run.space.fit(named.genome)
    if at:
        if not depth.isascii() or not depth.isdigit() or int(depth) < 1:
            raise UserError(f"--baselines {text}: {depth!r} is no number of LIVs; write such as {name}@8")
        genome = replace(named.genome.scaled(d_model=genome.d_model, depth=int(depth)), head_dim=genome.head_dim)
    if not genome.fits:
        raise UserError(f"--baselines {text} does not fit a width of {genome.d_model}: {genome.misfit}; leave it out")
    return layout_name(named.name or name) + (f", {depth} LIVs" if at else ""), genome


def _best(run: Run, candidates: Sequence[Candidate], quality: str) -> Candidate:
    if not candidates:
        raise UserError(f"{run.path} has no trained candidate to compare; let the search go on: star evolve {run.path}")
    objective = next(o for o in run.objectives if o.name == quality)
    return min(candidates, key=lambda c: (objective.scaled(c.values[quality]), c.id))


def _find(run: Run, at: str, arms: Sequence[dict]) -> str:
    for arm in arms:
        if at in (arm["name"], "best" if arm is arms[0] else None):
            return arm["name"]
    near = [arm["name"] for arm in arms if arm["name"].startswith(at)]
    if len(near) != 1:
        names = ", ".join(arm["name"] for arm in arms)
        raise UserError(f"--at {at!r} is no arm of the comparison of {run.path}; choose one of {names}")
    return near[0]


def _check(matchings: Sequence[str], budget: float, rates: Sequence[float], seeds: int, headline: int) -> None:
    wrong = [name for name in matchings if name not in MATCHINGS]
    if wrong or not matchings:
        raise UserError(f"--match {', '.join(wrong) or '(none)'}: choose of {', '.join(MATCHINGS)}")
    if budget < 1:
        raise UserError(f"--budget {budget:g}: must be at least 1, in training budgets of the search")
    if not rates or min(rates) <= 0:
        raise UserError("--rates must be numbers above 0, in learning rates of the recipe, such as 0.5,1,2")
    if min(seeds, headline) < 2:
        raise UserError(f"--seeds {min(seeds, headline)}: a difference needs at least two trainings of each arm")
