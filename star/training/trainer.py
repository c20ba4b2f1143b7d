"""Train one model: `train`, and `TrainingRun`, which holds the state of a training and takes its steps."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Generator
from dataclasses import asdict
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from star.data import Batches, Corpus, DeviceBatches, validation_blocks
from star.errors import UserError, is_out_of_memory
from star.genome import to_json
from star.model import LanguageModel
from star.training import background_compile
from star.training.accumulation import Accumulation
from star.training.background_compile import Compilation
from star.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from star.training.compile import checkpoint_blocks, compile_blocks
from star.training.device import (
    capacity,
    peak_memory,
    reset_peak_memory,
    resolve_device,
    resolve_dtype,
    use_tensor_cores,
)
from star.training.distributed import (
    any_of,
    average,
    local_device,
    local_gradients,
    process_group,
    rank,
    shared_loss,
    world_size,
)
from star.training.evaluation import block_losses, summary
from star.training.optim import build_optimizer
from star.training.program import Program, on_own_stream
from star.training.recipe import Recipe
from star.training.result import TrainingResult, divergence
from star.training.schedule import learning_rate_factor
from star.training.sparsify import UPDATES, Sparsifier
from star.training.trainable import Trainable
from star.turns import finish

# Attention heads are scored at most once in so many micro-batches, which costs about as much as one, but this often.
MICRO_BATCHES_PER_SCORE, FEWEST_SCORES = 40, 5
AHEAD = 8192  # micro-batches whose places in the text and learning rates lie on the device
CHECKPOINT_SECONDS = 30.0  # between two checkpoints, at most
SETTLED_SECONDS = 10.0  # after which the rate says how long the rest will take
PROGRESS_SECONDS = 0.5  # between two calls of on_progress
# Attributes of a `TrainingRun` that a checkpoint stores as they are
STORED = ("step", "done", "parts", "recomputes", "curve", "val_loss_se", "evaluation_seconds", "peak_memory")


def train(
    model: nn.Module,
    corpus: Corpus,
    recipe: Recipe,
    on_progress: Callable[[dict], None] | None = None,
    deadline: float | None = None,
    checkpoint: str | Path | None = None,
    stop_tokens: int | None = None,
) -> TrainingResult:
    """All steps of `training`, which see for the arguments, and its result."""
    return finish(training(model, corpus, recipe, on_progress, deadline, checkpoint, stop_tokens))


def training(
    model: nn.Module,
    corpus: Corpus,
    recipe: Recipe,
    on_progress: Callable[[dict], None] | None = None,
    deadline: float | None = None,
    checkpoint: str | Path | None = None,
    stop_tokens: int | None = None,
) -> Generator[None, None, TrainingResult]:
    """Train `model` in place on `corpus.train`, and evaluate it on a fixed sample of `corpus.validation`.

    model: a `star.model.LanguageModel`, or any module with the methods of `star.training.trainable.Trainable`.
    on_progress: called at most twice a second with step, steps, tokens, loss, val_loss, tokens_per_second, eta (s).
    deadline: a moment of `time.monotonic()`; training that passes it ends with status "timeout".
    checkpoint: a file, written after every evaluation, every `CHECKPOINT_SECONDS`, and when the generator is closed. If
        it exists, training resumes from it, bit-identical on a CPU. Raises CheckpointError if it is of another run.
    stop_tokens: a rung: after so many tokens (rounded up to whole batches) the model is evaluated and saved, and
        training ends with status "ok". The schedule remains the one of the whole budget. A run that continues from
        there is bit-identical to one that never stopped, because the checkpoint does not contain this evaluation.

    A loss that is not finite, or that has risen above the unigram level late in training (see `divergence`), ends it
    with status "diverged" at the next evaluation. If memory runs out, the error is raised again with a note on what was
    being trained. Raises UserError if model, corpus, recipe and machine do not fit together.

    A generator that yields after every optimizer step, so that one process can train several models in turn.
    """
    corpus.check_context(recipe.seq_len)
    if getattr(model, "vocab_size", corpus.vocab_size) != corpus.vocab_size:
        raise UserError(
            f'The model has {model.vocab_size} tokens and the corpus "{corpus.name}" has {corpus.vocab_size}; '
            f"build the model with vocab_size={corpus.vocab_size}."
        )
    positions = model.plan.positions if isinstance(model, LanguageModel) else 0
    if 0 < positions < recipe.seq_len:
        raise UserError(
            f"training.seq_len is {recipe.seq_len} and the model has {positions} learned positions; set at most that"
        )
    device = local_device(resolve_device(recipe.device))
    reset_peak_memory(device)

    def steps() -> Generator[None, None, TrainingResult]:
        run = TrainingRun(cast(Trainable, model), corpus, recipe, device, stop_tokens)
        try:
            return (yield from _train(run, on_progress, deadline, Path(checkpoint) if checkpoint else None))
        finally:
            run.forget()
            if run.compilation:
                run.compilation.stop()
            del run.loss  # it may refer to the other processes, and must then be destroyed before they leave

    try:
        with process_group(device):
            return (yield from on_own_stream(steps(), device))
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            size, peak = sum(param.numel() for param in model.parameters()), peak_memory(device) / 2**20
            error.add_note(
                f"while training {size:,} parameters on {device}{capacity(device)} with micro-batches of "
                f"{recipe.batch_size} x {recipe.seq_len} tokens, halved once where possible; peak {peak:.0f} MiB; "
                "lower training.batch_size or training.seq_len, or bound the size with --max-parameters"
            )
        raise


def _train(
    run: TrainingRun, on_progress: Callable[[dict], None] | None, deadline: float | None, checkpoint: Path | None
) -> Generator[None, None, TrainingResult]:
    if checkpoint and checkpoint.exists():
        run.restore(checkpoint)
    reported = considered = saved = time.monotonic()
    while run.done < run.stop:
        loss = run.advance()
        if run.due:
            run.evaluate()
            run.loss_sum.zero_()
            if reason := run.diverged():
                return run.result("diverged", reason)
        now = time.monotonic()
        if checkpoint and (run.evaluated == run.done or now - saved >= CHECKPOINT_SECONDS):
            saved = now
            run.save(checkpoint)
        if deadline is not None and run.done < run.stop and any_of(now > deadline, run.device):
            budget = run.stop * run.recipe.micro_batch
            return run.result("timeout", f"out of time after {run.tokens:,} of {budget:,} tokens")
        if on_progress and now - reported >= PROGRESS_SECONDS:
            reported = now
            on_progress(run.progress(loss.item()))
        if now - considered >= PROGRESS_SECONDS:
            considered = now
            run.consider_compiling()
        try:
            yield
        except GeneratorExit:
            if checkpoint:
                run.save(checkpoint)
            raise
    if run.evaluated < run.done:
        if checkpoint:
            run.save(checkpoint)  # without this evaluation, which a run that never stopped would not have
        run.evaluate()
        if reason := run.diverged():
            return run.result("diverged", reason)
    return run.result("ok")


class TrainingRun:
    """The state of a training. `done` counts micro-batches; `step` counts optimizer steps, which can take several."""

    def __init__(
        self, model: Trainable, corpus: Corpus, recipe: Recipe, device: torch.device, stop_tokens: int | None = None
    ):
        if recipe.batch_size % world_size():
            raise UserError(
                f"the training recipe's batch_size is {recipe.batch_size}, which {world_size()} processes cannot "
                f"share equally; make it a multiple of {world_size()}"
            )
        self.model: Trainable = model.to(device).train()
        self.model.compute_dtype = resolve_dtype(recipe.dtype, device)  # of activations; parameters stay float32
        use_tensor_cores(device, self.model.compute_dtype)
        self.recipe, self.device, self.total = recipe, device, recipe.micro_batches
        self.stop = self.total
        if stop_tokens is not None:
            self.stop = min(self.total, max(1, -(-stop_tokens // recipe.micro_batch)))
        self.params = [param for param in model.parameters() if param.requires_grad]
        # Embeddings are left out: rare tokens make their gradients noisy, which says nothing about the batch size that
        # the other parameters need.
        groups = [group for group in model.parameter_groups() if group["kind"] in ("hidden", "vector")]
        self.watched: list[nn.Parameter] = [param for group in groups for param in group["params"]]
        self.optimizer = build_optimizer(model, recipe)
        self.accumulation = Accumulation(recipe)
        self.sparsifier = self.make_sparsifier() if recipe.sparsify else None
        self.loss = model.loss if world_size() == 1 else shared_loss(model, device)
        separator = corpus.tokenizer.separator if recipe.documents == "separate" else None
        batches = Batches(corpus.train, recipe.batch_size, recipe.seq_len, recipe.seed, separator)
        self.ahead = min(self.total, max(AHEAD, recipe.accumulate, recipe.accumulate_max))
        self.batches = DeviceBatches(batches, self.ahead * recipe.batch_size, device)
        if recipe.compile == "blocks":
            compile_blocks(self.language_model)
        sample = validation_blocks(corpus.validation, recipe.seq_len, recipe.eval_tokens, separator)
        self.sample = sample[0].to(device), sample[1].to(device)
        self.unigram = corpus.baselines()["unigram"]
        fractions = [min(1.0, k * recipe.eval_interval) for k in range(1, math.ceil(1 / recipe.eval_interval) + 1)]
        self.evaluations = [math.ceil(self.total * fraction) for fraction in fractions]  # after so many micro-batches
        genome = getattr(model, "genome", None)
        identity = {"genome": getattr(genome, "id", None), "corpus": corpus.fingerprint, "recipe": asdict(recipe)}
        self.identity = json.loads(json.dumps(identity))

        self.step, self.done = 0, 0
        self.parts = 1  # into which a micro-batch is cut after memory has run out
        self.recomputes = False  # activations in the backward pass, if memory has run out again
        self.curve: list[dict] = []
        self.val_loss_se: float | None = None
        self.loss_sum = torch.zeros((), device=device)  # over the micro-batches since the last evaluation
        # For the programs: micro-batches done since `load`, and the schedule after each half of a micro-batch from
        # there. A step takes the factor at its middle, so that the sum over the run does not depend on the sizes.
        self.loaded = 1  # the micro-batch from which on `load` has run; not yet
        self.counter = torch.zeros((), dtype=torch.int64, device=device)
        self.factors = torch.zeros(2 * self.ahead + 1, dtype=torch.float64, device=device)
        self.compilation: Compilation | None = None
        self.programs: dict[tuple[int, bool], Program] = {}  # by micro-batches, and whether the step estimates noise
        self.captures = recipe.compile != "off" and world_size() == 1
        self.evaluation = Program(lambda: (block_losses(self.model, *self.sample),), device, self.captures, warmup=1)
        self.evaluation_seconds = 0.0
        self.earlier_seconds = 0.0  # before the checkpoint that this run resumed from
        self.peak_memory = 0
        self.started = time.monotonic()

    @property
    def language_model(self) -> LanguageModel:
        """The model, for techniques that work on its blocks. Raises UserError if it is another kind of module."""
        if not isinstance(self.model, LanguageModel):
            kind = type(self.model).__name__
            raise UserError(
                f"compiled blocks and sparsification need a star.model.LanguageModel; the model is a {kind}"
            )
        return self.model

    def make_sparsifier(self) -> Sparsifier:
        """The sparsifier of the recipe."""
        recipe = self.recipe
        updates = min(UPDATES, max(FEWEST_SCORES, self.total // MICRO_BATCHES_PER_SCORE))
        tokens = self.total * recipe.micro_batch
        return Sparsifier(self.language_model, recipe.sparsify, recipe.sparsify_heads, tokens, updates=updates)

    @property
    def tokens(self) -> int:
        """Training tokens so far."""
        return self.done * self.recipe.micro_batch

    @property
    def seconds(self) -> float:
        """Seconds so far, earlier sessions included."""
        return self.earlier_seconds + time.monotonic() - self.started

    @property
    def tokens_per_second(self) -> float:
        """Training rate, evaluations excluded."""
        return self.tokens / max(self.seconds - self.evaluation_seconds, 1e-9)

    @property
    def evaluated(self) -> int:
        """Micro-batches before the last point of the learning curve."""
        return self.curve[-1]["tokens"] // self.recipe.micro_batch if self.curve else 0

    @property
    def due(self) -> bool:
        """Whether an evaluation is due."""
        return any(self.evaluated < point <= self.done for point in self.evaluations)

    def advance(self) -> Tensor:
        """Take one optimizer step; returns its training loss, which the next step may overwrite."""
        n = min(self.accumulation.size(self.step), self.total - self.done)
        if not 0 <= self.done - self.loaded <= self.ahead - n:
            self.load()
        if self.sparsifier and self.sparsifier.due(self.tokens):
            # The same sequences in every process
            inputs, targets = self.batches(self.counter * self.recipe.batch_size, self.recipe.batch_size)
            self.sparsifier.update(self.language_model, inputs, targets, self.tokens)
            self.forget()  # heads have other windows now
        estimates = self.accumulation.due(self.step) and n * self.parts * world_size() > 1
        loss, *noise = self.take(n, estimates)
        if estimates:
            mean_square, square_of_mean = (value.item() for value in noise)
            progress, k = self.done / self.total, n * self.parts * world_size()
            share = 1 / self.parts / world_size()  # of a micro-batch, in each of the gradients
            self.accumulation.observe(self.step, progress, mean_square, square_of_mean, k, share)
        self.step += 1
        self.done += n
        if self.sparsifier and self.done == self.total:
            self.sparsifier.finish()
        return loss

    def load(self) -> None:
        """Give the device the next `ahead` micro-batches and their learning rates."""
        recipe, self.loaded = self.recipe, self.done
        self.batches.load(self.done * recipe.batch_size)
        moments = np.minimum(self.done + np.arange(2 * self.ahead + 1) / 2, float(self.total))
        shape = recipe.warmup, recipe.cooldown, recipe.floor
        self.factors.copy_(torch.from_numpy(learning_rate_factor(recipe.schedule, moments, self.total, *shape)))
        self.counter.zero_()

    def take(self, n: int, estimates: bool) -> tuple[Tensor, ...]:
        """Run the program of a step of n micro-batches. If memory runs out, try again with less."""
        while True:
            if (n, estimates) not in self.programs:
                function = partial(self.optimizer_step, n, estimates)
                self.programs[n, estimates] = Program(function, self.device, self.captures)
            try:
                return self.programs[n, estimates]()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or not self.save_memory():
                    raise
            # Nothing has changed yet, so the step can be repeated.
            self.optimizer.zero_grad()
            self.forget()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def forget(self) -> None:
        """Drop all programs, because the model computes differently from now on."""
        self.programs.clear()
        self.evaluation = Program(self.evaluation.function, self.device, self.captures, warmup=1)

    def consider_compiling(self) -> None:
        """Have the blocks compiled in another process if that pays, and use them once they are there."""
        model = self.model
        if self.compilation is None:
            may = self.recipe.compile == "auto" and self.device.type in background_compile.DEVICES and world_size() == 1
            plain = self.sparsifier is None and not self.recomputes  # else blocks change, or have been wrapped
            if may and plain and isinstance(model, LanguageModel) and model.genome is not None:
                left = self.seconds * (self.stop - self.done) / self.done if self.done else 0.0
                if self.seconds > SETTLED_SECONDS and background_compile.pays(model, left):
                    self.compilation = Compilation(model, self.recipe, self.device)
        elif self.compilation.ready() and not self.recomputes:
            compile_blocks(self.language_model)
            self.forget()

    def save_memory(self) -> bool:
        """Halve the micro-batch, or else recompute activations in the backward pass; False if neither is possible."""
        if world_size() > 1:
            return False
        if self.parts == 1 and self.recipe.batch_size % 2 == 0:
            self.parts = 2
        elif isinstance(self.model, LanguageModel) and not self.recomputes:
            checkpoint_blocks(self.model)
            self.recomputes = True
        else:
            return False
        return True

    def optimizer_step(self, n: int, estimates: bool) -> tuple[Tensor, ...]:
        """A step of n micro-batches as a function of tensors alone, see `star.training.program`.

        Returns what `gradients` does.
        """
        self.optimizer.set(self.factors.take(2 * self.counter + n), n / self.recipe.accumulate)
        loss, *noise = self.gradients(n, estimates)
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(self.params, self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loss_sum += loss * n
        self.counter += n
        return loss, *noise

    def gradients(self, n: int, estimates: bool) -> tuple[Tensor, ...]:
        """Leave the mean gradient of the next n micro-batches in the parameters.

        Returns their mean loss; if the step estimates the noise, then also the mean squared norm of the gradients of
        all pieces and the squared norm of their mean.
        """
        pieces, rows = n * self.parts, self.recipe.batch_size // self.parts // world_size()
        losses, squares, total = [], [], list[Tensor]()
        for piece in range(pieces):
            local = estimates or piece < pieces - 1  # gradients are not yet averaged over the processes
            first = ((self.counter * self.parts + piece) * world_size() + rank()) * rows
            with local_gradients(self.loss) if local else contextlib.nullcontext():
                loss = self.loss(*self.batches(first, rows))
                (loss if estimates else loss / pieces).backward()
            losses.append(loss.detach())
            if estimates:
                squares.append(_gradient_square(self.watched))
                gradients = [param.grad if param.grad is not None else torch.zeros_like(param) for param in self.params]
                total = list(torch._foreach_add(total, gradients)) if total else gradients
                self.optimizer.zero_grad()
        mean_loss = reduce(add, losses) / pieces
        average([mean_loss])
        if not estimates:
            return (mean_loss,)
        mean_square = torch.stack(squares).mean()
        for param, gradient in zip(self.params, total, strict=True):
            param.grad = gradient.div_(pieces)
        average([*total, mean_square])
        return mean_loss, mean_square, _gradient_square(self.watched)

    def evaluate(self) -> None:
        """Add a point to the learning curve."""
        train_loss = self.loss_sum.item() / (self.done - self.evaluated)  # waits for the device: the clock is right
        started = time.monotonic()
        self.model.eval()
        val_loss, self.val_loss_se = summary(*self.evaluation())
        self.model.train()
        self.evaluation_seconds += time.monotonic() - started
        point: dict[str, float] = {"step": self.step, "tokens": self.tokens}
        point |= {"train_loss": train_loss, "val_loss": val_loss, "seconds": self.seconds}
        self.curve.append({key: value if math.isfinite(value) else None for key, value in point.items()})

    def diverged(self) -> str:
        """Why training has diverged; empty if it has not."""
        return divergence(self.curve, self.done / self.total, self.unigram)

    def progress(self, loss: float) -> dict:
        """Facts for a display after a step with this loss."""
        return {
            "step": self.step,
            "steps": math.ceil(self.step * self.stop / self.done),  # provided that the batch size does not change
            "tokens": self.tokens,
            "total_tokens": self.stop * self.recipe.micro_batch,
            "loss": loss,
            "learning_rate": self.optimizer.rates[-1].item(),
            "val_loss": self.curve[-1]["val_loss"] if self.curve else None,
            "tokens_per_second": self.tokens_per_second,
            "eta": self.seconds / self.done * (self.stop - self.done),
        }

    def result(self, status: str, reason: str = "") -> TrainingResult:
        """The result with this status."""
        val_loss = self.curve[-1]["val_loss"] if self.curve else None
        sparsity = None
        if self.sparsifier:
            sparsity = self.sparsifier.summary() | {"genome": to_json(self.sparsifier.edited_genome())}
        return TrainingResult(
            status=status,
            reason=reason,
            curve=self.curve,
            val_loss=val_loss,
            val_loss_se=None if val_loss is None else self.val_loss_se,
            tokens=self.tokens,
            steps=self.step,
            seconds=self.seconds,
            tokens_per_second=self.tokens_per_second,
            peak_memory=max(self.peak_memory, peak_memory(self.device)),
            sparsity=sparsity,
        )

    def save(self, path: Path) -> None:
        """Write a checkpoint, in the first process only. Raises UserError if it cannot be written."""
        if rank():
            return
        progress = {name: getattr(self, name) for name in STORED} | {
            "earlier_seconds": self.seconds,
            "loss_sum": self.loss_sum.item(),
            "accumulation": self.accumulation.state(),
            "sparsifier": self.sparsifier and self.sparsifier.state(),
        }
        save_checkpoint(path, self.model, self.optimizer, self.identity, progress)

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint. Raises CheckpointError."""
        progress = load_checkpoint(path, self.model, self.optimizer, self.identity)
        if progress["done"] > self.stop:
            tokens, stop = (count * self.recipe.micro_batch for count in (progress["done"], self.stop))
            raise CheckpointError(
                f"The checkpoint {path} is after {tokens:,} tokens, beyond the stop at {stop:,}; remove it to start "
                "again."
            )
        self.loss_sum.fill_(progress.pop("loss_sum"))
        self.accumulation.load(progress.pop("accumulation"))
        state = progress.pop("sparsifier")
        if self.sparsifier and state:
            self.sparsifier.load(state)
        for name, value in progress.items():
            setattr(self, name, value)
        self.loaded = self.done + 1  # so that the next step loads
        if self.recomputes:
            checkpoint_blocks(self.language_model)


def _gradient_square(params: list[nn.Parameter]) -> Tensor:
    """Squared norm of all gradients together."""
    return torch.stack(torch._foreach_norm([param.grad for param in params if param.grad is not None])).square().sum()
