"""All plots of a run, as matplotlib figures and as files: `pareto_fronts(star.Run("runs/first"))`.

To add one, write `plot(run) -> Figure` and add its name to `PLOTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from star.report.curves import learning_curves
from star.report.evidence_report import evidence_figure
from star.report.fronts import pareto_fronts
from star.report.genome_diagram import genome_diagram
from star.report.hypervolume import hypervolume
from star.report.ladder_report import ladder_figure
from star.report.style import save_figure

if TYPE_CHECKING:
    from star.run import Run

Plot = Callable[["Run"], Figure]


def knee_genome(run: Run) -> Figure:
    """The layers of the genome at the knee of the front."""
    knee = run.knee()
    return genome_diagram(knee.genome, seq_len=run.config.objectives.cache_tokens, name=f"knee of the front: {knee.id}")


def ladder(run: Run) -> Figure:
    """Places of the same genomes at several training budgets and widths. Few crossings mean that the order holds."""
    return ladder_figure(run)


def evidence(run: Run) -> Figure:
    """Differences of the arms of a comparison above its reference, with 95 % intervals; grey: too small to count."""
    return evidence_figure(run)


PLOTS: tuple[Plot, ...] = (pareto_fronts, hypervolume, learning_curves, knee_genome)


def write_plots(run: Run, folder: Path, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Write every plot as FOLDER/NAME.png and .svg, or in other formats (also pdf).

    Raises UserError if the run has no finished candidate yet.
    """
    run.knee()  # raises if there is none
    return [path for plot in shown(run) for path in save_figure(plot(run), folder / plot.__name__, formats)]


def shown(run: Run) -> tuple[Plot, ...]:
    """The plots, and those of the ladder and of the evidence where they exist."""
    more = (ladder,) if run.ladder() else ()
    return (*PLOTS, *more, evidence) if run.protocols() else (*PLOTS, *more)
