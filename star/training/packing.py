"""How many candidates share a device, from the size of a training step alone: the same on every call.

A small model leaves a device idle: the host cannot start its short operations as fast as the device ends them. With

    busy = computing / max(computing, starting)        computing = FLOPs of a step / (peak x efficiency), starting = LIVs x LIV_SECONDS

the share of a step in which the device works, floor(1 / busy) processes can take turns on it before it is full, as long as
memory holds a context and a step of each and every process has a CPU core to start operations from.

The figures are estimates, not measurements.
"""

import math
from dataclasses import dataclass

import torch

from star.cost import Costs
from star.training.recipe import Recipe

LIV_SECONDS = 1.0e-3  # to start forward, backward and optimizer of one LIV: about 100 operations of 10 microseconds
EFFICIENCY = 0.3  # of the peak, that matrix products of candidates reach
PEAK = {
    7: 1.5e12,
    8: 2.5e12,
    9: 7.5e12,
    10: 15e12,
}  # FLOP/s of one multiprocessor in half precision, by compute capability; data sheets
CONTEXT = 600 * 2**20  # bytes that each process with CUDA takes for itself
MEMORY_SHARE = 0.85  # of a device's memory, that candidates may plan for
MOST_PER_GPU = 8
NUMBERS_PER_CHANNEL = 40  # activations that a LIV keeps for its backward, per token and channel of the model


@dataclass(frozen=True)
class Step:
    """What one optimizer step of a candidate takes."""

    flops: float
    memory: int  # bytes: weights, gradients, optimizer, activations and logits
    n_livs: int


@dataclass(frozen=True)
class Gpu:
    memory: int  # bytes
    flops: float  # peak per second, dense, in half precision


def step_of(costs: Costs, recipe: Recipe, d_model: int, n_livs: int, vocab_size: int) -> Step:
    """A step of a genome with these costs at `recipe.seq_len`; memory is an upper estimate."""
    activations = recipe.micro_batch * (n_livs * d_model * NUMBERS_PER_CHANNEL * 2 + 3 * vocab_size * 4)
    return Step(costs.train_flops_per_token * recipe.micro_batch, 16 * costs.parameters + activations, n_livs)


def largest(steps: list[Step]) -> Step:
    """A step that takes as much of everything as any of these."""
    return Step(*(max(getattr(step, name) for step in steps) for name in ("flops", "memory", "n_livs")))


def workers_per_gpu(step: Step, gpu: Gpu, cores_per_gpu: int) -> int:
    """How many processes train such candidates on one GPU at the same time, at least one."""
    by_memory = math.floor(MEMORY_SHARE * gpu.memory / (CONTEXT + step.memory))
    return max(1, min(steps_at_a_time(step, gpu), by_memory, cores_per_gpu, MOST_PER_GPU))


def steps_at_a_time(step: Step, gpu: Gpu) -> int:
    """floor(1 / busy): how many such steps fit into the time of one."""
    computing, starting = step.flops / (gpu.flops * EFFICIENCY), step.n_livs * LIV_SECONDS
    return math.floor(max(computing, starting) / computing)


def visible_gpu() -> Gpu:
    """The first GPU that this process sees."""
    properties = torch.cuda.get_device_properties(0)
    peak = PEAK.get(properties.major, PEAK[min(PEAK)] if properties.major < min(PEAK) else PEAK[max(PEAK)])
    return Gpu(properties.total_memory, properties.multi_processor_count * peak)
