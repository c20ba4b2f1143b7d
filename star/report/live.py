"""A run that another process drives, as one screen of the terminal."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from star.report.tables import front_table
from star.report.units import format_seconds, plural

if TYPE_CHECKING:
    from star.run import Run

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 48  # of the line of hypervolumes
LEFT_OVER = 16  # lines of the screen that are not the front


def screen(run: Run, height: int = 40) -> RenderableType:
    """Progress, what is being trained, hypervolume and the front, in about `height` lines."""
    status = run.status()
    bars = Table.grid(padding=(0, 2))
    bars.add_row(Text("all"), ProgressBar(status["total"] or 1, status["done"], width=32), Text())
    for id, found in status["progress"].items():
        share = found.get("step", 0) / max(found.get("steps") or 1, 1)
        loss = found.get("val_loss")
        text = "" if loss is None else f"{loss * run.bits_per_nat:.3f} bits/byte"
        bars.add_row(Text(f"  {id[:12]}"), ProgressBar(1.0, share, width=32), Text(text))
    parts: list[RenderableType] = [Text(str(run.path), style="bold"), Text(progress_line(run)), bars]
    volumes = [row["hypervolume"] for row in run.hypervolume()]
    if volumes:
        line = f"hypervolume {sparkline(volumes, WIDTH)} {volumes[-1]:.3f}"
        parts.append(Text(line))
    if run.front():
        table = front_table(run)
        room = max(5, height - LEFT_OVER - len(status["progress"]))
        hidden = len(table.rows) - room
        table.rows = table.rows[:room]
        parts += [
            Text(),
            table,
            *([Text(f"and {hidden} more: star front {run.path}", style="dim")] if hidden > 0 else []),
        ]
    return Group(*parts)


def progress_line(run: Run) -> str:
    """How far a run is, in one line."""
    status = run.status()
    state = "finished" if status["finished"] else "running" if status["active"] else "stopped"
    parts = [state, f"generation {status['generation']} of {status['generations'] - 1}"]
    parts.append(f"{status['done']} of {status['total']} candidates")
    parts += [f"{status['failed']} failed"] if status["failed"] else []
    if front := run.front():
        first = run.objectives[0].name
        parts.append(f"{plural(len(front), 'member')} on the front, best {first} {front[0].values[first]:.3f}")
    if status["active"] and status["eta_seconds"]:
        parts.append(f"about {format_seconds(status['eta_seconds'])} left")
    return ", ".join(parts)


def sparkline(values: Sequence[float], width: int) -> str:
    """Numbers as blocks from 0 to the largest, the last of each of at most `width` equal parts."""
    parts = min(width, len(values))
    ends = [len(values) * (n + 1) // parts - 1 for n in range(parts)]
    top = max(itertools.chain(values, [1e-12]))
    return "".join(BLOCKS[min(len(BLOCKS) - 1, int(len(BLOCKS) * values[n] / top))] for n in ends)
