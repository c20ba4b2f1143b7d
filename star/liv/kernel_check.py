"""Checks the kernels of fla against our own forms once per machine, in a process of its own with a time limit.

    check(needed(livs, dtype), device, seconds=300)      # {case: {"agrees", "why"}}, also kept on disk
    python -m star.liv.kernel_check DEVICE CASES          # the process

A check runs a short sequence forward and backward through both: output, last state and all gradients must agree.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.liv import kernels
from star.liv.backends import MIN_TOKENS
from star.liv.delta import delta_parallel
from star.liv.kernels import Case
from star.liv.ssd import ssd_parallel
from star.liv.vector_gate import vector_gate_parallel

OURS: dict[str, Callable] = {
    "scalar": ssd_parallel,
    "vector": vector_gate_parallel,
    "delta": delta_parallel,
    "gated delta": delta_parallel,
    "channel delta": delta_parallel,
}
ALLOWED_ERROR = {"bfloat16": 2e-2, "float16": 1e-2, "float32": 2e-3}  # of the largest number; TF32 has 1e-3
STRONGEST = {
    "scalar": -20.0,
    "vector": -5.0,
    "gated delta": -20.0,
    "channel delta": -20.0,
}  # the lowest log decays of our modules


def needed(livs: Iterable[nn.Module], width: int, dtype: torch.dtype) -> set[Case]:
    """The cases that these LIVs of one width would use fla for. Runs each of them on a short sequence, on a CPU."""
    devices, choices = kernels.DEVICES, dict(kernels.CHOICES)
    kernels.DEVICES = ("cpu",)
    kernels.CHOICES.clear()
    try:
        with torch.no_grad():
            for liv in livs:
                liv(torch.zeros(1, MIN_TOKENS, width, dtype=dtype))
        return set(kernels.CHOICES)
    finally:
        kernels.DEVICES = devices
        kernels.CHOICES.clear()
        kernels.CHOICES.update(choices)


def check(cases: Iterable[Case], device: torch.device, seconds: float = 300.0) -> dict[Case, dict]:
    """Verdicts on all cases that could be checked within `seconds`, known ones included.

    A kernel that crashes its process or does not end in time is not used either.
    """
    wanted, deadline = sorted(cases), time.monotonic() + seconds
    while unknown := [case for case in wanted if str(case) not in kernels.read_verdicts(device)]:
        command = [sys.executable, "-m", "star.liv.kernel_check", str(device), json.dumps(unknown)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            break
        left = [case for case in unknown if str(case) not in kernels.read_verdicts(device)]
        if left:  # the process died at the first of them
            _keep(left[0], device, {"agrees": False, "why": f"fla ended its process with code {process.returncode}"})
    verdicts = kernels.read_verdicts(device)
    return {case: verdicts[str(case)] for case in wanted if str(case) in verdicts}


def probe(case: Case, device: torch.device) -> dict:
    """Compare fla in the dtype of the case with our form in float32 on one short sequence."""
    dtype = getattr(torch, case.dtype)
    try:
        theirs = kernels.load_kernel(case.kernel)
        with torch.inference_mode(False), torch.enable_grad():
            inputs = probe_inputs(case, device)
            ours = run(OURS[case.kernel], inputs, torch.float32)
            pairs = zip(run(theirs, inputs, dtype), ours, strict=True)
            error = max(((a.float() - b).abs().max() / b.abs().max()).nan_to_num(torch.inf).item() for a, b in pairs)
    except Exception as raised:
        why = f"fla raises {type(raised).__name__}: {' '.join(str(raised).split())[:200]}"
        return {"agrees": False, "why": why}
    limit = ALLOWED_ERROR[case.dtype]
    more = "" if error <= limit else f", more than {limit:.0e}"
    return {"agrees": error <= limit, "why": f"fla differs from it by {error:.1e} of the largest number{more}"}


def probe_inputs(case: Case, device: torch.device) -> list[Tensor | None]:
    """The arguments of our parallel form without `keep_memory`: two heads, several chunks, weak and strongest gates."""
    generator, tokens, heads = torch.Generator().manual_seed(0), 2 * MIN_TOKENS + 5, 2
    name, size, dtype = case.kernel, case.state_size, getattr(torch, case.dtype)
    c, b = (F.normalize(torch.randn(1, tokens, heads, size, generator=generator), dim=-1) for _ in range(2))
    v = torch.randn(1, tokens, heads, case.width, generator=generator)
    memory = torch.randn(1, heads, size, case.width, generator=generator)
    decays = (1, tokens, heads, size) if name in ("vector", "channel delta") else (1, tokens, heads)
    g = STRONGEST[name] * torch.rand(decays, generator=generator) ** 8 if name in STRONGEST else None
    beta = [torch.rand(1, tokens, heads, generator=generator)] if "delta" in name else []
    rounded = [t.to(dtype).float() for t in (c, b, v)]
    return [t if t is None else t.to(device) for t in (*rounded, g, *beta, memory)]


def run(form: Callable, inputs: list[Tensor | None], dtype: torch.dtype) -> list[Tensor]:
    """Output, last state and gradients; c, b and v in `dtype`, gates and states in float32 as in our modules."""
    dtypes = [dtype] * 3 + [torch.float32] * (len(inputs) - 3)
    inputs = [t if t is None else t.to(kind).requires_grad_() for t, kind in zip(inputs, dtypes)]
    y, memory = form(*inputs, True)
    loss = y.float().sin().sum() + memory.cos().sum()
    return [y, memory, *torch.autograd.grad(loss, [t for t in inputs if t is not None])]


def _keep(case: Case, device: torch.device, verdict: dict) -> None:
    path = kernels.verdict_file(device)
    verdicts = kernels.read_verdicts(device) | {str(case): verdict}
    with contextlib.suppress(OSError):  # a cache that cannot be written to only costs time
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(f"{path}.{os.getpid()}")
        temporary.write_text(json.dumps(verdicts, indent=1))
        os.replace(temporary, path)


def main() -> None:
    """Check the cases of the command line and keep each verdict."""
    device = torch.device(sys.argv[1])
    for fields in json.loads(sys.argv[2]):
        case = Case(*fields)
        _keep(case, device, probe(case, device))


if __name__ == "__main__":
    main()
