"""star front RUN"""

from __future__ import annotations

from typing import Annotated

import typer

from star.cli.arguments import RunArgument
from star.cli.console import console, say, say_json


def front(
    run: RunArgument,
    json: Annotated[bool, typer.Option("--json", help="Print the members as JSON, with errors and genomes.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print one line per member, objectives in their units.")] = False,
    baselines: Annotated[bool, typer.Option("--baselines", help="Add the baselines to --json or --csv.")] = False,
    refined: Annotated[
        bool, typer.Option("--refined", help="Print the front after star refine, with fresh seeds.")
    ] = False,
) -> None:
    """Print the Pareto front as a table. After star rescore it is the front with fresh seeds.

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
    refinement = opened.refinement() if refined else None
    members = refinement.front() if refinement else None
    if json:
        say_json(front_rows(opened, members, baselines))
    elif csv:
        print(front_csv(opened, members, baselines), end="")
    elif refinement:
        from star.report.refinement import refinement_lines, refinement_table

        console().print(refinement_table(refinement))
        say("\n".join(refinement_lines(refinement)))
    elif opened.front():
        console().print(front_table(opened))
        say("\n".join(["", *summary_lines(opened)]))
    else:
        say(f"{run} has no finished candidate yet; star status {run} shows its progress.")
