"""How many candidates share a device, from the size of a training step alone: the same on every call.

A small model leaves a device idle: the host cannot start its short operations as fast as the device ends them. With

    busy = computing / max(computing, starting)        computing = FLOPs of a step / (peak x efficiency), starting = LIVs x LIV_SECONDS

the share of a step in which the device works, floor(1 / busy) processes can take turns on it before it is full, as long as
memory holds a context and a step of each and every process has a CPU core to start operations from.

On a CPU nothing waits, and a worker for every core is best. What batching saves there is the fixed cost of an operation in
torch, which the figures at `together_on_cpu` are about. Figures of GPUs are estimates and not measured.
"""

import math
from dataclasses import dataclass

from star.cost import Costs
from star.training.recipe import Recipe

LIV_SECONDS = 1.0e-3  # to start forward, backward and optimizer of one LIV: about 100 operations of 10 microseconds
EFFICIENCY = 0.3  # of the peak, that matrix products of candidates reach
PEAK = {7: 1.5e12, 8: 2.5e12, 9: 7.5e12, 10: 15e12}  # FLOP/s of one multiprocessor in half precision, by compute capability; data sheets
CONTEXT = 600 * 2**20  # bytes that each process with CUDA takes for itself
MEMORY_SHARE = 0.85  # of a device's memory, that candidates may plan for
MOST_PER_GPU = 8
NUMBERS_PER_CHANNEL = 40  # activations that a LIV keeps for its backward, per token and channel of the model
MOST_TOGETHER = 8  # models in a batched program


@dataclass(frozen=True)
class Step:
    """What one optimizer step of a candidate takes."""

    flops: float
    memory: int  # bytes: weights, gradients, optimizer, activations and logits
    n_livs: int
    parameters: int


@dataclass(frozen=True)
class Gpu:
    memory: int  # bytes
    flops: float  # peak per second, dense, in half precision


def step_of(costs: Costs, recipe: Recipe, d_model: int, n_livs: int, vocab_size: int) -> Step:
    """A step of a genome with these costs at `recipe.seq_len`; memory is an upper estimate."""
    activations = recipe.micro_batch * (n_livs * d_model * NUMBERS_PER_CHANNEL * 2 + 3 * vocab_size * 4)
    return Step(costs.train_flops_per_token * recipe.micro_batch, 16 * costs.parameters + activations, n_livs, costs.parameters)


def largest(steps: list[Step]) -> Step:
    """A step that takes as much of everything as any of these."""
    return Step(*(max(getattr(step, name) for step in steps) for name in ("flops", "memory", "n_livs", "parameters")))


def workers_per_gpu(step: Step, gpu: Gpu, cores_per_gpu: int) -> int:
    """How many processes train such candidates on one GPU at the same time, at least one."""
    computing, starting = step.flops / (gpu.flops * EFFICIENCY), step.n_livs * LIV_SECONDS
    by_time = math.floor(max(computing, starting) / computing)
    by_memory = math.floor(MEMORY_SHARE * gpu.memory / (CONTEXT + step.memory))
    return max(1, min(by_time, by_memory, cores_per_gpu, MOST_PER_GPU))


def together(step: Step, n_models: int, gpu: Gpu | None = None) -> int:
    """Into how large groups to batch `n_models` runs of one genome (`train_many`); 1: train them one by one. gpu: None on a CPU."""
    if gpu is None:
        return together_on_cpu(step, n_models)
    computing, starting = step.flops / (gpu.flops * EFFICIENCY), step.n_livs * LIV_SECONDS
    by_memory = math.floor((MEMORY_SHARE * gpu.memory - CONTEXT) / step.memory)
    return max(1, min(math.floor(max(computing, starting) / computing), by_memory, n_models, MOST_TOGETHER))


def together_on_cpu(step: Step, n_models: int) -> int:
    raise NotImplementedError


def visible_gpu() -> Gpu:
    """The first GPU that this process sees."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    peak = PEAK.get(properties.major, PEAK[min(PEAK)] if properties.major < min(PEAK) else PEAK[max(PEAK)])
    return Gpu(properties.total_memory, properties.multi_processor_count * peak)
