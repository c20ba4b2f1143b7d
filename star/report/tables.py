"""A run as text: the front, how far it is, and the front as data for programs."""

from __future__ import annotations

import csv
import dataclasses
import io
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table
from rich.text import Text

from star.assess.noise import noise_sd, rescored
from star.genome import to_json
from star.report.units import format_seconds, format_value, heading

if TYPE_CHECKING:
    from star.run import Candidate, Run


def front_table(run: Run) -> Table:
    """The front, best loss first, and the baselines below it."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("id", no_wrap=True)
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
        table.add_row(
            baseline.id, *_values(run, baseline), "baseline", baseline.name or _classes(baseline), style="dim"
        )
    return table


def _values(run: Run, candidate: Candidate) -> list[str]:
    return [format_value(objective, candidate.objectives[objective.name]) for objective in run.objectives]


def _classes(candidate: Candidate) -> str:
    """SA-1 GMemless(x2) ..., repeats counted."""
    words: list[list] = []
    for name in candidate.genome.class_names:
        if words and words[-1][0] == name:
            words[-1][1] += 1
        else:
            words.append([name, 1])
    return " ".join(name if count == 1 else f"{name}(x{count})" for name, count in words)


def rescore_rows(run: Run) -> list[dict]:
    """Every candidate that was measured with fresh seeds, best fresh first objective first.

    id, seeds (that ended well), failed; by objective: searched, fresh (mean), se; luck: fresh minus searched, of the
    first objective; on_front; non_dominated and its probability among all front members (None for others).
    """
    repeats, front = run.repeats(), run.front()
    chosen = front + [
        c for c in run.candidates() if c.id in repeats and c.objectives and c.id not in {m.id for m in front}
    ]
    scaled = np.array([[o.scaled(c.objectives[o.name]) for o in run.objectives] for c in chosen])
    noisy = [k for k, o in enumerate(run.objectives) if not o.cheap]
    good = {c.id: [row["objectives"] for row in repeats.get(c.id, ()) if row["objectives"]] for c in chosen}
    fresh = {
        i: {k: [run.objectives[k].scaled(row[run.objectives[k].name]) for row in good[c.id]] for k in noisy}
        for i, c in enumerate(chosen)
        if good[c.id]
    }
    pooled = {k: noise_sd([values[k] for values in fresh.values()]) for k in noisy}
    sd = {k: noise.sd for k, noise in pooled.items() if noise is not None}
    within = {i: values for i, values in fresh.items() if i < len(front)}
    among = rescored(scaled[: len(front)], within, sd) if front else []
    rows = []
    for i, candidate in enumerate(chosen):
        if i not in fresh:
            continue
        alone = rescored(scaled[i : i + 1], {0: fresh[i]}, sd)[0]
        rows.append(
            {
                "id": candidate.id,
                "seeds": alone.n,
                "failed": len(repeats[candidate.id]) - len(good[candidate.id]),
                "searched": dict(candidate.objectives),
                "fresh": {o.name: o.unscaled(float(alone.mean[k])) for k, o in enumerate(run.objectives)},
                "se": {run.objectives[k].name: float(alone.se[k]) for k in noisy},
                "luck": {run.objectives[k].name: float(alone.luck[k]) for k in noisy},
                "on_front": i < len(front),
                "non_dominated": among[i].non_dominated if i < len(front) else None,
                "probability": among[i].probability if i < len(front) else None,
            }
        )
    first = run.objectives[0]
    return sorted(rows, key=lambda row: first.scaled(row["fresh"][first.name]))


def rescore_table(run: Run) -> tuple[Table, list[str]]:
    """`rescore_rows` as a table, and a summary in sentences."""
    rows = rescore_rows(run)
    noisy = [o for o in run.objectives if not o.cheap]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("id", no_wrap=True)
    for objective in noisy:
        for text in (f"{objective.name}\nin the search", "fresh seeds", "change"):
            table.add_column(text, justify="right", no_wrap=True)
    for text in ("seeds", "still on\nthe front", "probability"):
        table.add_column(text, justify="right", no_wrap=True)
    for row in rows:
        cells = []
        for objective in noisy:
            values = (row[key][objective.name] for key in ("searched", "fresh", "se", "luck"))
            searched, fresh, se, luck = values
            cells += [f"{searched:.4f}", f"{fresh:.4f} +- {se:.4f}", f"{luck:+.4f}"]
        stays = {True: "yes", False: "no", None: "not on it"}[row["non_dominated"]]
        table.add_row(
            row["id"],
            *cells,
            str(row["seeds"]),
            stays,
            "" if row["probability"] is None else f"{row['probability']:.2f}",
        )
    lines = []
    for objective in noisy:
        groups = [
            [r["objectives"][objective.name] for r in rows_ if r["objectives"]] for rows_ in run.repeats().values()
        ]
        noise = noise_sd(groups)
        lucks = [row["luck"][objective.name] for row in rows if row["on_front"]]
        if noise is not None:
            lines.append(
                f"noise of {objective.name} between seeds: sd {noise.sd:.4f} (95 % interval {noise.low:.4f} to "
                f"{noise.high:.4f}, {noise.degrees} degrees of freedom)"
            )
        if lucks:
            change = float(np.mean(lucks))
            text = f"{abs(change):.4f} {objective.unit} {'worse' if change > 0 else 'better'}"
            lines.append(f"with fresh seeds the front is {text} on average than in the search")
    failed = sum(row["failed"] for row in rows)
    return table, lines + ([f"{failed} trainings failed"] if failed else [])


def front_rows(run: Run, members: list[Candidate] | None = None) -> list[dict]:
    """The front, or these, for programs: id, genome (as in a genome file) and objectives in their units; recipe: of a
    refined one.
    """
    rows = []
    for c in run.front() if members is None else members:
        recipe = {"recipe": dataclasses.asdict(c.recipe)} if c.recipe else {}
        rows.append({"id": c.id, "genome": to_json(c.genome), "objectives": dict(c.objectives)} | recipe)
    return rows


def front_csv(run: Run, members: list[Candidate] | None = None) -> str:
    """The front, or these, as CSV: id, generation, one column per objective, genome text."""
    out = io.StringIO()
    names = [objective.name for objective in run.objectives]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["id", "generation", *names, "genome"])
    for c in run.front() if members is None else members:
        writer.writerow([c.id, c.generation, *(c.objectives[name] for name in names), c.genome.text])
    return out.getvalue()


def status_lines(run: Run) -> list[str]:
    """What is done, running and failed, what runs now, and the time that is left, as lines of text."""
    status = run.status()
    if status["finished"]:
        state = "finished"
    else:
        state = "running" if status["active"] else f"stopped; star evolve {run.path} resumes it"
    lines = [
        f"{run.path}: {state}",
        f"generation {status['generation']} of {status['generations'] - 1} (0 is the initial population)",
        f"{status['done']} of {status['total']} candidates done, {status['running']} running, {status['failed']} "
        "failed",
        f"corpus {status['corpus']}"
        + "".join(f", byte {name} {loss:.3f} nats/byte" for name, loss in status["baselines"].items()),
    ]
    for id, progress in status["progress"].items():
        loss = "unknown yet" if progress.get("val_loss") is None else f"{progress['val_loss']:.3f}"
        lines.append(f"  {id}: step {progress.get('step', 0)} of {progress.get('steps', '?')}, validation loss {loss}")
    if status["active"] and status["eta_seconds"] is not None:
        lines.append(f"about {format_seconds(status['eta_seconds'])} left")
    stopped = status["counts"].get("stopped", 0)
    if stopped:
        lines.append(
            f"{stopped} candidates were stopped at a rung, the budget cut at "
            f"{', '.join(f'{r:.0%}' for r in run.config.search.rungs)}"
        )
    if status["idle"] is not None:
        lines.append(f"workers were idle {status['idle']:.0%} of the time ({status['workers']} workers)")
    for name, found in status["surrogate"].items():
        lines.append(_surrogate_line(name, found))
    lines += _operator_lines(run)
    lines += [_refinement_line(run, found, status["active"]) for found in status["refinements"]]
    for failure in status["failures"][:10]:
        lines.append(f"  {failure['id']}: {failure['status']}: {failure['reason']}")
    if len(status["failures"]) > 10:
        lines.append(f"  and {len(status['failures']) - 10} more failures")
    return lines


def _surrogate_line(name: str, found: dict) -> str:
    """How well the surrogate ranks what it chose, and whether its intervals are honest."""
    text = f"surrogate of {name}: {found['n']} predicted and measured"
    if found["spearman"] is not None:
        text += (
            f"; rank correlation {found['spearman']:.2f} [{found['spearman_low']:.2f}, {found['spearman_high']:.2f}]"
        )
        if found["proxy_spearman"] is not None:
            text += f" (size alone {found['proxy_spearman']:.2f})"
    return (
        text + f"; 90 % intervals hold {found['coverage_90']:.0%} [{found['coverage_90_low']:.0%}, "
        f"{found['coverage_90_high']:.0%}]"
    )


def _refinement_line(run: Run, found: dict, active: bool) -> str:
    """How far a refinement is, and what it brought."""
    state = "finished" if found["finished"] else "running" if active else "stopped"
    gains = ", ".join(
        f"{member[:6]} {100 * (ratio - 1):+.1f} %" for member, ratio in found["perplexity"].items() if ratio is not None
    )
    text = (
        f"refinement {found['id']}: {state}, {found['trials']} trials, {found['spent']:.4g} of "
        f"{found['budget']:g} full trainings"
    )
    return text + (f"; perplexity {gains}" if gains else "") + f"; star refine {run.path} --report says more"


def _operator_lines(run: Run) -> list[str]:
    """What each variation operator took and brought."""
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
    """Is the front any good: against counting models of the same text, and against its own beginnings."""
    members = run.front()
    losses = [c.objectives["loss"] for c in members if "loss" in c.objectives]
    lines = []
    references = run.status()["baselines"]
    if losses and references:
        below = {name: sum(loss < level for loss in losses) for name, level in references.items()}
        counted = ", ".join(
            f"byte {name} {level:.3f} (beaten by {below[name]} of {len(losses)})" for name, level in references.items()
        )
        lines.append(f"loss of the front: {min(losses):.3f} to {max(losses):.3f} nats/byte; {counted}")
    volumes = run.hypervolume()
    initial = [row["hypervolume"] for row in volumes if row["generation"] == 0]
    if initial:
        first, last = initial[-1], volumes[-1]["hypervolume"]
        gain = f" ({last / first:.2f} x)" if first > 0 else ""
        lines.append(f"hypervolume: initial population {first:.3f}, now {last:.3f}{gain}")
    return lines
