"""Which code of a recurrence runs: our own form, unless one of `CHOOSERS` has a faster one (see `star.liv.kernels`).

An exported model has no chooser, so it runs our own forms and needs torch alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MIN_TOKENS = 64  # below, our own form is used
CHOOSERS: list[Callable[[str, Tensor, Tensor], Callable | None]] = []


def fastest(name: str, ours: Callable, b: Tensor, v: Tensor) -> Callable:
    """The form to run for a recurrence with b [B, T, H, N] and v [B, T, H, P]; name: of `star.liv.kernels.KERNELS`."""
    if not torch.compiler.is_compiling() and v.shape[1] >= MIN_TOKENS:
        for choose in CHOOSERS:
            form = choose(name, b, v)
            if form is not None:
                return form
    return ours
