"""Delta rule: S_t = a_t (I - beta_t b_t b_t^T) S_(t-1) + beta_t b_t v_t^T, y_t = S_t^T c_t: what was stored at b_t is replaced.

Gated delta networks (arXiv 2412.06464), in the form of arXiv 2406.06484: inside a chunk the replacements depend on each
other through one unit lower-triangular system, solved exactly; between chunks the state passes an affine map.
Shapes: B batch, T tokens, H heads, N state size, P head width, Q chunk, n chunks. Rows b of unit length keep it stable.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from star.liv.functional import no_future

DELTA_CHUNK = 64  # tokens
DELTA_CHUNK_ON = {"cpu": 32}  # measured


def delta_reference(c: Tensor, b: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Token by token, the definition. Arguments as in `delta_parallel`."""
    if memory is None:
        dtype = torch.promote_types(v.dtype, torch.float32)
        memory = v.new_zeros(v.shape[0], v.shape[2], b.shape[-1], v.shape[-1], dtype=dtype)
    out = []
    for t in range(v.shape[1]):
        now = slice(t, t + 1)
        y, memory = delta_step(c[:, now], b[:, now], v[:, now], None if g is None else g[:, now], beta[:, now], memory)
        out.append(y)
    return torch.cat(out, dim=1) if out else v, memory


def delta_step(c: Tensor, b: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """One token: S <- a S, S <- S + beta b (v - S^T b)^T, y = S^T c. Shapes as in `delta_parallel` with T = 1."""
    dtype = memory.dtype
    c, b = c[:, 0, :, None, :].to(dtype), b[:, 0, :, None, :].to(dtype)  # [B, H, 1, N]
    memory = memory if g is None else memory * g[:, 0, :, None, None].exp()
    new = beta[:, 0, :, None, None] * (v[:, 0, :, None, :].to(dtype) - b @ memory)  # [B, H, 1, P]
    memory = memory + b.transpose(-1, -2) * new
    return (c @ memory).transpose(1, 2).to(v.dtype), memory


def delta_parallel(
    c: Tensor, b: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, memory: Tensor | None = None, keep_memory: bool = True
) -> tuple[Tensor, Tensor | None]:
    """The whole sequence, chunk by chunk, any length.

    With s the cumulative log decay in a chunk, (I + L) [U W] = beta [V, B e^s], L = strictly lower(beta B B^T e^(s_i - s_j)),
    the chunk writes U - W S, so that Y = C e^s S + A (U - W S) with A = lower(C B^T e^(s_i - s_j)) and
    S <- e^(s_Q) S + (B e^(s_Q - s))^T (U - W S). No exponent is positive.

    Args: c, b [B, T, H, N]; v [B, T, H, P]; g [B, T, H], log decays <= 0, or None for none; beta [B, T, H] in (0, 2);
        memory [B, H, N, P], the state before.
    Returns: y [B, T, H, P] in the dtype of v, and the state after (None unless `keep_memory`), in float32 or wider.
    """
    batch, seq_len, heads, width = v.shape
    dtype = torch.promote_types(v.dtype, torch.float32)
    if seq_len == 0:
        return v, memory
    chunk = min(DELTA_CHUNK_ON.get(v.device.type, DELTA_CHUNK), seq_len)
    n_chunks, state_size = -(-seq_len // chunk), b.shape[-1]
    c, b, v_, beta = (delta_chunks(t, n_chunks, chunk, dtype) for t in (c, b, v, beta[..., None]))  # [B, H, n, Q, .]
    weighted = b * beta
    lower, scores = weighted @ b.transpose(-1, -2), c @ b.transpose(-1, -2)  # [B, H, n, Q, Q]
    if g is None:
        scores, write, store, read, kept = scores.tril(), weighted, b, c, [1.0] * n_chunks
    else:
        sums = delta_chunks(g[..., None], n_chunks, chunk, dtype).cumsum(-2)  # [B, H, n, Q, 1]
        decay = (sums + no_future(chunk, sums)).sub_(sums.transpose(-1, -2)).exp_()  # [B, H, n, Q, Q]
        grown, end = sums.exp(), sums[..., -1:, :]
        lower, scores = lower * decay, scores * decay
        write, store, read, kept = weighted * grown, b * (end - sums).exp(), c * grown, end.exp().unbind(2)
    # The solver reads what is strictly below the diagonal.
    solved = torch.linalg.solve_triangular(lower, torch.cat([v_ * beta, write], dim=-1), upper=False, unitriangular=True)
    u, w = solved.split([width, state_size], -1)

    # The state at the start of every chunk, by one affine map after the other.
    state = v_.new_zeros(batch, heads, state_size, width) if memory is None else memory.to(dtype)
    states = []
    for n, (u_n, w_n, store_n) in enumerate(zip(u.unbind(2), w.unbind(2), store.transpose(-1, -2).unbind(2))):
        states.append(state)
        if keep_memory or n < n_chunks - 1:
            state = kept[n] * state + store_n @ (u_n - w_n @ state)
    states = torch.stack(states, dim=2)
    y = read @ states + scores @ (u - w @ states)
    y = y.permute(0, 2, 3, 1, 4).reshape(batch, n_chunks * chunk, heads, width)[:, :seq_len].to(v.dtype)
    return y, state if keep_memory else None


def delta_chunks(x: Tensor, n_chunks: int, chunk: int, dtype: torch.dtype) -> Tensor:
    """[B, T, H, C] -> [B, H, n, Q, C], padded with zeros: a token with b = beta = 0 and g = 0 leaves the state alone."""
    missing = n_chunks * chunk - x.shape[1]
    x = F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
    return x.to(dtype).unflatten(1, (n_chunks, chunk)).permute(0, 3, 1, 2, 4).contiguous()
