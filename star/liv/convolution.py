"""Gated convolution: T_ij = c_i K_(i-j) b_j, a Toeplitz matrix scaled by row and column, diagonal in channels.

    b, c, h = W_b x, W_c x, W_h x       [a short causal convolution on each]
    y       = W_out . (c * causal_convolution(K, b * h))

K is one filter per channel, and there are two kinds. Explicit: `expansion` free taps, the block of LFM2 (arXiv
2511.23404). Implicit (with the group "poles"): a sum of `expansion` modes, K_t = Re sum_m R_m lambda_m^t with
|lambda_m| < 1. It is as long as the sequence, and decodes exactly with one complex number of state per mode (Laughing
Hyena, arXiv 2310.18780).

Shapes: B batch, T tokens, D channels of x, W channels of all branches, M modes, Q chunk, n chunks.
    x [B, T, D]   b, c, h [B, T, W]   explicit filter [W, k]   poles and residues [W, M]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from star.liv.base import LIV, Features, LIVConfig, State, StateEntry, Weight, log_uniform, matrix, normal, short_filter
from star.liv.functional import chunk_of, kept, loops_over, padded, short_convolution
from star.liv.genes import Family, GroupSpec, Operator

CONVOLUTION_FILTER = 3  # taps of the optional filters of b, c and h
MODAL_CHUNK = 64  # tokens
MODAL_CHUNK_ON = {"cpu": 32}  # measured
MODAL_CHUNK_SHORT, MODAL_SHORT = 16, 128  # the chunk of sequences up to 128 tokens (measured)


@dataclass(frozen=True)
class ConvolutionConfig(LIVConfig):
    """Sizes of a gated convolution."""

    length: int  # taps of the explicit filter, or modes of the implicit one
    implicit: bool
    filters: tuple[str, ...] = ()  # which of b, c, h pass a short convolution

    @property
    def width(self) -> int:
        """Channels of all branches."""
        return self.branches * self.d_model

    def weights(self) -> dict[str, Weight]:
        weights = {g: matrix(self.width, self.d_model, g) for g in "bch"}
        weights |= {f"{g}_filter": short_filter(self.width, CONVOLUTION_FILTER, g) for g in self.filters}
        if self.implicit:
            shape = (self.width, self.length)
            # Time constants from one token to a thousand; frequencies from zero to about one turn in six tokens.
            weights["log_rate"] = Weight(shape, "poles", log_uniform(1e-3, 1.0, torch.log))
            weights["angle"] = Weight(shape, "poles", normal(0.5))
            weights["residue_real"] = Weight(shape, "kernel", normal(0.5 * self.length**-0.5))
            weights["residue_imag"] = Weight(shape, "kernel", normal(0.5 * self.length**-0.5))
        else:
            weights["kernel"] = short_filter(self.width, self.length, "kernel")
        return weights | self.output_weights(self.d_model)

    def state(self) -> dict[str, StateEntry]:
        filters = {f"{g}_filter": StateEntry((CONVOLUTION_FILTER - 1, self.width), g) for g in self.filters}
        if self.implicit:
            entry = StateEntry((self.width, self.length), "b+h", role="recurrent")
            return filters | {"modes_real": entry, "modes_imag": entry}
        return filters | {"past": StateEntry((self.length - 1, self.width), "b+h")}

    def mixing_flops(self, seq_len: int) -> float:
        """Two gates, and an implicit filter as executed: in chunks. Explicit taps are counted as weights."""
        modes = 2 * min(MODAL_CHUNK, seq_len) + 8 * self.length if self.implicit else 0
        return self.width * (2 + modes)

    def decode_mixing_flops(self, seq_len: int) -> float:
        return 2 * self.width + (8 * self.width * self.length if self.implicit else 0)

    def build(self, given=frozenset(), tied=None) -> Convolution:
        return Convolution(self, given, tied)


class Convolution(LIV):
    """A gated convolution with explicit taps or with modes."""

    MAPS = ("b", "c", "h")
    VALUE = "h"
    config: ConvolutionConfig
    kernel: nn.Parameter
    residue_real: nn.Parameter
    residue_imag: nn.Parameter

    def features_of(
        self, h: dict[str, Tensor], state: State | None, given: Features, offset: int
    ) -> tuple[Features, State | None]:
        features = {gate: given[gate] if gate in self.given else h[gate] for gate in "bc"}
        if self.config.implicit:
            for pole in ("log_rate", "angle"):
                features[pole] = given[pole] if "poles" in self.given else getattr(self, pole)[None]
        # The state belongs to the LIV that owns b and h; one that is given both reads the provider's.
        names = ("modes_real", "modes_imag") if self.config.implicit else ("past",)
        source = given if {"b", "h"} <= self.given else state
        features |= {name: source[name] for name in names if source is not None and name in source}
        return features, state

    def value(
        self, features: Features, h: Tensor | None, state: State | None, given: Features, offset: int
    ) -> tuple[Tensor, State | None]:
        return (given["h"] if h is None else h), state

    def core(self, features: Features, value: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        u = features["b"] * value  # [B, T, W]
        if self.config.implicit:
            filters = (features["log_rate"][0], features["angle"][0], self.residue_real, self.residue_imag)
            past = (features["modes_real"], features["modes_imag"]) if "modes_real" in features else None
            keep = state is not None and "modes_real" in state
            modes: tuple[Tensor, Tensor] | None
            if u.shape[1] == 1 and past is not None:
                y, modes = modal_step(u, *filters, past)
            else:
                y, modes = modal_convolution(u, *filters, past, keep)
            new = dict(zip(("modes_real", "modes_imag"), modes)) if keep and modes is not None else {}
        else:
            y, inputs = short_convolution(u, self.kernel.to(u.dtype), features.get("past"))
            new = {"past": inputs}
        if state is not None:
            state = state | {name: kept(t) for name, t in new.items() if name in state}
        return features["c"] * y, state


def modal_step(
    u: Tensor, log_rate: Tensor, angle: Tensor, residue_real: Tensor, residue_imag: Tensor, past: tuple[Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One token: s <- lambda s + u, y = Re sum_m R_m s_m. Arguments as in `modal_convolution` with T = 1."""
    dtype = past[0].dtype
    by_real, by_imag = (power[..., 1] for power in mode_powers(log_rate, angle, 2, dtype))
    real = past[0] * by_real - past[1] * by_imag + u[:, 0, :, None].to(dtype)
    imag = past[0] * by_imag + past[1] * by_real
    y = (real * residue_real - imag * residue_imag).sum(-1)
    return y[:, None].to(u.dtype), (real.detach(), imag.detach())


def modal_convolution(
    u: Tensor,
    log_rate: Tensor,
    angle: Tensor,
    residue_real: Tensor,
    residue_imag: Tensor,
    past: tuple[Tensor, Tensor] | None = None,
    keep_state: bool = True,
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """y_t = Re sum_m R_m s_(t,m) with s_t = lambda s_(t-1) + u_t and lambda = exp(-rate + i angle), for any length.

    Inside a chunk it is a Toeplitz matrix per channel; between chunks only the states s pass. Complex numbers are two
    real tensors. Powers of lambda are computed in float64, otherwise kernel, prefill and decoding would drift apart.

    Args: u [B, T, W]; poles and residues [W, M]; past: s of the token before u, two of [B, W, M].
    Returns: y [B, T, W] and s of the last token, or None unless `keep_state`.
    """
    batch, seq_len, width = u.shape
    dtype = torch.promote_types(u.dtype, torch.float32)
    if seq_len == 0:
        return u, past
    chunk = MODAL_CHUNK_SHORT if seq_len <= MODAL_SHORT else MODAL_CHUNK_ON.get(u.device.type, MODAL_CHUNK)
    chunk = chunk_of(chunk, seq_len)
    n_chunks = -(-seq_len // chunk)
    loops_over(n_chunks, "the modal convolution")
    missing = n_chunks * chunk - seq_len
    x = padded(u, n_chunks * chunk).to(dtype)
    x = x.flatten(0, 1).t().contiguous().view(width, batch * n_chunks, chunk)  # transposing a matrix is the fast way

    powers = mode_powers(log_rate, angle, chunk + 1, dtype)  # [W, M, Q + 1] each
    filters = complex_product(*powers, residue_real[..., None].to(dtype), residue_imag[..., None].to(dtype))
    # y_i = sum_j K_(i - j) u_j: the rows of this Toeplitz matrix, last to first, are the sliding windows of K.
    kernel = F.pad(filters[0][..., :-1].sum(1), (chunk - 1, 0))
    toeplitz = kernel.unfold(1, chunk, 1).flip(1)  # [W, Q (j), Q (i)]
    if n_chunks == 1 and past is None and not keep_state:
        return from_channels(x @ toeplitz, batch, seq_len).to(u.dtype), None

    # The state at the start of every chunk: s <- lambda^Q s + sum_j lambda^(Q - 1 - j) u_j.
    inward = torch.cat([power[..., :-1] for power in powers], dim=1).flip(2).mT  # [W, Q, 2 M]
    added = (x @ inward).view(width, batch, n_chunks, 2, -1)
    over = torch.stack([power[..., -1] for power in powers], dim=1)  # lambda^Q, [W, 2, M]
    start = torch.zeros_like(added[:, :, 0]) if past is None else torch.stack(past, dim=2).to(dtype).transpose(0, 1)
    states = ModeStates.apply(over, added[:, :, :-1], start)  # [W, B, n, 2, M]
    # It adds Re sum_m R lambda^(i + 1) s to y_i.
    outward = torch.cat([filters[0][..., 1:], -filters[1][..., 1:]], dim=1)  # [W, 2 M, Q]
    y = torch.baddbmm(x @ toeplitz, rearrange(states, "w b n c m -> w (b n) (c m)"), outward)
    y = from_channels(y, batch, seq_len).to(u.dtype)
    if not keep_state:
        return y, None
    last = chunk - missing  # tokens in the last chunk
    tail = x.view(width, batch, n_chunks, chunk)[:, :, -1, :last] @ inward[:, missing:]  # [W, B, 2 M]
    real, imag = complex_product(*states[:, :, -1].unbind(2), *(power[:, None, :, last] for power in powers))
    real, imag = (part + new for part, new in zip((real, imag), tail.chunk(2, dim=2)))
    return y, (real.transpose(0, 1).detach(), imag.transpose(0, 1).detach())


def from_channels(y: Tensor, batch: int, seq_len: int) -> Tensor:
    """[W, B n, Q] -> [B, T, W], without the padding at the end."""
    return y.flatten(1).t().contiguous().view(batch, -1, y.shape[0])[:, :seq_len]


class ModeStates(torch.autograd.Function):
    """s_0 = start, s_(n+1) = a s_n + added_n, chunk after chunk, forward and backward.

    a [W, 2, M], added [W, B, n, 2, M], start [W, B, 2, M] -> s [W, B, n + 1, 2, M], all complex, with the real and the
    imaginary part in the dimension of 2.
    """

    @staticmethod
    def forward(a: Tensor, added: Tensor, start: Tensor) -> Tensor:
        a, added, start = (torch.complex(*t.unbind(-2)) for t in (a, added, start))
        states = [start]
        for new in added.unbind(2):
            states.append(torch.addcmul(new, a[:, None], states[-1]))
        all_states = torch.stack(states, dim=2)
        return torch.stack([all_states.real, all_states.imag], dim=-2)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, states = ctx.saved_tensors
        conjugate = torch.complex(a[:, 0], -a[:, 1])[:, None]
        each = torch.complex(*d_states.unbind(-2)).unbind(2)
        sums = [each[-1]]
        for d_state in each[-2::-1]:
            sums.append(torch.addcmul(d_state, conjugate, sums[-1]))
        total = torch.stack(sums[::-1], dim=2)  # of start, then of everything added
        past = torch.complex(states[..., 0, :], -states[..., 1, :])[:, :, :-1]
        d_a = (total[:, :, 1:] * past).sum((1, 2))
        d_a, d_added, d_start = (torch.stack([t.real, t.imag], dim=-2) for t in (d_a, total[:, :, 1:], total[:, :, 0]))
        return d_a, d_added, d_start


def mode_powers(log_rate: Tensor, angle: Tensor, n_powers: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of lambda^t for t < n_powers, each [W, M, n_powers], computed in float64."""
    steps = torch.arange(n_powers, device=angle.device, dtype=torch.float64)
    size, phase = torch.exp(-log_rate.double().exp()[..., None] * steps), angle.double()[..., None] * steps
    return (size * phase.cos()).to(dtype), (size * phase.sin()).to(dtype)


def complex_product(real: Tensor, imag: Tensor, by_real: Tensor, by_imag: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of (a + ib)(c + id)."""
    return real * by_real - imag * by_imag, real * by_imag + imag * by_real


def modal_kernel(log_rate: Tensor, angle: Tensor, residue_real: Tensor, residue_imag: Tensor, length: int) -> Tensor:
    """K_t for t < length, float64 [W, length]: the definition of the filter."""
    real, imag = mode_powers(log_rate, angle, length, torch.float64)
    return (real * residue_real.double()[..., None] - imag * residue_imag.double()[..., None]).sum(1)


def configure(operator: Operator, d_model: int, head_dim: int, rope_theta: float) -> ConvolutionConfig:
    """The sized operator. Raises UserError if it does not fit the width."""
    length = operator.feature("kernel").expansion
    filters = tuple(g for g in "bch" if operator.feature(g).token == 3)
    return ConvolutionConfig(d_model, operator.branches, length, operator.has("poles"), filters)


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
        "poles": GroupSpec(
            "makes the filter implicit: decay and phase of each mode", token=(3,), channel=(1,), optional=True
        ),
    },
    shareable=(("b",), ("h",), ("c",)),
    joint={frozenset({"b", "h"}): "poles"},
    configure=configure,
    why={
        "token": "a convolution is Toeplitz between its gates",
        "nonlinearity": "the gates of LFM2 have none; a nonlinearity acts on scores, and a filter has no scores",
        "channel": "each channel has its own filter; channel maps are the projections around it",
    },
)
