"""Recurrence with one decay per state channel: S_t = diag(a_t) S_(t-1) + b_t v_t^T, y_t = S_t^T c_t.

Unrolled, y = M v with M_ij = c_i . (a_i * ... * a_(j+1) * b_j) for j <= i: gated linear attention (arXiv 2312.06635).
With s the cumulative log decay, M_ij = (c_i e^(s_i - m)) . (b_j e^(m - s_j)) for any m, one matrix product per block of
16 tokens. We take m at the middle token of the block: exponents then stay below 8 |g|, so float32 holds log decays down
to -10, and the module keeps them above -5.

Shapes: B batch, T tokens, H heads, N state size, P head width, Q block, n blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from star.liv.functional import carried, chunk_of, chunks_in, from_chunks, in_chunks, token_by_token

VECTOR_BLOCK = 16  # tokens
VECTOR_MIN_LOG_DECAY = -5.0


def vector_gate_reference(
    c: Tensor, b: Tensor, v: Tensor, g: Tensor, memory: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Token by token, the definition. Arguments as in `vector_gate_parallel`."""
    return token_by_token(vector_gate_step, (c, b, v, g), memory)


def vector_gate_step(c: Tensor, b: Tensor, v: Tensor, g: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """One token: S <- diag(exp(g)) S + b v^T, y = S^T c. Shapes as in `vector_gate_parallel` with T = 1."""
    dtype = memory.dtype
    memory = memory * g[:, 0, :, :, None].exp() + b[:, 0, :, :, None].to(dtype) * v[:, 0, :, None, :].to(dtype)
    y = c[:, 0, :, None, :].to(dtype) @ memory
    return y.transpose(1, 2).to(v.dtype), memory


def vector_gate_parallel(
    c: Tensor, b: Tensor, v: Tensor, g: Tensor, memory: Tensor | None = None, keep_memory: bool = True
) -> tuple[Tensor, Tensor | None]:
    """The whole sequence, block by block, for any length.

    Args: c, b [B, T, H, N]; v [B, T, H, P]; g [B, T, H, N], log decays in [-10, 0]; memory [B, H, N, P], the state
        before.
    Returns: y [B, T, H, P] in the dtype of v, and the state after (None unless `keep_memory`), in float32 or wider.
    """
    seq_len = v.shape[1]
    dtype = torch.promote_types(v.dtype, torch.float32)
    if seq_len == 0:
        return v, memory
    block = chunk_of(VECTOR_BLOCK, seq_len)
    n_blocks = chunks_in(seq_len, block)
    c, b, v_, g = (in_chunks(t, n_blocks, block) for t in (c, b, v, g.to(dtype)))  # [B, H, n, Q, .]
    sums = g.cumsum(-2)
    # [B, H, n, N] each; the result does not depend on `middle`.
    middle, total = sums[..., block // 2, :].detach(), sums[..., -1, :]
    c_ = c * (sums - middle[..., None, :]).exp()
    b_ = b * (middle[..., None, :] - sums).exp()
    y = (c_ @ b_.transpose(-1, -2)).tril() @ v_.to(dtype)  # [B, H, n, Q, P]

    n_added = n_blocks if keep_memory else n_blocks - 1
    if n_added or memory is not None:
        to_end = (total - middle)[:, :, :n_added].exp()
        decayed = b_[:, :, :n_added] * to_end[..., None, :]  # b as it is left at the end of its block
        added = decayed.transpose(-1, -2) @ v_[:, :, :n_added].to(dtype)  # [B, H, n, N, P]
        states = carried(total[:, :, :n_added, :, None], added, None if memory is None else memory.to(dtype))
        y = y + (c_ * middle.exp()[..., None, :]) @ states[:, :, :n_blocks]
        memory = states[:, :, -1]
    return from_chunks(y, seq_len).to(v.dtype), memory if keep_memory else None
