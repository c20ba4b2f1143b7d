"""Train one model: `train`, and `TrainingRun`, which holds the state of a training and takes its steps."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import reduce
from operator import add
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from star.data import Batches, Corpus, Prefetcher, validation_blocks
from star.errors import UserError, is_out_of_memory
from star.genome import to_json
from star.model import LanguageModel
from star.training.accumulation import Accumulation
from star.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from star.training.compile import CapturedBackward, checkpoint_blocks, compile_blocks
from star.training.device import peak_memory, reset_peak_memory, resolve_device, resolve_dtype
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
from star.training.evaluation import evaluate
from star.training.optim import build_optimizer
from star.training.recipe import Recipe
from star.training.result import TrainingResult, divergence
from star.training.schedule import learning_rate_factor
from star.training.sparsify import UPDATES, Sparsifier
from star.training.trainable import Trainable

# Attention heads are scored at most once in so many micro-batches, which costs about as much as one, but this often.
MICRO_BATCHES_PER_SCORE, FEWEST_SCORES = 40, 5
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
    """Train `model` in place on `corpus.train`, and evaluate it on a fixed sample of `corpus.validation`.

    model: a `star.model.LanguageModel`, or any module with the methods of `star.training.trainable.Trainable`.
    on_progress: called at most twice a second with step, steps, tokens, loss, val_loss, tokens_per_second, eta (s).
    deadline: a moment of `time.monotonic()`; training that passes it ends with status "timeout".
    checkpoint: a file, written after every evaluation. If it exists, training resumes from it, bit-identical on a CPU.
        Raises CheckpointError if it belongs to another run.
    stop_tokens: a rung: after so many tokens (rounded up to whole batches) the model is evaluated and saved, and
        training ends with status "ok". The schedule remains the one of the whole budget. A run that continues from
        there is bit-identical to one that never stopped, because the checkpoint does not contain this evaluation.

    A loss that is not finite, or that rises above the unigram level late in training (see `divergence`), ends training
    with status "diverged" at the next evaluation. If memory runs out, the error is raised again with a note on what
    was being trained. Raises UserError if model, corpus, recipe and machine do not fit together.
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
            run = TrainingRun(cast(Trainable, model), corpus, recipe, device, stop_tokens)
            try:
                return _train(run, on_progress, deadline, Path(checkpoint) if checkpoint else None)
            finally:
                run.close()
                del run.loss  # it may refer to the other processes, and must then be destroyed before they leave
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            size, peak = sum(param.numel() for param in model.parameters()), peak_memory(device) / 2**20
            error.add_note(
                f"while training {size:,} parameters on {device} with micro-batches of {recipe.batch_size} x "
                f"{recipe.seq_len} tokens, halved once where possible; peak {peak:.0f} MiB"
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
            budget = run.stop * run.recipe.micro_batch
            return run.result("timeout", f"out of time after {run.tokens:,} of {budget:,} tokens")
        if on_progress and now - reported >= PROGRESS_SECONDS:
            reported = now
            on_progress(run.progress(loss.item()))
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
        self.batches = Batches(corpus.train, recipe.batch_size, recipe.seq_len, recipe.seed)
        self.pieces: Prefetcher | None = None
        self.captured: CapturedBackward | None = None
        if recipe.compile in ("blocks", "graph") or (recipe.compile == "auto" and device.type == "cuda"):
            compile_blocks(self.language_model)
        if recipe.compile == "graph":
            self.check_graph()
        sample = validation_blocks(corpus.validation, recipe.seq_len, recipe.eval_tokens)
        self.sample = sample[0].to(device), sample[1].to(device)
        self.unigram, self.uniform = corpus.baselines()["unigram"], math.log(corpus.vocab_size)
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

    def check_graph(self) -> None:
        """Raise UserError if the step cannot be a CUDA graph."""
        recipe = self.recipe
        varying = recipe.adaptive or recipe.sparsify or recipe.accumulate > 1
        if self.device.type != "cuda" or world_size() > 1 or varying:
            raise UserError(
                'the training recipe\'s compile is "graph", which takes one process on CUDA and identical steps '
                '(no accumulation, no sparsification); use "blocks" or "auto"'
            )

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
        """Take one optimizer step; returns its training loss."""
        recipe = self.recipe
        n = min(self.accumulation.size(self.step), self.total - self.done)
        # The schedule is evaluated at the middle of the step, so that its sum over the run does not depend on n.
        progress = (self.done + n / 2) / self.total
        factor = learning_rate_factor(recipe.schedule, progress, 1.0, recipe.warmup, recipe.cooldown, recipe.floor)
        self.optimizer.set(factor, n / recipe.accumulate)
        if self.sparsifier and self.sparsifier.due(self.tokens):
            # The same sequences in every process
            inputs, targets = self.batches.sequences(self.done * recipe.batch_size, recipe.batch_size)
            self.sparsifier.update(self.language_model, inputs.to(self.device), targets.to(self.device), self.tokens)
        loss = self.gradients(n)
        if recipe.clip:
            nn.utils.clip_grad_norm_(self.params, recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loss_sum += loss * n
        self.step += 1
        self.done += n
        if self.sparsifier and self.done == self.total:
            self.sparsifier.finish()
        return loss

    def gradients(self, n: int) -> Tensor:
        """Leave the mean gradient of the next n micro-batches in the parameters; returns their mean loss."""
        while True:
            try:
                return self._gradients(n)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or not self.save_memory():
                    raise
            # Nothing has changed yet, so the step can be repeated.
            self.optimizer.zero_grad()
            self.close()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def save_memory(self) -> bool:
        """Halve the micro-batch, or else recompute activations in the backward pass; False if neither is possible."""
        if world_size() > 1 or self.captured is not None:
            return False
        if self.parts == 1 and self.recipe.batch_size % 2 == 0:
            self.parts = 2
        elif isinstance(self.model, LanguageModel) and not self.recomputes:
            checkpoint_blocks(self.model)
            self.recomputes = True
        else:
            return False
        return True

    def _gradients(self, n: int) -> Tensor:
        if self.recipe.compile == "graph":
            return self._replay()
        if self.pieces is None:
            self.pieces = Prefetcher(_Pieces(self.batches, self.parts), self.done * self.parts, self.device)
        pieces = n * self.parts
        estimating = self.accumulation.due(self.step) and pieces * world_size() > 1
        losses, squares, total = [], [], list[Tensor]()
        for piece in range(pieces):
            local = estimating or piece < pieces - 1  # gradients are not yet averaged over the processes
            with local_gradients(self.loss) if local else contextlib.nullcontext():
                loss = self.loss(*self.pieces[self.done * self.parts + piece])
                (loss if estimating else loss / pieces).backward()
            losses.append(loss.detach())
            if estimating:
                squares.append(_gradient_square(self.watched))
                gradients = [param.grad if param.grad is not None else torch.zeros_like(param) for param in self.params]
                total = list(torch._foreach_add(total, gradients)) if total else gradients
                self.optimizer.zero_grad()
        if estimating:
            self._observe(total, squares)
        mean_loss = reduce(add, losses) / pieces
        average([mean_loss])
        return mean_loss

    def _observe(self, total: list[Tensor], squares: list[Tensor]) -> None:
        """Estimate the noise from the sum of the gradients of all pieces and their squared norms; set the gradients."""
        mean_square = torch.stack(squares).mean()
        for param, gradient in zip(self.params, total, strict=True):
            param.grad = gradient.div_(len(squares))
        average([*total, mean_square])
        square_of_mean = _gradient_square(self.watched)
        share = 1 / self.parts / world_size()  # of a micro-batch, in each of the gradients
        progress, k = self.done / self.total, len(squares) * world_size()
        self.accumulation.observe(self.step, progress, mean_square.item(), square_of_mean.item(), k, share)

    def _replay(self) -> Tensor:
        if self.captured is None:
            self.captured = CapturedBackward(self.model, self.recipe.batch_size, self.recipe.seq_len)
        return self.captured(*self.batches[self.done]).clone()

    def evaluate(self) -> None:
        """Add a point to the learning curve."""
        train_loss = self.loss_sum.item() / (self.done - self.evaluated)  # waits for the device: the clock is right
        started = time.monotonic()
        self.model.eval()
        val_loss, self.val_loss_se = evaluate(self.model, *self.sample)
        self.model.train()
        self.evaluation_seconds += time.monotonic() - started
        point: dict[str, float] = {"step": self.step, "tokens": self.tokens}
        point |= {"train_loss": train_loss, "val_loss": val_loss, "seconds": self.seconds}
        self.curve.append({key: value if math.isfinite(value) else None for key, value in point.items()})

    def diverged(self) -> str:
        """Why training has diverged; empty if it has not."""
        return divergence(self.curve, self.done / self.total, self.unigram, self.uniform)

    def progress(self, loss: float) -> dict:
        """Facts for a display after a step with this loss."""
        return {
            "step": self.step,
            "steps": math.ceil(self.step * self.stop / self.done),  # provided that the batch size does not change
            "tokens": self.tokens,
            "total_tokens": self.stop * self.recipe.micro_batch,
            "loss": loss,
            "learning_rate": self.optimizer.param_groups[-1]["lr"],
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

    def close(self) -> None:
        """End the thread that prepares batches; it starts again when it is needed."""
        if self.pieces is not None:
            self.pieces.close()
            self.pieces = None

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
        if self.recomputes:
            checkpoint_blocks(self.language_model)


class _Pieces:
    """This process's share of micro-batches cut into parts: number i is part i % parts of micro-batch i // parts."""

    def __init__(self, batches: Batches, parts: int):
        self.batches, self.rows = batches, batches.batch_size // parts // world_size()

    def __getitem__(self, piece: int) -> tuple[Tensor, Tensor]:
        return self.batches.sequences((piece * world_size() + rank()) * self.rows, self.rows)


def _gradient_square(params: list[nn.Parameter]) -> Tensor:
    """Squared norm of all gradients together."""
    return torch.stack(torch._foreach_norm([param.grad for param in params if param.grad is not None])).square().sum()
