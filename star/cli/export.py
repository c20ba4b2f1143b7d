"""star export GENOME"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from star.cli.arguments import GENOME_HELP
from star.cli.console import say


def export(
    genome: Annotated[str, typer.Argument(metavar="GENOME", help=GENOME_HELP)],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder to write (default: RUN/exported/ID, or exported/NAME)."),
    ] = None,
    untrained: Annotated[
        bool,
        typer.Option("--untrained", help="Export newly initialised weights; required for a genome that is not RUN:ID."),
    ] = False,
    vocab_size: Annotated[
        int | None,
        typer.Option(min=2, max=10_000_000, help="With --untrained: rows of the embedding (default 256, bytes)."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="With --untrained: random seed of the weights.")] = 0,
    d_model: Annotated[int | None, typer.Option(min=1, help="Scale a shipped genome or file to this width.")] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="Scale a shipped genome or file to this many LIVs.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an exported folder.")] = False,
) -> None:
    """Export a PyTorch module: one self-contained file, its weights (safetensors) and a description.

    \b
    Example: star export runs/first:knee --out mymodel
             python mymodel/model.py --prompt "def " --tokens 200
             star export transformer++ --untrained --d-model 128 --depth 4
    """
    from star.cli.arguments import choose_genome, load_candidate
    from star.errors import UserError
    from star.export import export_model

    chosen = choose_genome(genome, d_model, depth)
    trained = chosen.run is not None and not untrained
    if trained:
        model = load_candidate(chosen)
    elif not untrained:
        raise UserError(
            f"'{genome}' has no trained weights: give RUN:ID, or --untrained for freshly started ones, or train it "
            f"by star train {genome}"
        )
    else:
        from star.model import build

        model = build(chosen.genome, vocab_size or 256, seed)
    if out is None:
        out = (
            chosen.run.path / "exported" / chosen.candidate.id
            if chosen.run
            else Path("exported") / (chosen.name or chosen.genome.id)
        )
    source = {"run": str(chosen.run.path), "id": chosen.candidate.id} if chosen.run else {}
    metrics = chosen.metrics if trained else {}
    export_model(
        model, model.genome, out, name=chosen.name, trained=trained, source=source, metrics=metrics, overwrite=overwrite
    )
    say(f"exported {model.genome.id} to {out}")
    say(f'try: python {out / "model.py"} --prompt "def " --tokens 200')
