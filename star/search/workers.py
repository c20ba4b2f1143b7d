"""The engine that a configuration asks for, and how many workers share a GPU.

A small model leaves a GPU idle: the host cannot launch its short kernels as fast as the GPU finishes them. With

    computing = FLOPs of a step / (peak x efficiency)        launching = LIVs x LIV_SECONDS
    busy = computing / max(computing, launching)

the share of a step in which the GPU works, floor(1 / busy) processes can take turns on it before it is full, provided
that memory holds a context and a step of each and that every process has a CPU core. The constants are estimates, not
measurements.
"""

import contextlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from star.config import RunConfig
from star.cost import Costs
from star.cost import costs as costs_of
from star.engine import Engine, InProcess, ProcessPool, Ray
from star.errors import UserError
from star.genome import Gene, Genome
from star.search.spaces import make_space
from star.training.recipe import Recipe

GRACE = 60.0  # seconds that a candidate which watches its own deadline gets before it is killed
MOST_WORKERS = 4096  # that a steady state keeps busy: it has no generation to wait for
LIV_SECONDS = 1.0e-3  # to start forward, backward and optimizer of one LIV: about 100 operations of 10 microseconds
EFFICIENCY = 0.3  # of the peak, that matrix products of candidates reach
# FLOP/s of one multiprocessor in half precision, by compute capability; data sheets
PEAK = {7: 1.5e12, 8: 2.5e12, 9: 7.5e12, 10: 15e12}
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
    """A GPU."""

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


def make_engine(config: RunConfig, function: str, run: Path, say: Callable = lambda text: None) -> Engine:
    """The engine that the configuration asks for. Workers: `workers_on_gpu` of them on each GPU, or one per `threads`
    CPU cores.

    No more than a generation keeps busy; `say` is told of workers that would stay idle or do not fit.
    """
    settings = config.engine
    if settings.kind == "inprocess":
        return InProcess(function, slots=settings.workers or 1)
    busy = MOST_WORKERS if config.search.asynchronous else max(config.search.population, config.offspring)
    on_gpu = config.training.device in ("auto", "cuda") and config.evaluation == "training"
    threads = {name: str(settings.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = visible_gpus() if on_gpu else []
    timeout = settings.timeout + GRACE if settings.timeout else None
    engine: Engine
    if settings.kind == "ray":
        per_gpu = workers_on_gpu(config, len(gpus), cores) if on_gpu else 0
        wanted = min(settings.workers, busy)
        engine = Ray(function, wanted, run, settings.address, timeout, settings.threads, per_gpu, threads)
        if engine.slots < wanted:
            say(
                text=f"engine.workers is {settings.workers}, but the Ray cluster holds {engine.slots} at one time: "
                "those are used."
            )
        engine.slots = slots = min(engine.slots, busy)
    else:
        gpus *= workers_on_gpu(config, len(gpus), cores)
        environments = [threads | {"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus] or [threads]
        slots = min(settings.workers or len(gpus) or max(1, cores // settings.threads), busy)
        engine = ProcessPool(function, slots, run / "progress", timeout, environments)
    if settings.workers > busy:
        say(
            text=f"engine.workers is {settings.workers}, but a generation has {busy} candidates: {slots} workers "
            "are used."
        )
    if slots > config.offspring and config.search.generations > 1 and not config.search.asynchronous:
        text = (
            f"{slots} workers, but a generation after the first has {config.offspring} candidates: raise "
            "search.offspring or use --async."
        )
        say(text=text)
    return engine


def workers_on_gpu(config: RunConfig, n_gpus: int, cores: int) -> int:
    """`engine.workers_per_gpu`, or where that is 0 what suits the largest genome of the space on the GPUs of this
    machine.
    """
    if config.engine.workers_per_gpu or not n_gpus:
        return config.engine.workers_per_gpu or 1
    return workers_per_gpu(largest_step(config), visible_gpu(), max(1, cores // config.engine.threads // n_gpus))


def largest_step(config: RunConfig, vocab_size: int = 256) -> Step:
    """A training step that takes as much as any genome of the space: all slots full, at the greatest width."""
    space, recipe = make_space(config), config.training
    steps = []
    for class_id in filter(None, space.classes):
        genome = Genome(
            (Gene(class_id),) * space.n_slots,
            max(space.d_models),
            space.head_dim,
            space.norms[0],
            space.residuals[0],
            space.rope_theta,
        )
        with contextlib.suppress(UserError):  # a class that does not fit this width
            costs = costs_of(genome, vocab_size=vocab_size, seq_len=recipe.seq_len)
            steps.append(step_of(costs, recipe, genome.d_model, space.n_slots, vocab_size))
    return largest(steps)


def visible_gpus() -> list[str]:
    """Values of CUDA_VISIBLE_DEVICES that each show one GPU."""
    count = torch.cuda.device_count()
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in shown.split(",") if name.strip()]
    return (names or [str(i) for i in range(count)])[:count]
