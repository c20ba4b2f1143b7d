"""star train GENOME"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from star.cli.arguments import (
    DATA_HELP,
    PRESET_HELP,
    PRESETS,
    TOKENIZER_HELP,
    Chosen,
    DepthOption,
    GenomeArgument,
    OverwriteOption,
    WidthOption,
    YesOption,
)
from star.cli.console import say

if TYPE_CHECKING:
    from star.data.corpus import Corpus


@dataclass
class _Stop:
    """Remembers that a signal asked for the end."""

    stopped: bool = False

    def stop(self) -> None:
        self.stopped = True


def train(
    genome: GenomeArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the trained model (default: exported/NAME).")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help=f"Preset with the recipe; RUN:ID has its own unless this is given: {PRESET_HELP}",
            autocompletion=lambda: list(PRESETS),
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help=f"{DATA_HELP} Default: the text of the run for RUN:ID, else python.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"{TOKENIZER_HELP} Default: that of the run, else bytes.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="N", help="Training tokens, such as 1e6 (default: as in the recipe).")
    ] = None,
    d_model: WidthOption = None,
    depth: DepthOption = None,
    scale: Annotated[
        str | None,
        typer.Option(
            metavar="SCALE",
            help="Enlarge the backbone, such as 2x-depth,2x-width; with ,stretch each LIV is repeated in place.",
        ),
    ] = None,
    log: Annotated[
        list[str] | None,
        typer.Option(metavar="WHERE", help="Also log to tensorboard:FOLDER or wandb:PROJECT (needs that extra)."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the initial weights and the batch order.")] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting of the recipe, such as learning_rate=1e-3."),
    ] = None,
    overwrite: OverwriteOption = False,
    yes: YesOption = False,
) -> None:
    """Train one architecture fully and export it; the same command resumes a stopped training.

    RUN:ID is trained on the text and with the recipe of its run, or its own recipe if star refine made it.

    \b
    Example: star train transformer++ --d-model 64 --depth 4 --tokens 1e6
             star train runs/first:knee --scale 2x-depth,2x-width --set optimizer=muon --out mymodel
             torchrun --nproc-per-node 2 -m star train lfm2-350m --tokens 1e9
    """
    from star.cli.arguments import choose_genome
    from star.cli.display import TrainingDisplay
    from star.cli.evolve import overrides_of
    from star.config import load_config
    from star.errors import RunFailed
    from star.export import check_target, export_model
    from star.genome import from_json
    from star.genome.scale import parse_scale
    from star.model import build
    from star.search.forecast import duration, refuse_beyond_a_year, time_of
    from star.search.session import stop_on_signals
    from star.training import open_logger
    from star.training.checkpoint import saved_step
    from star.training.distributed import rank
    from star.training.trainer import training
    from star.turns import finish

    first = rank() == 0  # only the first process of torchrun prints and writes
    chosen = choose_genome(genome, d_model, depth)
    grown = parse_scale(scale).apply(chosen.genome) if scale else chosen.genome
    overrides = {f"training.{key}": value for key, value in overrides_of(set_ or []).items()}
    if tokens:
        overrides["training.tokens"] = tokens
    base = None
    if chosen.origin:
        run, candidate = chosen.origin
        base = replace(run.config, training=candidate.recipe or run.config.training)
    recipe = load_config(preset, overrides=overrides, base=base).training.replace(seed=seed)
    corpus = text_of(chosen, data, tokenizer)
    out = out or Path("exported") / (chosen.source.get("id") or chosen.name or grown.id)
    check_target(out, overwrite)  # before training rather than after it
    checkpoint = out.with_name(f"{out.name}.checkpoint.safetensors")
    model = build(grown, corpus.vocab_size, seed)
    model.tokenizer = corpus.tokenizer
    token = "byte" if corpus.tokenizer.name == "bytes" else "token"
    loggers = [open_logger(where, recipe, out.name) for where in log or []] if first else []
    if first:
        parameters = sum(p.numel() for p in model.parameters())
        references = ", ".join(f"{token} {name} {loss:.3f}" for name, loss in corpus.baselines().items())
        say(
            f"training {grown.id}: {parameters:,} parameters on {recipe.tokens:,} tokens of {corpus.name} "
            f"({references} nats/{token}); {recipe.describe()}"
        )
        for note in corpus.notes:
            say(f"{corpus.name}: {note}")
        if checkpoint.exists():
            say(f"resuming from {checkpoint} at step {saved_step(checkpoint):,}")
        elif os.environ.get("WORLD_SIZE", "1") == "1":
            expected = time_of(grown, corpus, recipe)
            if expected is not None:
                refuse_beyond_a_year(expected, "this training", yes)
                say(f"expected time: about {duration(expected)}, by the rate of its first steps")
    with TrainingDisplay() as display:
        listeners: list[Callable[[dict], None]] = [display, *loggers]

        def listen(event: dict) -> None:
            for listener in listeners:
                listener(event)

        steps = training(model, corpus, recipe, listen if first else None, checkpoint=checkpoint)
        work = _Stop()
        with stop_on_signals(work):
            try:
                result = finish(steps, lambda: work.stopped)
            except KeyboardInterrupt:
                if not checkpoint.exists():
                    raise
                raise RunFailed(f"stopped; the same command resumes from {checkpoint}") from None
    if not first:
        return
    for logger in loggers:
        logger.finish(result)
    if result.status != "ok":
        checkpoint.unlink(missing_ok=True)
        raise RunFailed(f"training ended as '{result.status}': {result.reason}")
    assert result.val_loss is not None
    bpb = corpus.bits_per_byte(result.val_loss)
    say(
        f"validation loss {result.val_loss:.4f} +- {result.val_loss_se:.4f} nats/{token}, "
        f"{bpb:.4f} bits per byte, after {result.seconds:.0f} s "
        f"({result.tokens_per_second:,.0f} tokens/s)"
    )
    if result.sparsity:
        trained, model = model, build(from_json(result.sparsity["genome"]), corpus.vocab_size)
        model.load_state_dict(trained.state_dict())
        model.tokenizer = corpus.tokenizer
        say(
            f"sparsification saves {result.sparsity['cache_saved']:.0%} of the cache at {recipe.seq_len} tokens: "
            f"the model is now {model.genome.id}"
        )
    metrics = {"loss": result.val_loss, "loss_se": result.val_loss_se, "bpb": bpb}
    metrics |= {"tokens": result.tokens, "seconds": result.seconds}
    export_model(
        model,
        model.genome,
        out,
        name=f"{chosen.label}, {scale}" if scale else chosen.label,
        source=chosen.source | {"corpus": corpus.name, "fingerprint": corpus.fingerprint},
        metrics=metrics,
        training={"recipe": asdict(recipe), "curve": result.curve, "sparsity": result.sparsity},
        overwrite=overwrite,
    )
    checkpoint.unlink(missing_ok=True)
    say(f'exported to {out}; try: star generate {out} --prompt "def "')


def text_of(chosen: Chosen, data: str | None, tokenizer: str | None = None) -> Corpus:
    """The text to train on: `data`, or that of the run; likewise the tokenizer.

    Raises UserError if the text of the run has moved or changed.
    """
    from star.data import open_corpus
    from star.errors import UserError

    if not chosen.origin:
        return open_corpus(data or "python", tokenizer=tokenizer or "bytes")
    run = chosen.origin[0]
    tokenizer = tokenizer or run.config.data.tokenizer
    if data is not None:
        return open_corpus(data, tokenizer=tokenizer)
    place, how = run.config.data.corpus, "give it, or another text, with --data"
    try:
        corpus = open_corpus(place, tokenizer=tokenizer)
    except UserError as error:
        raise UserError(f"the text of {run.path} is not at {place!r} any more ({error}); {how}") from None
    if tokenizer == run.config.data.tokenizer and corpus.fingerprint != run.corpus["fingerprint"]:
        raise UserError(f"the text at {place!r} is not the one of {run.path} any more; {how}")
    return corpus
