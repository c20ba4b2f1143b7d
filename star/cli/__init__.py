"""The command line: one file per verb, no logic of its own.

Nothing heavy is imported before a verb needs it, so that `star --help` answers at once. Exit code 0; 1: the work failed
or was interrupted; 2: bad use. Errors are one sentence on standard error.
"""

from __future__ import annotations

import errno
import os
import sys

import typer
from typer.core import TyperGroup

from star.cli.evolve import evolve
from star.cli.export import export
from star.cli.front import front
from star.cli.generate import generate
from star.cli.plot import plot
from star.cli.refine import refine
from star.cli.rescore import rescore
from star.cli.show import show
from star.cli.status import status
from star.cli.train import train
from star.errors import RunFailed, UserError


class Star(TyperGroup):
    """A group of commands that reports an error in one sentence."""

    def list_commands(self, ctx: typer.Context) -> list[str]:
        return list(self.commands)  # in order of use

    def invoke(self, ctx: typer.Context):
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # so that a closed pipe is noticed here
            return result
        except UserError as error:
            _fail(error, 2)
        except RunFailed as error:
            _fail(error, 1)
        except KeyboardInterrupt:
            _fail("interrupted", 1)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter prints an error at exit
            raise typer.Exit(1) from None
        except OSError as error:
            if error.errno == errno.ENOSPC:
                _fail(
                    f"the disk is full{f': {error.filename} could not be written' if error.filename else ''}; free "
                    "some space and run the command again",
                    1,
                )
            if error.filename is None:
                raise
            _fail(f"{error.filename}: {error.strerror}; give a path that can be read and written", 2)


def _fail(error: object, code: int) -> None:
    typer.echo(f"star: {error}", err=True)
    raise typer.Exit(code)


app = typer.Typer(
    cls=Star, no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)


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
    """Evolve language-model architectures, and take each point of the Pareto front away as a PyTorch module.

    \b
    star evolve runs/first          evolve a population; the same command resumes a stopped run
    star front runs/first           the Pareto front as a table
    star refine runs/first          tune its members: recipes and local edits
    star rescore runs/first         train the front with fresh seeds: which members were lucky?
    star export runs/first:knee     export a model

    A GENOME is a genome file, a shipped name (transformer++), text (21211-31112), or RUN:ID; RUN:knee is the knee of
    its front.
    """


for verb in (evolve, status, front, refine, rescore, show, plot, train, export, generate):
    app.command()(verb)


def main() -> None:
    """The entry point `star`."""
    app(prog_name="star")
