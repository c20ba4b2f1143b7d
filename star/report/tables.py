"""A run as text: its front, its progress, and its front as data for programs."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from star.assess import QUALITY
from star.assess.noise import rescored
from star.genome import layout_name, to_json
from star.report.ladder_report import ladder_lines
from star.report.listing import Column, Listing
from star.report.units import (
    baseline_name,
    format_count,
    format_measured,
    format_objective,
    format_seconds,
    format_value,
    heading,
    plural,
)
from star.search.ladders import about

if TYPE_CHECKING:
    from star.assess import Objective
    from star.run import Candidate, Run

MOST_FAILURES = 10  # that are listed


def front_table(run: Run) -> Listing:
    """The front, lowest loss first, and the baselines below it; `front_notes` says what its numbers are."""
    rescored, members = run.rescored, run.front()
    measured = not rescored and any(run.fresh(c.id) for c in members)
    noisy = [o for o in run.objectives if not o.cheap]
    columns = [Column("id"), *objective_columns(run.objectives)]
    columns += [Column(f"{o.name}, fresh\nseeds (number)", right=True) for o in noisy if measured]
    columns += [Column("seeds", right=True, spare=2)] if rescored else []
    listing = Listing(
        *columns, Column("generation", right=True, spare=1), Column("genome", spare=3, fill=True, cut=True)
    )
    knee = run.knee().id if members else None

    def add(c: Candidate, name: str, generation: str, genome: str, **look: Any) -> None:
        cells = [format_objective(o, c) for o in run.objectives]
        again = run.as_measured(c).measured
        if measured:
            cells += [f"{format_measured(o, m)} ({m.n})" if (m := again[o.name]).fresh else "" for o in noisy]
        seeds = [str(max((m.n for m in c.measured.values()), default=1))] if rescored else []
        listing.add(name, *cells, *seeds, generation, genome, **look)

    for c in members:
        style = {"style": "bold"} if c.id == knee else {}
        add(c, f"{c.id} knee" if style else c.id, str(c.generation or "initial"), _classes(c), **style)
    listing.section()
    for c in run.candidates("baseline"):
        if c.objectives:
            sized = any(o.name == "parameters" for o in run.objectives)
            name = layout_name(c.name or c.id) if sized else baseline_name(run, c)
            add(run.as_measured(c) if rescored else c, c.id, "baseline", name, style="dim", whole=True)
    return listing


def front_notes(run: Run) -> list[str]:
    """What the noisy numbers of `front_table` are, in sentences."""
    members, noisy = run.front(searched=True), [o.name for o in run.objectives if not o.cheap]
    if not noisy or not members:
        return []
    names = " and ".join(noisy)
    if any(run.noise.values()):
        error = "[95 % interval, from the noise between seeds]"
    else:
        kind = "prediction" if "bpb_horizon" in noisy else "evaluation alone, on the same text for all"
        error = f"+- standard error of the {kind}"
    if run.rescored:
        stay = len(run.front())
        return [f"{names}: mean of fresh seeds {error}; {stay} of the search's {len(members)} members are still on it"]
    again = sum(bool(run.fresh(c.id)) for c in members)
    partly = f"; {again} of {len(members)} have them" if again else ""
    return [
        f"{names}: one seed, the one that the search chose by, {error}",
        f"star rescore {run.path} measures all members with fresh seeds, and the front is then by these{partly}",
    ]


def objective_columns(objectives: Sequence[Objective]) -> list[Column]:
    """A column for each objective; all but the first may be left out."""
    heads = [heading(objective).replace(" ", "\n") for objective in objectives]
    return [Column(head, right=True, spare=4 if n else 0) for n, head in enumerate(heads)]


def _classes(candidate: Candidate) -> str:
    """Class of each LIV, repeats counted: SA-1 GMemless(x2)."""
    runs = ((name, len(list(equal))) for name, equal in itertools.groupby(candidate.genome.class_names))
    return " ".join(name if count == 1 else f"{name}(x{count})" for name, count in runs)


def rescore_rows(run: Run) -> list[dict]:
    """Every candidate that was measured with fresh seeds, the best fresh value of the first objective first.

    id; seeds: fresh trainings that ended well; failed: trainings of `star rescore` that did not. By objective: searched
    (in the search), fresh (mean over fresh seeds), se and interval (of that mean, 95 %; None if the noise is unknown),
    change (fresh minus searched), luck (the same, scaled: above 0 if the search's seed was lucky). on_front: whether it
    is on the search's front; if so, non_dominated and probability: whether it is among the front by fresh values, and
    how probable that is given the noise (otherwise None).
    """
    objectives, front = run.objectives, run.front(searched=True)
    members = {c.id for c in front}
    chosen = front + [c for c in run.candidates() if c.objectives and c.id not in members]
    noisy = {k: o for k, o in enumerate(objectives) if not o.cheap}
    fresh = {  # index in `chosen` -> index of objective -> scaled values
        i: {k: [o.scaled(row[o.name]) for row in good] for k, o in noisy.items()}
        for i, c in enumerate(chosen)
        if (good := run.fresh(c.id))
    }
    scaled = np.array([[o.scaled(c.values[o.name]) for o in objectives] for c in front])
    sd = {k: noise.sd for k, o in noisy.items() if (noise := run.noise[o.name]) is not None}
    among = rescored(scaled, {i: v for i, v in fresh.items() if i < len(front)}, sd) if front else []
    rows = []
    for i in fresh:
        searched, again = chosen[i], run.as_measured(chosen[i])
        row: dict[str, Any] = {"id": searched.id, "seeds": len(run.fresh(searched.id))}
        row["failed"] = sum(not repeat["objectives"] for repeat in run.repeats().get(searched.id, ()))
        row |= {"searched": dict(searched.values), "fresh": dict(again.values)}
        row |= {"se": {}, "interval": {}, "change": {}, "luck": {}}
        for o in noisy.values():
            measured, was = again.measured[o.name], searched.values[o.name]
            row["se"][o.name] = None if measured.low is None else measured.se
            row["interval"][o.name] = None if measured.low is None else [measured.low, measured.high]
            row["change"][o.name] = measured.mean - was
            row["luck"][o.name] = o.scaled(measured.mean) - o.scaled(was)
        row |= {"on_front": i < len(front)}
        row |= {key: getattr(among[i], key) if i < len(front) else None for key in ("non_dominated", "probability")}
        rows.append(row)
    first = objectives[0]
    return sorted(rows, key=lambda row: first.scaled(row["fresh"][first.name]))


def rescore_table(run: Run) -> tuple[Listing, list[str]]:
    """`rescore_rows` as a table, and a summary in sentences."""
    rows = rescore_rows(run)
    noises = {o: run.noise[o.name] for o in run.objectives if not o.cheap}
    known = any(noises.values())  # without noise, intervals and probabilities say nothing
    columns = [Column("id")]
    for o in noises:
        columns += [Column(f"{o.name} in\nthe search", right=True), Column("fresh seeds", right=True)]
        columns += [Column("change", right=True)]
    columns += [Column("seeds", right=True), Column("on the\nfront", right=True)]
    listing = Listing(*columns, Column("prob-\nability", right=True, spare=1))
    for row in rows:
        c, cells = run.candidate(row["id"]), []
        for o in noises:
            again = format_measured(o, run.as_measured(c).measured[o.name])
            cells += [format_value(o, row["searched"][o.name]), again, f"{round(row['change'][o.name], 3) + 0.0:+.3f}"]
        stays = {True: "yes", False: "no", None: ""}[row["non_dominated"]]
        probability = f"{row['probability']:.2f}" if known and row["probability"] is not None else ""
        listing.add(c.id, *cells, str(row["seeds"]), stays, probability)
    lines = []
    for o, noise in noises.items():
        if noise:
            lines.append(
                f"noise of {o.name} between seeds: sd {noise.sd:.4f} (95 % interval {noise.low:.4f} to "
                f"{noise.high:.4f}, {noise.degrees} degrees of freedom), the error of one measurement in the search"
            )
        elif rows:
            lines.append(f"noise of {o.name} between seeds: unknown; star rescore {run.path} --seeds 2 measures it")
        if lucks := [row["luck"][o.name] for row in rows if row["on_front"]]:
            change = float(np.mean(lucks))
            text = f"{abs(change):.4f} {o.unit} {'worse' if change > 0 else 'better'}"
            lines.append(f"with fresh seeds the front is {text} on average than in the search")
    failed = sum(row["failed"] for row in rows)
    lines += [f"{plural(failed, 'training')} failed"] if failed else []
    if rows and not run.rescored:
        lines.append(f"star front {run.path} shows the search's values until all members have fresh seeds")
    return listing, lines


def front_rows(run: Run, members: list[Candidate] | None = None, baselines: bool = False) -> list[dict]:
    """The front, or `members`, for programs.

    id, name (of a baseline), origin, generation, knee (whether it is the knee), genome (as in a genome file),
    objectives in their units, searched (the same in the search; None of a refined one), and measured, by noisy
    objective: mean, se, n (seeds), fresh (whether none decided about it), low and high (95 %), None if unknown.
    A refined member also has its recipe. baselines: add them at the end.
    """
    rows = []
    knee = run.knee().id if run.front() else None
    for c in _listed(run, members, baselines):
        row: dict[str, Any] = {
            "id": c.id,
            "name": c.name,
            "origin": c.origin,
            "generation": c.generation,
            "knee": c.id == knee,
        }
        searched = None if c.recipe else dict(run.candidate(c.id).values)
        row |= {"genome": to_json(c.genome), "objectives": dict(c.values), "searched": searched}
        row["measured"] = plain({name: dataclasses.asdict(m) for name, m in c.measured.items()})
        rows.append(row | ({"recipe": dataclasses.asdict(c.recipe)} if c.recipe else {}))
    return rows


def front_csv(run: Run, members: list[Candidate] | None = None, baselines: bool = False) -> str:
    """The front, or `members`, as CSV: id, generation, one column per objective, genome text; then by noisy objective
    its se, low and high (95 %) and seeds, empty if unknown. baselines: add them at the end, with that generation.
    """
    out = io.StringIO()
    names = [objective.name for objective in run.objectives]
    noisy = [o.name for o in run.objectives if not o.cheap]
    writer = csv.writer(out, lineterminator="\n")
    errors = [f"{name}_{key}" for name in noisy for key in ("se", "low", "high", "seeds")]
    writer.writerow(["id", "generation", *names, "genome", *errors])
    for c in _listed(run, members, baselines):
        found = [c.measured[name] for name in noisy]
        errors = [value for m in found for value in plain((m.se, m.low, m.high, m.n))]
        generation = "baseline" if c.origin == "baseline" else c.generation
        writer.writerow([c.id, generation, *(c.values[name] for name in names), c.genome.text, *errors])
    return out.getvalue()


def _listed(run: Run, members: list[Candidate] | None, baselines: bool) -> list[Candidate]:
    found = run.front() if members is None else members
    added = [c for c in run.candidates("baseline") if c.objectives] if baselines else []
    return found + [run.as_measured(c) if run.rescored or members is not None else c for c in added]


def plain(data: Any) -> Any:
    """JSON data: numbers of Python, None for what is not finite."""
    if isinstance(data, dict):
        return {key: plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(value) for value in data]
    if isinstance(data, float | np.floating):
        return float(data) if np.isfinite(data) else None
    return data.item() if isinstance(data, np.generic) else data


def status_lines(run: Run) -> list[str]:
    """Progress of a run as lines of text: candidates done, running and failed, and the time left."""
    status = run.status()
    if status["finished"]:
        state = "finished"
    else:
        state = "running" if status["active"] else f"stopped; star evolve {run.path} resumes it"
    references = [f"{run.token} {name} {bpb:.3f} bits/byte" for name, bpb in run.references.items()]
    done = f"{status['done']} of {status['total']} candidates done"
    lines = [
        f"{run.path}: {state}",
        f"generation {status['generation']} of {status['generations'] - 1} (0 is the initial population)",
        f"{done}, {status['running']} running, {status['failed']} failed",
        ", ".join([f"corpus {status['corpus']}", *references]),
    ]
    for id, progress in status["progress"].items():
        bpb = progress.get("val_loss") and f"{progress['val_loss'] * run.bits_per_nat:.3f} bits/byte"
        lines.append(
            f"  {id}: step {progress.get('step', 0)} of {progress.get('steps', '?')}, {bpb or 'not yet evaluated'}"
        )
    if status["active"] and status["eta_seconds"] is not None:
        lines.append(f"about {format_seconds(status['eta_seconds'])} left")
    stopped = status["counts"].get("stopped", 0)
    if stopped:
        rungs = ", ".join(f"{share:.0%}" for share in run.config.search.rungs)
        lines.append(f"{plural(stopped, 'candidate')} stopped early at a rung (rungs: {rungs} of the training budget)")
    if status["idle"] is not None:
        lines.append(f"workers were idle {status['idle']:.0%} of the time ({status['workers']} workers)")
    lines += [_surrogate_line(name, found) for name, found in status["surrogate"].items()]
    lines += [_refinement_line(run, found, status["active"]) for found in status["refinements"]]
    failures = status["failures"]
    lines += [f"  {failure['id']}: {failure['status']}: {failure['reason']}" for failure in failures[:MOST_FAILURES]]
    if len(failures) > MOST_FAILURES:
        lines.append(f"  and {len(failures) - MOST_FAILURES} more failures")
    return lines


def _surrogate_line(name: str, found: dict) -> str:
    """Rank correlation of predicted and measured values, and coverage of the prediction intervals."""
    text = f"surrogate of {name}: {plural(found['n'], 'candidate')} predicted and measured"
    if found["spearman"] is not None:
        low, high = found["spearman_low"], found["spearman_high"]
        text += f"; rank correlation {found['spearman']:.2f} [{low:.2f}, {high:.2f}]"
        if found["proxy_spearman"] is not None:
            text += f" (size alone: {found['proxy_spearman']:.2f})"
    low, high = found["coverage_90_low"], found["coverage_90_high"]
    return f"{text}; 90 % intervals cover {found['coverage_90']:.0%} [{low:.0%}, {high:.0%}] of the measured values"


def _refinement_line(run: Run, found: dict, active: bool) -> str:
    """Progress and result of a refinement."""
    state = "finished" if found["finished"] else "running" if active else "stopped"
    gains = ", ".join(
        f"{member[:6]} {100 * (ratio - 1):+.1f} %" for member, ratio in found["perplexity"].items() if ratio is not None
    )
    spent = f"{found['spent']:.4g} of {found['budget']:g} full trainings"
    result = f"; perplexity {gains}" if gains else ""
    return (
        f"refinement {found['id']}: {state}, {found['trials']} trials, {spent}{result}; details: star refine "
        f"{run.path} --report"
    )


def operator_table(run: Run) -> Listing:
    """Success of each variation operator: candidates assessed, and how many of them joined the front."""
    heads = ("assessed", "joined the front", "repaired", "duplicates")
    listing = Listing(Column("variation"), *(Column(head, right=True) for head in heads))
    for row in run.operators():
        if row["assessed"]:
            joined, made = f"{row['improved']} ({row['improved'] / row['assessed']:.0%})", row["generated"]
            shares = [f"{row[key] / made:.0%}" if made else "" for key in ("repaired", "duplicates")]
            listing.add(row["operator"], str(row["assessed"]), joined, *shares)
    return listing


def summary_lines(run: Run) -> list[str]:
    """Quality of the front: against n-gram baselines of the same text, and against the initial population."""
    quality = next((o for o in run.objectives if o.name in QUALITY), None)
    members, references = run.front(), run.references
    lines = front_notes(run)
    if quality and members and references:
        if quality.name == "loss":
            references = {name: bpb / run.bits_per_nat for name, bpb in references.items()}
        losses = [c.values[quality.name] for c in members]
        beaten = {name: sum(loss < level for loss in losses) for name, level in references.items()}
        words = [
            f"{run.token} {name} {references[name]:.3f} (beaten by {n} of {len(losses)})" for name, n in beaten.items()
        ]
        ends = sorted((c.measured[quality.name] for c in members), key=lambda m: m.mean)
        low, high = (format_measured(quality, end) for end in (ends[0], ends[-1]))
        lines.append(f"{quality.name} of the front: {low} to {high} {quality.unit}; {', '.join(words)}")
    volumes = run.hypervolume()
    initial = [row["hypervolume"] for row in volumes if row["generation"] == 0]
    if run.ladder():
        lines += ladder_lines(run)
    elif members:
        budget = f"{format_count(run.config.training.tokens)} tokens"
        ranked = (
            about(run.config, run.steps, run.corpus["vocab_size"])
            if run.steps
            else f"ranked by what is measured after {budget}"
        )
        lines.append(f"{ranked}; star ladder {run.path} measures how this order holds at larger budgets")
    if initial:
        first, last = initial[-1], volumes[-1]["hypervolume"]
        gain = f" ({last / first:.2f} x)" if first > 0 else ""
        again = f", one seed each; with fresh seeds {run.hypervolume_of(run.front()):.3f}" if run.rescored else ""
        lines.append(f"hypervolume: initial population {first:.3f}, now {last:.3f}{gain}{again}")
    return lines
