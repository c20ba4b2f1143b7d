"""Gated linear recurrence: T_ij = C_i A_i ... A_(j+1) B_j, sequentially semi-separable, diagonal in channels.

    b, c, v = W_b x, W_c x, W_v x       [, short convolution on each]   [, swish on each]
    dt      = softplus(W_dt x + bias)       log A = -exp(a) dt, one scalar per head
    S_t     = A_t S_(t-1) + dt_t b_t v_t^T          y_t = S_t^T c_t [+ skip v_t]   [, times swish(W_z x)]   [, RMSNorm]

The state-space dual form of Mamba-2 (arXiv 2405.21060), with every group of brackets that block itself. All channels of a
head share b, c and A, so T mixes no channels, and the rank of every block below the diagonal is the state size N. Swish
keeps the value path linear: swish(u) is the feature sigmoid(u) times u, as the normaliser of the output is one (`Readout`).
Without decay A = 1 and dt = 1: linear attention, low rank under the causal mask.

Shapes: B batch, T tokens, H heads (of all branches), G groups of heads that share b and c, N state size, P head width, Q chunk.
    x [B, T, D]   b, c [B, T, G, N]   v [B, T, H, P]   log decay g, dt [B, T, H]   S [B, H, N, P]
`ssd_reference`, `ssd_parallel` and `ssd_step` are the same map three ways; they test each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from star.errors import UserError
from star.liv.base import Features, Readout, ReadoutConfig, State, StateEntry, Weight, activate, constant
from star.liv.base import inverse_softplus, log_uniform, matrix, short_filter
from star.liv.genes import ABSENT, READOUT_GROUPS, Family, GroupSpec, Operator, Rule, readout_genes

SSD_FILTER = 4  # taps of the optional filters of b, c and v
SSD_CHUNK = 64
SSD_SHORT = 128  # up to here one chunk is faster than several (CPU)
SSD_MIN_LOG_DECAY = -20.0  # a factor of 2e-9: nothing survives it, and float32 differences of cumulative sums stay accurate


@dataclass(frozen=True)
class RecurrenceConfig(ReadoutConfig):
    n_heads: int  # of one branch
    n_groups: int  # heads / n_groups heads share b and c
    head_dim: int
    state_size: int
    filters: tuple[str, ...] = ()  # which of b, c, v pass a short convolution
    decays: bool = True
    skip: bool = False
    nonlinearity: str = "none"  # of b, c and v

    def width(self, group: str) -> int:
        return self.branches * (self.n_heads * self.head_dim if group == "v" else self.n_groups * self.state_size)

    @property
    def norm_width(self) -> int:
        return self.head_dim if self.norm == "heads" else self.n_heads // self.n_groups * self.head_dim

    def weights(self) -> dict[str, Weight]:
        heads = self.branches * self.n_heads
        weights = {g: matrix(self.width(g), self.d_model, g) for g in "bcv"}
        weights |= {f"{g}_filter": short_filter(self.width(g), SSD_FILTER, g) for g in self.filters}
        if self.decays:
            weights["dt"] = matrix(heads, self.d_model, "decay")
            # Steps of 1/1000 to 1/10 and rates of 1 to 16: time constants from a fraction of a token to a thousand (Mamba-2).
            weights["dt_bias"] = Weight((heads,), "decay", log_uniform(1e-3, 1e-1, inverse_softplus))
            weights["log_rate"] = Weight((heads,), "decay", log_uniform(1.0, 16.0, torch.log))
        if self.skip:
            weights["skip"] = Weight((heads,), "skip", constant(1.0))
        return weights | self.readout_weights(self.n_heads * self.head_dim) | self.output_weights(self.n_heads * self.head_dim)

    def state(self) -> dict[str, StateEntry]:
        shape = (self.branches * self.n_heads, self.state_size, self.head_dim)
        filters = {f"{g}_filter": StateEntry((SSD_FILTER - 1, self.width(g)), g) for g in self.filters}
        return filters | {"memory": StateEntry(shape, "b+v", role="recurrent")}

    def mixing_flops(self, seq_len: int) -> float:
        """As executed: scores (shared in a group) and their product with v inside a chunk, states in and out."""
        chunk = min(SSD_CHUNK, seq_len)
        scores = 2 * chunk * self.state_size * self.n_groups
        return self.branches * (scores + self.n_heads * self.head_dim * (2 * chunk + 4 * self.state_size))

    def decode_mixing_flops(self, seq_len: int) -> float:
        return self.branches * self.n_heads * 5 * self.state_size * self.head_dim

    def build(self, given=frozenset(), tied=None) -> "Recurrence":
        return Recurrence(self, given, tied)


class Recurrence(Readout):
    MAPS = ("b", "c", "v", "dt", "z")
    VALUE = "v"
    config: RecurrenceConfig

    def features_of(self, h: dict[str, Tensor], state: State | None, given: Features, offset: int) -> tuple[Features, State | None]:
        config = self.config
        features = self.gate(h)
        for group in "bc":
            if group in self.given:
                features[group] = given[group]
            else:
                features[group] = activate(h[group], config.nonlinearity).unflatten(-1, (-1, config.state_size))
        if not config.decays:
            if "c" not in self.given:
                features["c"] = features["c"] * config.state_size**-0.5  # the scores of linear attention
        elif "decay" in self.given:
            features |= {"dt": given["dt"], "decay": given["decay"]}
        else:
            dtype = torch.promote_types(h["dt"].dtype, torch.float32)
            dt = F.softplus(h["dt"].to(dtype) + self.dt_bias)
            features["dt"] = dt
            features["decay"] = (-self.log_rate.exp() * dt).clamp(min=SSD_MIN_LOG_DECAY)
        if config.nonlinearity == "swish" and "v" not in self.given:
            features["v_gate"] = torch.sigmoid(h["v"])
        # The state before this call belongs to whoever owns b and v; a consumer of both reads it from there.
        source = given if {"b", "v"} <= self.given else state
        if source is not None and "memory" in source:
            features["memory"] = source["memory"]
        return features, state

    def value(self, features: Features, h: Tensor | None, state: State | None, given: Features, offset: int) -> tuple[Tensor, State | None]:
        if h is None:
            return given["v"], state
        return self.unflatten_value(h * features["v_gate"] if "v_gate" in features else h), state

    def core(self, features: Features, value: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        v = value * features["dt"][..., None].to(value.dtype) if self.config.decays else value
        mixed = (features["c"], features["b"], v, features.get("decay"), features.get("memory"))
        keep = state is not None and "memory" in state
        y, memory = ssd_step(*mixed) if v.shape[1] == 1 and mixed[-1] is not None else ssd_parallel(*mixed, keep)
        if self.config.skip:
            y = y + self.skip.to(value.dtype)[:, None] * value
        if keep:
            state = state | {"memory": memory.detach()}
        return y.flatten(2), state

    def unflatten_value(self, value: Tensor) -> Tensor:
        return value.unflatten(-1, (-1, self.config.head_dim))


def ssd_reference(c: Tensor, b: Tensor, v: Tensor, g: Tensor | None, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Token by token, the definition. Arguments as in `ssd_parallel`."""
    if memory is None:
        dtype = torch.promote_types(v.dtype, torch.float32)
        memory = v.new_zeros(v.shape[0], v.shape[2], b.shape[-1], v.shape[-1], dtype=dtype)
    out = []
    for t in range(v.shape[1]):
        now = slice(t, t + 1)
        y, memory = ssd_step(c[:, now], b[:, now], v[:, now], None if g is None else g[:, now], memory)
        out.append(y)
    return torch.cat(out, dim=1) if out else v, memory


def ssd_step(c: Tensor, b: Tensor, v: Tensor, g: Tensor | None, memory: Tensor) -> tuple[Tensor, Tensor]:
    """One token: S <- exp(g) S + b v^T, y = S^T c. Shapes as in `ssd_parallel` with T = 1."""
    dtype, n_groups = memory.dtype, b.shape[2]
    b, c = b[:, 0, :, None, :, None].to(dtype), c[:, 0, :, None, None, :].to(dtype)  # [B, G, 1, N, 1], [B, G, 1, 1, N]
    new = b * v[:, 0].unflatten(1, (n_groups, -1))[..., None, :].to(dtype)  # [B, G, H / G, N, P]
    memory = (memory if g is None else memory * g[:, 0, :, None, None].exp()) + new.flatten(1, 2)
    y = c @ memory.unflatten(1, (n_groups, -1))
    return y.flatten(1, 3).unflatten(1, (1, v.shape[2], -1)).to(v.dtype), memory


def ssd_parallel(
    c: Tensor, b: Tensor, v: Tensor, g: Tensor | None, memory: Tensor | None = None, keep_memory: bool = True
) -> tuple[Tensor, Tensor | None]:
    """The whole sequence, chunk by chunk (SSD, Mamba-2 listing 1), any length.

    Inside a chunk Y = (C B^T * exp(s_i - s_j), j <= i) V with s the cumulative log decay; between chunks the states follow
    from one lower-triangular matrix of decays. Every exponent is <= 0, so no gate can overflow.

    Args: c, b [B, T, G, N]; v [B, T, H, P]; g [B, T, H], log decays <= 0, or None for none; memory [B, H, N, P], the state before.
    Returns: y [B, T, H, P] in the dtype of v, and the state after (None unless `keep_memory`), in float32 or wider.
    """
    batch, seq_len, heads, width = v.shape
    dtype = torch.promote_types(v.dtype, torch.float32)
    if seq_len == 0:
        return v, memory
    chunk = seq_len if seq_len <= SSD_SHORT else SSD_CHUNK
    n_chunks, n_groups = -(-seq_len // chunk), b.shape[2]
    if g is None:
        g = v.new_zeros(1, seq_len, heads, dtype=dtype)
    c, b, v_, g = (in_chunks(t, n_chunks, chunk) for t in (c, b, v, g[..., None].to(dtype)))  # [B, heads, n, Q, .]
    cumulative = g[..., 0].cumsum(-1)  # [B, H, n, Q]
    total = cumulative[..., -1]  # [B, H, n]

    # -inf goes in before exp: no inf * 0 in the backward.
    decay = (cumulative[..., :, None] + no_future(chunk, dtype, v.device)).sub_(cumulative[..., None, :]).exp_()
    scores = c @ b.transpose(-1, -2)  # [B, G, n, Q, Q]
    scores = scores.unsqueeze(2) * decay.to(scores.dtype).unflatten(1, (n_groups, -1))
    y = scores.flatten(1, 2) @ v_  # [B, H, n, Q, P]

    n_added = n_chunks if keep_memory else n_chunks - 1  # without a state to return, the last chunk's share is not needed
    if n_added or memory is not None:
        # What each chunk adds to the state, and the state at the start of every chunk and at the end.
        to_end = (total[..., None] - cumulative)[:, :, :n_added].exp()[..., None]
        added = b[:, :, :n_added].to(dtype).transpose(-1, -2) @ beside(v_[:, :, :n_added].to(dtype) * to_end, n_groups)
        reached = F.pad(total[..., :n_added].cumsum(-1), (1, 0))  # log decay from the start to before chunk n, [B, H, n + 1]
        between = (reached[..., :, None] + no_future(n_added + 1, dtype, v.device)[:, 1:]).sub_(reached[..., None, 1:]).exp_()
        states = between @ apart(added, heads).flatten(3)  # [B, H, n + 1, N * P]
        if memory is not None:
            states = states + reached.exp()[..., None] * memory.to(dtype).flatten(2)[:, :, None]
        states = states.unflatten(3, (-1, width))
        past = apart(c.to(dtype) @ beside(states[:, :, :n_chunks], n_groups), heads)
        y = (y.to(dtype) + past * cumulative.exp()[..., None]).to(v.dtype)
        memory = states[:, :, -1]
    y = y.permute(0, 2, 3, 1, 4).reshape(batch, n_chunks * chunk, heads, width)[:, :seq_len]
    return y, memory if keep_memory else None


def in_chunks(x: Tensor, n_chunks: int, chunk: int) -> Tensor:
    """[B, T, H, C] -> [B, H, n, Q, C], padded with zeros: a token with b = v = 0 and g = 0 leaves the state alone."""
    missing = n_chunks * chunk - x.shape[1]
    x = F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
    return x.unflatten(1, (n_chunks, chunk)).permute(0, 3, 1, 2, 4).contiguous()


def no_future(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[size, size]: 0 where row >= column, else -inf."""
    return torch.full((size, size), -math.inf, dtype=dtype, device=device).triu(1)


def beside(x: Tensor, n_groups: int) -> Tensor:
    """[B, H, n, R, P] -> [B, G, n, R, H / G * P]: the heads of a group side by side, to pass one product."""
    if x.shape[1] == n_groups:
        return x
    return x.unflatten(1, (n_groups, -1)).permute(0, 1, 3, 4, 2, 5).flatten(4)


def apart(x: Tensor, heads: int) -> Tensor:
    """The inverse of `beside`."""
    if x.shape[1] == heads:
        return x
    return x.unflatten(4, (heads // x.shape[1], -1)).permute(0, 1, 4, 2, 3, 5).flatten(1, 2)


def configure(operator: Operator, d_model: int, head_dim: int, rope_theta: float) -> RecurrenceConfig:
    width = d_model * operator.feature("v").expansion
    repeat = operator.feature("b").repeat
    if width % (head_dim * max(repeat, 1)):
        raise UserError(
            f"recurrence: width {width} is no multiple of head width {head_dim} x repeat {max(repeat, 1)}; choose a width that is, or a smaller repeat"
        )
    n_heads = width // head_dim
    return RecurrenceConfig(
        d_model,
        operator.branches,
        n_heads,
        n_heads // repeat if repeat else 1,
        head_dim,
        operator.feature("b").expansion,
        tuple(g for g in "bcv" if operator.feature(g).token == 3),
        operator.has("decay"),
        operator.has("skip"),
        {1: "none", 4: "swish"}[operator.genes.nonlinearity],
        **readout_genes(operator),
    )


_STATE = dict(token=(1, 3), expansion=(1, 2, 4, 8, 16, 32, 64, 128), repeat=(1, 2, 4, 8, 0), expansion_means="state size N per channel")
FAMILY = Family(
    name="recurrence",
    equation="T_ij = C_i A_i ... A_(j+1) B_j per head",
    token=(4, 2),
    nonlinearity=(1, 4),
    channel=(1,),
    groups={
        "b": GroupSpec("input map B: what enters the state; token mixing 3 adds a causal filter of length 4; repeat r: r heads share it, 0 all", **_STATE),
        "c": GroupSpec("output map C: what is read from the state; token mixing and repeat as for b", **_STATE),
        "v": GroupSpec("value path: W_v x; token mixing as for b", token=(1, 3), expansion=(1, 2)),
        "decay": GroupSpec("decay A: one input-dependent scalar per head (channel mixing 3)", channel=(3,), optional=True),
        "skip": GroupSpec("adds the value itself to the output, times one number per head", channel=(3,), optional=True),
        **READOUT_GROUPS,
    },
    shareable=(("b",), ("v", "decay"), ("c",)),
    sharing_genes=("nonlinearity",),
    configure=configure,
    rules=(
        Rule.equal("b.expansion", "c.expansion", "both are the state size"),
        Rule.equal("b.repeat", "c.repeat", "a head reads the state that it writes"),
        Rule("token", "decay", lambda token, decay: (token == 4) == (decay != ABSENT), "a decay makes low rank semi-separable, and nothing else does"),
    ),
    why={
        "token": "a product of gates between two tokens is semi-separable, and low rank where every gate is 1",
        "nonlinearity": "a nonlinearity on the scores would need all of them, the state holds only their sum; swish acts on b, c and v before",
        "channel": "channels of a head share B, C and A and do not mix",
    },
)
