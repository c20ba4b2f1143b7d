"""star plot RUN"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from star.cli.arguments import RunArgument
from star.cli.console import say

if TYPE_CHECKING:
    from star.run import Run


def plot(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to write to (default: RUN/plots).")] = None,
) -> None:
    """Plot the fronts, hypervolume, learning curves and the knee's layers (PNG and SVG), and write an HTML report.

    \b
    Example: star plot runs/first
    """
    from star.run import Run

    write_all(Run(run), out)


def write_all(run: Run, out: Path | None = None) -> None:
    """Write the plots and the report of a run, and print where they are."""
    from star.report.page import write_page
    from star.report.plots import write_plots

    folder = out or run.path / "plots"
    names = dict.fromkeys(path.stem for path in write_plots(run, folder))
    say(f"plots: {folder} ({', '.join(names)}; PNG and SVG)")
    say(f"report: {write_page(run, folder / 'report.html')}")
