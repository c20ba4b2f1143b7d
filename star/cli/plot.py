"""star plot RUN"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from star.cli.console import say


def plot(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Directory of the run.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to write (default: RUN/plots).")
    ] = None,
) -> None:
    """Plot fronts, hypervolume, learning curves and the knee's layers (PNG and SVG), and write one HTML report.

    \b
    Example: star plot runs/first
    """
    from star.run import Run

    write_all(Run(run), out)


def write_all(run, out: Path | None = None) -> None:
    """Write plots and report of a run, and print where they are."""
    from star.report.page import write_page
    from star.report.plots import write_plots

    folder = out or run.path / "plots"
    paths = write_plots(run, folder)
    names = ", ".join(dict.fromkeys(path.stem for path in paths))
    say(f"plots: {folder} ({names}; PNG and SVG)")
    say(f"report: {write_page(run, folder / 'report.html')}")
