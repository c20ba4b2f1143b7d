"""star watch RUN"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Annotated

import typer

from star.cli.arguments import RunArgument
from star.cli.console import console, say

if TYPE_CHECKING:
    from star.run import Run

PAGE_EVERY = 15.0  # seconds between two pages, at least


def watch(
    run: RunArgument,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    html: Annotated[
        bool, typer.Option("--html", help="Keep RUN/report.html up to date; a browser that shows it follows.")
    ] = False,
) -> None:
    """Follow a run that another process drives, until it ends. It only reads.

    \b
    Example: star watch runs/first
             star watch runs/first --html
    Ctrl-C ends the view, not the run.
    """
    from rich.live import Live

    from star.report.live import progress_line, screen
    from star.run import Run

    opened, out = Run(run), console()
    page = Page(opened) if html else None
    live = Live(console=out, auto_refresh=False) if out.is_terminal else None
    last = ""
    with live or contextlib.nullcontext():
        while True:
            status, line = opened.status(), progress_line(opened)
            going = status["active"] and not status["finished"]
            if live is not None:
                live.update(screen(opened, out.height), refresh=True)
            elif line != last:
                say(line)
                last = line
            if page is not None:
                page.look(going)
            if not going:
                break
            time.sleep(every)
            opened.refresh()
    if page is not None:
        say(f"report: {page.path}")
    if not opened.status()["finished"]:
        say(f"no process works on {run} now; star evolve {run} resumes it")


class Page:
    """The page of a run, written again when a candidate has ended since, not too often; and at the end."""

    def __init__(self, run: Run):
        self.run, self.path, self.shown, self.next = run, run.path / "report.html", -1, 0.0

    def look(self, going: bool) -> None:
        """Write it if there is something new. going: whether a browser should load it again."""
        from star.report.page import write_page

        done = self.run.status()["done"]
        if not going or (done != self.shown and time.monotonic() >= self.next):
            began = time.monotonic()
            write_page(self.run, self.path, refresh=PAGE_EVERY if going else None)
            self.shown, taken = done, time.monotonic() - began
            self.next = time.monotonic() + max(PAGE_EVERY, 5 * taken)
