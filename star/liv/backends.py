"""Which code computes a recurrence: our own form, or the kernel of fla (flash-linear-attention) where it proves equal.

fla is never needed and is not imported before tensors are on one of `DEVICES`. There, the first use of an operator in a
dtype, on a device and with given head widths runs a short sequence through fla's kernel and through our own form,
forward and backward (`probe`). fla is used if it agrees; if it is missing, raises or differs, our form is, and
`explain()` says why. Some of its kernels do raise, or did give wrong gradients, with some versions of the compiler
under them.

Our own form also runs under `torch.compile`, which fuses it and would break its graph at fla's kernels, and for pieces
of a few tokens. `backends.DEVICES = ()` keeps it everywhere, as function transforms (`torch.func`) on a GPU need.
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
KERNELS = {  # our name -> module and function of fla-core; all take q, k, v [B, T, H, .] and the keywords of `of_fla`
    "scalar": ("fla.ops.simple_gla", "chunk_simple_gla"),
    "vector": ("fla.ops.gla", "chunk_gla"),
    "delta": ("fla.ops.delta_rule", "chunk_delta_rule"),
    "gated delta": ("fla.ops.gated_delta_rule", "chunk_gated_delta_rule"),
}
ALLOWED_ERROR = {torch.bfloat16: 2e-2, torch.float16: 1e-2, torch.float32: 2e-3}  # of the largest number; TF32 has 1e-3
STRONGEST = {"scalar": -20.0, "vector": -5.0, "gated delta": -20.0}  # the log decays that our modules can make


class Choice(NamedTuple):
    """`form` is fla's kernel with the arguments of ours, or None for ours, and why."""

    form: Callable | None
    why: str


CHOICES: dict[tuple, Choice] = {}  # by operator, dtype, device, state size, head width


def fastest(name: str, ours: Callable, b: Tensor, v: Tensor) -> Callable:
    """The form to compute an operator of `KERNELS` with, for keys b [B, T, H, N] and values v [B, T, H, P]."""
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
    """fla in `dtype` against our form in float32, on the same short sequence: output, last state and every gradient."""
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
        return Choice(
            None,
            f"because fla differs from it by {error:.1e} of the largest number, more than {ALLOWED_ERROR[dtype]:.0e}",
        )
    return Choice(theirs, f"which differs from our own form by {error:.1e} of the largest number")


def of_fla(kernel: Callable, name: str) -> Callable:
    """A kernel of fla with the arguments of our parallel forms: c, b, v, g, beta (delta rule), memory, keep_memory."""
    keywords = ("q", "k", "v", "g", *(["beta"] if "delta" in name else []), "initial_state", "output_final_state")

    def form(*inputs: Tensor | bool | None) -> tuple[Tensor, Tensor | None]:
        given = {
            keyword: value for keyword, value in zip(keywords, (*inputs, True)) if keyword != "g" or value is not None
        }
        for keyword in "qk":  # keys that heads share, one for each
            given[keyword] = given[keyword].repeat_interleave(given["v"].shape[2] // given[keyword].shape[2], dim=2)
        return kernel(**given, scale=1.0)

    return form


def probe_inputs(
    name: str, dtype: torch.dtype, device: torch.device, state_size: int, width: int
) -> list[Tensor | None]:
    """Arguments of our parallel form but the last: 2 heads, more than a chunk and no multiple of one, weak gates and
    the strongest.
    """
    generator, tokens, heads = torch.Generator().manual_seed(0), 2 * MIN_TOKENS + 5, 2
    c, b = (F.normalize(torch.randn(1, tokens, heads, state_size, generator=generator), dim=-1) for _ in range(2))
    v, memory = (
        torch.randn(1, tokens, heads, width, generator=generator),
        torch.randn(1, heads, state_size, width, generator=generator),
    )
    decays = (1, tokens, heads, state_size) if name == "vector" else (1, tokens, heads)
    g = STRONGEST[name] * torch.rand(decays, generator=generator) ** 8 if name in STRONGEST else None
    beta = [torch.rand(1, tokens, heads, generator=generator)] if "delta" in name else []
    rounded = [t.to(dtype).float() for t in (c, b, v)]
    return [t if t is None else t.to(device) for t in (*rounded, g, *beta, memory)]


def run(form: Callable, inputs: list[Tensor | None], dtype: torch.dtype) -> list[Tensor]:
    """Output, last state and gradients; c, b and v in `dtype`, gates and states in float32 as in our modules."""
    inputs = [
        t if t is None else t.to(dtype if i < 3 else torch.float32).requires_grad_() for i, t in enumerate(inputs)
    ]
    y, memory = form(*inputs, True)
    return [
        y,
        memory,
        *torch.autograd.grad(y.float().sin().sum() + memory.cos().sum(), [t for t in inputs if t is not None]),
    ]
