"""star ladder RUN"""

from __future__ import annotations

import statistics
from typing import Annotated

import typer

from star.cli.arguments import MovedOption, RunArgument, WorkersOption, numbers
from star.cli.console import console, say, say_json


def ladder(
    run: RunArgument,
    budgets: Annotated[str, typer.Option(help="Training budgets, in budgets of the search.")] = "3,10",
    width: Annotated[float, typer.Option(min=1, help="Also train at so many times the width; 1: no.")] = 2.0,
    genomes: Annotated[int, typer.Option(min=8, help="Genomes that are trained again.")] = 24,
    workers: WorkersOption = None,
    data: MovedOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")] = False,
) -> None:
    """Train a sample at larger budgets: does the order of the front hold?

    \b
    Example: star ladder runs/first
             star ladder runs/first --budgets 4,16 --genomes 32
    The sample has members of the front, dominated candidates, baselines and
    random genomes. Nothing in the search changes. The same command resumes
    after a kill; more budgets or genomes add to what is there.
    """
    from star.evidence.climb import climb
    from star.evidence.order import Ladder
    from star.report.ladder_report import ladder_lines, ladder_table, rung_name
    from star.report.units import format_seconds
    from star.run import Run
    from star.search.ladders import table_of

    multiples = numbers("--budgets", budgets, "budgets of the search, such as 3,10")
    opened = Run(run)

    def show(event: dict) -> None:
        outcome = f"bpb {event['bpb']:.3f}" if event["bpb"] is not None else f"{event['status']}: {event['reason']}"
        where = rung_name(opened, (event["tokens"], event["width"]))
        say(f"{event['id']} at {where}: {outcome} ({event['done']} of {event['total']})")

    taken = [c.metrics["seconds"] for c in opened.candidates() if c.objectives and c.metrics.get("seconds")]
    if taken and not json:
        total = statistics.mean(taken) * genomes * (sum(multiples) + (width**1.5 if width != 1 else 0))
        say(f"expected time: about {format_seconds(total / max(1, opened.status()['workers'] or 1))}")
    climb(run, multiples, width, genomes, workers, callbacks=[] if json else [show], data=data)
    opened.refresh()
    if json:
        found = Ladder(opened)
        say_json(
            table_of(opened)
            | {
                "correlations": found.correlations(),
                "smallest": found.smallest(),
                "families": found.families(),
            }
        )
        return
    say()
    console().print(ladder_table(opened))
    say("\n".join(ladder_lines(opened)))
