"""star evidence RUN"""

from __future__ import annotations

import statistics
from typing import Annotated

import typer

from star.cli.arguments import MovedOption, RunArgument, WorkersOption, numbers
from star.cli.console import console, say, say_json


def evidence(
    run: RunArgument,
    members: Annotated[str, typer.Option(help="Members of the front; the first is the reference.")] = "best,knee",
    baselines: Annotated[
        str, typer.Option(help="Named genomes or files, beside those of the run; NAME@LIVS: so deep.")
    ] = "",
    match: Annotated[str, typer.Option(help="What is made equal, by width.")] = "parameters,flops,cache",
    at: Annotated[str, typer.Option(help="Whose size the others are brought to: a member or a baseline.")] = "best",
    budget: Annotated[float, typer.Option(help="Training budget, in budgets of the search.")] = 10.0,
    rates: Annotated[str, typer.Option(help="Learning rates to try for each arm, times the recipe's.")] = "0.5,1,2",
    seeds: Annotated[int, typer.Option(help="Trainings of each arm at each matching.")] = 3,
    headline: Annotated[int, typer.Option(help="The same at the first matching.")] = 5,
    workers: WorkersOption = None,
    data: MovedOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print what is there, and train nothing.")] = False,
) -> None:
    """Are the members better than the baselines, at equal size, for more tokens?

    \b
    Example: star evidence runs/first
             star evidence runs/first --baselines samba-hybrid --at lfm2
    Members, baselines, the best of the first population and the best of as
    many random genomes are brought to equal size, given a learning rate
    each, and compared on test text with fresh seeds. The protocol is
    recorded before anything is trained; the same command resumes after a
    kill. Other options make another protocol, and both stay in the record.
    """
    from star.evidence.comparison import Comparison, compare
    from star.evidence.design import protocol
    from star.report.evidence_report import evidence_json, evidence_lines, evidence_tables, protocol_lines
    from star.report.units import format_seconds
    from star.run import Run

    opened = Run(run)
    if not show:
        fixed = protocol(
            opened,
            members=_names(members),
            baselines=_names(baselines),
            matchings=_names(match),
            at=at,
            budget=budget,
            rates=numbers("--rates", rates, "learning rates of the recipe, such as 0.5,1,2"),
            seeds=seeds,
            headline=max(seeds, headline),
        )

        def tell(event: dict) -> None:
            value = event["test_bpb"] or event["bpb"]
            outcome = f"bpb {value:.4f}" if value is not None else f"{event['status']}: {event['reason']}"
            say(
                f"{event['stage']} {event['id']}, learning rate x {event['rate']:g}, seed {event['number']}: {outcome} "
                f"({event['done']} of {event['total']})"
            )

        if not json:
            say("\n".join(protocol_lines(Comparison(opened, fixed))))
            taken = [c.metrics["seconds"] for c in opened.candidates() if c.objectives and c.metrics.get("seconds")]
            if taken:
                left = Comparison(opened, fixed).most()
                seconds = statistics.mean(taken) * sum(times * n for times, n in left.items())
                at_once = max(1, workers or opened.status()["workers"] or 1)
                say(f"expected time: at most about {format_seconds(seconds / at_once)}")
        compare(run, fixed, workers, callbacks=[] if json else [tell], data=data)
        opened.refresh()
    comparison = Comparison(opened, None if show else fixed)
    if json:
        say_json(evidence_json(comparison))
        return
    if show:
        say("\n".join(protocol_lines(comparison)))
    for title, table in evidence_tables(comparison):
        say()
        say(title)
        console().print(table)
    say()
    say("\n".join(evidence_lines(comparison)))


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
