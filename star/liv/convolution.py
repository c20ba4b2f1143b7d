"""Gated convolution: T_ij = C_i K_(i-j) B_j, a Toeplitz matrix scaled by row and column, diagonal in channels.

    b, c, h = W_b x, W_c x, W_h x       [, short convolution on each]
    y       = W_out . (c * causal_convolution(K, b * h))

K is one filter per channel. Explicit (channel mixing 1 of the filter group): `expansion` free taps, LFM2's block. Implicit
(channel mixing 3): a modal sum K_t = Re sum_m R_m lambda_m^t with |lambda_m| < 1 and `expansion` modes, as long as the
sequence and yet decoded exactly with one complex number per mode (Laughing Hyena, arXiv 2310.18780).

Shapes: B batch, T tokens, D channels (of all branches: W), M modes, Q chunk.
    x [B, T, D]   b, c, h [B, T, W]   explicit filter [W, k]   poles and residues [W, M]
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from star.liv.base import LIV, Features, LIVConfig, State, StateEntry, Weight, log_uniform, matrix, normal, short_convolution, short_filter
from star.liv.genes import Family, GroupSpec, Operator

CONV_LENGTH = 3  # of the optional short convolution on b, c and h
CHUNK = 64


@dataclass(frozen=True)
class ConvolutionConfig(LIVConfig):
    length: int  # taps of the explicit filter, or modes of the implicit one
    implicit: bool
    filters: tuple[str, ...] = ()  # which of b, c, h pass a short convolution

    @property
    def width(self) -> int:
        return self.branches * self.d_model

    def weights(self) -> dict[str, Weight]:
        weights = {g: matrix(self.width, self.d_model, g) for g in "bch"}
        weights |= {f"{g}_filter": short_filter(self.width, CONV_LENGTH, g) for g in self.filters}
        if self.implicit:
            shape = (self.width, self.length)
            # Decay rates spread over one token to a thousand, phases over slow to one turn in six tokens.
            weights["log_rate"] = Weight(shape, "poles", log_uniform(1e-3, 1.0, torch.log))
            weights["angle"] = Weight(shape, "poles", normal(0.5))
            weights["residue_real"] = Weight(shape, "kernel", normal(0.5 * self.length**-0.5))
            weights["residue_imag"] = Weight(shape, "kernel", normal(0.5 * self.length**-0.5))
        else:
            weights["kernel"] = short_filter(self.width, self.length, "kernel")
        return weights | self.output_weights(self.d_model)

    def state(self) -> dict[str, StateEntry]:
        filters = {f"{g}_filter": StateEntry((CONV_LENGTH - 1, self.width), g) for g in self.filters}
        if self.implicit:
            entry = StateEntry((self.width, self.length), "b+h", role="recurrent")
            return filters | {"modes_real": entry, "modes_imag": entry}
        return filters | {"past": StateEntry((self.length - 1, self.width), "b+h")}

    def mixing_flops(self, seq_len: int) -> float:
        """Two gates, and the filter as executed: within a chunk, or its taps (those are counted as weights)."""
        gates = 2 * self.width
        return gates if not self.implicit else gates + self.width * (CHUNK + 8 * self.length)

    def decode_mixing_flops(self, seq_len: int) -> float:
        return 2 * self.width + (8 * self.width * self.length if self.implicit else 0)

    def build(self, given=frozenset(), tied=None) -> "Convolution":
        return Convolution(self, given, tied)


class Convolution(LIV):
    VALUE = "h"
    config: ConvolutionConfig

    def featurize(self, x: Tensor, state: State | None, given: Features, offset: int = 0) -> tuple[Features, State | None]:
        features = {}
        for gate in "bc":
            if gate in self.given:
                features[gate] = given[gate]
            else:
                features[gate], state = self.filtered(self.linear(x, gate), f"{gate}_filter", state)
        if self.config.implicit:
            for pole in ("log_rate", "angle"):
                features[pole] = given[pole] if "poles" in self.given else getattr(self, pole)[None]
        # What was convolved before this call belongs to whoever owns b * h; a consumer of both reads it from there.
        names = ("modes_real", "modes_imag") if self.config.implicit else ("past",)
        source = given if {"b", "h"} <= self.given else state
        features |= {name: source[name] for name in names if source is not None and name in source}
        return features, state

    def value(self, features: Features, x: Tensor, state: State | None, given: Features, offset: int = 0) -> tuple[Tensor, State | None]:
        if "h" in self.given:
            return given["h"], state
        return self.filtered(self.linear(x, "h"), "h_filter", state)

    def core(self, features: Features, value: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        u = features["b"] * value  # [B, T, W]
        if self.config.implicit:
            past = (features["modes_real"], features["modes_imag"]) if "modes_real" in features else None
            residues = (self.residue_real, self.residue_imag)
            y, modes = modal_convolution(u, features["log_rate"][0], features["angle"][0], *residues, past, state is not None)
            new = dict(zip(("modes_real", "modes_imag"), modes)) if modes is not None else {}
        else:
            y, past = short_convolution(u, self.kernel.to(u.dtype), features.get("past"))
            new = {"past": past}
        if state is not None:
            state = state | {name: t for name, t in new.items() if name in state}
        return features["c"] * y, state


def modal_convolution(
    u: Tensor, log_rate: Tensor, angle: Tensor, residue_real: Tensor, residue_imag: Tensor, past: tuple[Tensor, Tensor] | None = None, keep_state: bool = True
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """y_t = Re sum_m R_m s_t,m with s_t = lambda s_(t-1) + u_t and lambda = exp(-rate + i angle).

    Chunks of `CHUNK` tokens: a Toeplitz matrix per channel inside, one small matrix between them. Complex numbers are kept
    as two real tensors, and powers of lambda come from float64 exponents, or kernel, prefill and decode drift apart.

    Args: u [B, T, W]; poles and residues [W, M]; past: s of the token before u, two of [B, W, M].
    Returns: y [B, T, W] and s of the last token, or None unless `keep_state`.
    """
    batch, seq_len, width = u.shape
    dtype = torch.promote_types(u.dtype, torch.float32)
    if seq_len == 0:
        return u, past
    chunk = min(CHUNK, seq_len)
    n_chunks = -(-seq_len // chunk)
    last = seq_len - (n_chunks - 1) * chunk  # tokens in the last chunk
    x = F.pad(u, (0, 0, 0, n_chunks * chunk - seq_len)).to(dtype).view(batch, n_chunks, chunk, width)

    rate, phase = log_rate.double().exp(), angle.double()  # [W, M]
    steps = torch.arange(chunk + 1, device=u.device, dtype=torch.float64)[:, None, None]
    size = torch.exp(-rate * steps)
    real, imag = (size * torch.cos(phase * steps)).to(dtype), (size * torch.sin(phase * steps)).to(dtype)  # [Q + 1, W, M]
    # The filter and its Toeplitz matrix.
    kernel = (real[:-1] * residue_real - imag[:-1] * residue_imag).sum(-1).to(dtype)  # [Q, W]
    lag = torch.arange(chunk, device=u.device)[:, None] - torch.arange(chunk, device=u.device)[None, :]
    toeplitz = kernel.T[:, lag.clamp(min=0)] * (lag >= 0)  # [W, Q, Q]
    y = torch.einsum("wij,bnjw->bniw", toeplitz, x)
    if n_chunks == 1 and past is None and not keep_state:
        return y.flatten(1, 2)[:, :seq_len].to(u.dtype), None

    # State at the start of every chunk. A short last chunk is decayed by the tokens that it has.
    back_real, back_imag = real[:-1].flip(0), imag[:-1].flip(0)  # lambda^(Q - 1 - j)
    add_real, add_imag = torch.einsum("jwm,bnjw->nbwm", back_real, x), torch.einsum("jwm,bnjw->nbwm", back_imag, x)
    s_real = past[0].to(dtype) if past is not None else torch.zeros_like(add_real[0])
    s_imag = past[1].to(dtype) if past is not None else torch.zeros_like(add_imag[0])
    starts = []
    for n in range(n_chunks):
        starts.append((s_real, s_imag))
        if n < n_chunks - 1:
            s_real, s_imag = _rotate(s_real, s_imag, real[chunk], imag[chunk])
            s_real, s_imag = s_real + add_real[n], s_imag + add_imag[n]
    start_real, start_imag = (torch.stack(s, dim=1) for s in zip(*starts))  # [B, N, W, M]
    # y_i += Re sum_m R lambda^(i + 1) s_start
    out_real = real[1:] * residue_real - imag[1:] * residue_imag
    out_imag = imag[1:] * residue_real + real[1:] * residue_imag
    y = y + torch.einsum("iwm,bnwm->bniw", out_real.to(dtype), start_real) - torch.einsum("iwm,bnwm->bniw", out_imag.to(dtype), start_imag)
    y = y.flatten(1, 2)[:, :seq_len].to(u.dtype)
    if not keep_state:
        return y, None
    tail = x[:, -1, :last]
    tail_real, tail_imag = real[:last].flip(0), imag[:last].flip(0)
    s_real, s_imag = _rotate(s_real, s_imag, real[last], imag[last])
    s_real = s_real + torch.einsum("jwm,bjw->bwm", tail_real, tail)
    s_imag = s_imag + torch.einsum("jwm,bjw->bwm", tail_imag, tail)
    return y, (s_real.detach(), s_imag.detach())


def _rotate(real: Tensor, imag: Tensor, by_real: Tensor, by_imag: Tensor) -> tuple[Tensor, Tensor]:
    """Complex multiplication in two real tensors."""
    return real * by_real - imag * by_imag, real * by_imag + imag * by_real


def modal_kernel(log_rate: Tensor, angle: Tensor, residue_real: Tensor, residue_imag: Tensor, length: int) -> Tensor:
    """K_t for t < length, [W, length], in float64: the slow reference of `modal_convolution`."""
    t = torch.arange(length, dtype=torch.float64)
    size = torch.exp(-log_rate.double().exp()[..., None] * t)
    phase = angle.double()[..., None] * t
    return (size * (residue_real.double()[..., None] * torch.cos(phase) - residue_imag.double()[..., None] * torch.sin(phase))).sum(1)


def configure(operator: Operator, d_model: int, head_dim: int, rope_theta: float) -> ConvolutionConfig:
    kernel = operator.feature("kernel")
    filters = tuple(g for g in "bch" if operator.feature(g).token == 3)
    return ConvolutionConfig(d_model, operator.branches, kernel.expansion, operator.has("poles"), filters)


def _gate(meaning: str) -> GroupSpec:
    return GroupSpec(meaning + "; token mixing 3 adds a causal filter of length 3", token=(1, 3))


FAMILY = Family(
    name="convolution",
    equation="T_ij = C_i K_(i-j) B_j per channel",
    token=(3,),
    nonlinearity=(1,),
    channel=(1,),
    groups={
        "b": _gate("input gate: W_b x"),
        "c": _gate("output gate: W_c x"),
        "h": _gate("value path: W_h x"),
        "kernel": GroupSpec(
            "the filter of each channel: free taps, or with poles the residues of a modal sum",
            token=(3,),
            channel=(1,),
            expansion=(2, 3, 4, 5, 6, 7, 8, 16, 32),
            expansion_means="taps (explicit) or modes (implicit) per channel",
        ),
        "poles": GroupSpec("makes the filter implicit: decay and phase of each mode", token=(3,), channel=(1,), optional=True),
    },
    shareable=(("b",), ("h",), ("c",)),
    joint={frozenset({"b", "h"}): "poles"},
    configure=configure,
    why={
        "token": "a convolution is Toeplitz between its gates",
        "nonlinearity": "LFM2's gates have none; a nonlinearity on scores needs scores, which a filter has not",
        "channel": "each channel has its own filter; channel maps are the projections around it",
    },
)
