"""star front RUN"""

from __future__ import annotations

from typing import Annotated

import typer

from star.cli.console import console, say


def front(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Directory of the run.")],
    json: Annotated[bool, typer.Option("--json", help='Print a list of {"id", "genome", "objectives"}.')] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print one line per member, objectives in their units.")] = False,
    refined: Annotated[
        bool, typer.Option("--refined", help="The front after star refine, by losses from fresh seeds.")
    ] = False,
) -> None:
    """Print the Pareto front as a table.

    \b
    Example: star front runs/first
             star front runs/first --json
             star front runs/first --refined
    """
    from star.errors import UserError
    from star.report.tables import front_csv, front_rows, front_table, summary_lines
    from star.run import Run

    if json and csv:
        raise UserError("--json and --csv exclude each other; give one of them")
    opened = Run(run)
    members = opened.refinement().front() if refined else None
    if json:
        import json as codec

        say(codec.dumps(front_rows(opened, members), indent=2))
    elif csv:
        print(front_csv(opened, members), end="")
    elif members is not None:
        from star.report.refinement import refinement_lines, refinement_table

        console().print(refinement_table(opened.refinement()))
        for line in refinement_lines(opened.refinement()):
            say(line)
    elif not opened.front():
        say(f"{run} has no finished candidate yet; star status {run} shows its progress.")
    else:
        console().print(front_table(opened))
        for line in ["", *summary_lines(opened)]:
            say(line)
