"""star report RUN"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from star.cli.arguments import RunArgument
from star.cli.console import say

if TYPE_CHECKING:
    from star.run import Run


def report(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="File to write (default: RUN/report.html).")] = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write one interactive HTML page about a run; it needs no network.

    \b
    Example: star report runs/first --open
             star report runs/first --out first.html
    It works for a run that is not finished too; star watch RUN --html keeps it
    up to date.
    """
    from star.run import Run

    path = write_report(Run(run), out)
    if show:
        typer.launch(str(path.absolute()))


def write_report(run: Run, out: Path | None = None) -> Path:
    """Write the page and print where it is."""
    from star.report.page import write_page

    path = write_page(run, out or run.path / "report.html")
    say(f"report: {path}")
    return path
