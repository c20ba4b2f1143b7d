"""Delta rule: S_t = a_t (I - beta_t b_t b_t^T) S_(t-1) + beta_t b_t v_t^T, y_t = S_t^T c_t.

The state is a memory of pairs (b, v). A token does not just add its pair: it replaces the share beta of what the memory
held for b_t by v_t. This is DeltaNet (arXiv 2406.06484), with the decay a_t of gated delta networks (arXiv 2412.06464).
Vectors b of unit length keep it stable.

Inside a chunk the replacements depend on each other through a unit lower-triangular matrix, which is inverted exactly;
from chunk to chunk only the state S passes.

Shapes: B batch, T tokens, H heads, N state size, P head width, Q chunk, n chunks.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from star.liv.functional import chunk_of, loops_over, no_future, padded, token_by_token

DELTA_CHUNK = 64  # tokens
DELTA_CHUNK_ON = {"cpu": 32}  # measured


def delta_reference(
    c: Tensor, b: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, memory: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Token by token, the definition. Arguments as in `delta_parallel`."""
    return token_by_token(delta_step, (c, b, v, g, beta), memory)


def delta_step(
    c: Tensor, b: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: S <- a S, S <- S + beta b (v - S^T b)^T, y = S^T c. Shapes as in `delta_parallel` with T = 1."""
    dtype = memory.dtype
    c, b = c[:, 0, :, None, :].to(dtype), b[:, 0, :, None, :].to(dtype)  # [B, H, 1, N]
    memory = memory if g is None else memory * g[:, 0, :, None, None].exp()
    new = beta[:, 0, :, None, None] * (v[:, 0, :, None, :].to(dtype) - b @ memory)  # [B, H, 1, P]
    memory = memory + b.transpose(-1, -2) * new
    return (c @ memory).transpose(1, 2).to(v.dtype), memory


def delta_parallel(
    c: Tensor,
    b: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    memory: Tensor | None = None,
    keep_memory: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The whole sequence, chunk by chunk, for any length.

    Args: c, b [B, T, H, N]; v [B, T, H, P]; g [B, T, H], log decays <= 0, or None; beta [B, T, H] in (0, 2);
        memory [B, H, N, P], the state before.
    Returns: y [B, T, H, P] in the dtype of v, and the state after (None unless `keep_memory`), in float32 or wider.
    """
    batch, seq_len, heads, width = v.shape
    dtype = torch.promote_types(v.dtype, torch.float32)
    if seq_len == 0:
        return v, memory
    chunk = chunk_of(DELTA_CHUNK_ON.get(v.device.type, DELTA_CHUNK), seq_len)
    n_chunks = -(-seq_len // chunk)
    loops_over(n_chunks, "the delta rule")
    c, b, v_, beta = (delta_chunks(t, n_chunks, chunk, dtype) for t in (c, b, v, beta[..., None]))
    sums = None if g is None else delta_chunks(g[..., None], n_chunks, chunk, dtype).cumsum(-2)
    start = v_.new_zeros(batch * heads, b.shape[-1], width) if memory is None else memory.to(dtype).flatten(0, 1)
    y, state = DeltaChunks.apply(c, b * -beta, b, v_ * beta, sums, start)[:2]
    y = rearrange(y, "n (b h) q p -> b (n q) h p", b=batch)[:, :seq_len].to(v.dtype)
    return y, state.unflatten(0, (batch, heads)) if keep_memory else None


def delta_chunks(x: Tensor, n_chunks: int, chunk: int, dtype: torch.dtype) -> Tensor:
    """[B, T, H, C] -> [n, B H, Q, C], padded with zeros: a token with b = beta = 0 and g = 0 leaves the state alone."""
    x = padded(x, n_chunks * chunk).to(dtype)
    return rearrange(x, "b (n q) h c -> n (b h) q c", n=n_chunks).contiguous()


class DeltaChunks(torch.autograd.Function):
    """All chunks. Inputs: c, w = -beta b, b [n, G, Q, N] and v = beta v [n, G, Q, P], with G = B H.

    With s the cumulative log decay in a chunk (`sums` [n, G, Q, 1]; None is no decay) and D_ij = e^(s_i - s_j), j <= i,

        R  = X (V + e^s W S),  X = (I - strictly lower(W B^T D))^-1        the rows that the chunk writes
        S <- e^(s_Q) S + (e^(s_Q - s) B)^T R,   Y = e^s C S + (C B^T D) R

    W reads the state before a token writes, C reads it after. No exponent is positive. Returns Y, the last S, and what
    the backward needs. Autograd's own backward takes 1.6 times as long: it copies every slice of the loop, and solves
    again for the gradient of the solve.
    """

    @staticmethod
    def forward(c: Tensor, w: Tensor, b: Tensor, v: Tensor, sums: Tensor | None, start: Tensor) -> tuple[Tensor, ...]:
        decay, grown, left, kept = chunk_decays(sums, v)
        lower, scores = (w @ b.mT).mul_(decay), (c @ b.mT).mul_(decay)  # [n, G, Q, Q]
        # The solver reads what is strictly below the diagonal.
        identity = torch.eye(v.shape[2], dtype=v.dtype, device=v.device)
        inverse = torch.linalg.solve_triangular(lower.neg_(), identity, upper=False, unitriangular=True)
        after = [start]
        mixed: list[Tensor] = []
        for w_n, b_n, v_n, inverse_n, kept_n in zip(w * grown, (b * left).mT, v, inverse, kept):
            mixed.append(inverse_n @ (w_n @ after[-1]).add_(v_n))
            after.append((kept_n * after[-1]).baddbmm_(b_n, mixed[-1]))
        states, rows = torch.stack(after), torch.stack(mixed)  # [n + 1, G, N, P], [n, G, Q, P]
        y = ((c * grown) @ states[:-1]).add_(scores @ rows)
        return y, states[-1].clone(), states, rows, inverse, scores

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(*inputs[:5], *output[2:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy: Tensor, d_state: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        c, w, b, v, sums, states, rows, inverse, scores = ctx.saved_tensors
        decay, grown, left, kept = chunk_decays(sums, v)
        dy = dy.contiguous()
        # From the last chunk to the first: dv = d(V + e^s W S), and the gradient of the state before the chunk.
        before = [d_state]
        mixed: list[Tensor] = []
        parts = (c * grown).mT, (w * grown).mT, b * left, inverse.mT, kept, dy, scores.mT @ dy
        for c_n, w_n, b_n, inverse_n, kept_n, dy_n, d_rows_n in zip(*(reversed(part.unbind()) for part in parts)):
            mixed.append(inverse_n @ (b_n @ before[-1]).add_(d_rows_n))
            before.append((kept_n * before[-1]).baddbmm_(c_n, dy_n).baddbmm_(w_n, mixed[-1]))
        d_start = before.pop()
        d_states, dv = torch.stack(before[::-1]), torch.stack(mixed[::-1])
        # W, C and B: over the state between chunks, and over the scores inside one.
        d_lower, d_scores = (dv @ rows.mT).mul_(decay).tril_(-1), (dy @ rows.mT).mul_(decay)
        past = states[:-1].mT
        dw = (dv @ past).mul_(grown).add_(d_lower @ b)
        dc = (dy @ past).mul_(grown).add_(d_scores @ b)
        db = (rows @ d_states.mT).mul_(left).add_(d_lower.mT @ w).add_(d_scores.mT @ c)
        if sums is None:
            return dc, dw, db, dv, None, d_start
        # s_i appears as e^(s_i) with w_i and c_i and as e^(-s_i) with b_i; s_Q also with the state after the chunk.
        d_sums = (c * dc).addcmul_(w, dw).addcmul_(b, db, value=-1).sum(-1, keepdim=True)
        d_sums[:, :, -1, 0] += (d_states * states[1:]).sum((-2, -1))
        return dc, dw, db, dv, d_sums, d_start


def chunk_decays(sums: Tensor | None, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """D [n, G, Q, Q], e^s and e^(s_Q - s) [n, G, Q, 1], e^(s_Q) [n, G, 1, 1]; v [n, G, Q, P] gives shape and dtype."""
    if sums is None:
        one = v.new_ones(1, 1, 1, 1)
        return v.new_ones(v.shape[2], v.shape[2]).tril_(), one, one, one.expand(len(v), 1, 1, 1)
    end = sums[..., -1:, :]
    return (sums + no_future(v.shape[2], v)).sub_(sums.mT).exp_(), sums.exp(), (end - sums).exp(), end.exp()
