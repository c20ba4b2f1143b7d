"""Train several models of one genome at the same time, as one batched program.

    results = train_many(models, corpus, [recipe.replace(seed=k) for k in range(len(models))])

A small model leaves a device idle: its operations are too short to be worth starting. K models of one genome do the same
operations, so their weights can be stacked, [K, ...], and every operation be started once for all of them (`torch.func.vmap`
of the loss; ensembles by `stack_module_state`, pytorch.org). The models keep their own optimizers, batches, learning curves
and verdicts: each parameter of a model is a view of its stack, and its gradient a view of the stack's gradient. So only
forward and backward are batched, and all that the recipe says about rates, decay and schedules holds as in `train`.

Models may differ in weights, and recipes in everything but `SHARED`. The results are those of separate calls of `train` up to
rounding: a batched product may add up in another order than a single one.
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from star.data import Corpus
from star.errors import UserError, is_out_of_memory
from star.training.device import peak_memory, reset_peak_memory, resolve_device
from star.training.distributed import world_size
from star.training.muon import Muon
from star.training.optim import Optimizers
from star.training.recipe import Recipe
from star.training.run import TrainingResult, TrainingRun
from star.training.schedule import learning_rate_factor

# What decides the shape of a step, or when it is: the same for models that train together.
SHARED = ("tokens", "batch_size", "accumulate", "seq_len", "eval_interval", "eval_tokens", "dtype", "device")
PROGRESS_SECONDS = 0.5


def train_many(
    models: Sequence[nn.Module],
    corpus: Corpus,
    recipes: Sequence[Recipe],
    on_progress: Callable[[dict], None] | None = None,
    deadline: float | None = None,
    stop_tokens: int | None = None,
) -> list[TrainingResult]:
    """Train every model in place on its recipe. All models are of one genome; arguments and results as of `train`.

    on_progress: as of `train`; losses are means over the models, tokens those of one model.
    A model that diverges ends as in `train`, and takes its place in the stack to the end without harm to the others. Times are
    those of all models together, and so is the memory. Raises UserError for what cannot be batched (`why_not`).
    """
    if len(models) != len(recipes) or not models:
        raise ValueError(
            f"{len(models)} models and {len(recipes)} recipes; give one recipe for each model, and at least one"
        )
    if reason := why_not(models, recipes):
        raise UserError(reason)
    corpus.check_context(recipes[0].seq_len)
    if (vocab_size := getattr(models[0], "vocab_size", corpus.vocab_size)) != corpus.vocab_size:
        raise UserError(
            f'the models have {vocab_size} tokens and the corpus "{corpus.name}" has {corpus.vocab_size}; build them with vocab_size={corpus.vocab_size}'
        )
    device = resolve_device(recipes[0].device)
    reset_peak_memory(device)
    # Blocks stay eager: compiled ones cannot be batched.
    runs = [
        TrainingRun(model, corpus, recipe.replace(compile="off"), device, stop_tokens)
        for model, recipe in zip(models, recipes)
    ]
    ensemble = Ensemble(runs)
    try:
        return _train(ensemble, on_progress, deadline)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        error.add_note(
            f"while training {len(models)} models at the same time on {device}; peak {peak_memory(device) / 2**20:.0f} MiB"
        )
        raise
    finally:
        ensemble.release()
        for run in runs:
            run.close()


def why_not(models: Sequence[nn.Module], recipes: Sequence[Recipe]) -> str:
    """One sentence that says why these cannot train as one program; "" where they can."""
    shapes = [[(name, param.shape) for name, param in model.named_parameters()] for model in models]
    if (
        any(other != shapes[0] for other in shapes[1:])
        or len({getattr(getattr(m, "genome", None), "id", None) for m in models}) > 1
    ):
        return "the models are of several genomes, and only models of one can train at the same time; train them one by one"
    if len({id(model) for model in models}) < len(models):
        return "one model is given several times, and each run needs a model of its own; build one for each recipe"
    for name in SHARED:
        if len(values := {getattr(recipe, name) for recipe in recipes}) > 1:
            return f"the recipes' {name} are {', '.join(map(str, sorted(values)))}, and models that train at the same time need the same; train them one by one"
    for name, off in (("adaptive", False), ("sparsify", 0.0)):
        if any(getattr(recipe, name) != off for recipe in recipes):
            return f"the training recipe's {name} makes steps that differ from model to model; set it to {off} or train the models one by one"
    if world_size() > 1:
        return f"{world_size()} processes train one model together, and many models at the same time take one process; start it without torchrun"
    return ""


def _train(
    ensemble: "Ensemble", on_progress: Callable[[dict], None] | None, deadline: float | None
) -> list[TrainingResult]:
    results: list[TrainingResult | None] = [None] * len(ensemble.runs)
    lead, reported = ensemble.runs[0], time.monotonic()

    def judge() -> None:
        for k, run in enumerate(ensemble.runs):
            if results[k] is None:
                run.evaluate()
                run.loss_sum.zero_()
                if reason := run.diverged():
                    results[k] = run.result("diverged", reason)

    while lead.done < lead.stop and None in results:
        losses = ensemble.advance()
        if ensemble.due:
            judge()
        now = time.monotonic()
        if deadline is not None and lead.done < lead.stop and now > deadline:
            reason = f"out of time after {lead.tokens:,} of {lead.stop * lead.recipe.micro_batch:,} tokens"
            return [result or run.result("timeout", reason) for result, run in zip(results, ensemble.runs)]
        if on_progress and now - reported >= PROGRESS_SECONDS:
            reported = now
            on_progress(lead.progress(losses.mean().item()))
    if any(
        result is None and (not run.curve or run.curve[-1]["tokens"] != run.tokens)
        for result, run in zip(results, ensemble.runs)
    ):
        judge()
    return [result or run.result("ok") for result, run in zip(results, ensemble.runs)]


class Ensemble:
    """The runs of K models whose weights are stacked. `release` gives every model its own weights back."""

    def __init__(self, runs: Sequence[TrainingRun]):
        self.runs = runs
        self.recipe = runs[0].recipe
        models = [run.model for run in runs]
        self.stacks, _ = stack_module_state(
            models
        )  # {name: [K, ...]}, a leaf each; a weight that LIVs share comes once
        self.params = [dict(model.named_parameters()) for model in models]
        for name, stack in self.stacks.items():
            for k, params in enumerate(self.params):
                params[name].data = stack.data[k]
        self.optimizer = merged([run.optimizer for run in runs])
        clips = [run.recipe.clip for run in runs]  # 0: any norm
        self.limits = torch.tensor([clip or float("inf") for clip in clips], device=runs[0].device)
        self.clips = any(clips)
        self.loss = _Loss(models[0])

    @property
    def due(self) -> bool:
        """Whether the learning curves have a point here; all runs have theirs at the same tokens."""
        return max(self.runs, key=lambda run: len(run.curve)).due

    def advance(self) -> Tensor:
        """One optimizer step of every model; returns their losses, [K]."""
        recipe, lead = self.recipe, self.runs[0]
        n = min(recipe.accumulate, lead.total - lead.done)
        for run in self.runs:
            own = run.recipe
            factor = learning_rate_factor(
                own.schedule, (run.done + n / 2) / run.total, 1.0, own.warmup, own.cooldown, own.floor
            )
            run.optimizer.set(factor, n / own.accumulate)
        losses = self.gradients(n)
        self.clip()
        for name, stack in self.stacks.items():
            if stack.grad is not None:
                for params, gradient in zip(self.params, stack.grad.unbind()):
                    params[name].grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()
        for stack in self.stacks.values():
            stack.grad = None
        for run, loss in zip(self.runs, losses.unbind()):
            run.loss_sum += loss * n
            run.step += 1
            run.done += n
        return losses

    def gradients(self, n: int) -> Tensor:
        """Leave every model's mean gradient of its next n micro-batches in the stacks; returns the mean losses, [K]."""
        rows, total = self.recipe.batch_size, None
        named = {f"model.{name}": stack for name, stack in self.stacks.items()}
        for piece in range(n):
            drawn = [run.batches.sequences((run.done + piece) * rows, rows) for run in self.runs]
            inputs, targets = (
                torch.stack(part).to(self.limits.device, non_blocking=True) for part in zip(*drawn)
            )  # [K, B, T]
            losses = vmap(lambda weights, x, y: functional_call(self.loss, weights, (x, y)))(named, inputs, targets)
            (
                losses.sum() if n == 1 else losses.sum() / n
            ).backward()  # models share no weight: each gets the gradient of its own loss
            total = losses.detach() if total is None else total + losses.detach()
        return total / n

    def clip(self) -> None:
        """`clip_grad_norm_` of every model: each has a norm, and perhaps a limit, of its own."""
        if not self.clips:  # none has a limit
            return
        gradients = [stack.grad for stack in self.stacks.values() if stack.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients])  # [tensors, K]
        factors = (self.limits / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient *= factors.view(-1, *(1,) * (gradient.dim() - 1))

    def release(self) -> None:
        for params in self.params:
            for param in params.values():
                param.data, param.grad = param.data.clone(), None


def merged(optimizers: Sequence[Optimizers]) -> Optimizers:
    """One AdamW and one Muon for the groups of all models, so that Muon orthogonalises equal shapes of all of them together."""
    parts: dict[tuple, list[torch.optim.Optimizer]] = {}
    for optimizer in optimizers:
        for part in optimizer.parts:
            parts.setdefault((type(part), getattr(part, "scale", None)), []).append(part)
    together = []
    for same in parts.values():
        groups = [
            group for part in same for group in part.param_groups
        ]  # the same dicts: a model's `Optimizers.set` still reaches them
        if isinstance(same[0], Muon):
            together.append(Muon(groups))
            together[-1].scale = same[0].scale
        else:
            together.append(torch.optim.AdamW(groups, fused=True))
    return Optimizers(together)


class _Loss(nn.Module):
    """The training loss of a model as a module's forward, which is what `functional_call` calls."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return self.model.loss(tokens, targets)
