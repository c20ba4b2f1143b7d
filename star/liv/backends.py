"""Chooses the code of a recurrence: our own form, or the kernel of fla (flash-linear-attention) where the two agree.

fla is optional, and is only imported once tensors are on one of `DEVICES`. There, the first use of an operator with a
given dtype, device and head width runs a short sequence forward and backward through both (`probe`). fla is used if it
agrees with our form. If it is missing, raises an error or differs, our form is used, and `explain()` says why. With
some compiler versions its kernels do raise errors, or have given wrong gradients.

Our own form is also used for a few tokens, and under `torch.compile`, which fuses it, while fla's kernels would break
the graph. Set `backends.DEVICES = ()` to use it always, as function transforms (`torch.func`) on a GPU require.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

DEVICES: tuple[str, ...] = ("cuda",)
MIN_TOKENS = 64
# Our name -> module and function of fla-core. All take q, k, v [B, T, H, .] and the keywords in `of_fla`.
KERNELS = {
    "scalar": ("fla.ops.simple_gla", "chunk_simple_gla"),
    "vector": ("fla.ops.gla", "chunk_gla"),
    "delta": ("fla.ops.delta_rule", "chunk_delta_rule"),
    "gated delta": ("fla.ops.gated_delta_rule", "chunk_gated_delta_rule"),
}
ALLOWED_ERROR = {torch.bfloat16: 2e-2, torch.float16: 1e-2, torch.float32: 2e-3}  # of the largest number; TF32 has 1e-3
STRONGEST = {"scalar": -20.0, "vector": -5.0, "gated delta": -20.0}  # the lowest log decays of our modules


class Choice(NamedTuple):
    """form: fla's kernel with the arguments of ours, or None for ours; why: the reason."""

    form: Callable | None
    why: str


CHOICES: dict[tuple, Choice] = {}  # by operator, dtype, device, state size, head width


def fastest(name: str, ours: Callable, b: Tensor, v: Tensor) -> Callable:
    """The form to use for an operator of `KERNELS`, with keys b [B, T, H, N] and values v [B, T, H, P]."""
    if (
        v.device.type not in DEVICES
        or torch.compiler.is_compiling()
        or v.shape[1] < MIN_TOKENS
        or v.dtype not in ALLOWED_ERROR
    ):
        return ours
    key = (name, v.dtype, v.device, b.shape[-1], v.shape[-1])
    if key not in CHOICES:
        CHOICES[key] = probe(*key, ours)
    return CHOICES[key].form or ours


def explain() -> list[str]:
    """One sentence for every choice made so far."""
    return [
        f"{name} recurrence, {str(dtype).removeprefix('torch.')} on {device}, state {size} x {width}: "
        f"{'fla' if form else 'our own form'}, {why}"
        for (name, dtype, device, size, width), (form, why) in CHOICES.items()
    ]


def probe(name: str, dtype: torch.dtype, device: torch.device, state_size: int, width: int, ours: Callable) -> Choice:
    """Compares fla in `dtype` with our form in float32 on one short sequence: output, last state and all gradients."""
    module, function = KERNELS[name]
    try:
        theirs = of_fla(getattr(importlib.import_module(module), function), name)
        with torch.inference_mode(False), torch.enable_grad():
            inputs = probe_inputs(name, dtype, device, state_size, width)
            pairs = zip(run(theirs, inputs, dtype), run(ours, inputs, torch.float32), strict=True)
            error = max(((a.float() - b).abs().max() / b.abs().max()).nan_to_num(torch.inf).item() for a, b in pairs)
    except Exception as raised:
        return Choice(None, f"because fla raises {type(raised).__name__}: {' '.join(str(raised).split())[:200]}")
    if error > ALLOWED_ERROR[dtype]:
        limit = f"more than {ALLOWED_ERROR[dtype]:.0e}"
        return Choice(None, f"because fla differs from it by {error:.1e} of the largest number, {limit}")
    return Choice(theirs, f"which differs from our own form by {error:.1e} of the largest number")


def of_fla(kernel: Callable, name: str) -> Callable:
    """A kernel of fla with the arguments of our parallel forms: c, b, v, g, beta (delta rule), memory, keep_memory."""
    keywords = ("q", "k", "v", "g", *(["beta"] if "delta" in name else []), "initial_state", "output_final_state")

    def form(*inputs: Tensor | bool | None) -> tuple[Tensor, Tensor | None]:
        given = {name: x for name, x in zip(keywords, (*inputs, True)) if name != "g" or x is not None}
        for keyword in "qk":  # fla takes one key per head, ours may be shared by several
            given[keyword] = given[keyword].repeat_interleave(given["v"].shape[2] // given[keyword].shape[2], dim=2)
        return kernel(**given, scale=1.0)

    return form


def probe_inputs(
    name: str, dtype: torch.dtype, device: torch.device, state_size: int, width: int
) -> list[Tensor | None]:
    """The arguments of our parallel form without `keep_memory`: two heads, several chunks, weak and strongest gates."""
    generator, tokens, heads = torch.Generator().manual_seed(0), 2 * MIN_TOKENS + 5, 2
    c, b = (F.normalize(torch.randn(1, tokens, heads, state_size, generator=generator), dim=-1) for _ in range(2))
    v = torch.randn(1, tokens, heads, width, generator=generator)
    memory = torch.randn(1, heads, state_size, width, generator=generator)
    decays = (1, tokens, heads, state_size) if name == "vector" else (1, tokens, heads)
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
