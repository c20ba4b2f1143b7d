"""Train one model under a token budget."""

import time
from collections.abc import Callable
from pathlib import Path

from torch import nn

from star.data import Corpus
from star.errors import UserError, is_out_of_memory
from star.training.device import peak_memory, reset_peak_memory, resolve_device
from star.training.distributed import any_of, local_device, process_group
from star.training.recipe import Recipe
from star.training.result import TrainingResult
from star.training.run import TrainingRun

PROGRESS_SECONDS = 0.5


def train(
    model: nn.Module,
    corpus: Corpus,
    recipe: Recipe,
    on_progress: Callable[[dict], None] | None = None,
    deadline: float | None = None,
    checkpoint: str | Path | None = None,
    stop_tokens: int | None = None,
) -> TrainingResult:
    """Train `model` in place on `corpus.train`, and judge it on a fixed sample of `corpus.validation`.

    on_progress: called at most twice a second with step, steps, tokens, loss, val_loss, tokens_per_second, eta (s).
    deadline: a moment of `time.monotonic()`; training that passes it ends with status "timeout".
    checkpoint: a file, written after every evaluation. Where it exists training goes on from it,
        on a CPU to the same bits as if it had never stopped; a checkpoint of another run is a CheckpointError.
    stop_tokens: a rung: after so many tokens (rounded up to whole batches) the model is judged and saved, and training
        ends with status "ok". The schedule stays that of the whole budget, and a run that goes on from there to the
        end has the bits and the curve of one that never stopped: a point measured only for the stop is not kept.

    A loss that is not finite, or that rises past the unigram level late in training (see `divergence`), ends
    training with status "diverged" at the evaluation that sees it. Running out of memory is not caught here:
    the error goes on with a note of what was being trained.
    """
    corpus.check_context(recipe.seq_len)
    if getattr(model, "vocab_size", corpus.vocab_size) != corpus.vocab_size:
        raise UserError(
            f'The model has {model.vocab_size} tokens and the corpus "{corpus.name}" has {corpus.vocab_size}; '
            f"build the model with vocab_size={corpus.vocab_size}."
        )
    device = local_device(resolve_device(recipe.device))
    reset_peak_memory(device)
    try:
        with process_group(device):
            run = TrainingRun(model, corpus, recipe, device, stop_tokens)
            try:
                return _train(run, on_progress, deadline, Path(checkpoint) if checkpoint else None)
            finally:
                run.close()
                run.loss = None  # what belongs to the other processes goes while they are there: its destructor may wait for them for ever
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        error.add_note(
            f"while training {sum(param.numel() for param in model.parameters()):,} parameters on {device} with micro-batches of "
            f"{recipe.batch_size} x {recipe.seq_len} tokens, halved once where they could be; peak {peak_memory(device) / 2**20:.0f} MiB"
        )
        raise


def _train(
    run: TrainingRun, on_progress: Callable[[dict], None] | None, deadline: float | None, checkpoint: Path | None
) -> TrainingResult:
    if checkpoint and checkpoint.exists():
        run.restore(checkpoint)
    reported = time.monotonic()
    while run.done < run.stop:
        loss = run.advance()
        if run.due:
            run.evaluate()
            run.loss_sum.zero_()
            if reason := run.diverged():
                return run.result("diverged", reason)
            if checkpoint:
                run.save(checkpoint)
        now = time.monotonic()
        if deadline is not None and run.done < run.stop and any_of(now > deadline, run.device):
            return run.result(
                "timeout", f"out of time after {run.tokens:,} of {run.stop * run.recipe.micro_batch:,} tokens"
            )
        if on_progress and now - reported >= PROGRESS_SECONDS:
            reported = now
            on_progress(run.progress(loss.item()))
    if not run.curve or run.curve[-1]["tokens"] != run.tokens:
        if checkpoint:
            run.save(checkpoint)  # before the point that only the stop asks for: who goes on has the curve without it
        run.evaluate()
        if reason := run.diverged():
            return run.result("diverged", reason)
    return run.result("ok")
