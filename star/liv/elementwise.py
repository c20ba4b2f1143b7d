"""Gated linear recurrence with one number of state per channel: T_ij = c_i a_i ... a_(j+1) b_j for j <= i.

    v     = W_v x  [a short causal convolution]       c = swish or GELU of W_c x
    log a = -8 softplus(L) sigmoid(W_a v + bias)      b = sqrt(1 - a^2) sigmoid(W_b v + bias)
    h_t   = a_t h_(t-1) + b_t v_t                     y = W_out . (c * h)

T is semi-separable of rank one and diagonal in channels. This is the RG-LRU of Griffin (arXiv 2402.19427, section 2.4).
W_a and W_b are block-diagonal, one block per head. They read the value, but only to make gates: for fixed gates y is
linear in x. As in the published code, the very first token of a sequence has a = 0.

Shapes: B batch, T tokens, W channels (of all branches), Q block, n blocks.
    x [B, T, D]   v, b, c, log decay g [B, T, W]   h [B, W]
`scan_reference`, `scan_parallel` and `scan_step` compute the same map in three ways, and are tested against each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.errors import UserError
from star.liv.base import (
    LIV,
    Features,
    LIVConfig,
    State,
    StateEntry,
    Weight,
    constant,
    inverse_softplus,
    matrix,
    short_filter,
)
from star.liv.functional import activate, chunk_of, kept, loops_over, padded
from star.liv.genes import Family, GroupSpec, Operator

ELEMENTWISE_FILTER = 4  # taps of the optional filter of v
SCAN_BLOCK = 8
SCAN_MIN_LOG_DECAY = -16.0  # a factor of 1e-7; exponents inside a block stay under 4 times this, which float32 takes
RATE = 8.0  # the constant c of the paper


@dataclass(frozen=True)
class ElementwiseConfig(LIVConfig):
    """Sizes of an element-wise recurrence."""

    n_heads: int  # blocks of the gate maps in one branch
    filtered: bool = False  # v passes a short convolution
    nonlinearity: str = "none"  # of the output gate

    @property
    def width(self) -> int:
        """Channels of all branches."""
        return self.branches * self.d_model

    def weights(self) -> dict[str, Weight]:
        weights = {g: matrix(self.width, self.d_model, g) for g in "cv"}
        if self.filtered:
            weights["v_filter"] = short_filter(self.width, ELEMENTWISE_FILTER, "v")
        for gate, group in (("input", "b"), ("decay", "decay")):
            # A block-diagonal map: its blocks [heads, head_dim, head_dim], one below the other.
            gate_map = matrix(self.width, self.d_model // self.n_heads, group)
            weights[f"{gate}_gate"] = gate_map._replace(of_input=False)  # it is applied to the value
            weights[f"{gate}_bias"] = Weight((self.width,), group, constant(0.0))
        weights["rate"] = Weight((self.width,), "decay", start_rate)
        return weights | self.output_weights(self.d_model)

    def state(self) -> dict[str, StateEntry]:
        filters = {"v_filter": StateEntry((ELEMENTWISE_FILTER - 1, self.width), "v")} if self.filtered else {}
        return filters | {"memory": StateEntry((self.width,), "b+v", role="recurrent")}

    def mixing_flops(self, seq_len: int) -> float:
        """Two multiply-adds per channel for the recurrence and two for the gates."""
        return 8 * self.width

    def decode_mixing_flops(self, seq_len: int) -> float:
        return 8 * self.width

    def build(self, given=frozenset(), tied=None) -> Elementwise:
        return Elementwise(self, given, tied)


def start_rate(w: Tensor, generator: torch.Generator) -> None:
    """Decays a between 0.9 and 0.999 where the gate is one."""
    w.copy_(inverse_softplus(-w.uniform_(0.9, 0.999, generator=generator).log() / RATE))


class Elementwise(LIV):
    """A gated recurrence with one number of state per channel."""

    MAPS = ("v", "c")
    VALUE = "v"
    config: ElementwiseConfig
    rate: nn.Parameter

    def features_of(
        self, h: dict[str, Tensor], state: State | None, given: Features, offset: int
    ) -> tuple[Features, State | None]:
        features = {"c": given["c"] if "c" in self.given else activate(h["c"], self.config.nonlinearity)}
        v = h["v"] if "v" in h else given["v"]
        if "decay" in self.given:
            features["decay"] = given["decay"]
        else:
            gate = self.head_gate(v, "decay")
            features["decay"] = (-RATE * F.softplus(self.rate.to(gate.dtype)) * gate).clamp(min=SCAN_MIN_LOG_DECAY)
        if "b" in self.given:
            features["b"] = given["b"]
        else:
            first = torch.zeros(v.shape[1], 1, dtype=features["decay"].dtype, device=v.device)
            if "padding" in given:
                place = torch.arange(offset, offset + v.shape[1], device=v.device)
                first = torch.where((place == given["padding"][:, None])[..., None], -100.0, first)
            else:
                first[: int(offset == 0)] = -100.0  # the very first token: a = 0
            size = -torch.expm1(torch.add(first, features["decay"], alpha=2))  # 1 - a^2
            features["b"] = self.head_gate(v, "input") * size.clamp(min=1e-8).sqrt()
        # The state belongs to the LIV that owns b and v; one that is given both reads the provider's.
        source = given if {"b", "v"} <= self.given else state
        if source is not None and "memory" in source:
            features["memory"] = source["memory"]
        return features, state

    def head_gate(self, v: Tensor, name: str) -> Tensor:
        """sigmoid(W v + bias) with W block-diagonal, in float32 or wider: [B, T, W] -> [B, T, W]."""
        weight = getattr(self, f"{name}_gate").to(v.dtype)
        blocks = weight.view(-1, weight.shape[1], weight.shape[1])  # [heads, out, in]
        h = torch.einsum("bthi,hoi->btho", v.unflatten(-1, (len(blocks), -1)), blocks).flatten(-2)
        return torch.sigmoid(h.to(torch.promote_types(v.dtype, torch.float32)) + getattr(self, f"{name}_bias"))

    def value(
        self, features: Features, h: Tensor | None, state: State | None, given: Features, offset: int
    ) -> tuple[Tensor, State | None]:
        return (given["v"] if h is None else h), state

    def core(self, features: Features, value: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        u, memory = features["b"] * value, features.get("memory")
        one = value.shape[1] == 1 and memory is not None
        if one:
            h, memory = scan_step(u, features["decay"], features["memory"])
        else:
            h, memory = scan_parallel(u, features["decay"], memory)
        if state is not None and "memory" in state:
            state = state | {"memory": kept(memory)}
        return features["c"] * h.to(value.dtype), state


def scan_reference(u: Tensor, g: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Token by token, the definition. Arguments as in `scan_parallel`."""
    memory = torch.zeros_like(u[:, 0]) if memory is None else memory
    out = []
    for t in range(u.shape[1]):
        h, memory = scan_step(u[:, t : t + 1], g[:, t : t + 1], memory)
        out.append(h)
    return torch.cat(out, dim=1) if out else u, memory


def scan_step(u: Tensor, g: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """One token: h <- exp(g) h + u. Shapes as in `scan_parallel` with T = 1."""
    memory = g[:, 0].exp() * memory + u[:, 0].to(memory.dtype)
    return memory[:, None], memory


def scan_parallel(u: Tensor, g: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """h_t = exp(g_t) h_(t-1) + u_t for the whole sequence, of any length.

    Args: u, g [B, T, W] in float32 or wider, g in [SCAN_MIN_LOG_DECAY, 0]; memory [B, W], the h before.
    Returns: h [B, T, W], and h of the last token.
    """
    if u.shape[1] == 0:
        return u, u.new_zeros(u.shape[0], u.shape[2]) if memory is None else memory
    h = Scan.apply(u, g, torch.zeros_like(u[:, 0]) if memory is None else memory.to(u.dtype))
    return h, h[:, -1]


class Scan(torch.autograd.Function):
    """h_t = exp(g_t) h_(t-1) + u_t. The backward runs it from the end: d_t = exp(g_(t+1)) d_(t+1) + dh_t."""

    @staticmethod
    def forward(u: Tensor, g: Tensor, start: Tensor) -> Tensor:
        return blockwise_scan(u, g, start)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2], output)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u, g, h = ctx.saved_tensors
        following = F.pad(g[:, 1:], (0, 0, 0, 1))
        du = blockwise_scan(dh.flip(1), following.flip(1), torch.zeros_like(dh[:, 0])).flip(1)
        return du, du * (h - u), g[:, 0].exp() * du[:, 0]  # h_t - u_t is exp(g_t) h_(t-1)


def blockwise_scan(u: Tensor, g: Tensor, start: Tensor) -> Tensor:
    """`scan_parallel` without its backward; same arguments.

    In a block h = e^(s - m) cumsum(u / e^(s - m)), with s the cumulative log decay and m its value at the middle token.
    The ends of the blocks are then scanned by doubling (Hillis and Steele), and added to the tokens of the next block.
    """
    seq_len = u.shape[1]
    block = chunk_of(SCAN_BLOCK, seq_len)
    n_blocks = -(-seq_len // block)
    loops_over(n_blocks, "the elementwise recurrence")
    u, g = (padded(t, n_blocks * block).unflatten(1, (n_blocks, block)) for t in (u, g))  # [B, n, Q, W]
    sums = g.cumsum(2)  # [B, n, Q, W]
    size = (sums - sums[:, :, block // 2, None]).exp_()
    h = (u / size).cumsum(2).mul_(size)
    # `start` is the end of a block before the first.
    ends = torch.cat([start[:, None], h[:, :-1, -1]], dim=1)  # [B, n, W]
    decay = torch.cat([torch.zeros_like(start[:, None]), sums[:, :-1, -1].exp()], dim=1)
    step = 1
    while step < n_blocks:
        ends = torch.cat([ends[:, :step], torch.addcmul(ends[:, step:], decay[:, step:], ends[:, :-step])], dim=1)
        decay = torch.cat([decay[:, :step], decay[:, step:] * decay[:, :-step]], dim=1)
        step *= 2
    return h.addcmul_(sums.exp_(), ends[:, :, None]).flatten(1, 2)[:, :seq_len]


def configure(operator: Operator, d_model: int, head_dim: int, rope_theta: float) -> ElementwiseConfig:
    """The sized operator. Raises UserError if it does not fit the width."""
    if d_model % head_dim:
        raise UserError(f"elementwise: width {d_model} is no multiple of head width {head_dim}; choose a width that is")
    nonlinearity = {1: "none", 4: "swish", 5: "gelu"}[operator.genes.nonlinearity]
    filtered = operator.feature("v").token == 3
    return ElementwiseConfig(d_model, operator.branches, d_model // head_dim, filtered, nonlinearity)


FAMILY = Family(
    name="elementwise",
    equation="T_ij = C_i a_i ... a_(j+1) B_j per channel",
    token=(4,),
    nonlinearity=(1, 4, 5),
    channel=(1,),
    groups={
        "b": GroupSpec("input gate, from the value: one block per head", channel=(3,)),
        "c": GroupSpec("output gate: W_c x after the nonlinearity"),
        "v": GroupSpec("value path: W_v x; token mixing 3 adds a causal filter of length 4", token=(1, 3)),
        "decay": GroupSpec("decay per channel, its gate from the value: one block per head", channel=(3,)),
    },
    shareable=(("b",), ("v", "decay"), ("c",)),
    sharing_genes=("nonlinearity",),
    configure=configure,
    why={
        "token": "a product of gates between two tokens is semi-separable",
        "nonlinearity": "it acts on the output gate; the recurrence itself is linear",
        "channel": "each channel has a state and decays of its own",
    },
)
