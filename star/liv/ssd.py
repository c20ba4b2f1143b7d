"""Recurrence with one decay a_t per head: S_t = a_t S_(t-1) + b_t v_t^T, y_t = S_t^T c_t.

Unrolled, y = M v with M_ij = (c_i . b_j) a_i ... a_(j+1) for j <= i: the state-space dual form (SSD) of Mamba-2
(arXiv 2405.21060). Without decay it is linear attention. Inside a chunk M is computed and applied as a matrix, like
attention without softmax; from chunk to chunk only the state S passes, so work grows with T instead of T^2.

Shapes: B batch, T tokens, H heads, G groups of heads that share b and c, N state size, P head width, Q chunk, n chunks.
`ssd_reference`, `ssd_parallel` and `ssd_step` compute the same map in three ways, and are tested against each other.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from star.liv.functional import carried, chunk_of, chunks_in, from_chunks, in_chunks, no_future, token_by_token

SSD_CHUNK = 64  # tokens
SSD_CHUNK_SMALL = 32  # for state sizes below 64 on a CPU (measured)


def ssd_reference(
    c: Tensor, b: Tensor, v: Tensor, g: Tensor | None, memory: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Token by token, the definition. Arguments as in `ssd_parallel`."""
    return token_by_token(ssd_step, (c, b, v, g), memory)


def ssd_step(c: Tensor, b: Tensor, v: Tensor, g: Tensor | None, memory: Tensor) -> tuple[Tensor, Tensor]:
    """One token: S <- exp(g) S + b v^T, y = S^T c. Shapes as in `ssd_parallel` with T = 1."""
    dtype, n_groups = memory.dtype, b.shape[2]
    b, c = b[:, 0, :, None, :, None].to(dtype), c[:, 0, :, None, None, :].to(dtype)  # [B, G, 1, N, 1], [B, G, 1, 1, N]
    new = b * v[:, 0].unflatten(1, (n_groups, -1))[..., None, :].to(dtype)  # [B, G, H / G, N, P]
    memory = (memory if g is None else memory * g[:, 0, :, None, None].exp()) + new.flatten(1, 2)
    y = c @ memory.unflatten(1, (n_groups, -1))
    return y.flatten(1, 3)[:, None].to(v.dtype), memory


def ssd_parallel(
    c: Tensor, b: Tensor, v: Tensor, g: Tensor | None, memory: Tensor | None = None, keep_memory: bool = True
) -> tuple[Tensor, Tensor | None]:
    """The whole sequence, chunk by chunk (Mamba-2, listing 1), for any length.

    Inside a chunk Y = (C B^T * D) V with D_ij = exp(s_i - s_j) for j <= i, else 0, and s the cumulative log decay. The
    state before the chunk adds exp(s_i) S^T c_i. Every exponent is <= 0, so no gate can overflow. Decays and states are
    in float32; all products of matrices are in the dtype of v, for tensor cores and half the memory traffic.

    Args: c, b [B, T, G, N]; v [B, T, H, P]; g [B, T, H], log decays <= 0, or None; memory [B, H, N, P], the state
        before.
    Returns: y [B, T, H, P] in the dtype of v, and the state after (None unless `keep_memory`), in float32 or wider.
    """
    seq_len, heads = v.shape[1:3]
    dtype = torch.promote_types(v.dtype, torch.float32)
    if seq_len == 0:
        return v, memory
    n_groups, state_size = b.shape[2:]
    chunk = chunk_of(SSD_CHUNK_SMALL if v.device.type == "cpu" and state_size < 64 else SSD_CHUNK, seq_len)
    n_chunks = chunks_in(seq_len, chunk)
    if g is None:
        g = v.new_zeros(1, seq_len, heads, dtype=dtype)
    c, b, v_, g = (in_chunks(t, n_chunks, chunk) for t in (c, b, v, g[..., None].to(dtype)))  # [B, heads, n, Q, .]
    cumulative = g[..., 0].cumsum(-1)  # [B, H, n, Q]

    # Inside the chunks.
    decay = (cumulative[..., :, None] + no_future(chunk, cumulative)).sub_(cumulative[..., None, :]).exp_()
    scores = c @ b.transpose(-1, -2)  # [B, G, n, Q, Q]
    scores = scores.unsqueeze(2) * decay.to(scores.dtype).unflatten(1, (n_groups, -1))
    y = scores.flatten(1, 2) @ v_  # [B, H, n, Q, P]

    # Between the chunks. Without a state to return, the last chunk need not be added to it.
    n_added = n_chunks if keep_memory else n_chunks - 1
    if n_added or memory is not None:
        total = cumulative[..., :n_added, -1:]  # [B, H, n, 1]
        to_end = (total - cumulative[:, :, :n_added]).exp()[..., None].to(v.dtype)
        added = b[:, :, :n_added].transpose(-1, -2) @ beside(v_[:, :, :n_added] * to_end, n_groups)
        added = apart(added, heads).to(dtype)  # what each chunk adds to the state, [B, H, n, N, P]
        total = total[..., None].expand(added.shape[0], -1, -1, -1, -1)
        states = carried(total, added, None if memory is None else memory.to(dtype))
        past = apart(c @ beside(states[:, :, :n_chunks].to(c.dtype), n_groups), heads)
        y = torch.addcmul(y, past, cumulative.exp()[..., None].to(y.dtype))
        memory = states[:, :, -1]
    return from_chunks(y, seq_len), memory if keep_memory else None


def beside(x: Tensor, n_groups: int) -> Tensor:
    """[B, H, n, R, P] -> [B, G, n, R, H / G * P]: the heads of a group side by side, for one matrix product."""
    if x.shape[1] == n_groups:
        return x
    return rearrange(x, "b (g k) n r p -> b g n r (k p)", g=n_groups)


def apart(x: Tensor, heads: int) -> Tensor:
    """The inverse of `beside`."""
    if x.shape[1] == heads:
        return x
    return rearrange(x, "b g n r (k p) -> b (g k) n r p", k=heads // x.shape[1])
