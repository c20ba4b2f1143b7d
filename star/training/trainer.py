"""Train one model: `train`, and `TrainingRun`, the state of a training and how one step changes it."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

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
from star.training.distributed import any_of, average, local_device, process_group, rank, shared_loss, world_size
from star.training.evaluation import evaluate
from star.training.optim import build_optimizer
from star.training.recipe import Recipe
from star.training.result import TrainingResult, divergence
from star.training.schedule import learning_rate_factor
from star.training.sparsify import UPDATES, Sparsifier

FEWEST_UPDATES, MICRO_BATCHES_PER_UPDATE = 5, 40  # of the scores of attention heads, in short runs
PROGRESS_SECONDS = 0.5  # between two calls of on_progress


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
    checkpoint: a file, written after every evaluation. If it exists, training resumes from it,
        bit-identical on a CPU; a checkpoint of another run is a CheckpointError.
    stop_tokens: a rung: after so many tokens (rounded up to whole batches) the model is judged and saved, and training
        ends with status "ok". The schedule is still that of the whole budget, and a run that continues to the
        end is bit-identical to one that never stopped: a point measured only for the stop is not kept.

    A loss that is not finite, or that rises past the unigram level late in training (see `divergence`), ends
    training with status "diverged" at the evaluation that sees it. Running out of memory is not caught here:
    the error is raised again with a note of what was being trained.
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
                # What belongs to the other processes goes while they are there: its destructor may wait for them for
                # ever
                run.loss = None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        error.add_note(
            f"while training {sum(param.numel() for param in model.parameters()):,} parameters on {device} with "
            "micro-batches of "
            f"{recipe.batch_size} x {recipe.seq_len} tokens, halved once where they could be; peak "
            f"{peak_memory(device) / 2**20:.0f} MiB"
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
            run.save(checkpoint)  # before the point that only the stop needs, which a resumed run leaves out
        run.evaluate()
        if reason := run.diverged():
            return run.result("diverged", reason)
    return run.result("ok")


class TrainingRun:
    """`done` counts micro-batches and `step` steps of the optimizer, which take several micro-batches where they
    accumulate.
    """

    def __init__(
        self, model: nn.Module, corpus: Corpus, recipe: Recipe, device: torch.device, stop_tokens: int | None = None
    ):
        if recipe.batch_size % world_size():
            raise UserError(
                f"the training recipe's batch_size is {recipe.batch_size}, which {world_size()} processes cannot "
                "share alike; "
                f"make it a multiple of {world_size()}"
            )
        self.model = model.to(device).train()
        self.model.compute_dtype = resolve_dtype(recipe.dtype, device)  # of activations; parameters stay float32
        self.recipe, self.device, self.total = recipe, device, recipe.micro_batches
        self.stop = (
            self.total if stop_tokens is None else min(self.total, max(1, -(-stop_tokens // recipe.micro_batch)))
        )
        self.params = [param for param in model.parameters() if param.requires_grad]
        # The gradient noise of embeddings comes from rare tokens and says nothing about the batch that the rest needs.
        self.watched = [
            p for group in model.parameter_groups() if group["kind"] in ("hidden", "vector") for p in group["params"]
        ]
        self.optimizer = build_optimizer(model, recipe)
        self.accumulation = Accumulation(recipe)
        self.sparsifier = self.make_sparsifier() if recipe.sparsify else None
        self.loss = model.loss if world_size() == 1 else shared_loss(model, device)
        self.batches = Batches(corpus.train, recipe.batch_size, recipe.seq_len, recipe.seed)
        self.pieces: Prefetcher | None = None
        self.captured: CapturedBackward | None = None
        if recipe.compile in ("blocks", "graph") or (recipe.compile == "auto" and device.type == "cuda"):
            compile_blocks(model)
        if recipe.compile == "graph":
            self.check_graph()
        self.sample = [
            part.to(device) for part in validation_blocks(corpus.validation, recipe.seq_len, recipe.eval_tokens)
        ]
        self.unigram, self.uniform = corpus.baselines()["unigram"], math.log(corpus.vocab_size)
        n_evaluations = math.ceil(1 / recipe.eval_interval)
        self.evaluations = [
            math.ceil(self.total * min(1.0, k * recipe.eval_interval)) for k in range(1, n_evaluations + 1)
        ]
        genome = getattr(model, "genome", None)
        identity = {"genome": getattr(genome, "id", None), "corpus": corpus.fingerprint, "recipe": asdict(recipe)}
        self.identity = json.loads(json.dumps(identity))

        self.step, self.done = 0, 0
        self.parts = 1  # into which a micro-batch is cut, once memory has run out
        self.recomputes = False  # activations in the backward, once that was not enough
        self.curve: list[dict] = []
        self.val_loss_se: float | None = None
        self.loss_sum = torch.zeros((), device=device)  # over the micro-batches since the last evaluation
        self.evaluation_seconds = 0.0
        self.earlier_seconds = 0.0  # before the checkpoint that this run resumed from
        self.peak_memory = 0
        self.started = time.monotonic()

    def check_graph(self) -> None:
        """Raises UserError if the step cannot be a CUDA graph."""
        recipe = self.recipe
        if (
            self.device.type != "cuda"
            or world_size() > 1
            or recipe.adaptive
            or recipe.sparsify
            or recipe.accumulate > 1
        ):
            raise UserError(
                'the training recipe\'s compile is "graph", which takes one process on CUDA and steps that are all '
                "alike "
                '(no accumulation, no sparsification); use "blocks" or "auto"'
            )

    def make_sparsifier(self) -> Sparsifier:
        """The sparsifier of the recipe."""
        updates = min(
            UPDATES, max(FEWEST_UPDATES, self.total // MICRO_BATCHES_PER_UPDATE)
        )  # each costs about a micro-batch
        return Sparsifier(
            self.model,
            self.recipe.sparsify,
            self.recipe.sparsify_heads,
            self.total * self.recipe.micro_batch,
            updates=updates,
        )

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
    def due(self) -> bool:
        """Whether the learning curve has a point here."""
        last = self.curve[-1]["tokens"] // self.recipe.micro_batch if self.curve else 0
        return any(last < point <= self.done for point in self.evaluations)

    def advance(self) -> Tensor:
        """One optimizer step; returns its loss."""
        recipe = self.recipe
        n = min(self.accumulation.size(self.step), self.total - self.done)
        # The schedule at the middle of the step: its sum over the run is then the same at any batch size.
        progress = (self.done + n / 2) / self.total
        factor = learning_rate_factor(recipe.schedule, progress, 1.0, recipe.warmup, recipe.cooldown, recipe.floor)
        self.optimizer.set(factor, n / recipe.accumulate)
        if self.sparsifier and self.sparsifier.due(self.tokens):
            batch = self.batches.sequences(
                self.done * recipe.batch_size, recipe.batch_size
            )  # the same in every process
            self.sparsifier.update(self.model, *(part.to(self.device) for part in batch), self.tokens)
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
            # Nothing has changed yet, so the step can be taken again.
            self.optimizer.zero_grad()
            self.close()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def save_memory(self) -> bool:
        """Make the step need less memory: halve the micro-batch, or else compute activations again; False if all that
        is done.
        """
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
        pieces = n * self.parts
        if self.recipe.compile == "graph":
            return self._replay()
        if self.pieces is None:
            self.pieces = Prefetcher(_Pieces(self.batches, self.parts), self.done * self.parts, self.device)
        estimating = self.accumulation.due(self.step) and pieces * world_size() > 1
        together = world_size() > 1
        loss_sum, squares, total = None, [], None
        for piece in range(pieces):
            apart = together and (estimating or piece < pieces - 1)  # gradients stay those of this process
            with self.loss.no_sync() if apart else contextlib.nullcontext():
                loss = self.loss(*self.pieces[self.done * self.parts + piece])
                (loss if pieces == 1 or estimating else loss / pieces).backward()
            loss_sum = loss.detach() if loss_sum is None else loss_sum + loss.detach()
            if estimating:
                squares.append(_square([p.grad for p in self.watched if p.grad is not None]))
                gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.params]
                total = gradients if total is None else torch._foreach_add(total, gradients)
                self.optimizer.zero_grad()
        if estimating:
            for param, gradient in zip(self.params, total, strict=True):
                param.grad = gradient.div_(pieces)
            mean_square = torch.stack(squares).mean()
            average([param.grad for param in self.params] + [mean_square])
            k, progress = pieces * world_size(), self.done / self.total
            square_of_mean = _square([p.grad for p in self.watched]).item()
            self.accumulation.observe(
                self.step, progress, mean_square.item(), square_of_mean, k, 1 / self.parts / world_size()
            )
        loss = loss_sum if pieces == 1 else loss_sum / pieces
        average([loss])
        return loss

    def _replay(self) -> Tensor:
        if self.captured is None:
            self.captured = CapturedBackward(self.model, self.recipe.batch_size, self.recipe.seq_len)
        return self.captured(*self.batches[self.done]).clone()

    def evaluate(self) -> None:
        """Add a point to the learning curve."""
        micro_batches = self.done - (self.curve[-1]["tokens"] // self.recipe.micro_batch if self.curve else 0)
        train_loss = self.loss_sum.item() / micro_batches  # waits for the device, so that the clock is right
        started = time.monotonic()
        self.model.eval()
        val_loss, self.val_loss_se = evaluate(self.model, *self.sample)
        self.model.train()
        self.evaluation_seconds += time.monotonic() - started
        point = {
            "step": self.step,
            "tokens": self.tokens,
            "train_loss": train_loss,
            "val_loss": val_loss,
            "seconds": self.seconds,
        }
        self.curve.append({key: value if math.isfinite(value) else None for key, value in point.items()})

    def diverged(self) -> str:
        """Why training has diverged; empty if it has not."""
        return divergence(self.curve, self.done / self.total, self.unigram, self.uniform)

    def progress(self, loss: float) -> dict:
        """Facts for a display after a step with this loss."""
        return {
            "step": self.step,
            "steps": math.ceil(self.step * self.stop / self.done),  # as long as the batches stay what they are
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
            sparsity=None
            if self.sparsifier is None
            else self.sparsifier.summary() | {"genome": to_json(self.sparsifier.edited_genome())},
        )

    def close(self) -> None:
        """Let go of the thread that prepares batches; it starts again when it is needed."""
        if self.pieces is not None:
            self.pieces.close()
            self.pieces = None

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        if rank():
            return
        names = ("step", "done", "parts", "recomputes", "curve", "val_loss_se", "evaluation_seconds", "peak_memory")
        progress = {name: getattr(self, name) for name in names}
        progress |= {
            "earlier_seconds": self.seconds,
            "loss_sum": self.loss_sum.item(),
            "accumulation": self.accumulation.state(),
        }
        progress["sparsifier"] = self.sparsifier and self.sparsifier.state()
        save_checkpoint(path, self.model, self.optimizer, self.identity, progress)

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint. Raises CheckpointError."""
        progress = load_checkpoint(path, self.model, self.optimizer, self.identity)
        if progress["done"] > self.stop:
            tokens, wanted = (
                micro_batches * self.recipe.micro_batch for micro_batches in (progress["done"], self.stop)
            )
            raise CheckpointError(
                f"The checkpoint {path} is after {tokens:,} tokens, beyond the stop at {wanted:,}; remove it to "
                "start again."
            )
        self.loss_sum.fill_(progress.pop("loss_sum"))
        self.accumulation.load(progress.pop("accumulation"))
        if state := progress.pop("sparsifier"):
            self.sparsifier.load(state)
        for name, value in progress.items():
            setattr(self, name, value)
        if self.recomputes:
            checkpoint_blocks(self.model)


class _Pieces:
    """What this process sees of micro-batches that are cut into parts: number i is part i % parts of micro-batch i //
    parts.
    """

    def __init__(self, batches: Batches, parts: int):
        self.batches, self.rows = batches, batches.batch_size // parts // world_size()

    def __getitem__(self, piece: int) -> tuple[Tensor, Tensor]:
        return self.batches.sequences((piece * world_size() + rank()) * self.rows, self.rows)


def _square(tensors: list[Tensor]) -> Tensor:
    """|.|^2 of all of them together."""
    return torch.stack(torch._foreach_norm(tensors)).square().sum()
