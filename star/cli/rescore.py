"""star rescore RUN"""

from __future__ import annotations

from typing import Annotated

import typer

from star.cli.arguments import MovedOption, RunArgument, WorkersOption
from star.cli.console import console, say, say_json


def rescore(
    run: RunArgument,
    ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ID]...", help="Ids, or the first characters of ids, best or knee (default: the front)."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Fresh seeds per candidate, counting earlier ones.")] = 3,
    workers: WorkersOption = None,
    data: MovedOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")] = False,
) -> None:
    """Train front members again with fresh seeds, to detect members that were lucky.

    \b
    Example: star rescore runs/first
             star rescore runs/first knee --seeds 5
    Afterwards star front, the plots and the exports show the means over fresh
    seeds. The search itself does not change.
    The same command resumes after a kill.
    """
    from star.cli.display import quality_of
    from star.report.tables import rescore_rows, rescore_table
    from star.report.units import plural
    from star.run import Run
    from star.search.repeats import rescore as train_again

    def show(event: dict) -> None:
        if event["objectives"] is None:
            outcome = f"{event['status']}: {event['reason']}"
        else:
            quality = quality_of(event["objectives"])
            outcome = "done" if quality is None else f"{quality[0]} {quality[1]:.3f}"
        say(f"{event['id']} seed {event['repeat'] + 1}: {outcome} ({event['done']} of {event['total']})")

    opened = Run(run)
    chosen = [opened.candidate(id).id for id in ids or ()]
    if not json:
        count = plural(len(chosen) or len(opened.front()), "candidate")
        say(f"training {count} of {run} with {plural(seeds, 'fresh seed')} each")
    train_again(run, seeds, chosen, workers, data=data, callbacks=[] if json else [show])
    opened.refresh()
    if json:
        say_json(rescore_rows(opened))
        return
    table, lines = rescore_table(opened)
    say()
    console().print(table)
    say("\n".join(lines))
