"""star compare RUN RUN..."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from star.cli.console import console, say, say_json


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Directories of two runs or more.")],
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also draw fronts and hypervolumes to a .png, .svg or .pdf file."),
    ] = None,
) -> None:
    """Compare runs: hypervolumes with one reference, and which run owns which part of the joint front.

    \b
    Example: star compare runs/a runs/b
             star compare runs/seed-0 runs/seed-1 runs/other --plot compared.png
    Runs that differ only in their seed are one group, with an interval over
    its seeds.
    """
    from star.report.run_comparison import RunComparison
    from star.report.style import save_one

    found = RunComparison(runs)
    if json:
        say_json(found.json())
    else:
        console().print(found.table())
        say("\n".join(["", *found.lines()]))
    if plot is not None:
        path = save_one(found.figure(), plot)
        if not json:
            say(f"wrote {path}")
