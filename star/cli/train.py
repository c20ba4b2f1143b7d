"""star train GENOME"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from star.cli.arguments import GENOME_HELP
from star.cli.console import say


def train(
    genome: Annotated[str, typer.Argument(metavar="GENOME", help=GENOME_HELP)],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder for the trained model (default: exported/NAME).")] = None,
    preset: Annotated[str, typer.Option(help="Recipe to train by: that of the preset smoke, laptop, gpu or paper.")] = "laptop",
    data: Annotated[str, typer.Option(help='Text to train on: "stdlib", a text file or folder, or hf:NAME[:CONFIG].')] = "stdlib",
    tokens: Annotated[str | None, typer.Option(metavar="N", help="Training budget in tokens, such as 1e6 (default: the preset's).")] = None,
    d_model: Annotated[int | None, typer.Option(min=1, help="Scale a shipped genome or file to this width.")] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="Scale a shipped genome or file to this many LIVs.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights and of the order of the text.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting of the recipe, such as learning_rate=1e-3.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an exported folder.")] = False,
) -> None:
    """Train one architecture fully and export it.

    \b
    Example: star train transformer++ --d-model 64 --depth 4 --tokens 1e6
             star train runs/first:knee --tokens 1e6 --out mymodel
    """
    from star.cli.arguments import choose_genome
    from star.cli.evolve import overrides_of
    from star.cli.progress import TrainingDisplay
    from star.config import load_config
    from star.data import open_corpus
    from star.errors import RunFailed
    from star.export import check_target, export_model
    from star.model import build
    from star.training import train as train_model

    chosen = choose_genome(genome, d_model, depth)
    overrides = {f"training.{key}": value for key, value in overrides_of(set_ or []).items()} | ({"training.tokens": tokens} if tokens else {})
    recipe = load_config(preset, overrides=overrides).training.replace(seed=seed)
    corpus = open_corpus(data)
    out = out or Path("exported") / (chosen.candidate.id if chosen.candidate else chosen.name or chosen.genome.id)
    check_target(out, overwrite)  # before the work, not after it
    model = build(chosen.genome, corpus.vocab_size, seed)
    parameters = sum(p.numel() for p in model.parameters())
    references = ", ".join(f"byte {name} {loss:.3f}" for name, loss in corpus.baselines().items())
    say(f"training {chosen.genome.id}: {parameters:,} parameters on {recipe.tokens:,} tokens of {corpus.name} ({references} nats/byte)")
    with TrainingDisplay() as display:
        result = train_model(model, corpus, recipe, on_progress=display)
    if result.status != "ok":
        raise RunFailed(f"training ended as '{result.status}': {result.reason}")
    say(f"validation loss {result.val_loss:.4f} +- {result.val_loss_se:.4f} nats/byte after {result.seconds:.0f} s ({result.tokens_per_second:,.0f} tokens/s)")
    metrics = {"loss": result.val_loss, "loss_se": result.val_loss_se, "tokens": result.tokens, "seconds": result.seconds}
    source = {"corpus": corpus.name, "fingerprint": corpus.fingerprint}
    export_model(model, chosen.genome, out, name=chosen.name, source=source, metrics=metrics, overwrite=overwrite)
    say(f'exported to {out}; try: star generate {out} --prompt "def "')
