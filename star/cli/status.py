"""star status RUN"""

from __future__ import annotations

from typing import Annotated

import typer

from star.cli.arguments import RunArgument
from star.cli.console import console, say, say_json


def status(
    run: RunArgument, json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False
) -> None:
    """Show which candidates are done, running or failed, and the time left.

    \b
    Example: star status runs/first
    """
    from star.report.tables import operator_table, status_lines, summary_lines
    from star.run import Run

    opened = Run(run)
    if json:
        say_json(opened.status())
    else:
        say("\n".join([*status_lines(opened), *summary_lines(opened), ""]))
        console().print(operator_table(opened))
