"""Softmax attention: T_ij = softmax_j(q_i . k_j / sqrt(d)), low rank made dense by the nonlinearity, grouped by heads.

    q, k, v = W_q x, W_k x, W_v x       [, short convolution]  [, QK-norm]  , RoPE on q and k
    y       = W_out . concat_h( softmax(q_h k_h^T / sqrt(d) + causal, window) v_h )

Shapes: B batch, T tokens, S visible keys (past and present), H query heads (of all branches), G key/value heads, d head width.
    x [B, T, D]   q [B, H, T, d]   k, v [B, G, S, d]   y [B, T, D]
The cache holds k after convolution, QK-norm and RoPE, so a LIV that shares k or v reads what this one attends to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from star.errors import UserError
from star.liv.base import LIV, Features, LIVConfig, State, StateEntry, Weight, constant, matrix, rms_norm, short_filter
from star.liv.genes import Family, GroupSpec, Operator

CONV_LENGTH = 3


@dataclass(frozen=True)
class AttentionConfig(LIVConfig):
    n_heads: int  # query heads of one branch
    n_kv_heads: int  # key/value heads of one branch; fewer than n_heads is grouped-query attention
    head_dim: int
    window: int | None = None  # keys that a query sees, itself included
    filters: tuple[str, ...] = ()  # which of q, k, v pass a short convolution
    qk_norm: bool = False  # RMSNorm of q and k per head, before RoPE
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    def width(self, group: str) -> int:
        return self.branches * self.head_dim * (self.n_heads if group == "q" else self.n_kv_heads)

    def weights(self) -> dict[str, Weight]:
        weights = {g: matrix(self.width(g), self.d_model, g) for g in "qkv"}
        weights |= {f"{g}_filter": short_filter(self.width(g), CONV_LENGTH, g) for g in self.filters}
        if self.qk_norm:
            weights |= {f"{g}_norm": Weight((self.head_dim,), g, constant(1.0)) for g in "qk"}
        return weights | self.output_weights(self.n_heads * self.head_dim)

    def state(self) -> dict[str, StateEntry]:
        cap = math.inf if self.window is None else self.window - 1
        cache = (self.branches * self.n_kv_heads, self.head_dim)
        filters = {f"{g}_filter": StateEntry((CONV_LENGTH - 1, self.width(g)), g) for g in self.filters}
        return {g: StateEntry(cache, g, cap=cap, column_dim=1) for g in "kv"} | filters

    def mixing_flops(self, seq_len: int) -> float:
        window = min(self.window or seq_len, seq_len)
        visible = window - window * (window - 1) / (2 * seq_len)  # mean keys per query: sum_i min(i, window) / T
        return self.decode_mixing_flops(0) * visible

    def decode_mixing_flops(self, seq_len: int) -> float:
        """q . k and weight * v: 2 multiply-adds per key and channel."""
        visible = min(self.window or math.inf, seq_len + 1)
        return 4 * self.branches * self.n_heads * self.head_dim * visible

    def build(self, given=frozenset(), tied=None) -> "Attention":
        return Attention(self, given, tied)


class Attention(LIV):
    VALUE = "v"
    config: AttentionConfig

    def featurize(self, x: Tensor, state: State | None, given: Features, offset: int = 0) -> tuple[Features, State | None]:
        q, state = self.heads(x, "q", state)
        q = self.rotate(q, offset)
        if "k" in self.given:
            return {"q": q, "k": given["k"]}, state
        k, state = self.heads(x, "k", state)
        k, state = self.remember(self.rotate(k, offset), "k", state, offset)
        return {"q": q, "k": k}, state

    def value(self, features: Features, x: Tensor, state: State | None, given: Features, offset: int = 0) -> tuple[Tensor, State | None]:
        if "v" in self.given:
            return given["v"], state
        v, state = self.heads(x, "v", state)
        return self.remember(v, "v", state, offset)

    def core(self, features: Features, value: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        q, k = features["q"], features["k"]
        seq_len, visible = q.shape[2], k.shape[2]
        gqa = q.shape[1] != k.shape[1]
        if self.config.window is None and seq_len == visible:
            y = F.scaled_dot_product_attention(q, k, value, is_causal=seq_len > 1, enable_gqa=gqa)
        else:
            mask = causal_mask(seq_len, visible, self.config.window, q.device)
            y = F.scaled_dot_product_attention(q, k, value, attn_mask=mask, enable_gqa=gqa)
        return y.transpose(1, 2).flatten(2), state  # [B, T, H d]

    def unflatten_value(self, value: Tensor) -> Tensor:
        return value.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)

    def heads(self, x: Tensor, group: str, state: State | None) -> tuple[Tensor, State | None]:
        """Project, filter, split into heads and normalise: [B, T, D] -> [B, heads, T, d]."""
        h, state = self.filtered(self.linear(x, group), f"{group}_filter", state)
        h = self.unflatten_value(h)
        if self.config.qk_norm and group != "v":
            h = rms_norm(h, getattr(self, f"{group}_norm"), self.config.norm_eps)
        return h, state

    def rotate(self, h: Tensor, offset: int) -> Tensor:
        cos, sin = rope_table(offset, h.shape[2], self.config.head_dim, self.config.rope_theta, h.device, h.dtype)
        return apply_rope(h, cos, sin)

    def remember(self, h: Tensor, group: str, state: State | None, offset: int) -> tuple[Tensor, State | None]:
        """All keys or values that this call can see, and the cache with the new ones in it."""
        if state is None:
            return h, None
        cache, new = state[group], h.detach()
        seq_len = h.shape[2]
        if self.config.window is None:
            cache[:, :, offset : offset + seq_len] = new
            visible = h if offset == 0 else cache[:, :, : offset + seq_len]
            return visible.to(h.dtype), state
        past = min(offset, self.config.window - 1)
        visible = torch.cat([cache[:, :, :past].to(h.dtype), h], dim=2)  # oldest first
        kept = visible[:, :, -cache.shape[2] :] if cache.shape[2] else visible[:, :, :0]
        cache[:, :, : kept.shape[2]] = kept.detach().clone()
        return visible, state


def causal_mask(seq_len: int, visible: int, window: int | None, device: torch.device) -> Tensor:
    """[T, S] boolean: the last T of S positions may look back, at `window` keys with themselves included."""
    query = torch.arange(visible - seq_len, visible, device=device)[:, None]
    key = torch.arange(visible, device=device)[None, :]
    mask = key <= query
    return mask if window is None else mask & (key > query - window)


def rope_table(offset: int, seq_len: int, head_dim: int, theta: float, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [T, d / 2] of the rotary embedding (RoFormer, arXiv 2104.09864), in float32 or wider."""
    dtype = torch.promote_types(dtype, torch.float32)
    frequency = theta ** (-torch.arange(0, head_dim, 2, device=device, dtype=dtype) / head_dim)
    angle = torch.arange(offset, offset + seq_len, device=device, dtype=dtype)[:, None] * frequency
    return angle.cos(), angle.sin()


def apply_rope(h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + d/2) of h [B, heads, T, d], in float32 or wider, back to the dtype of h."""
    a, b = h.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(h.dtype)


def configure(operator: Operator, d_model: int, head_dim: int, rope_theta: float) -> AttentionConfig:
    width = d_model * operator.feature("q").expansion
    repeat = operator.feature("k").repeat
    if operator.feature("v").repeat != repeat:
        raise UserError(f"attention: repeat of k is {repeat} and of v {operator.feature('v').repeat}; keys and values come in pairs, make them equal")
    if width % (head_dim * repeat):
        raise UserError(f"attention: width {width} is no multiple of head width {head_dim} x repeat {repeat}; choose a width that is, or a smaller repeat")
    n_heads = width // head_dim
    return AttentionConfig(
        d_model,
        operator.branches,
        n_heads,
        n_heads // repeat,
        head_dim,
        operator.window,
        tuple(g for g in "qkv" if operator.feature(g).token == 3),
        operator.has("norm"),
        rope_theta,
    )


_KEYS = GroupSpec("keys: W_k x, one per head; repeat r shares one among r query heads", token=(1, 3), repeat=(1, 2, 3, 4, 8))
FAMILY = Family(
    name="attention",
    equation="T_ij = softmax_j(q_i . k_j / sqrt(d)) per head",
    token=(2,),
    sparsity=tuple(range(1, 10)),
    nonlinearity=(2,),
    channel=(3,),
    groups={
        "q": GroupSpec("queries: W_q x, one per head; token mixing 3 adds a causal filter of length 3", token=(1, 3)),
        "k": _KEYS,
        "v": GroupSpec("values: W_v x, the value path; repeat as for keys", token=(1, 3), repeat=(1, 2, 3, 4, 8)),
        "norm": GroupSpec("QK-norm: the normaliser of q and k is a feature of the input", channel=(1,), optional=True),
    },
    shareable=(("k",), ("v",)),
    sharing_genes=("sparsity",),
    configure=configure,
    why={
        "token": "softmax acts on the scores q . k, which are low rank",
        "nonlinearity": "without softmax the low-rank scores need no cache of keys: that is the recurrence family",
        "channel": "all channels of a head share its scores",
    },
)
