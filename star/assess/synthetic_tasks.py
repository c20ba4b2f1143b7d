"""How well an architecture learns the six synthetic tasks of `star.data.synthetic`: a cheap complement to the loss.

    scores = measure(genome, tokens=200_000, seed=0)       # {"recall": accuracy, ..., "mean": ...}

For each task a new model with the genome's pattern, at most `WIDTH` wide, is trained from scratch.
"""

import time
from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.data.synthetic import IGNORE, TASKS, Task
from star.genome import Genome
from star.model import LanguageModel, build
from star.training.optim import build_optimizer
from star.training.program import Program, on_own_stream
from star.training.recipe import Recipe
from star.training.schedule import learning_rate_factor
from star.training.trainable import Trainable
from star.turns import finish

WIDTH = 64
TOKENS_PER_STEP = 1024
TEST_SEQUENCES = 256
RECIPE = Recipe(learning_rate=5e-3, weight_decay=0.0, schedule="linear", warmup=0.1)


def measure(
    genome: Genome,
    tokens: int,
    seed: int = 0,
    tasks: Mapping[str, Task] = TASKS,
    device: str = "cpu",
    deadline: float | None = None,
) -> dict[str, float] | None:
    """{task: accuracy on held-out sequences} and their "mean"; None past the deadline (as of time.monotonic).

    tokens: training tokens for each task.
    """
    return finish(measuring(genome, tokens, seed, tasks, device, deadline))


def measuring(
    genome: Genome,
    tokens: int,
    seed: int = 0,
    tasks: Mapping[str, Task] = TASKS,
    device: str = "cpu",
    deadline: float | None = None,
) -> Generator[None, None, dict[str, float] | None]:
    """The steps of `measure`, one for each optimizer step."""
    genome = genome.scaled(d_model=WIDTH) if genome.d_model > WIDTH else genome
    scores = {}
    for number, task in enumerate(tasks.values()):
        steps = train_task(genome, task, tokens, seed + number, torch.device(device), deadline)
        score = yield from on_own_stream(steps, torch.device(device))
        if score is None:
            return None
        scores[task.name] = score
    return scores | {"mean": sum(scores.values()) / len(scores)}


def train_task(
    genome: Genome, task: Task, tokens: int, seed: int, device: torch.device, deadline: float | None = None
) -> Generator[None, None, float | None]:
    """Train a model of this genome on one task; its accuracy on held-out sequences, None past the deadline."""
    answers = yield from fit(genome, task, tokens, seed, device, RECIPE, deadline)
    if answers is None:
        return None
    inputs, targets = (part.to(device) for part in task.batch(TEST_SEQUENCES, np.random.default_rng([seed, 1])))
    return accuracy(answers(inputs), targets)


class Learnable(Protocol):
    """What a model can be trained on: `star.data.synthetic.Task`, `star.data.skills.Skill`."""

    @property
    def length(self) -> int:
        """Tokens of a sequence."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""

    @property
    def from_last(self) -> bool:
        """Whether all targets are predicted from the state at the last position."""

    def batch(self, n: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and targets, int64 [n, T] each."""


def fit(
    genome: Genome,
    task: Learnable,
    tokens: int,
    seed: int,
    device: torch.device,
    recipe: Recipe,
    deadline: float | None = None,
) -> Generator[None, None, Callable[[Tensor], Tensor] | None]:
    """Train a model of this genome on a task, in steps. Returns inputs [B, T] -> logits [B, T, V]; None past the
    deadline.
    """
    model = build(genome, vocab_size=task.vocab_size, seed=seed).to(device).train()
    reader = _Reader(task, genome.d_model, seed).to(device) if task.from_last else None
    optimizer = build_optimizer(cast(Trainable, model), recipe)
    if reader is not None:
        optimizer.add(list(reader.parameters()), recipe.learning_rate)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    batch_size = max(1, TOKENS_PER_STEP // task.length)
    steps = max(1, tokens // (batch_size * task.length))
    rng = np.random.default_rng([seed, 0])
    batches = [task.batch(batch_size, rng) for _ in range(steps)]
    all_inputs, all_targets = (torch.stack(parts).to(device) for parts in zip(*batches, strict=True))  # [steps, B, T]
    moments = np.arange(steps) + 0.5
    factors = learning_rate_factor(recipe.schedule, moments, steps, recipe.warmup, recipe.cooldown)
    all_factors, counter = torch.from_numpy(factors).to(device), torch.zeros(1, dtype=torch.int64, device=device)

    def step() -> tuple[Tensor, ...]:
        inputs, targets = (part.index_select(0, counter)[0] for part in (all_inputs, all_targets))
        logits = _answers(model, reader, inputs).float()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
        loss.backward()
        nn.utils.clip_grad_norm_(params, recipe.clip)
        optimizer.set(all_factors.take(counter[0]))
        optimizer.step()
        optimizer.zero_grad()
        counter.add_(1)
        return ()

    program = Program(step, device)
    for _ in range(steps):
        if deadline is not None and time.monotonic() > deadline:
            return None
        program()
        yield
    model.eval()
    return torch.no_grad()(partial(_answers, model, reader))


def accuracy(logits: Tensor, targets: Tensor) -> float:
    """Share of the targets [B, T] that have the largest of the logits [B, T, V]; ignored targets do not count."""
    asked = targets != IGNORE
    return (logits.argmax(-1) == targets)[asked].double().mean().item()


class _Reader(nn.Module):
    """Reads a whole sequence from one state, by an MLP over state and position, so the state must hold it all."""

    def __init__(self, task: Learnable, width: int, seed: int):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.positions = nn.Parameter(torch.randn(task.length, width))
            self.mlp = nn.Sequential(nn.Linear(2 * width, 4 * width), nn.SiLU(), nn.Linear(4 * width, task.vocab_size))

    def forward(self, state: Tensor) -> Tensor:
        """state [B, D] -> logits [B, T, V]."""
        state = F.rms_norm(state, state.shape[-1:])
        states = state[:, None].expand(-1, len(self.positions), -1)
        return self.mlp(torch.cat([states, self.positions.expand(len(state), -1, -1)], dim=-1))


def _answers(model: LanguageModel, reader: _Reader | None, inputs: Tensor) -> Tensor:
    """Logits [B, T, V]."""
    hidden, _ = model.hidden(inputs, None)
    return model.logits(hidden) if reader is None else reader(hidden[:, -1])
