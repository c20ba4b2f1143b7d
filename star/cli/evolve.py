"""star evolve RUN"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from star.cli.arguments import DATA_HELP, RunArgument
from star.cli.console import console, say


def evolve(
    run: RunArgument,
    preset: Annotated[
        str | None,
        typer.Option(help="smoke, laptop (default), gpu, two-stage, paper, paper-quality, paper-size or paper-cache."),
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="TOML file of settings.")] = None,
    data: Annotated[str | None, typer.Option(help=DATA_HELP)] = None,
    algorithm: Annotated[str | None, typer.Option(help="nsga2 (default), ga, firefly, aging or random.")] = None,
    objectives: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="What to minimise, such as loss,cache (default: loss,parameters,cache)."),
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
        str | None, typer.Option(help="Where candidates are trained: pool (default), inprocess or ray.")
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
) -> None:
    """Evolve a population of architectures; the same command resumes a stopped run.

    \b
    Example: star evolve runs/first
             star evolve runs/tiny --preset smoke --seed 0
             star evolve runs/mine --data mytexts/ --set space.slots=12
             star evolve runs/tiny-cache --objectives loss,cache --max-parameters 1e5
    Ctrl-C stops cleanly; the same command resumes.
    """
    from star.cli.display import EvolveDisplay
    from star.run import config_for
    from star.search import evolve as search

    flags = {
        "data.corpus": data,
        "search.algorithm": algorithm,
        "objectives.names": objectives,
        "objectives.max_parameters": max_parameters,
        "objectives.max_cache": max_cache,
        "objectives.max_flops": max_flops,
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
    settings = config_for(run, preset, config, overrides)
    with EvolveDisplay(settings) as display:
        ending = search(run, settings, callbacks=[display])
    say(ending.text)
    if ending.status == "interrupted":
        raise typer.Exit(1)
    report(run)


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
    """Print the front of a finished run, write its plots, export its knee and sample text from it."""
    from star.cli.arguments import Chosen, load_candidate
    from star.cli.console import write_text
    from star.cli.generate import sample
    from star.cli.plot import write_all
    from star.export import export_model
    from star.report.tables import front_table, summary_lines
    from star.run import Run

    run = Run(path)
    say("\nThe Pareto front:\n")
    console().print(front_table(run))
    say("\n".join(["", *summary_lines(run), ""]))
    write_all(run)
    knee = run.knee()
    if run.weights(knee.id) is None:
        return
    chosen = Chosen(knee.genome, origin=(run, knee))
    model = load_candidate(run, knee)
    folder = path / "exported" / knee.id
    export_model(model, model.genome, folder, source=chosen.source, metrics=chosen.metrics, overwrite=True)
    say(f"knee of the front, exported as a PyTorch module: {folder}")
    prompt = "def "
    say(f"\nSample after {prompt!r} (star generate {folder} --prompt {prompt!r}):\n")
    write_text(sample(model, prompt, 200))
