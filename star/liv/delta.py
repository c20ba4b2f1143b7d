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
DELTA_CHUNK_SMALL = 32  # on a CPU (measured)


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

    With s the cumulative log decay in a chunk and D_ij = e^(s_i - s_j) for j <= i, the chunk writes the rows of
    R = M (V - e^s B S), M = (I + strictly lower(beta B B^T D))^-1 beta, reads Y = e^s C S + (C B^T D) R, and passes on
    S <- e^(s_Q) S + (e^(s_Q - s) B)^T R. All but S is computed at once. No exponent is positive.

    Args: c, b [B, T, H, N]; v [B, T, H, P]; g [B, T, H], log decays <= 0, or None for none; beta [B, T, H] in (0, 2);
        memory [B, H, N, P], the state before.
    Returns: y [B, T, H, P] in the dtype of v, and the state after (None unless `keep_memory`), in float32 or wider.
    """
    batch, seq_len, heads, width = v.shape
    dtype = torch.promote_types(v.dtype, torch.float32)
    if seq_len == 0:
        return v, memory
    chunk = min(DELTA_CHUNK_SMALL if v.device.type == "cpu" else DELTA_CHUNK, seq_len)
    n_chunks = -(-seq_len // chunk)
    c, b, v_, beta = (delta_chunks(t, n_chunks, chunk, dtype) for t in (c, b, v, beta[..., None]))  # [B, H, n, Q, .]
    lower, scores = (b @ b.transpose(-1, -2)) * beta, c @ b.transpose(-1, -2)  # [B, H, n, Q, Q]
    if g is None:
        scores, seen, stored, read, kept = scores.tril(), b, b, c, beta.new_ones(1, 1, n_chunks, 1, 1)
    else:
        sums = delta_chunks(g[..., None], n_chunks, chunk, dtype).cumsum(-2)  # [B, H, n, Q, 1]
        decay = (sums + no_future(chunk, sums)).sub_(sums.transpose(-1, -2)).exp_()
        lower, scores = lower * decay, scores * decay
        grown, end = sums.exp(), sums[..., -1:, :]
        seen, stored, read, kept = b * grown, b * (end - sums).exp(), c * grown, end.exp()
    # The solver reads only what is strictly below the diagonal. Solving for M costs less than solving for M V and M B.
    solved = torch.linalg.solve_triangular(lower, torch.diag_embed(beta[..., 0]), upper=False, unitriangular=True)
    start = v_.new_zeros(batch, heads, b.shape[-1], width) if memory is None else memory.to(dtype)
    states, rows = DeltaStates.apply(solved @ v_, solved @ seen, stored, kept.expand(batch, heads, -1, -1, -1), start)
    y = read @ states[:, :, :-1] + scores @ rows
    y = y.permute(0, 2, 3, 1, 4).reshape(batch, n_chunks * chunk, heads, width)[:, :seq_len].to(v.dtype)
    return y, states[:, :, -1] if keep_memory else None


class DeltaStates(torch.autograd.Function):
    """R_n = U_n - W_n S_n and S_(n+1) = k_n S_n + B_n^T R_n, chunk after chunk, the backward too.

    U [B, H, n, Q, P]; W, B [B, H, n, Q, N]; k [B, H, n, 1, 1]; start S_0 [B, H, N, P] -> S [B, H, n + 1, N, P], R like U.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, w: Tensor, b: Tensor, k: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        states, rows = [start], []
        for u_n, w_n, b_n, k_n in zip(*(t.unbind(2) for t in (u, w, b, k))):
            rows.append(u_n - w_n @ states[-1])
            states.append(k_n * states[-1] + b_n.transpose(-1, -2) @ rows[-1])
        return torch.stack(states, dim=2), torch.stack(rows, dim=2)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[1:4], *output)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_states: Tensor, d_rows: Tensor) -> tuple[Tensor, ...]:
        w, b, k, states, rows = ctx.saved_tensors
        total, d_u = [d_states[:, :, -1]], []
        for n in range(w.shape[2] - 1, -1, -1):
            d_u.append(d_rows[:, :, n] + b[:, :, n] @ total[-1])
            total.append(d_states[:, :, n] + k[:, :, n] * total[-1] - w[:, :, n].transpose(-1, -2) @ d_u[-1])
        total, d_u = torch.stack(total[::-1], dim=2), torch.stack(d_u[::-1], dim=2)
        past, after = states[:, :, :-1], total[:, :, 1:]
        d_w, d_b = -d_u @ past.transpose(-1, -2), rows @ after.transpose(-1, -2)
        return d_u, d_w, d_b, (after * past).sum((-2, -1), keepdim=True), total[:, :, 0]


def delta_chunks(x: Tensor, n_chunks: int, chunk: int, dtype: torch.dtype) -> Tensor:
    """[B, T, H, C] -> [B, H, n, Q, C], padded with zeros: a token with b = beta = 0 and g = 0 leaves the state alone."""
    missing = n_chunks * chunk - x.shape[1]
    x = F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
    return x.to(dtype).unflatten(1, (n_chunks, chunk)).permute(0, 3, 1, 2, 4).contiguous()
