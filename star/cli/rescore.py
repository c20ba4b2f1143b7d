"""star rescore RUN"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from star.cli.console import console, say


def rescore(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of the run.")],
    ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ID]...", help="Candidates, by the first characters of their ids (default: the whole front)."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Fresh seeds for each; earlier repeats count.")] = 3,
    workers: Annotated[
        int | None, typer.Option(help="Candidates trained at the same time (default: as in the run).")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")] = False,
) -> None:
    """Train front members again with fresh seeds, to detect members that were lucky.

    \b
    Example: star rescore runs/first
             star rescore runs/first knee --seeds 5
    This does not change the search; the same command resumes after a kill.
    """
    from star.report.tables import rescore_rows, rescore_table
    from star.run import Run
    from star.search.repeats import rescore as measure_again

    def show(event: dict) -> None:
        loss = (event["objectives"] or {}).get("loss")
        what = (
            f"{event['status']}: {event['reason']}"
            if event["objectives"] is None
            else ""
            if loss is None
            else f"loss {loss:.3f}"
        )
        say(f"{event['id']} seed {event['repeat'] + 1}: {what} ({event['done']} of {event['total']})")

    chosen = [Run(run).knee().id if id == "knee" else id for id in ids or ()]
    if not json:
        say(f"training {len(chosen) or len(Run(run).front())} candidates of {run} with {seeds} fresh seeds each")
    measure_again(run, seeds, chosen, workers, callbacks=[] if json else [show])
    if json:
        import json as codec

        say(codec.dumps(rescore_rows(Run(run)), indent=2))
        return
    table, lines = rescore_table(Run(run))
    say()
    console().print(table)
    for line in lines:
        say(line)
