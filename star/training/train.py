"""Train one model under a token budget."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from star.data import Batches, Corpus, validation_blocks
from star.errors import UserError
from star.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from star.training.device import peak_memory, reset_peak_memory, resolve_device, resolve_dtype
from star.training.evaluation import evaluate
from star.training.optim import build_optimizer, set_learning_rate
from star.training.recipe import Recipe
from star.training.schedule import learning_rate_factor

PROGRESS_SECONDS = 0.5


@dataclass(frozen=True)
class TrainingResult:
    """Losses in nats per token, memory in bytes; what was never measured, or is not finite, is None."""

    status: str  # "ok" | "diverged" | "timeout"
    reason: str  # why the status is not "ok"
    curve: list[dict]  # {"step", "tokens", "train_loss" (mean since the last point), "val_loss", "seconds"}
    val_loss: float | None  # the curve's last
    val_loss_se: float | None  # standard error of the mean over the blocks of the validation sample
    tokens: int  # trained on
    seconds: float  # with evaluations
    tokens_per_second: float  # without evaluations
    peak_memory: int  # CUDA: of tensors; CPU: of the whole process


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
    device = resolve_device(recipe.device)
    reset_peak_memory(device)
    try:
        run = _Run(model, corpus, recipe, device, stop_tokens)
        return _train(run, on_progress, deadline, Path(checkpoint) if checkpoint else None)
    except torch.OutOfMemoryError as error:
        error.add_note(
            f"while training {sum(param.numel() for param in model.parameters()):,} parameters on {device} with batches of "
            f"{recipe.batch_size} x {recipe.seq_len} tokens; peak {peak_memory(device) / 2**20:.0f} MiB"
        )
        raise


def divergence(curve: list[dict], progress: float, unigram: float, uniform: float) -> str:
    """Why the run of this learning curve has diverged; "" where it has not.

    Early training may be anywhere. In its second half a loss above the unigram level (nats per token) means
    divergence if it was lower before, or if it is even above that of a uniform guess. One that is still on its
    way down, as under a very small budget, is slow and not diverged.
    """
    point = curve[-1]
    if point["train_loss"] is None or point["val_loss"] is None:
        return f"the loss is not finite after {point['tokens']:,} tokens"
    loss, best = point["val_loss"], min(earlier["val_loss"] for earlier in curve)
    if progress >= 0.5 and loss > unigram and (loss > best + 0.1 or loss > uniform):
        return f"the loss is {loss:.2f} after {point['tokens']:,} tokens, past the unigram level of {unigram:.2f}"
    return ""


class _Run:
    """A training run at some step: all that changes while it goes on."""

    def __init__(self, model: nn.Module, corpus: Corpus, recipe: Recipe, device: torch.device, stop_tokens: int | None = None):
        self.model = model.to(device).train()
        self.model.compute_dtype = resolve_dtype(recipe.dtype, device)  # of activations; parameters stay float32
        self.recipe, self.device, self.steps = recipe, device, recipe.steps
        self.tokens_per_step = recipe.batch_size * recipe.seq_len
        self.stop = self.steps if stop_tokens is None else min(self.steps, max(1, -(-stop_tokens // self.tokens_per_step)))
        self.params = [param for param in model.parameters() if param.requires_grad]
        self.optimizer = build_optimizer(model, recipe)
        self.batches = Batches(corpus.train, recipe.batch_size, recipe.seq_len, recipe.seed)
        self.sample = [part.to(device) for part in validation_blocks(corpus.validation, recipe.seq_len, recipe.eval_tokens)]
        self.unigram, self.uniform = corpus.baselines()["unigram"], math.log(corpus.vocab_size)
        n_evaluations = math.ceil(1 / recipe.eval_interval)
        self.evaluations = {math.ceil(self.steps * min(1.0, k * recipe.eval_interval)) for k in range(1, n_evaluations + 1)}
        genome = getattr(model, "genome", None)
        identity = {"genome": getattr(genome, "id", None), "corpus": corpus.fingerprint, "recipe": asdict(recipe)}
        self.identity = json.loads(json.dumps(identity))

        self.step = 0
        self.curve: list[dict] = []
        self.val_loss_se: float | None = None
        self.loss_sum = torch.zeros((), device=device)  # of the steps since the last evaluation
        self.evaluation_seconds = 0.0
        self.earlier_seconds = 0.0  # before the checkpoint that this run went on from
        self.peak_memory = 0
        self.started = time.monotonic()

    @property
    def tokens(self) -> int:
        return self.step * self.tokens_per_step

    @property
    def seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.started

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds - self.evaluation_seconds, 1e-9)

    def advance(self) -> torch.Tensor:
        """One optimizer step; returns its loss."""
        recipe = self.recipe
        # The schedule at the middle of the step: its sum over the run is then the same at any batch size.
        tokens, total = self.tokens + self.tokens_per_step / 2, self.steps * self.tokens_per_step
        set_learning_rate(
            self.optimizer, learning_rate_factor(recipe.schedule, tokens, total, recipe.warmup, recipe.cooldown, recipe.floor)
        )
        inputs, targets = self.batches[self.step]
        loss = self.model.loss(inputs.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True))
        loss.backward()
        if recipe.clip:
            nn.utils.clip_grad_norm_(self.params, recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loss_sum += loss.detach()
        self.step += 1
        return loss.detach()

    def evaluate(self) -> None:
        """Add a point to the learning curve."""
        steps = self.step - (self.curve[-1]["step"] if self.curve else 0)
        train_loss = self.loss_sum.item() / steps  # waits for the device, so that the clock is right
        started = time.monotonic()
        self.model.eval()
        val_loss, self.val_loss_se = evaluate(self.model, *self.sample)
        self.model.train()
        self.evaluation_seconds += time.monotonic() - started
        point = {"step": self.step, "tokens": self.tokens, "train_loss": train_loss, "val_loss": val_loss, "seconds": self.seconds}
        self.curve.append({key: value if math.isfinite(value) else None for key, value in point.items()})

    def diverged(self) -> str:
        return divergence(self.curve, self.step / self.steps, self.unigram, self.uniform)

    def progress(self, loss: float) -> dict:
        seconds_per_step = self.seconds / self.step
        return {
            "step": self.step,
            "steps": self.stop,
            "tokens": self.tokens,
            "loss": loss,
            "val_loss": self.curve[-1]["val_loss"] if self.curve else None,
            "tokens_per_second": self.tokens_per_second,
            "eta": seconds_per_step * (self.stop - self.step),
        }

    def result(self, status: str, reason: str = "") -> TrainingResult:
        val_loss = self.curve[-1]["val_loss"] if self.curve else None
        return TrainingResult(
            status=status,
            reason=reason,
            curve=self.curve,
            val_loss=val_loss,
            val_loss_se=None if val_loss is None else self.val_loss_se,
            tokens=self.tokens,
            seconds=self.seconds,
            tokens_per_second=self.tokens_per_second,
            peak_memory=max(self.peak_memory, peak_memory(self.device)),
        )

    def save(self, path: Path) -> None:
        progress = {name: getattr(self, name) for name in ("step", "curve", "val_loss_se", "evaluation_seconds", "peak_memory")}
        progress |= {"earlier_seconds": self.seconds, "loss_sum": self.loss_sum.item()}
        save_checkpoint(path, self.model, self.optimizer, self.identity, progress)

    def restore(self, path: Path) -> None:
        progress = load_checkpoint(path, self.model, self.optimizer, self.identity)
        if progress["step"] > self.stop:
            tokens, wanted = (step * self.tokens_per_step for step in (progress["step"], self.stop))
            raise CheckpointError(f"The checkpoint {path} is after {tokens:,} tokens, beyond the stop at {wanted:,}; remove it to start afresh.")
        self.loss_sum.fill_(progress.pop("loss_sum"))
        for name, value in progress.items():
            setattr(self, name, value)


def _train(run: _Run, on_progress: Callable[[dict], None] | None, deadline: float | None, checkpoint: Path | None) -> TrainingResult:
    if checkpoint and checkpoint.exists():
        run.restore(checkpoint)
    reported = time.monotonic()
    while run.step < run.stop:
        loss = run.advance()
        if run.step in run.evaluations:
            run.evaluate()
            run.loss_sum.zero_()
            if reason := run.diverged():
                return run.result("diverged", reason)
            if checkpoint:
                run.save(checkpoint)
        now = time.monotonic()
        if deadline is not None and now > deadline and run.step < run.stop:
            return run.result("timeout", f"out of time after {run.tokens:,} of {run.stop * run.tokens_per_step:,} tokens")
        if on_progress and now - reported >= PROGRESS_SECONDS:
            reported = now
            on_progress(run.progress(loss.item()))
    if run.step not in run.evaluations:
        if checkpoint:
            run.save(checkpoint)  # before the point that only the stop asks for: who goes on has the curve without it
        run.evaluate()
        if reason := run.diverged():
            return run.result("diverged", reason)
    return run.result("ok")
