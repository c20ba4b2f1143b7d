"""Several models beside each other (`torch.func.vmap`): how operations that torch would repeat for each take them all at once.

Under vmap a tensor [B, ...] stands for K of them, one of each model. An operation without weights does not care whether its
batch is of one model or of K, so its rule is to fold: [K, B, ...] -> [K B, ...], one call, and back. The autograd functions
of this package have a `vmap` that does so by `fold` and `unfold`; attention, whose CPU kernel torch has no rule for, has it here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def vmapped(x: Tensor) -> bool:
    """Whether x stands for those of several models."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_batchedtensor(x)


def fold(
    n_models: int, in_dims: Sequence[int | None], tensors: Sequence[Tensor | None], batch_dims: Sequence[int]
) -> list[Tensor | None]:
    """The tensors of all models with their models in the batch: K x B numbers at `batch_dims`. in_dims: where models are, None for one that all share."""
    folded = []
    for tensor, models, batch in zip(tensors, in_dims, batch_dims, strict=True):
        if tensor is not None:
            tensor = stacked(n_models, models, tensor, batch).flatten(batch, batch + 1)
        folded.append(tensor)
    return folded


def unfold(n_models: int, tensor: Tensor, batch_dim: int = 0) -> Tensor:
    """The inverse: models at `batch_dim`, the batch of each behind it."""
    return tensor.unflatten(batch_dim, (n_models, tensor.shape[batch_dim] // n_models))


def stacked(n_models: int, in_dim: int | None, tensor: Tensor, dim: int = 0) -> Tensor:
    """The tensors of all models, with the models at `dim`."""
    if in_dim is None:
        return tensor.unsqueeze(dim).expand(*tensor.shape[:dim], n_models, *tensor.shape[dim:])
    return tensor.movedim(in_dim, dim)


def attend(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, enable_gqa: bool = False
) -> Tensor:
    """`F.scaled_dot_product_attention` of q [B, H, T, d] and k, v [B, G, S, d]; a mask has the batch dimension 1 or B, or none."""
    if vmapped(q):
        return Attend.apply(q, k, v, attn_mask, is_causal, enable_gqa)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=is_causal, enable_gqa=enable_gqa)


class Attend(torch.autograd.Function):
    """A vmap rule and nothing else: below it the folded tensors pass the kernel, and its own backward, as those of one model."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, enable_gqa: bool) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=is_causal, enable_gqa=enable_gqa)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def vmap(
        info,
        in_dims: tuple,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None,
        is_causal: bool,
        enable_gqa: bool,
    ) -> tuple[Tensor, int]:
        batch = q.shape[1] if in_dims[0] == 0 else q.shape[0]
        q, k, v = fold(info.batch_size, in_dims[:3], (q, k, v), (0, 0, 0))
        if attn_mask is not None and attn_mask.dim() == 4 and attn_mask.shape[0] == batch > 1:
            attn_mask = attn_mask.repeat(info.batch_size, 1, 1, 1)  # made from shapes alone, so the same for all models
        return unfold(info.batch_size, attend(q, k, v, attn_mask, is_causal, enable_gqa)), 0
