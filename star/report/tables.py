"""A run as text: its front, its progress, and its front as data for programs."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table
from rich.text import Text

from star.assess.noise import noise_sd, rescored
from star.genome import to_json
from star.report.units import display_unit, format_seconds, format_value, heading, plural

if TYPE_CHECKING:
    from star.assess import Objective
    from star.run import Candidate, Run

MOST_FAILURES = 10  # that are listed


def front_table(run: Run) -> Table:
    """The front, lowest loss first, and the baselines below it."""
    table = _table()
    for objective in run.objectives:
        table.add_column(heading(objective).replace(" ", "\n"), justify="right", no_wrap=True)
    table.add_column("found in\ngeneration", justify="right")
    table.add_column("genome (class of each LIV)", overflow="fold")
    members = run.front()
    knee = run.knee().id if members else None
    for member in members:
        generation = "initial" if member.generation == 0 else str(member.generation)
        mark = " <- knee" if member.id == knee else ""
        table.add_row(Text.assemble(member.id, (mark, "bold")), *_values(run, member), generation, _classes(member))
    baselines = [c for c in run.candidates("baseline") if c.objectives]
    if members and baselines:
        table.add_section()
    for baseline in baselines:
        name = baseline.name or _classes(baseline)
        table.add_row(baseline.id, *_values(run, baseline), "baseline", name, style="dim")
    return table


def _table() -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("id", no_wrap=True)
    return table


def _values(run: Run, candidate: Candidate) -> list[str]:
    return [format_value(objective, candidate.values[objective.name]) for objective in run.objectives]


def _classes(candidate: Candidate) -> str:
    """Class of each LIV, repeats counted: SA-1 GMemless(x2)."""
    runs = ((name, len(list(equal))) for name, equal in itertools.groupby(candidate.genome.class_names))
    return " ".join(name if count == 1 else f"{name}(x{count})" for name, count in runs)


def rescore_rows(run: Run) -> list[dict]:
    """Every candidate that was measured with fresh seeds, the best fresh value of the first objective first.

    id; seeds: fresh trainings that ended well; failed: those that did not. By objective: searched (in the search),
    fresh (mean over fresh seeds), se (of that mean), luck (fresh minus searched). on_front: whether it is on the
    search's front; if so, non_dominated and probability: whether it is among the front by fresh values, and how
    probable that is given the noise (otherwise None).
    """
    repeats, front, objectives = run.repeats(), run.front(), run.objectives
    members = {c.id for c in front}
    chosen = front + [c for c in run.candidates() if c.id in repeats and c.objectives and c.id not in members]
    scaled = np.array([[o.scaled(c.values[o.name]) for o in objectives] for c in chosen])
    noisy = {k: o for k, o in enumerate(objectives) if not o.cheap}
    fresh: dict[int, dict[int, list[float]]] = {}  # index in `chosen` -> index of objective -> scaled values
    for i, candidate in enumerate(chosen):
        if good := [row["objectives"] for row in repeats.get(candidate.id, ()) if row["objectives"]]:
            fresh[i] = {k: [o.scaled(row[o.name]) for row in good] for k, o in noisy.items()}
    pooled = {k: noise_sd([values[k] for values in fresh.values()]) for k in noisy}
    sd = {k: noise.sd for k, noise in pooled.items() if noise is not None}
    among = rescored(scaled[: len(front)], {i: v for i, v in fresh.items() if i < len(front)}, sd) if front else []
    rows = []
    for i, values in fresh.items():
        candidate, alone = chosen[i], rescored(scaled[i : i + 1], {0: values}, sd)[0]
        count = len(values[min(noisy)])
        rows.append(
            {
                "id": candidate.id,
                "seeds": count,
                "failed": len(repeats[candidate.id]) - count,
                "searched": dict(candidate.values),
                "fresh": {o.name: o.unscaled(float(alone.mean[k])) for k, o in enumerate(objectives)},
                "se": {o.name: float(alone.se[k]) for k, o in noisy.items()},
                "luck": {o.name: float(alone.luck[k]) for k, o in noisy.items()},
                "on_front": i < len(front),
                "non_dominated": among[i].non_dominated if i < len(front) else None,
                "probability": among[i].probability if i < len(front) else None,
            }
        )
    first = objectives[0]
    return sorted(rows, key=lambda row: first.scaled(row["fresh"][first.name]))


def rescore_table(run: Run) -> tuple[Table, list[str]]:
    """`rescore_rows` as a table, and a summary in sentences."""
    rows = rescore_rows(run)
    noises = {o: noise_sd(_fresh_values(run, o)) for o in run.objectives if not o.cheap}
    known = any(noises.values())  # without noise, standard errors and probabilities say nothing
    table = _table()
    for objective in noises:
        for text in (f"{objective.name}\nin the search", "fresh seeds", "change"):
            table.add_column(text, justify="right", no_wrap=True)
    for text in ("seeds", "still on\nthe front", "probability"):
        table.add_column(text, justify="right", no_wrap=True)
    for row in rows:
        cells = []
        for o, noise in noises.items():
            searched, fresh, se, luck = (row[key][o.name] for key in ("searched", "fresh", "se", "luck"))
            cells += [f"{searched:.4f}", f"{fresh:.4f}" + (f" +- {se:.4f}" if noise else ""), f"{luck:+.4f}"]
        stays = {True: "yes", False: "no", None: "not on it"}[row["non_dominated"]]
        probability = f"{row['probability']:.2f}" if known and row["probability"] is not None else ""
        table.add_row(row["id"], *cells, str(row["seeds"]), stays, probability)
    lines = []
    for o, noise in noises.items():
        lucks = [row["luck"][o.name] for row in rows if row["on_front"]]
        if noise:
            lines.append(
                f"noise of {o.name} between seeds: sd {noise.sd:.4f} (95 % interval {noise.low:.4f} to "
                f"{noise.high:.4f}, {noise.degrees} degrees of freedom)"
            )
        elif rows:
            lines.append(f"noise of {o.name} between seeds: unknown; star rescore {run.path} --seeds 2 measures it")
        if lucks:
            change = float(np.mean(lucks))
            text = f"{abs(change):.4f} {display_unit(o)} {'worse' if change > 0 else 'better'}"
            lines.append(f"with fresh seeds the front is {text} on average than in the search")
    failed = sum(row["failed"] for row in rows)
    return table, lines + ([f"{plural(failed, 'training')} failed"] if failed else [])


def _fresh_values(run: Run, objective: Objective) -> list[list[float]]:
    """Values of an objective from fresh seeds, by candidate."""
    return [[r["objectives"][objective.name] for r in rows if r["objectives"]] for rows in run.repeats().values()]


def front_rows(run: Run, members: list[Candidate] | None = None) -> list[dict]:
    """The front, or `members`, for programs: id, genome (as in a genome file), objectives in their units.

    A refined member also has its recipe.
    """
    rows = []
    for c in run.front() if members is None else members:
        recipe = {"recipe": dataclasses.asdict(c.recipe)} if c.recipe else {}
        rows.append({"id": c.id, "genome": to_json(c.genome), "objectives": dict(c.values)} | recipe)
    return rows


def front_csv(run: Run, members: list[Candidate] | None = None) -> str:
    """The front, or `members`, as CSV: id, generation, one column per objective, genome text."""
    out = io.StringIO()
    names = [objective.name for objective in run.objectives]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["id", "generation", *names, "genome"])
    for c in run.front() if members is None else members:
        writer.writerow([c.id, c.generation, *(c.values[name] for name in names), c.genome.text])
    return out.getvalue()


def status_lines(run: Run) -> list[str]:
    """Progress of a run as lines of text: candidates done, running and failed, and the time left."""
    status = run.status()
    if status["finished"]:
        state = "finished"
    else:
        state = "running" if status["active"] else f"stopped; star evolve {run.path} resumes it"
    references = [f"byte {name} {loss:.3f} nats/byte" for name, loss in status["baselines"].items()]
    done = f"{status['done']} of {status['total']} candidates done"
    lines = [
        f"{run.path}: {state}",
        f"generation {status['generation']} of {status['generations'] - 1} (0 is the initial population)",
        f"{done}, {status['running']} running, {status['failed']} failed",
        ", ".join([f"corpus {status['corpus']}", *references]),
    ]
    for id, progress in status["progress"].items():
        loss = "not yet known" if progress.get("val_loss") is None else f"{progress['val_loss']:.3f}"
        lines.append(f"  {id}: step {progress.get('step', 0)} of {progress.get('steps', '?')}, validation loss {loss}")
    if status["active"] and status["eta_seconds"] is not None:
        lines.append(f"about {format_seconds(status['eta_seconds'])} left")
    stopped = status["counts"].get("stopped", 0)
    if stopped:
        rungs = ", ".join(f"{share:.0%}" for share in run.config.search.rungs)
        lines.append(f"{plural(stopped, 'candidate')} stopped early at a rung (rungs: {rungs} of the training budget)")
    if status["idle"] is not None:
        lines.append(f"workers were idle {status['idle']:.0%} of the time ({status['workers']} workers)")
    lines += [_surrogate_line(name, found) for name, found in status["surrogate"].items()]
    lines += _operator_lines(run)
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


def _operator_lines(run: Run) -> list[str]:
    """Success of each variation operator: candidates assessed, and how many of them joined the front."""
    rows = [row for row in run.operators() if row["assessed"]]
    if not rows:
        return []
    lines = ["", f"{'variation':<14}{'assessed':>9}{'joined the front':>18}{'repaired':>10}{'duplicates':>12}"]
    for row in rows:
        joined = f"{row['improved']} ({row['improved'] / row['assessed']:.0%})"
        made = row["generated"]
        shares = [f"{row[key] / made:.0%}" if made else "" for key in ("repaired", "duplicates")]
        lines.append(f"{row['operator']:<14}{row['assessed']:>9}{joined:>18}{shares[0]:>10}{shares[1]:>12}")
    return [*lines, ""]


def summary_lines(run: Run) -> list[str]:
    """Quality of the front: against n-gram baselines of the same text, and against the initial population."""
    losses = [c.values["loss"] for c in run.front() if "loss" in c.values]
    lines = []
    references = run.status()["baselines"]
    if losses and references:
        beaten = {name: sum(loss < level for loss in losses) for name, level in references.items()}
        words = [f"byte {name} {references[name]:.3f} (beaten by {n} of {len(losses)})" for name, n in beaten.items()]
        lines.append(f"loss of the front: {min(losses):.3f} to {max(losses):.3f} nats/byte; {', '.join(words)}")
    volumes = run.hypervolume()
    initial = [row["hypervolume"] for row in volumes if row["generation"] == 0]
    if initial:
        first, last = initial[-1], volumes[-1]["hypervolume"]
        gain = f" ({last / first:.2f} x)" if first > 0 else ""
        lines.append(f"hypervolume: initial population {first:.3f}, now {last:.3f}{gain}")
    return lines
