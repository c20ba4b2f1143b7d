"""Which code runs: the plain torch of this package, unless there is something faster for the tensors at hand.

- recurrences: `fastest` asks `CHOOSERS` (see `star.liv.kernels`);
- small functions: `fused` looks for a one-pass kernel (see `star.liv.triton_kernels`).

An exported model has neither, so it runs the plain forms and needs torch alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MIN_TOKENS = 64  # below, our own form is used
CHOOSERS: list[Callable[[str, Tensor, Tensor], Callable | None]] = []
LOADERS: dict[str, Callable[[], dict[str, Callable]]] = {}  # type of device -> what imports its kernels
LOADED: dict[str, dict[str, Callable]] = {}  # type of device -> kernels by name
FUSED_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def fastest(name: str, ours: Callable, b: Tensor, v: Tensor) -> Callable:
    """The form to run for a recurrence with b [B, T, H, N] and v [B, T, H, P]; name: of `star.liv.kernels.KERNELS`."""
    if not torch.compiler.is_compiling() and v.shape[1] >= MIN_TOKENS:
        for choose in CHOOSERS:
            form = choose(name, b, v)
            if form is not None:
                return form
    return ours


def fused(name: str, x: Tensor) -> Callable | None:
    """The kernel `name` for tensors like x, or None: then the plain form runs."""
    if torch.compiler.is_compiling():  # a compiler fuses by itself
        return None
    device = x.device.type
    if device not in LOADED:
        LOADED[device] = LOADERS[device]() if device in LOADERS else {}
    kernel = LOADED[device].get(name)
    return kernel if kernel is not None and x.dtype in FUSED_DTYPES and x.numel() else None
