"""The `star` command, one file per verb. The work itself is done by the other packages.

A verb imports heavy packages only when it runs, so `star --help` answers at once. Exit code 0: success; 1: the work
failed or was interrupted; 2: wrong use. An error is one sentence on standard error.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import warnings
from typing import Any, NoReturn, TextIO

import typer
from typer.core import TyperGroup

from star.cli.capabilities import capabilities
from star.cli.compare import compare
from star.cli.doctor import doctor
from star.cli.evidence import evidence
from star.cli.evolve import evolve
from star.cli.export import export
from star.cli.front import front
from star.cli.generate import generate
from star.cli.import_ import import_
from star.cli.ladder import ladder
from star.cli.plot import plot
from star.cli.refine import refine
from star.cli.report import report
from star.cli.rescore import rescore
from star.cli.show import show
from star.cli.status import status
from star.cli.train import train
from star.cli.watch import watch
from star.errors import Damaged, RunFailed, UserError


class Star(TyperGroup):
    """A group of commands that reports an error in one sentence."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)  # in the order of a typical session

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse numbers in other digits before any verb sees them."""
        for arg in args:
            _refuse_other_digits(arg.partition("=")[2] or arg)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _warn
                result = super().invoke(ctx)
            sys.stdout.flush()  # a closed pipe raises here, not at interpreter exit
            return result
        except UserError as error:
            _fail(error, 2)
        except RunFailed as error:
            _fail(error, 1)
        except KeyboardInterrupt:
            _fail("interrupted", 1)
        except BrokenPipeError:
            _drop_output()
            raise typer.Exit(1) from None
        except OSError as error:
            if error.errno == errno.ENOSPC:
                if error.filename is None:
                    _drop_output()
                unwritten = f": {error.filename} could not be written" if error.filename else ""
                _fail(f"the disk is full{unwritten}; free some space and run the command again", 1)
            if error.filename is None:
                raise
            _fail(f"{error.filename}: {error.strerror}; give a path that can be read and written", 2)


def _drop_output() -> None:
    """Otherwise the interpreter fails again when it flushes standard output at exit, and ends with code 120."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """As Python does, but a warning that is meant for the user is one sentence."""
    if issubclass(category, Damaged):
        typer.echo(f"star: warning: {message}", err=True)
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def _refuse_other_digits(text: str) -> None:
    """End with a sentence if text is a number in digits of another script, which int() and float() would take."""
    if text.isascii():
        return
    with contextlib.suppress(ValueError):
        float(text)
        _fail(f"{text!r} is not in the digits 0 to 9; write such as 10 or 0.5", 2)


def _fail(error: object, code: int) -> NoReturn:
    typer.echo(f"star: {error}", err=True)
    raise typer.Exit(code)


app = typer.Typer(cls=Star, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


def _version(value: bool) -> None:
    if value:
        import star

        typer.echo(f"star {star.__version__}")
        raise typer.Exit


@app.callback()
def star_(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Evolve language-model architectures, and export any point of the Pareto front as a PyTorch module.

    \b
    star evolve runs/first          evolve a population; the same command resumes a stopped run
    star watch runs/first           follow it while it runs
    star front runs/first           the Pareto front as a table
    star report runs/first --open   all about it as an interactive page
    star ladder runs/first          does its order hold at larger budgets?
    star evidence runs/first        are its members better than the baselines?
    star capabilities runs/first    what can they do that the loss does not show?
    star refine runs/first          tune its members: training recipes and local edits
    star rescore runs/first         train the front with fresh seeds: which members were lucky?
    star export runs/first:best     export a model
    star doctor                     what this machine has, and how long each preset takes on it

    A GENOME is a genome file, a shipped name (transformer++), genome text (21211-31112), or RUN:ID. RUN:best is the
    member of the front with the lowest loss, RUN:knee the one nearest to the best of all objectives.
    """


LOOK = (status, watch, front, report, plot, compare)
TRUST = (ladder, evidence, capabilities, refine, rescore)
for verb in (evolve, *LOOK, *TRUST, show, train, export, generate, import_, doctor):
    app.command(verb.__name__.rstrip("_"))(verb)


def main() -> None:
    """Run the command line. What the output's encoding does not have is replaced, on both streams."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app(prog_name="star")
