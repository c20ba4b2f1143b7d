"""star front RUN"""

from __future__ import annotations

from typing import Annotated

import typer

from star.cli.console import console, say


def front(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Directory of the run.")],
    json: Annotated[bool, typer.Option("--json", help='Print a list of {"id", "genome", "objectives"}.')] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print one line per member, objectives in their units.")] = False,
) -> None:
    """The Pareto front as a table: what the run found.

    \b
    Example: star front runs/first
             star front runs/first --json
    """
    from star.errors import UserError
    from star.report.tables import front_csv, front_rows, front_table, summary_lines
    from star.run import Run

    if json and csv:
        raise UserError("--json and --csv exclude each other; give one of them")
    opened = Run(run)
    if json:
        import json as codec

        say(codec.dumps(front_rows(opened), indent=2))
    elif csv:
        print(front_csv(opened), end="")
    elif not opened.front():
        say(f"{run} has no finished candidate yet; star status {run} shows how far it is.")
    else:
        console().print(front_table(opened))
        for line in ["", *summary_lines(opened)]:
            say(line)
