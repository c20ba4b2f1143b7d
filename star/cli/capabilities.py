"""star capabilities RUN"""

from __future__ import annotations

import statistics
from typing import Annotated

import typer

from star.cli.arguments import MovedOption, RunArgument, WorkersOption
from star.cli.console import console, say, say_json
from star.errors import UserError

# Written out, because help must not wait for torch; a test compares them with the code.
TASKS = ("mqar", "needle", "parity", "s5", "copying", "extrapolation")


def capabilities(
    run: RunArgument,
    members: Annotated[
        str, typer.Option(help="front (with the baselines), all, or ids, best and knee: one or several of them.")
    ] = "front",
    tasks: Annotated[str, typer.Option(help="Which tasks.")] = ",".join(TASKS),
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Training tokens of each model (default: objectives.skill_tokens).")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Models for each member and task, counting earlier ones.")] = 1,
    size: Annotated[
        list[str] | None,
        typer.Option("--size", metavar="TASK.NAME=N", help="Another size of a task, such as needle.length=256."),
    ] = None,
    workers: WorkersOption = None,
    data: MovedOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print what is there, and train nothing.")] = False,
) -> None:
    """Measure what members can do that their loss does not show.

    \b
    Example: star capabilities runs/first
             star capabilities runs/first --members knee,best --tasks needle --size needle.length=256
    mqar: recall of several keys; needle: retrieval from five depths; parity, s5:
    tracking a state; copying: strings longer than those trained on. For each a
    model of the genome, at most 64 wide, is trained. extrapolation: the loss of
    the trained member up to 8 times its context. Nothing in the search changes.
    The same command resumes after a kill.
    """
    from star.evidence.suite import capability_rows, check_tasks, chosen, examine
    from star.report.capability_report import capability_lines, capability_table, part_tables
    from star.report.units import format_seconds, plural
    from star.run import Run

    opened, names, words = Run(run), _words(tasks), _words(members)
    sizes = _sizes(size or [])
    check_tasks(names, sizes)
    measured = chosen(opened, words)

    def tell(event: dict) -> None:
        score = event["metrics"].get(event["task"])
        if event["status"] != "ok":
            outcome = f"{event['status']}: {event['reason']}"
        elif event["task"] == "extrapolation":
            outcome = f"{score:+.3f} bits per byte at 8 times the context"
        else:
            outcome = f"accuracy {1 - score:.3f}"
        say(f"{event['id']} {event['task']}: {outcome} ({event['done']} of {event['total']})")

    if not show:
        if not json:
            budget = tokens or opened.config.objectives.skill_tokens
            say(f"measuring {plural(len(measured), 'candidate')} on {', '.join(names)}")
            bare = [c.id for c in measured if opened.weights(c.id) is None] if "extrapolation" in names else []
            if bare:
                say(f"without kept weights, so trained first for extrapolation: {', '.join(bare)}")
            rates = [c.metrics["tokens_per_second"] for c in measured if c.metrics.get("tokens_per_second")]
            if rates:
                n = seeds * (len(names) - ("extrapolation" in names))
                seconds = len(measured) * n * budget / statistics.mean(rates)
                seconds += sum(c.metrics.get("seconds", 0.0) for c in measured if c.id in bare)
                say(f"expected time: at most about {format_seconds(seconds / max(1, opened.status()['workers'] or 1))}")
        examine(run, words, names, tokens, seeds, sizes, workers, callbacks=[] if json else [tell], data=data)
        opened.refresh()
    ids = {c.id for c in measured}
    if json:
        say_json([row for row in capability_rows(opened) if row["id"] in ids and row["task"] in names])
        return
    say()
    console().print(capability_table(opened, ids, names))
    if len(names) == 1:
        for title, table in part_tables(opened, ids, names):
            say(title)
            console().print(table)
    say("\n".join(capability_lines(opened, ids, names)))


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _sizes(texts: list[str]) -> dict[str, dict[str, int | float]]:
    """{task: {size: number}} of texts such as "needle.length=256"."""
    found: dict[str, dict[str, int | float]] = {}
    for text in texts:
        key, _, value = text.partition("=")
        task, dot, name = key.partition(".")
        try:
            number = float(value)
            found.setdefault(task, {})[name] = int(number) if name != "power" and number == int(number) else number
        except (ValueError, OverflowError):
            dot = ""
        if not dot:
            raise UserError(f"--size {text!r}: write TASK.NAME=N, such as needle.length=256")
    return found
