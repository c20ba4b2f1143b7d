"""What this machine has and what a search will use of it, as sentences for `star doctor`."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

import torch

import star
from star.config import RunConfig
from star.genome import POOL
from star.liv import kernel_check
from star.liv.kernels import Case
from star.search.spaces import ROPE_THETA, make_space
from star.search.workers import Parallel, side_by_side
from star.training.device import memory_of_others, resolve_dtype
from star.training.program import Program

PACKAGES = ("torch", "triton", "pymoo", "numpy", "ray", "fla-core")


def describe_machine(device: torch.device) -> Iterator[str]:
    """Versions, and the device with its memory."""
    yield f"star {star.__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield f"CPU: {cores} cores"
    if device.type != "cuda":
        yield f"GPU: none that torch can use (built for CUDA {torch.version.cuda or 'none'})"
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        yield (
            f"GPU {index}: {facts.name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, "
            f"{facts.multi_processor_count} multiprocessors, CUDA {torch.version.cuda}"
        )
        if others := memory_of_others(torch.device("cuda", index)):
            yield f"GPU {index}: other processes hold {others / 2**30:.1f} GiB; both will be slower"


def describe_use(config: RunConfig, device: torch.device) -> Iterator[str]:
    """Precision, graph, compiler, and how many candidates train at a time."""
    recipe, plan = config.training, Parallel.of(config)
    dtype = str(resolve_dtype(recipe.dtype, device)).removeprefix("torch.")
    if device.type != "cuda":
        yield f"preset {config.preset}: {dtype}, no graph, no compiler, {plan.workers} workers on the CPU"
        return
    graph = "captured as a CUDA graph" if recipe.compile != "off" and can_capture(device) else "not captured"
    compiled = "compiled blocks" if recipe.compile == "blocks" else "no compiler"
    yield f"preset {config.preset}: {dtype}, training step {graph}, {compiled}"
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    for width in config.space.d_models:
        together = config.engine.side_by_side or side_by_side(width, recipe.micro_batch, multiprocessors)
        yield (
            f"preset {config.preset}: {plan.workers} workers on {len(plan.gpus)} GPUs, "
            f"each trains {together} candidates of width {width} at a time"
        )


def can_capture(device: torch.device) -> bool:
    """Whether a program can be captured on this device."""
    x = torch.zeros(8, device=device)
    program = Program(lambda: (x.add_(1),), device, warmup=1)
    with torch.cuda.stream(torch.cuda.Stream(device)):
        for _ in range(3):
            program()
    return program.replay is not None


def describe_kernels(configs: Sequence[RunConfig], device: torch.device, seconds: float) -> Iterator[str]:
    """Check the kernels of fla that these searches would use, and say the verdicts."""
    if _version("fla-core") == "not installed":
        yield "fla-core is not installed: recurrences use our own forms"
        return
    cases = set[Case]()
    for config in configs:
        dtype = resolve_dtype(config.training.dtype, device)
        for width in config.space.d_models:
            classes = [POOL[number - 1] for number in make_space(config).classes if number]
            livs = [c.config(width, config.space.head_dim, ROPE_THETA).build() for c in classes]
            cases |= kernel_check.needed(livs, width, dtype)
    yield f"checking {len(cases)} kernels of fla for at most {seconds:.0f} s, where this was not done before"
    verdicts = kernel_check.check(cases, device, seconds)
    for case in sorted(cases):
        verdict = verdicts.get(case, {"agrees": False, "why": "the check did not end in time"})
        yield f"{case}: {'fla' if verdict['agrees'] else 'our own form'}, because {verdict['why']}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
