"""The engine that a configuration asks for: how many workers, and how many candidates a worker trains side by side.

A small model leaves most of a GPU idle even when a graph starts its kernels. One H100 (132 multiprocessors), graphs of
whole training steps, each on a stream of its own, tokens per second of all models together:

    models side by side               1       4       8       16
    width 64, 2 x 128 tokens       0.24 M  0.60 M  0.97 M  1.41 M
    width 64, 16 x 128 tokens      1.42 M  3.37 M  5.03 M  5.26 M

At width 512 there is nothing to gain, and at width 256 four graphs side by side crashed. So below `WIDE`, as many
models run side by side as have `CHANNELS` activations of the residual stream on each multiprocessor, 16 at most.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from star.config import RunConfig
from star.engine import Engine, InProcess, ProcessPool, Ray
from star.engine.processes import Worker, make_workers, start_workers

GRACE = 60.0  # seconds that a candidate which watches its own deadline gets before it is killed
MOST_WORKERS = 4096  # that a steady state keeps busy: it has no generation to wait for
WORKERS_PER_GPU = 2  # one trains while the other builds, captures, evaluates or writes
WIDE, CHANNELS, MOST_SIDE_BY_SIDE = 256, 8192, 16


def side_by_side(width: int, tokens: int, multiprocessors: int) -> int:
    """How many models of this width share a GPU best. tokens: of a micro-batch."""
    if width >= WIDE:
        return 1
    return max(1, min(MOST_SIDE_BY_SIDE, CHANNELS * multiprocessors // (width * tokens)))


def company(config: RunConfig, multiprocessors: int) -> Callable[[dict], int]:
    """job -> how many jobs may share a worker with it, itself included. One that has been lost is repeated alone."""

    def allowed(job: dict) -> int:
        if job["alone"] or job["recipe"]["device"] == "cpu":
            return 1
        tokens = job["recipe"]["batch_size"] * job["recipe"]["seq_len"]
        return config.engine.side_by_side or side_by_side(job["genome"]["d_model"], tokens, multiprocessors)

    return allowed


@dataclass(frozen=True)
class Parallel:
    """What this machine trains at a time. gpus: values of CUDA_VISIBLE_DEVICES; none: on CPU cores."""

    gpus: tuple[str, ...]
    workers: int
    company: Callable[[dict], int] | None  # job -> how many jobs may share its worker
    side_by_side: int  # the largest of these

    @staticmethod
    def of(config: RunConfig) -> "Parallel":
        """As `config` asks for: workers on each GPU, or one per `engine.threads` CPU cores; no more than are busy."""
        settings = config.engine
        if settings.kind == "inprocess":
            return Parallel((), 1, None, 1)
        on_gpu = config.training.device in ("auto", "cuda") and config.evaluation == "training"
        gpus = visible_gpus() if on_gpu else []
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        allowed, most = None, 1
        if gpus:
            allowed = company(config, torch.cuda.get_device_properties(0).multi_processor_count)
            most = max(allowed(job_of_width(config, width)) for width in config.space.d_models)
        automatic = len(gpus) * (settings.workers_per_gpu or WORKERS_PER_GPU) or max(1, cores // settings.threads)
        workers = min(settings.workers or automatic, -(-busy(config) // most))
        return Parallel(tuple(gpus), workers, allowed, most)


def job_of_width(config: RunConfig, width: int) -> dict:
    """What `company` needs to know of a candidate of this width."""
    return {"alone": False, "recipe": dataclasses.asdict(config.training), "genome": {"d_model": width}}


def busy(config: RunConfig) -> int:
    """The most candidates that the search has at one time."""
    return MOST_WORKERS if config.search.asynchronous else max(config.search.population, config.offspring)


def early_workers(config: RunConfig, function: str) -> list[Worker]:
    """Workers of GPUs, whose processes take seconds to start: they do so while the coordinator still prepares.

    None on a CPU, where they would take the time of what it prepares. Stop them if `make_engine` does not get them.
    """
    plan = Parallel.of(config) if config.engine.kind == "pool" else None
    if plan is None or not plan.gpus:
        return []
    workers = make_workers(plan.workers, environments(config, plan))
    start_workers(function, workers)
    return workers


def environments(config: RunConfig, plan: Parallel) -> list[dict[str, str]]:
    """Environment variables of each worker, to be cycled over them."""
    threads = {name: str(config.engine.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return [threads | {"CUDA_VISIBLE_DEVICES": gpu} for gpu in plan.gpus] or [threads]


def make_engine(
    config: RunConfig,
    function: str,
    run: Path,
    say: Callable = lambda text: None,
    started: Sequence[Worker] = (),
) -> Engine:
    """The engine that the configuration asks for: workers on each GPU, or one per `threads` CPU cores.

    No more than a generation keeps busy; `say` is told of workers that would stay idle or do not fit. started: what
    `early_workers` gave.
    """
    settings = config.engine
    if settings.kind == "inprocess":
        return InProcess(function, slots=settings.workers or 1)
    timeout = settings.timeout + GRACE if settings.timeout else None
    most = busy(config)
    engine: Engine
    if settings.kind == "ray":
        on_gpu = config.training.device in ("auto", "cuda") and config.evaluation == "training"
        per_gpu = settings.workers_per_gpu or WORKERS_PER_GPU if on_gpu else 0
        wanted = min(settings.workers, most)
        shared = environments(config, Parallel((), 0, None, 1))[0]
        engine = Ray(function, wanted, run, settings.address, timeout, settings.threads, per_gpu, shared)
        if engine.slots < wanted:
            say(
                text=f"engine.workers is {settings.workers}, but the Ray cluster holds {engine.slots} at one time: "
                "those are used."
            )
        engine.slots = slots = min(engine.slots, most)
    else:
        plan = Parallel.of(config)
        each, progress, most_together = environments(config, plan), run / "progress", plan.side_by_side
        engine = ProcessPool(function, plan.workers, progress, timeout, each, plan.company, most_together, started)
        slots = min(engine.slots, most)
    if settings.workers > most:
        say(
            text=f"engine.workers is {settings.workers}, but a generation has {most} candidates: {slots} are "
            "trained at a time."
        )
    if slots > config.offspring and config.search.generations > 1 and not config.search.asynchronous:
        text = (
            f"{slots} candidates can be trained at a time, but a generation after the first has {config.offspring}: "
            "raise search.offspring or use --async."
        )
        say(text=text)
    return engine


def visible_gpus() -> list[str]:
    """Values of CUDA_VISIBLE_DEVICES that each show one GPU."""
    count = torch.cuda.device_count()
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in shown.split(",") if name.strip()]
    return (names or [str(i) for i in range(count)])[:count]
