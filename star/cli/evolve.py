"""star evolve RUN"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from star.cli.arguments import (
    ALGORITHMS,
    DATA_HELP,
    ENGINES,
    PRESET_HELP,
    PRESETS,
    TOKENIZER_HELP,
    RunArgument,
    YesOption,
    named,
)
from star.cli.console import console, say

if TYPE_CHECKING:
    from star.config import RunConfig


def evolve(
    run: RunArgument,
    preset: Annotated[
        str | None,
        typer.Option(help=PRESET_HELP, autocompletion=lambda: list(PRESETS)),
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="TOML file of settings.")] = None,
    data: Annotated[str | None, typer.Option(help=DATA_HELP)] = None,
    tokenizer: Annotated[str | None, typer.Option(metavar="NAME", help=TOKENIZER_HELP)] = None,
    algorithm: Annotated[
        str | None,
        typer.Option(help=f"{named(ALGORITHMS, 'nsga2')}.", autocompletion=lambda: list(ALGORITHMS)),
    ] = None,
    objectives: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="What to minimise, such as bpb,cache (default: bpb,parameters,cache)."),
    ] = None,
    max_parameters: Annotated[
        str | None, typer.Option(metavar="N", help="Train no genome with more parameters than this, such as 1e6.")
    ] = None,
    max_cache: Annotated[
        str | None, typer.Option(metavar="BYTES", help="Train no genome with a larger cache than this.")
    ] = None,
    max_flops: Annotated[
        str | None, typer.Option(metavar="N", help="Train no genome with more training FLOPs per token than this.")
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            metavar="RANGES",
            help="Sizes in which to look, such as parameters=1e5:3e5, or parameters=0.5x:1.5x of the baselines'.",
        ),
    ] = None,
    horizon: Annotated[
        str | None,
        typer.Option(
            metavar="TIMES", help="Rank by the quality predicted for 10x the training budget; 0: as measured."
        ),
    ] = None,
    population: Annotated[int | None, typer.Option(help="Genomes in the initial population.")] = None,
    offspring: Annotated[int | None, typer.Option(help="Genomes trained in each later generation.")] = None,
    generations: Annotated[
        int | None,
        typer.Option(help="Generations, including the initial population; raise it to extend a finished run."),
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="N", help="Training tokens per candidate, such as 65_536.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Candidates trained at the same time (default: one per CPU core or GPU).")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help=f"Where candidates are trained: {named(ENGINES, 'pool')}.", autocompletion=lambda: list(ENGINES)
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Ray cluster, or auto (default: Ray on this machine).")
    ] = None,
    asynchronous: Annotated[
        bool | None,
        typer.Option(
            "--async/--generations-in-step",
            help="Propose a new genome whenever a worker is free; such a run cannot be repeated exactly.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any setting, such as search.mutation_probability=0.2; may be repeated."
        ),
    ] = None,
    yes: YesOption = False,
) -> None:
    """Evolve a population of architectures; the same command resumes a stopped run.

    \b
    Example: star evolve runs/first
             star evolve runs/tiny --preset smoke --seed 0
             star evolve runs/mine --data mytexts/ --set space.slots=12
             star evolve runs/tiny-cache --objectives bpb,cache --max-parameters 1e5
    Ctrl-C stops cleanly; the same command resumes. Before a new run starts, the time that it will take is measured.
    """
    from star.cli.display import EvolveDisplay
    from star.run import config_for
    from star.search import evolve as search
    from star.search.ladders import with_horizon

    flags = {
        "data.corpus": data,
        "data.tokenizer": tokenizer,
        "search.algorithm": algorithm,
        "objectives.names": objectives,
        "objectives.max_parameters": max_parameters,
        "objectives.max_cache": max_cache,
        "objectives.max_flops": max_flops,
        "search.region": region,
        "search.horizon": horizon and horizon.removesuffix("x"),
        "search.population": population,
        "search.offspring": offspring,
        "search.generations": generations,
        "training.tokens": tokens,
        "seed": seed,
        "engine.workers": workers,
        "engine.kind": engine,
        "engine.address": address,
        "search.asynchronous": asynchronous,
    }
    overrides = {key: value for key, value in flags.items() if value is not None} | overrides_of(set_ or [])
    settings, _ = with_horizon(config_for(run, preset, config, overrides), run)
    with EvolveDisplay(settings) as display:
        ending = search(run, settings, callbacks=[display], before=lambda config: expect(config, yes, display.line))
    say(ending.text)
    if ending.status == "interrupted":
        raise typer.Exit(1)
    report(run)


def expect(config: RunConfig, yes: bool, tell: Callable[[str], None]) -> None:
    """Say how long a new search will take. Raises UserError if that is beyond a year, unless `yes`."""
    from star.search.forecast import forecast, refuse_beyond_a_year

    if config.evaluation != "training" or config.engine.kind == "ray":  # what a cluster does is not known here
        return
    expected = forecast(config)
    if expected is None:
        tell("expected time: not known, because no genome of this space could be measured")
        return
    refuse_beyond_a_year(expected.seconds, "this search", yes)
    tell(str(expected))


def overrides_of(pairs: list[str]) -> dict[str, str]:
    """Settings by key. Raises UserError for a pair that is not KEY=VALUE."""
    from star.errors import UserError

    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UserError(f"--set {pair!r}: write KEY=VALUE, such as search.population=16")
        overrides[key.strip()] = value.strip()
    return overrides


def report(path: Path) -> None:
    """Print the front of a finished run, write its plots and page, export its best and its knee, and sample text."""
    from star.cli.arguments import Chosen, load_candidate
    from star.cli.console import write_text
    from star.cli.generate import sample
    from star.cli.plot import write_all
    from star.cli.report import write_report
    from star.export import export_model
    from star.report.tables import front_table, summary_lines
    from star.report.units import format_objective
    from star.run import Run

    run = Run(path)
    say("\nThe Pareto front:\n")
    console().print(front_table(run))
    say("\n".join(["", *summary_lines(run), ""]))
    write_all(run)
    write_report(run)
    best, knee = run.best(), run.knee()
    first = run.objectives[0].name
    uses = {best.id: f"best {first}, to use or to train for longer: star train {path}:best"}
    if knee.id != best.id:
        uses[knee.id] = "knee, for little memory: the member nearest to the best of every objective"
    exported = {}
    for candidate in (best, knee):
        if run.weights(candidate.id) is not None and candidate.id not in exported:
            chosen = Chosen(candidate.genome, origin=(run, candidate))
            exported[candidate.id] = load_candidate(run, candidate)
            folder = path / "exported" / candidate.id
            model = exported[candidate.id]
            export_model(
                model,
                model.genome,
                folder,
                source=chosen.source,
                metrics=chosen.metrics,
                training=chosen.training,
                overwrite=True,
            )
            values = ", ".join(f"{o.name} {format_objective(o, candidate)}" for o in run.objectives)
            say(f"exported {folder} ({values}): {uses[candidate.id]}")
    if best.id in exported:
        prompt = "def "
        say(f"\nSample of the best after {prompt!r} (star generate {path}:best --prompt {prompt!r}):\n")
        write_text(sample(exported[best.id], prompt, 200))
