"""star export GENOME"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from star.cli.arguments import DepthOption, GenomeArgument, OverwriteOption, WidthOption
from star.cli.console import say

FORMATS = ("pytorch", "hf")


def export(
    genome: GenomeArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="DIR", help="Folder to write (default: RUN/exported/ID, or exported/NAME)."
        ),
    ] = None,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Export freshly initialised weights; required unless GENOME is RUN:ID.")
    ] = False,
    vocab_size: Annotated[
        int | None,
        typer.Option(min=2, max=10_000_000, help="With --untrained: vocabulary size (default: 256, for bytes)."),
    ] = None,
    format_: Annotated[
        str,
        typer.Option("--format", metavar="FORMAT", help="pytorch, or hf: a checkpoint of a class of transformers."),
    ] = "pytorch",
    seed: Annotated[int, typer.Option(min=0, help="With --untrained: random seed of the weights.")] = 0,
    d_model: WidthOption = None,
    depth: DepthOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Export a PyTorch module: one readable file, its weights (safetensors), a model card and an example.

    \b
    Example: star export runs/first:knee --out mymodel
             python mymodel/model.py --prompt "def " --tokens 200
             star export transformer++ --untrained --d-model 128 --depth 4
             star export runs/first:best --format hf --out checkpoint
    """
    from star.cli.arguments import choose_genome, load_candidate
    from star.errors import UserError
    from star.export import export_hugging_face, export_model
    from star.export.readable import unreadable
    from star.model import build

    if format_ not in FORMATS:
        raise UserError(f"--format {format_!r}: there is no such format; give one of {', '.join(FORMATS)}")
    chosen = choose_genome(genome, d_model, depth)
    if untrained:
        model = build(chosen.genome, vocab_size or 256, seed)
    elif chosen.origin:
        model = load_candidate(*chosen.origin)
    else:
        raise UserError(
            f"'{genome}' has no trained weights: give RUN:ID, or --untrained for freshly initialised weights, or "
            f"train it first with star train {genome}"
        )
    if out is None and chosen.origin:
        run, candidate = chosen.origin
        out = run.path / "exported" / candidate.id
    out = out or Path("exported") / (chosen.name or chosen.genome.id)
    facts: dict[str, Any] = {
        "name": chosen.label,
        "trained": not untrained,
        "source": chosen.source,
        "metrics": {} if untrained else chosen.metrics,
        "training": None if untrained else chosen.training,
        "overwrite": overwrite,
    }
    if format_ == "hf":
        stock = export_hugging_face(model, model.genome, out, **facts)
        say(f"exported {model.genome.id} to {out}: {stock}ForCausalLM of transformers, which gives the same logits")
        say(f"load it: AutoModelForCausalLM.from_pretrained({str(out)!r})")
        return
    export_model(model, model.genome, out, **facts)
    say(f"exported {model.genome.id} to {out}")
    if missing := unreadable(model.plan):
        say(f"model.py is copied from STAR's sources: there is no readable page yet for {', '.join(missing)}")
    say(f'try: python {out / "model.py"} --prompt "def " --tokens 200')
