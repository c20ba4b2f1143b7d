"""star status RUN"""

from __future__ import annotations

from typing import Annotated

import typer

from star.cli.console import say


def status(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Directory of the run.")],
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show what is done, running and failed, and the time left.

    \b
    Example: star status runs/first
    """
    from star.report.tables import status_lines, summary_lines
    from star.run import Run

    opened = Run(run)
    if json:
        import json as codec

        say(codec.dumps(opened.status(), indent=2))
        return
    for line in status_lines(opened) + summary_lines(opened):
        say(line)
