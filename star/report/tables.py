"""A run as text: the front, how far it is, and the front as data for programs."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

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
        table.add_row(baseline.id, *_values(run, baseline), "baseline", baseline.name or _classes(baseline), style="dim")
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


def front_rows(run: Run) -> list[dict]:
    """The front for programs: id, genome (as in a genome file) and objectives in their units."""
    return [{"id": c.id, "genome": to_json(c.genome), "objectives": dict(c.objectives)} for c in run.front()]


def front_csv(run: Run) -> str:
    """The front as CSV: id, generation, one column per objective, genome text."""
    out = io.StringIO()
    names = [objective.name for objective in run.objectives]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["id", "generation", *names, "genome"])
    for c in run.front():
        writer.writerow([c.id, c.generation, *(c.objectives[name] for name in names), c.genome.text])
    return out.getvalue()


def status_lines(run: Run) -> list[str]:
    """What is done, running and failed, what runs now, and the time that is left, as lines of text."""
    status = run.status()
    if status["finished"]:
        state = "finished"
    else:
        state = "running" if status["active"] else f"stopped; star evolve {run.path} goes on with it"
    lines = [
        f"{run.path}: {state}",
        f"generation {status['generation']} of {status['generations'] - 1} (0 is the initial population)",
        f"{status['done']} of {status['total']} candidates done, {status['running']} running, {status['failed']} failed",
        f"corpus {status['corpus']}" + "".join(f", byte {name} {loss:.3f} nats/byte" for name, loss in status["baselines"].items()),
    ]
    for id, progress in status["progress"].items():
        loss = "unknown yet" if progress.get("val_loss") is None else f"{progress['val_loss']:.3f}"
        lines.append(f"  {id}: step {progress.get('step', 0)} of {progress.get('steps', '?')}, validation loss {loss}")
    if status["active"] and status["eta_seconds"] is not None:
        lines.append(f"about {format_seconds(status['eta_seconds'])} left")
    stopped = status["counts"].get("stopped", 0)
    if stopped:
        lines.append(f"{stopped} candidates were stopped at a rung, having trained {', '.join(f'{r:.0%}' for r in run.config.search.rungs)} of the budget at most")
    if status["idle"] is not None:
        lines.append(f"workers were idle {status['idle']:.0%} of the time ({status['workers']} workers)")
    lines += _operator_lines(run)
    for failure in status["failures"][:10]:
        lines.append(f"  {failure['id']}: {failure['status']}: {failure['reason']}")
    if len(status["failures"]) > 10:
        lines.append(f"  and {len(status['failures']) - 10} more failures")
    return lines


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
        counted = ", ".join(f"byte {name} {level:.3f} (beaten by {below[name]} of {len(losses)})" for name, level in references.items())
        lines.append(f"loss of the front: {min(losses):.3f} to {max(losses):.3f} nats/byte; {counted}")
    volumes = run.hypervolume()
    initial = [row["hypervolume"] for row in volumes if row["generation"] == 0]
    if initial:
        first, last = initial[-1], volumes[-1]["hypervolume"]
        gain = f" ({last / first:.2f} x)" if first > 0 else ""
        lines.append(f"hypervolume: initial population {first:.3f}, now {last:.3f}{gain}")
    return lines
