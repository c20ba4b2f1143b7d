"""Gated linear recurrence: T_ij = C_i A_i ... A_(j+1) B_j, sequentially semi-separable, diagonal in channels.

    b, c, v = W_b x, W_c x, W_v x       [, short convolution on each]
    dt      = softplus(W_dt x + bias)       log A = -exp(a) dt, one scalar per head
    S_t     = A_t S_(t-1) + dt_t b_t v_t^T          y_t = S_t^T c_t

This is the state-space dual form of Mamba-2 (arXiv 2405.21060) without nonlinearity on the value path: all channels of a
head share b, c and A, so T mixes no channels, and the rank of every block below the diagonal is the state size N.

Shapes: B batch, T tokens, H heads (of all branches), N state size, P head width, Q chunk.
    x [B, T, D]   b, c [B, T, H, N]   v [B, T, H, P]   log decay g, dt [B, T, H]   S [B, H, N, P]
`reference`, `parallel` and `step` are the same map three ways; they test each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from star.errors import UserError
from star.liv.base import LIV, Features, LIVConfig, State, StateEntry, Weight, log_uniform, matrix, short_filter
from star.liv.genes import Family, GroupSpec, Operator

CONV_LENGTH = 4
CHUNK = 64
MIN_LOG_DECAY = -20.0  # a factor of 2e-9: nothing survives it, and float32 differences of cumulative sums stay accurate


@dataclass(frozen=True)
class RecurrenceConfig(LIVConfig):
    n_heads: int  # of one branch
    head_dim: int
    state_size: int
    filters: tuple[str, ...] = ()  # which of b, c, v pass a short convolution

    def width(self, group: str) -> int:
        return self.branches * self.n_heads * (self.head_dim if group == "v" else self.state_size)

    def weights(self) -> dict[str, Weight]:
        heads = self.branches * self.n_heads
        weights = {g: matrix(self.width(g), self.d_model, g) for g in "bcv"}
        weights |= {f"{g}_filter": short_filter(self.width(g), CONV_LENGTH, g) for g in self.filters}
        weights["dt"] = matrix(heads, self.d_model, "decay")
        # Steps of 1/1000 to 1/10 and rates of 1 to 16: time constants from a fraction of a token to a thousand (Mamba-2).
        weights["dt_bias"] = Weight((heads,), "decay", log_uniform(1e-3, 1e-1, inverse_softplus))
        weights["log_rate"] = Weight((heads,), "decay", log_uniform(1.0, 16.0, torch.log))
        return weights | self.output_weights(self.n_heads * self.head_dim)

    def state(self) -> dict[str, StateEntry]:
        shape = (self.branches * self.n_heads, self.state_size, self.head_dim)
        filters = {f"{g}_filter": StateEntry((CONV_LENGTH - 1, self.width(g)), g) for g in self.filters}
        return filters | {"memory": StateEntry(shape, "b+v", role="recurrent")}

    def mixing_flops(self, seq_len: int) -> float:
        """As executed: scores and their product inside a chunk, states in and out."""
        chunk = min(CHUNK, seq_len)
        per_head = 2 * chunk * (self.state_size + self.head_dim) + 4 * self.state_size * self.head_dim
        return self.branches * self.n_heads * per_head

    def decode_mixing_flops(self, seq_len: int) -> float:
        return self.branches * self.n_heads * 5 * self.state_size * self.head_dim

    def build(self, given=frozenset(), tied=None) -> "Recurrence":
        return Recurrence(self, given, tied)


class Recurrence(LIV):
    VALUE = "v"
    config: RecurrenceConfig

    def featurize(self, x: Tensor, state: State | None, given: Features, offset: int = 0) -> tuple[Features, State | None]:
        features = {}
        for group in "bc":
            if group in self.given:
                features[group] = given[group]
            else:
                h, state = self.filtered(self.linear(x, group), f"{group}_filter", state)
                features[group] = h.unflatten(-1, (-1, self.config.state_size))
        if "decay" in self.given:
            features |= {"dt": given["dt"], "decay": given["decay"]}
        else:
            dtype = torch.promote_types(x.dtype, torch.float32)
            dt = F.softplus(self.linear(x, "dt").to(dtype) + self.dt_bias)
            features["dt"] = dt
            features["decay"] = (-self.log_rate.exp() * dt).clamp(min=MIN_LOG_DECAY)
        # The state before this call belongs to whoever owns b and v; a consumer of both reads it from there.
        source = given if {"b", "v"} <= self.given else state
        if source is not None and "memory" in source:
            features["memory"] = source["memory"]
        return features, state

    def value(self, features: Features, x: Tensor, state: State | None, given: Features, offset: int = 0) -> tuple[Tensor, State | None]:
        if "v" in self.given:
            return given["v"], state
        v, state = self.filtered(self.linear(x, "v"), "v_filter", state)
        return self.unflatten_value(v), state

    def core(self, features: Features, value: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        v = value * features["dt"][..., None].to(value.dtype)
        keep = state is not None and "memory" in state
        form = step if value.shape[1] == 1 and "memory" in features else parallel
        y, memory = form(features["c"], features["b"], v, features["decay"], features.get("memory"))
        if keep:
            state = state | {"memory": memory.detach()}
        return y.flatten(2), state

    def unflatten_value(self, value: Tensor) -> Tensor:
        return value.unflatten(-1, (-1, self.config.head_dim))


def reference(c: Tensor, b: Tensor, v: Tensor, g: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The recurrence as written, a token at a time."""
    if memory is None:
        memory = v.new_zeros(v.shape[0], v.shape[2], b.shape[-1], v.shape[-1], dtype=g.dtype)
    out = []
    for t in range(v.shape[1]):
        y, memory = step(c[:, t : t + 1], b[:, t : t + 1], v[:, t : t + 1], g[:, t : t + 1], memory)
        out.append(y)
    return torch.cat(out, dim=1) if out else v, memory


def step(c: Tensor, b: Tensor, v: Tensor, g: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """One token: S <- exp(g) S + b v^T, y = S^T c. Shapes as in `parallel` with T = 1."""
    dtype = memory.dtype
    memory = memory * g[:, 0, :, None, None].exp() + b[:, 0, :, :, None].to(dtype) * v[:, 0, :, None, :].to(dtype)
    y = torch.einsum("bhn,bhnp->bhp", c[:, 0].to(dtype), memory)
    return y[:, None].to(v.dtype), memory


def parallel(c: Tensor, b: Tensor, v: Tensor, g: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The whole sequence, chunk by chunk (SSD, Mamba-2 listing 1), any length.

    Inside a chunk Y = (C B^T * exp(G_i - G_j), j <= i) V with G the cumulative log decay; between chunks the states follow
    from one lower-triangular matrix of decays. Every exponent is <= 0, so no gate can overflow.

    Args: c, b [B, T, H, N]; v [B, T, H, P]; g [B, T, H], log decays <= 0; memory [B, H, N, P], the state before.
    Returns: y [B, T, H, P] in the dtype of v, and the state after, in float32 or wider.
    """
    batch, seq_len, heads, width = v.shape
    dtype = torch.promote_types(v.dtype, torch.float32)
    if seq_len == 0:
        return v, memory
    chunk = min(CHUNK, seq_len)
    n_chunks = -(-seq_len // chunk)
    c, b, v_, g = (_chunked(t, n_chunks, chunk) for t in (c, b, v, g[..., None].to(dtype)))  # [B, H, n, Q, .]
    cumulative = g[..., 0].cumsum(-1)  # [B, H, n, Q]
    total = cumulative[..., -1]  # [B, H, n]

    decay = cumulative[..., :, None] - cumulative[..., None, :]
    future = torch.ones(chunk, chunk, dtype=torch.bool, device=v.device).triu(1)
    decay = decay.masked_fill(future, -math.inf).exp()  # -inf before exp: no inf * 0 in the backward
    scores = (c @ b.transpose(-1, -2)) * decay.to(c.dtype)
    y = scores @ v_  # [B, H, n, Q, P]

    # What each chunk adds to the state, and the state at the start of every chunk and at the end.
    to_end = (total[..., None] - cumulative).exp()
    added = (b.to(dtype) * to_end[..., None]).transpose(-1, -2) @ v_.to(dtype)  # [B, H, n, N, P]
    if memory is None:
        memory = added.new_zeros(batch, heads, b.shape[-1], width)
    reached = F.pad(total.cumsum(-1), (1, 0))  # log decay from the start to before chunk n, [B, H, n + 1]
    between = reached[..., :, None] - reached[..., None, 1:]  # [B, H, n + 1, n]
    later = torch.ones(n_chunks + 1, n_chunks, dtype=torch.bool, device=v.device).triu(0)
    between = between.masked_fill(later, -math.inf).exp()
    states = torch.einsum("bhnm,bhmkp->bhnkp", between, added) + reached.exp()[..., None, None] * memory.to(dtype)[:, :, None]

    from_start = (c.to(dtype) * cumulative.exp()[..., None]) @ states[:, :, :-1]
    y = (y.to(dtype) + from_start).to(v.dtype)
    return y.permute(0, 2, 3, 1, 4).reshape(batch, n_chunks * chunk, heads, width)[:, :seq_len], states[:, :, -1]


def _chunked(x: Tensor, n_chunks: int, chunk: int) -> Tensor:
    """[B, T, H, C] -> [B, H, n, Q, C], padded with zeros: a token with b = v = 0 and g = 0 leaves the state alone."""
    batch, seq_len, heads, width = x.shape
    x = F.pad(x, (0, 0, 0, 0, 0, n_chunks * chunk - seq_len))
    return x.view(batch, n_chunks, chunk, heads, width).permute(0, 3, 1, 2, 4)


def inverse_softplus(y: Tensor) -> Tensor:
    return y + torch.log(-torch.expm1(-y))


def configure(operator: Operator, d_model: int, head_dim: int, rope_theta: float) -> RecurrenceConfig:
    if d_model % head_dim:
        raise UserError(f"recurrence: width {d_model} is no multiple of head width {head_dim}; choose a width that is")
    b, c = operator.feature("b"), operator.feature("c")
    if b.expansion != c.expansion:
        raise UserError(f"recurrence: expansion of b is {b.expansion} and of c {c.expansion}; both are the state size, make them equal")
    filters = tuple(g for g in "bcv" if operator.feature(g).token == 3)
    return RecurrenceConfig(d_model, operator.branches, d_model // head_dim, head_dim, b.expansion, filters)


_STATE = dict(token=(1, 3), expansion=(1, 2, 4, 8, 16, 32, 64, 128), expansion_means="state size N per channel")
FAMILY = Family(
    name="recurrence",
    equation="T_ij = C_i A_i ... A_(j+1) B_j per head",
    token=(4,),
    nonlinearity=(1,),
    channel=(1,),
    groups={
        "b": GroupSpec("input map B: what enters the state; token mixing 3 adds a causal filter of length 4", **_STATE),
        "c": GroupSpec("output map C: what is read from the state; token mixing as for b", **_STATE),
        "v": GroupSpec("value path: W_v x; token mixing as for b", token=(1, 3)),
        "decay": GroupSpec("decay A: one input-dependent scalar per head (channel mixing 3)", channel=(3,)),
    },
    shareable=(("b",), ("v", "decay"), ("c",)),
    configure=configure,
    why={
        "token": "a product of gates between two tokens is semi-separable",
        "nonlinearity": "a nonlinearity on the scores would need all of them; the state holds only their sum",
        "channel": "channels of a head share B, C and A and do not mix",
    },
)
