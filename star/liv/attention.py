"""Softmax attention: T_ij = softmax_j(q_i . k_j / sqrt(d)) for j <= i, one matrix of weights per head.

    q, k, v = W_q x, W_k x, W_v x     [a short causal convolution on each]   [RMSNorm of q and k]   [RoPE on q and k]
    y       = W_out . [sigmoid(W_g x) *] concat_h( softmax(q_h k_h^T / sqrt(d) + causal mask) v_h )

The scores q k^T have rank d, and softmax makes them dense, so decoding must cache every key and value. With a window, a
query sees only the last `window` keys. Several query heads may share one key and value head (grouped queries). With a
sink, every head has one more logit, a parameter, whose weight goes to nothing: a head may then look away.

Shapes: B batch, T tokens, S visible keys (past and present), H query heads and G key/value heads (of all branches), d
head width.
    x [B, T, D]   q [B, H, T, d]   k, v [B, G, S, d]   y [B, T, D]
The cache holds k after its convolution, norm and RoPE, so a LIV that shares k or v reads what this one attends to.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from star.liv.backends import fused
from star.liv.base import (
    LIV,
    Features,
    LIVConfig,
    State,
    StateEntry,
    Weight,
    biases,
    constant,
    matrix,
    short_filter,
)
from star.liv.functional import rms_norm

ATTENTION_FILTER = 3  # taps of the optional filters of q, k and v
# Fastest first for training on a Hopper GPU (published figures, not measured by us). Torch takes the first one that
# supports the shapes.
CUDA_PREFERENCE = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
ROPE_TABLES: dict[tuple, tuple[Tensor, Tensor]] = {}


@dataclass(frozen=True)
class AttentionConfig(LIVConfig):
    """Sizes of an attention operator."""

    n_heads: int  # query heads of one branch
    n_kv_heads: int  # key/value heads of one branch; fewer than n_heads is grouped-query attention
    head_dim: int
    window: int | None = None  # keys that a query sees, its own included; None for all
    filters: tuple[str, ...] = ()  # which of q, k, v pass a short convolution
    qk_norm: str = ""  # RMSNorm of q and k before RoPE: "head" over each head, "full" over all heads together
    rope_theta: float | None = 10_000.0  # None: no RoPE
    rotary: int | None = None  # RoPE rotates the first so many channels of a head; None: all
    norm_eps: float = 1e-5
    gated: bool = False  # the output of every head is multiplied by sigmoid(W_g x)
    sink: bool = False  # a logit per head that takes weight from the keys

    def width(self, group: str) -> int:
        """Channels of q, k or v, of all branches."""
        return self.branches * self.head_dim * (self.n_heads if group == "q" else self.n_kv_heads)

    def weights(self) -> dict[str, Weight]:
        weights = {g: matrix(self.width(g), self.d_model, g) for g in "qkv"}
        weights |= {f"{g}_filter": short_filter(self.width(g), ATTENTION_FILTER, g) for g in self.filters}
        if self.qk_norm:
            width = self.width if self.qk_norm == "full" else lambda g: self.head_dim
            weights |= {f"{g}_norm": Weight((width(g),), g, constant(1.0)) for g in "qk"}
        if self.gated:
            weights["gate"] = matrix(self.width("q"), self.d_model, "gate")
        if self.sink:
            weights["sink"] = Weight((self.branches * self.n_heads,), "sink", constant(0.0))
        weights |= self.output_weights(self.n_heads * self.head_dim)
        return weights | (biases(weights) if self.biased else {})

    def state(self) -> dict[str, StateEntry]:
        cap = math.inf if self.window is None else self.window - 1
        cache = (self.branches * self.n_kv_heads, self.head_dim)
        filters = {f"{g}_filter": StateEntry((ATTENTION_FILTER - 1, self.width(g)), g) for g in self.filters}
        return {g: StateEntry(cache, g, cap=cap, column_dim=1) for g in "kv"} | filters

    def mixing_flops(self, seq_len: int) -> float:
        return self.decode_mixing_flops(0) * self.visible(seq_len)

    def visible(self, seq_len: int) -> float:
        """Keys that a query sees, mean over a sequence: sum_i min(i, window) / T."""
        window = min(self.window or seq_len, seq_len)
        return window - window * (window - 1) / (2 * seq_len)

    def decode_mixing_flops(self, seq_len: int) -> float:
        """q . k and weight * v: two multiply-adds per key and channel."""
        visible = min(self.window or math.inf, seq_len + 1)
        return 4 * self.branches * self.n_heads * self.head_dim * visible

    def build(self, given=frozenset(), tied=None) -> Attention:
        return Attention(self, given, tied)


class Attention(LIV):
    """Softmax attention over all keys or a window."""

    MAPS = ("q", "k", "v", "gate")
    VALUE = "v"
    config: AttentionConfig
    sink: nn.Parameter
    # Replaces `softmax_attention`, for operators without a sink.
    attend: Callable[[Tensor, Tensor, Tensor, int | None], Tensor] | None = None

    def features_of(
        self, h: dict[str, Tensor], state: State | None, given: Features, offset: int
    ) -> tuple[Features, State | None]:
        q = h["q"]
        table = (given["cos"], given["sin"]) if "cos" in given else self.rope(q, offset)
        features = {"q": self.heads(q, "q", table)}
        if "padding" in given:
            features["padding"] = given["padding"] - offset
        if "gate" in h:
            features["gate"] = torch.sigmoid(h["gate"])
        if "k" in self.given:
            return features | {"k": given["k"]}, state
        k, state = self.remember(self.heads(h["k"], "k", table), "k", state, offset)
        return features | {"k": k}, state

    def rope(self, x: Tensor, offset: int) -> tuple[Tensor, Tensor] | None:
        """cos and signed sin for the tokens of x [B, T, ...]; None without RoPE."""
        config = self.config
        if config.rope_theta is None:
            return None
        width = config.rotary or config.head_dim
        return rope_table(offset, x.shape[1], width, config.rope_theta, x.device, x.dtype)

    def tables(self, x: Tensor) -> Features:
        table = self.rope(x, 0)
        return {} if table is None else {"cos": table[0], "sin": table[1]}

    def value(
        self, features: Features, h: Tensor | None, state: State | None, given: Features, offset: int
    ) -> tuple[Tensor, State | None]:
        if h is None:
            return given["v"], state
        return self.remember(self.unflatten_value(h), "v", state, offset)

    def core(self, features: Features, value: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        q, k, window = features["q"], features["k"], self.config.window
        if self.attend is not None:
            y = self.attend(q, k, value, window)
        else:
            sink = self.sink if self.config.sink else None
            y = softmax_attention(q, k, value, window, sink, features.get("padding"))
        return y.transpose(1, 2).flatten(2), state  # [B, T, H d]

    def readout(self, features: Features, y: Tensor) -> Tensor:
        return y * features["gate"] if "gate" in features else y

    def unflatten_value(self, value: Tensor) -> Tensor:
        return value.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)

    def heads(self, h: Tensor, group: str, table: tuple[Tensor, Tensor] | None) -> Tensor:
        """Queries or keys split into heads, normalised and rotated: [B, T, heads * d] -> [B, heads, T, d]."""
        config = self.config
        if config.qk_norm == "full":
            h = rms_norm(h, getattr(self, f"{group}_norm"), config.norm_eps)
        h = h.unflatten(-1, (-1, config.head_dim))
        if config.qk_norm == "head":
            h = rms_norm(h, getattr(self, f"{group}_norm"), config.norm_eps)
        return (h if table is None else apply_rope(h, *table)).transpose(1, 2)

    def remember(self, h: Tensor, group: str, state: State | None, offset: int) -> tuple[Tensor, State | None]:
        """All keys or values [B, G, S, d] that this call sees, and the cache with the new ones in it."""
        if state is None:
            return h, None
        cache, new = state[group], h.detach()
        seq_len = h.shape[2]
        if self.config.window is None:
            cache[:, :, offset : offset + seq_len] = new
            visible = h if offset == 0 else cache[:, :, : offset + seq_len]
            return visible.to(h.dtype), state
        past = torch.sym_min(offset, self.config.window - 1)  # for a compiler, before and after the window is full
        visible = torch.cat([cache.narrow(2, 0, past).to(h.dtype), h], dim=2)  # oldest first
        keep = torch.sym_min(cache.shape[2], visible.shape[2])
        parts = last(visible, keep), cache.narrow(2, keep, cache.shape[2] - keep)
        cache.copy_(torch.cat([part.detach().to(cache.dtype) for part in parts], dim=2))  # whole: one graph for all
        return visible, state


def last(x: Tensor, n: int) -> Tensor:
    """The last n of x [B, G, S, d]. An exported program gets them by index: a part of a tensor has strides, which would
    bind it to lengths above n.
    """
    if torch.compiler.is_exporting():
        return x.index_select(2, torch.arange(x.shape[2] - n, x.shape[2], device=x.device))
    return x.narrow(2, x.shape[2] - n, n)


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None = None,
    sink: Tensor | None = None,
    padding: Tensor | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v [B, H, T, d], causal; the T queries are the last of the S positions.

    Args: q [B, H, T, d]; k, v [B, G, S, d], G a divisor of H; window: keys that a query sees, its own included; sink
    [H]: a logit of every head beside those of the keys (gpt-oss, arXiv 2508.10925), with value 0; padding [B]: the keys
    of so many tokens, counted from the first query, are not seen, except by the query of the same token.
    """
    seq_len, visible = q.shape[2], k.shape[2]
    with sdpa_kernel(CUDA_PREFERENCE, set_priority=True) if q.is_cuda else contextlib.nullcontext():
        if padding is not None:
            place = torch.arange(seq_len - visible, seq_len, device=q.device)  # of the keys
            there = (place >= padding[:, None])[:, None] | (place == torch.arange(seq_len, device=q.device)[:, None])
            mask = causal_mask(seq_len, visible, window, q.device) & there  # [B, T, S]
            return attended(q, k, v, sink, mask[:, None])
        band = None if torch.compiler.is_exporting() else window  # an exported program for any length has one form
        if band is not None and seq_len > 3 * band:  # measured on a CPU; a mask is as fast for fewer tokens
            return banded_attention(q, k, v, band, sink)
        if seq_len == visible and (window is None or (band is not None and seq_len <= band)):
            return attended(q, k, v, sink, is_causal=bool(seq_len > 1))
        if seq_len == 1:  # a single query sees every key of its window
            seen = visible if window is None else torch.sym_min(visible, window)
            k, v = (t.narrow(2, visible - seen, seen) for t in (k, v))
            return attended(q, k, v, sink)
        return attended(q, k, v, sink, causal_mask(seq_len, visible, window, q.device))


def attended(
    q: Tensor, k: Tensor, v: Tensor, sink: Tensor | None, mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """Torch's attention, with a sink [H] or without. Arguments as in `softmax_attention`; mask: boolean [..., T, S].

    The sink is a key before the others with value 0. Keys have eight channels more (kernels want multiples of eight):
    there the query holds its head's logit, and only the key of the sink is not 0. So one key serves all heads, and the
    causal form needs no mask if it gets a query before the others too.
    """
    gqa = q.shape[1] != k.shape[1]
    if sink is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=gqa)
    width = q.shape[3]
    logits = (sink * width**0.5).to(q.dtype)[:, None, None].expand(*q.shape[:3], 1)
    first = F.pad(k.new_ones(1), (width, 7)).expand(*k.shape[:2], 1, width + 8)
    q, k = F.pad(torch.cat([q, logits], -1), (0, 7)), torch.cat([first, F.pad(k, (0, 8))], 2)
    v = F.pad(v, (0, 8, 1, 0))
    if is_causal:
        q = F.pad(q, (0, 0, 1, 0))
    mask = None if mask is None else F.pad(mask, (1, 0), value=True)
    scale = width**-0.5
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=gqa)
    return y[:, :, int(is_causal) :, :-8]


def banded_attention(q: Tensor, k: Tensor, v: Tensor, window: int, sink: Tensor | None = None) -> Tensor:
    """`softmax_attention` in blocks of `window` queries, which see the keys of their own block and of the one before.

    Work and memory grow with T * window instead of T^2. Same arguments.
    """
    batch, _, seq_len, _ = q.shape
    n_blocks = -(-seq_len // window)
    past = k.shape[2] - seq_len
    # Padded keys start `window` positions before the first query; positions before the past are masked.
    ends = (0, 0, window - past, n_blocks * window - seq_len)
    k, v = F.pad(k, ends), F.pad(v, ends)
    q = F.pad(q, (0, 0, 0, n_blocks * window - seq_len))
    q = rearrange(q, "b h (n w) d -> (b n) h w d", n=n_blocks)
    k, v = (rearrange(t.unfold(2, 2 * window, window), "b g n d w -> (b n) g w d") for t in (k, v))  # w = 2 W
    query = torch.arange(window, device=q.device)[:, None]
    key = torch.arange(2 * window, device=q.device)[None, :]
    band = (key > query) & (key <= query + window)  # [W, 2 W]
    missing = (torch.arange(n_blocks, device=q.device)[:, None] * window + key) < window - past  # [n, 2 W]
    mask = (band & ~missing[:, None]).repeat(batch, 1, 1)[:, None]  # [B n, 1, W, 2 W]
    y = attended(q, k, v, sink, mask)
    return rearrange(y, "(b n) h w d -> b h (n w) d", n=n_blocks)[:, :, :seq_len]


def causal_mask(seq_len: int, visible: int, window: int | None, device: torch.device) -> Tensor:
    """Boolean [T, S]: the queries are the last T of S positions, and see `window` keys back, their own included."""
    query = torch.arange(visible - seq_len, visible, device=device)[:, None]
    key = torch.arange(visible, device=device)[None, :]
    mask = key <= query
    return mask if window is None else mask & (key > query - window)


def rope_table(
    offset: int, seq_len: int, head_dim: int, theta: float, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and signed sin [T, 1, d] of the rotary embedding (RoFormer, arXiv 2104.09864), in float32 or wider.

    Tables are kept, because every layer and every step needs the same ones. A compiler gets the formula instead, which
    holds for any offset and length.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    if torch.compiler.is_compiling():
        return rope_positions(
            torch.arange(offset, offset + seq_len, dtype=torch.float64, device=device), head_dim, theta, dtype
        )
    n_positions = 1 << max(offset + seq_len - 1, 127).bit_length()
    key = (n_positions, head_dim, theta, device, dtype)
    table = ROPE_TABLES.get(key)
    if table is None:
        with torch.inference_mode(False), torch.no_grad():
            positions = torch.arange(n_positions, dtype=torch.float64)
            cos, sin = (t.to(device) for t in rope_positions(positions, head_dim, theta, dtype))
            table = cos, sin
        if type(table[0]) is Tensor:  # a tracer's tensors must not be kept
            ROPE_TABLES[key] = table
    cos, sin = table
    return cos[offset : offset + seq_len], sin[offset : offset + seq_len]


def rope_positions(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and signed sin [n, 1, d] of positions float64 [n]."""
    steps = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device)
    angle = positions[:, None, None] * theta ** (-steps / head_dim)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)


def apply_rope(h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + d/2) of the first d channels of h [B, T, heads, .] in the dtype of h.

    cos, signed sin [T, 1, d].

    In bfloat16 as elsewhere (transformers, nanochat): by halves, which moves a third of the memory that a float32 copy
    and its `roll` do.
    """
    d = cos.shape[-1]
    if d < h.shape[-1]:
        return torch.cat([apply_rope(h[..., :d], cos, sin), h[..., d:]], -1)
    kernel = fused("rotate", h)
    if kernel is not None:
        return kernel(h, cos, sin)
    if h.dtype == cos.dtype:
        return torch.addcmul(h * cos, h.roll(h.shape[-1] // 2, -1), sin)
    cos, sin = (table.to(h.dtype).chunk(2, -1)[1] for table in (cos, sin))
    x, y = h.chunk(2, -1)
    return torch.cat([torch.addcmul(x * cos, y, sin, value=-1), torch.addcmul(y * cos, x, sin)], -1)
