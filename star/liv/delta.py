"""Delta rule: S_t = a_t (I - beta_t b_t b_t^T) S_(t-1) + beta_t b_t v_t^T, y_t = S_t^T c_t.

The state is a memory of pairs (b, v). A token does not just add its pair: it replaces the share beta of what the memory
held for b_t by v_t. This is DeltaNet (arXiv 2406.06484), with the decay a_t of gated delta networks (arXiv 2412.06464),
or with one decay for each of the N state channels: Kimi delta attention (arXiv 2510.26692). Vectors b of unit length
keep it stable.

Inside a chunk the replacements depend on each other through a unit lower-triangular matrix, which is inverted exactly;
from chunk to chunk only the state S passes.

Shapes: B batch, T tokens, H heads, N state size, P head width, Q chunk, n chunks.
"""

from __future__ import annotations

from collections.abc import Iterator

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
    if g is not None:
        memory = memory * g.exp().reshape(*memory.shape[:2], -1, 1)
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
        memory [B, H, N, P], the state before. g may also be [B, T, H, N].
    Returns: y [B, T, H, P] in the dtype of v, and the state after (None unless `keep_memory`), in float32 or wider.
    """
    batch, seq_len, heads, width = v.shape
    dtype = torch.promote_types(v.dtype, torch.float32)
    if seq_len == 0:
        return v, memory
    chunk = chunk_of(DELTA_CHUNK_ON.get(v.device.type, DELTA_CHUNK), seq_len)
    if g is not None and g.dim() == 4:  # chunks are halved until one token is left
        chunk = 1 << (chunk - 1).bit_length()
    n_chunks = -(-seq_len // chunk)
    loops_over(n_chunks, "the delta rule")
    c, b, v_, beta = (delta_chunks(t, n_chunks, chunk, dtype) for t in (c, b, v, beta[..., None]))
    sums = None if g is None else delta_chunks(g.reshape(*v.shape[:3], -1), n_chunks, chunk, dtype).cumsum(-2)
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

    With s the cumulative log decay in a chunk (`sums` [n, G, Q, 1], or [n, G, Q, N] for one per state channel; None is
    no decay) and <C, B>_ij = sum_n c_in b_jn e^(s_in - s_jn), j <= i (`decayed_scores`),

        R  = X (V + e^s W S),  X = (I - strictly lower <W, B>)^-1        the rows that the chunk writes
        S <- e^(s_Q) S + (e^(s_Q - s) B)^T R,   Y = e^s C S + <C, B> R

    W reads the state before a token writes, C reads it after. No exponent is positive. Returns Y, the last S, and what
    the backward needs. Autograd's own backward takes 1.6 times as long: it copies every slice of the loop, and solves
    again for the gradient of the solve.
    """

    @staticmethod
    def forward(c: Tensor, w: Tensor, b: Tensor, v: Tensor, sums: Tensor | None, start: Tensor) -> tuple[Tensor, ...]:
        grown, left, kept = chunk_decays(sums, v)
        lower, scores = decayed_scores((w, c), b, sums)  # [n, G, Q, Q]
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
        grown, left, kept = chunk_decays(sums, v)
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
        past = states[:-1].mT
        dw, dc = (dv @ past).mul_(grown), (dy @ past).mul_(grown)
        db = (rows @ d_states.mT).mul_(left)
        scores_backward(((dv @ rows.mT).tril_(-1), dy @ rows.mT), (w, c), b, sums, (dw, dc), db)
        if sums is None:
            return dc, dw, db, dv, None, d_start
        # s_i appears as e^(s_i) with w_i and c_i and as e^(-s_i) with b_i; s_Q also with the state after the chunk.
        d_sums = (c * dc).addcmul_(w, dw).addcmul_(b, db, value=-1)
        d_sums[:, :, -1] += (d_states * states[1:]).sum(-1)
        return dc, dw, db, dv, d_sums.sum_to_size(sums.shape), d_start


def chunk_decays(sums: Tensor | None, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """e^s and e^(s_Q - s) [n, G, Q, 1 or N], e^(s_Q) [n, G, 1 or N, 1]; v [n, G, Q, P] gives shape and dtype."""
    if sums is None:
        one = v.new_ones(1, 1, 1, 1)
        return one, one, one.expand(len(v), 1, 1, 1)
    end = sums[..., -1:, :]
    return sums.exp(), (end - sums).exp(), end.mT.exp()


def decays_between(sums: Tensor | None, b: Tensor) -> Tensor:
    """e^(s_i - s_j) for j <= i, else 0, [n, G, Q, Q], of one decay per head; b [n, G, Q, N] gives shape and dtype."""
    if sums is None:
        return b.new_ones(b.shape[2], b.shape[2]).tril_()
    return (sums + no_future(b.shape[2], b)).sub_(sums.mT).exp_()


def decayed_scores(lefts: tuple[Tensor, ...], b: Tensor, sums: Tensor | None) -> list[Tensor]:
    """<C, B> [n, G, Q, Q] for each C of `lefts`.

    With one decay per state channel it is no product of two matrices without positive exponents. So a chunk is halved
    again and again: between two neighbouring halves, with m the last s of the first,
    e^(s_i - s_j) = e^(s_i - m) e^(m - s_j), and neither exponent is positive.
    """
    if sums is None or sums.shape[-1] == 1:
        decay = decays_between(sums, b)
        return [(left @ b.mT).mul_(decay) for left in lefts]
    scores = [torch.diag_embed((left * b).sum(-1)) for left in lefts]
    for half, grown, left_over in halves(sums):
        early = first(b, half) * left_over
        for matrix, left in zip(scores, lefts):
            between(matrix, half).copy_((second(left, half) * grown) @ early.mT)
    return scores


def scores_backward(
    d_scores: tuple[Tensor, ...],
    lefts: tuple[Tensor, ...],
    b: Tensor,
    sums: Tensor | None,
    d_lefts: tuple[Tensor, ...],
    db: Tensor,
) -> None:
    """Adds the gradients of `lefts` and b to `d_lefts` and `db`, for the gradients of `decayed_scores`."""
    if sums is None or sums.shape[-1] == 1:
        decay = decays_between(sums, b)
        for d_matrix, left, d_left in zip(d_scores, lefts, d_lefts):
            d_matrix = d_matrix.mul_(decay)
            d_left.add_(d_matrix @ b)
            db.add_(d_matrix.mT @ left)
        return
    for d_matrix, left, d_left in zip(d_scores, lefts, d_lefts):
        same = d_matrix.diagonal(dim1=-2, dim2=-1)[..., None]
        d_left.addcmul_(same, b)
        db.addcmul_(same, left)
    for half, grown, left_over in halves(sums):
        early = first(b, half) * left_over
        for d_matrix, left, d_left in zip(d_scores, lefts, d_lefts):
            d_part = between(d_matrix, half)
            second(d_left, half).addcmul_(d_part @ early, grown)
            first(db, half).addcmul_(d_part.mT @ (second(left, half) * grown), left_over)


def halves(sums: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For halves of 1, 2, 4, ... tokens of s [n, G, Q, N]: their size, e^(s_i - m) and e^(m - s_j)."""
    half = sums.shape[2] // 2
    while half:
        early, late = first(sums, half), second(sums, half)
        middle = early[..., -1:, :]
        yield half, (late - middle).exp(), (middle - early).exp()
        half //= 2


def first(x: Tensor, half: int) -> Tensor:
    """The first halves [n, G, p, half, N] of p parts of a chunk, a view of x [n, G, Q, N]."""
    return x.unflatten(2, (-1, 2, half))[:, :, :, 0]


def second(x: Tensor, half: int) -> Tensor:
    """The second halves, as `first`."""
    return x.unflatten(2, (-1, 2, half))[:, :, :, 1]


def between(matrix: Tensor, half: int) -> Tensor:
    """From the first halves to the second, [n, G, p, half, half], a view of a matrix [n, G, Q, Q]."""
    parts = matrix.unflatten(3, (-1, 2, half)).unflatten(2, (-1, 2, half))  # [n, G, p, 2, half, p, 2, half]
    return parts[:, :, :, 1, :, :, 0].diagonal(dim1=2, dim2=4).movedim(-1, 2)
