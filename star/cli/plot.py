"""star plot RUN"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from star.cli.arguments import RunArgument
from star.cli.console import say

if TYPE_CHECKING:
    from star.run import Run

FORMATS = ("png", "svg", "pdf")


def plot(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to write to (default: RUN/plots).")] = None,
    formats: Annotated[
        str, typer.Option("--format", metavar="NAMES", help="Formats of the files: png, svg, pdf.")
    ] = "png,svg",
) -> None:
    """Plot the fronts, hypervolume, learning curves and the knee's layers, as files for a text.

    \b
    Example: star plot runs/first
             star plot runs/first --format pdf --out figures/
    star report RUN writes an interactive page instead.
    """
    from star.errors import UserError
    from star.run import Run

    kinds = [kind.strip().lower() for kind in formats.split(",") if kind.strip()]
    if not kinds or not set(kinds) <= set(FORMATS):
        raise UserError(f"--format {formats!r}: write one or more of {', '.join(FORMATS)}, such as png,pdf")
    write_all(Run(run), out, kinds)


def write_all(run: Run, out: Path | None = None, formats: list[str] | None = None) -> None:
    """Write the plots of a run, and print where they are."""
    from star.report.plots import write_plots

    kinds = formats or ["png", "svg"]
    folder = out or run.path / "plots"
    names = dict.fromkeys(path.stem for path in write_plots(run, folder, kinds))
    say(f"plots: {folder} ({', '.join(names)}; {' and '.join(kind.upper() for kind in kinds)})")
