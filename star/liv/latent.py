"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values of all heads come from one small latent.

    u = norm(W_u x)      k_h = W_k,h u      v_h = W_v,h u      y as in `star.liv.attention`

Decoding keeps u instead of every key and value. For a single token, W_k goes to the query and W_v behind the sum over
tokens: q_h . (W_k,h u) = (W_k,h^T q_h) . u. So all heads read the latents themselves, and past keys and values are
never computed again. RoPE would stand between W_k and q, so the keys from the latent are not rotated. Positions need
another key, which all heads share: it comes from x, has RoPE and is kept beside the latent.

1 / rms of the norm is a feature: for fixed features, u and the values are linear in x.

Shapes: as in `star.liv.attention`; r channels of the latent, e of the shared key.
    u [B, 1, S, r]   shared key [B, 1, S, e]   q [B, H, T, d + e]   k [B, H, S, d + e]   v [B, H, S, d]
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from star.liv.attention import Attention, AttentionConfig, apply_rope
from star.liv.base import Features, State, StateEntry, Weight, constant, matrix


@dataclass(frozen=True)
class LatentConfig(AttentionConfig):
    """Sizes of a latent attention; both branches of a differential operator read one latent."""

    rank: int = 0  # channels of the latent
    shared: int = 0  # channels of the key that all heads share, or 0

    @property
    def heads(self) -> int:
        """Heads of all branches."""
        return self.branches * self.n_heads

    def weights(self) -> dict[str, Weight]:
        width = self.heads * self.head_dim
        up = matrix(width, self.rank, "k")._replace(of_input=False)
        own = {"q": matrix(width + self.heads * self.shared, self.d_model, "q"), "k": up, "v": up._replace(group="v")}
        own["latent"] = matrix(self.rank, self.d_model, "latent")
        own["latent_norm"] = Weight((self.rank,), "latent", constant(1.0))
        if self.shared:
            own["key"] = matrix(self.shared, self.d_model, "latent")
        if self.gated:
            own["gate"] = matrix(width, self.d_model, "gate")
        return super().weights() | own

    def state(self) -> dict[str, StateEntry]:
        cap = math.inf if self.window is None else self.window - 1
        widths = {"latent": self.rank} | ({"key": self.shared} if self.shared else {})
        return {name: StateEntry((1, width), "latent", cap=cap, column_dim=1) for name, width in widths.items()}

    def mixing_flops(self, seq_len: int) -> float:
        return 2 * self.heads * (2 * self.head_dim + self.shared) * self.visible(seq_len)

    def decode_mixing_flops(self, seq_len: int) -> float:
        visible = min(self.window or math.inf, seq_len + 1)
        return 2 * self.heads * (2 * self.rank + self.shared) * visible

    def build(self, given=frozenset(), tied=None) -> LatentAttention:
        return LatentAttention(self, given, tied)


class LatentAttention(Attention):
    """Softmax attention with a latent in place of keys and values."""

    MAPS = ("q", "latent", "key", "gate")
    VALUE = "latent"
    config: LatentConfig
    latent_norm: nn.Parameter

    def features_of(
        self, h: dict[str, Tensor], state: State | None, given: Features, offset: int
    ) -> tuple[Features, State | None]:
        config, table = self.config, None
        if config.shared:
            table = (given["cos"], given["sin"]) if "cos" in given else self.rope(h["q"], offset)
        features = {"padding": given["padding"] - offset} if "padding" in given else {}
        if "gate" in h:
            features["gate"] = torch.sigmoid(h["gate"])
        wide = h["latent"].to(torch.promote_types(h["latent"].dtype, torch.float32))
        features["latent_scale"] = (wide.square().mean(-1, keepdim=True) + config.norm_eps).rsqrt()
        latents = self.normed(h["latent"], features["latent_scale"])
        latents, state = self.remember(latents, "latent", state, offset)
        keys = [latents]
        if config.shared:
            key = h["key"][:, :, None]
            key, state = self.remember(self.turned(key, table).transpose(1, 2), "key", state, offset)
            keys.append(key)
        q = h["q"].unflatten(-1, (-1, config.head_dim + config.shared))
        q, extra = q.split([config.head_dim, config.shared], -1)
        queries = [q.transpose(1, 2), self.turned(extra, table).transpose(1, 2)]
        features["latents"] = latents
        if state is not None and q.shape[1] == 1 and self.attend is None:
            queries[0] = queries[0] @ self.by_head("k", q.dtype)
            return features | {"latent_q": torch.cat(queries, -1), "k": torch.cat(keys, -1)}, state
        keys[0] = self.heads_of(latents, "k")
        keys = [k.expand(-1, keys[0].shape[1], -1, -1) for k in keys]
        return features | {"q": torch.cat(queries, -1), "k": torch.cat(keys, -1)}, state

    def value(
        self, features: Features, h: Tensor | None, state: State | None, given: Features, offset: int
    ) -> tuple[Tensor, State | None]:
        """The values of all visible tokens; for a single token with a state, their latents."""
        assert h is not None
        new, latents = self.normed(h, features["latent_scale"]), features["latents"]
        past = latents.shape[2] - new.shape[2]
        latents = torch.cat([latents[:, :, :past], new], 2) if past else new
        return (latents if "latent_q" in features else self.heads_of(latents, "v")), state

    def core(self, features: Features, value: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        if "latent_q" not in features:
            return super().core(features, value, state)
        # All heads read one key: they are the rows of one product. [B, H, S]
        k, width = features["k"][:, 0], self.config.head_dim + self.config.shared
        scores = features["latent_q"][:, :, 0] @ k.mT * width**-0.5
        if "padding" in features:
            place = torch.arange(1 - k.shape[1], 1, device=k.device)
            scores = scores.masked_fill(((place < features["padding"][:, None]) & (place < 0))[:, None], -math.inf)
        if self.config.sink:
            scores = torch.cat([scores, self.sink.to(scores.dtype)[:, None].expand(*scores.shape[:2], 1)], -1)
        weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
        y = weights[..., : k.shape[1]] @ value[:, 0]
        y = y[:, :, None] @ self.by_head("v", y.dtype).mT
        return y.transpose(1, 2).flatten(2), state

    def normed(self, h: Tensor, scale: Tensor) -> Tensor:
        """The latents [B, 1, T, r] of their linear map [B, T, r]."""
        return (h * scale.to(h.dtype) * self.latent_norm.to(h.dtype))[:, None]

    def turned(self, h: Tensor, table: tuple[Tensor, Tensor] | None) -> Tensor:
        """h [B, T, heads, e] with RoPE, if there is one."""
        return h if table is None else apply_rope(h, *table)

    def heads_of(self, latents: Tensor, name: str) -> Tensor:
        """Keys or values of all heads from the latents: [B, 1, S, r] -> [B, H, S, d]."""
        return self.linear(latents[:, 0], name).unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)

    def by_head(self, name: str, dtype: torch.dtype) -> Tensor:
        """The map of keys or values for each head, [H, d, r]."""
        return self.weight(name, dtype).unflatten(0, (-1, self.config.head_dim))
