"""Linear recurrence with a matrix state: T_ij = c_i^T A_i ... A_(j+1) b_j for j <= i, one T per head.

    b, c, v = W_b x, W_c x, W_v x       [a short causal convolution on each]   [swish on each]
    S_t     = A_t S_(t-1) + b_t v_t^T            y_t = S_t^T c_t [+ skip v_t]   [gate and norm: `star.liv.readout`]

All channels of a head share b, c and A, so T mixes no channels. T is sequentially semi-separable: every block below its
diagonal has the state size N as rank, so a state of N x P numbers is all that decoding has to keep. The transition A
makes the operator. Each kind is computed in a file of its own:

    A = 1                       no decay: linear attention, low rank under the causal mask         ssd.py
    A = exp(-exp(r) dt_t)       one decay per head, and dt_t b_t in place of b_t: Mamba-2          ssd.py
    A = diag(exp(g_t))          one decay per state channel: gated linear attention                vector_gate.py
    A = a_t (I - beta b b^T)    (gated) delta rule: beta_t b_t in place of b_t, |b| = |c| = 1      delta.py
        ... with A = (I - beta b b^T) diag(exp(-exp(r) dt_t)), dt_t per state channel: Kimi delta attention

dt = softplus(W_dt x + bias), g = logsigmoid(W_dt x + bias) / 16, beta = sigmoid(W_beta x), or twice that: then A may
have an eigenvalue below 0 and turn a memory around (arXiv 2411.12537). Swish keeps the value path linear: swish(u) is
the feature sigmoid(u) times u.

Shapes: B batch, T tokens, H heads (of all branches), G groups of heads that share b and c, N state size, P head width.
    x [B, T, D]   b, c [B, T, G, N]   v [B, T, H, P]   dt, decay, beta [B, T, H]   S [B, H, N, P]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.liv.backends import fastest
from star.liv.base import (
    Features,
    State,
    StateEntry,
    Weight,
    constant,
    inverse_softplus,
    log_uniform,
    low_rank,
    matrix,
    short_filter,
)
from star.liv.delta import DELTA_CHUNK, delta_parallel, delta_step
from star.liv.functional import activate, kept
from star.liv.genes import Family, GroupSpec, Operator, Rule, count_heads
from star.liv.readout import READOUT_GROUPS, Readout, ReadoutConfig, readout_genes
from star.liv.ssd import SSD_CHUNK, ssd_parallel, ssd_step
from star.liv.vector_gate import VECTOR_BLOCK, VECTOR_MIN_LOG_DECAY, vector_gate_parallel, vector_gate_step

RECURRENCE_FILTER = 4  # taps of the optional filters of b, c and v
MIN_LOG_DECAY = -20.0  # a factor of 2e-9 forgets everything, and float32 differences of cumulative sums stay accurate


@dataclass(frozen=True)
class RecurrenceConfig(ReadoutConfig):
    """Sizes of a recurrence with a matrix state: heads, state size N, head width P."""

    n_heads: int  # of one branch
    n_groups: int  # heads / n_groups heads share b and c
    head_dim: int
    state_size: int
    filters: tuple[str, ...] = ()  # which of b, c, v pass a short convolution
    decay: str = "scalar"  # "none", "scalar" per head, or one per state channel: "vector" of GLA, "rates" of KDA
    decay_rank: int = 0  # channels that the map of the decays goes through; 0: it is one matrix
    delta: float = 0.0  # the greatest strength of the delta rule; 0: none
    skip: bool = False
    nonlinearity: str = "none"  # of b, c and v

    @property
    def heads(self) -> int:
        """Heads of all branches."""
        return self.branches * self.n_heads

    @property
    def norm_width(self) -> int:
        return self.head_dim if self.norm == "heads" else self.n_heads // self.n_groups * self.head_dim

    @property
    def usual_size(self) -> float:
        swish = 0.2 if self.nonlinearity == "swish" else 1.0  # of the product of b, c and v, if each was of size 1
        if self.delta:  # beta (c . b) v / sqrt(N), with b and c of length 1
            return swish * self.delta / 2 / self.state_size
        if self.decay == "scalar":  # dt (c . b) v, and v itself with a skip
            return 0.0 if self.skip else swish * 0.01 * self.state_size**0.5
        return swish  # (c . b) v / sqrt(N)

    def width(self, group: str) -> int:
        """Channels of b, c or v, of all branches."""
        return self.branches * (self.n_heads * self.head_dim if group == "v" else self.n_groups * self.state_size)

    def weights(self) -> dict[str, Weight]:
        weights = {g: matrix(self.width(g), self.d_model, g) for g in "bcv"}
        weights |= {f"{g}_filter": short_filter(self.width(g), RECURRENCE_FILTER, g) for g in self.filters}
        if self.decay != "none":
            n = self.heads * (1 if self.decay == "scalar" else self.state_size)
            if self.decay_rank:
                weights |= low_rank("dt", n, self.decay_rank, self.d_model, "decay")
            else:
                weights["dt"] = matrix(n, self.d_model, "decay")
            # As in Mamba-2: steps of 1/1000 to 1/10 and rates of 1 to 16, time constants of under 1 to 1000 tokens.
            steps = constant(0.0) if self.decay == "vector" else log_uniform(1e-3, 1e-1, inverse_softplus)
            weights["dt_bias"] = Weight((n,), "decay", steps)
        if self.decay in ("scalar", "rates"):
            weights["log_rate"] = Weight((self.heads,), "decay", log_uniform(1.0, 16.0, torch.log))
        if self.delta:
            weights["beta"] = matrix(self.heads, self.d_model, "beta")
        if self.skip:
            weights["skip"] = Weight((self.heads,), "skip", constant(1.0))
        width = self.n_heads * self.head_dim
        return weights | self.readout_weights(width) | self.output_weights(width)

    def state(self) -> dict[str, StateEntry]:
        filters = {f"{g}_filter": StateEntry((RECURRENCE_FILTER - 1, self.width(g)), g) for g in self.filters}
        return filters | {"memory": StateEntry((self.heads, self.state_size, self.head_dim), "b+v", role="recurrent")}

    def mixing_flops(self, seq_len: int) -> float:
        """As executed, per head and token: scores and their product with v in a chunk of Q, states in and out."""
        state, width = self.state_size, self.head_dim
        if self.delta:
            chunk = min(DELTA_CHUNK, seq_len)
            # Two score matrices (for decays per channel only their lower halves), one inverse, two products in the
            # chunk, three with the state.
            scores = 2 if self.decay == "rates" else 4
            return self.heads * (scores * chunk * state + chunk * chunk + 4 * chunk * width + 6 * state * width)
        chunk = min(VECTOR_BLOCK if self.decay == "vector" else SSD_CHUNK, seq_len)
        scores = 2 * chunk * state * self.branches * (self.n_groups if self.decay != "vector" else self.n_heads)
        return scores + self.heads * width * (2 * chunk + 4 * state)

    def decode_mixing_flops(self, seq_len: int) -> float:
        return self.heads * (8 if self.delta else 5) * self.state_size * self.head_dim

    def build(self, given=frozenset(), tied=None) -> Recurrence:
        return Recurrence(self, given, tied)


class Recurrence(Readout):
    """A linear recurrence with a matrix state."""

    MAPS = ("b", "c", "v", "dt", "dt_low", "beta", "z", "z_low")
    VALUE = "v"
    config: RecurrenceConfig
    dt_bias: nn.Parameter
    log_rate: nn.Parameter
    skip: nn.Parameter

    def features_of(
        self, h: dict[str, Tensor], state: State | None, given: Features, offset: int
    ) -> tuple[Features, State | None]:
        config, features = self.config, self.gate(h)
        for group in "bc":
            features[group] = given[group] if group in self.given else self.key(h[group], group)
        if "decay" in self.given:
            features |= {name: given[name] for name in ("dt", "decay") if name in given}
        elif config.decay != "none":
            features |= self.decays(self.mapped(h, "dt"))
        if config.delta:
            features["beta"] = given["beta"] if "beta" in self.given else self.strength(h["beta"])
        if config.nonlinearity == "swish" and "v" in h:
            features["v_gate"] = torch.sigmoid(h["v"])
        # The state belongs to the LIV that owns b and v; one that is given both reads the provider's.
        source = given if {"b", "v"} <= self.given else state
        if source is not None and "memory" in source:
            features["memory"] = source["memory"]
        return features, state

    def key(self, h: Tensor, group: str) -> Tensor:
        """b or c from its linear map: [B, T, G N] -> [B, T, G, N]."""
        config = self.config
        h = activate(h, config.nonlinearity).unflatten(-1, (-1, config.state_size))
        if config.delta:
            h = h * (h.square().sum(-1, keepdim=True, dtype=wide(h)) + 1e-6).rsqrt().to(h.dtype)
        is_score = group == "c" and (config.delta or config.decay != "scalar")
        return h * config.state_size**-0.5 if is_score else h

    def decays(self, h: Tensor) -> Features:
        """The log decays of every token from their linear map, and dt of Mamba-2."""
        h = h.to(wide(h)) + self.dt_bias
        if self.config.decay == "vector":
            decay = F.logsigmoid(h) / 16  # gated linear attention (arXiv 2312.06635), section 4.4
            return {"decay": decay.clamp(min=VECTOR_MIN_LOG_DECAY).unflatten(-1, (-1, self.config.state_size))}
        dt = F.softplus(h)
        if self.config.decay == "rates":
            g = -self.log_rate.exp()[:, None] * dt.unflatten(-1, (-1, self.config.state_size))
            return {"decay": g.clamp(min=MIN_LOG_DECAY)}
        return {"dt": dt, "decay": (-self.log_rate.exp() * dt).clamp(min=MIN_LOG_DECAY)}

    def strength(self, h: Tensor) -> Tensor:
        """beta of the delta rule from its linear map, in (0, config.delta)."""
        beta = torch.sigmoid(h.to(wide(h)))
        return beta if self.config.delta == 1.0 else self.config.delta * beta

    def value(
        self, features: Features, h: Tensor | None, state: State | None, given: Features, offset: int
    ) -> tuple[Tensor, State | None]:
        if h is None:
            return given["v"], state
        return self.unflatten_value(h * features["v_gate"] if "v_gate" in features else h), state

    def core(self, features: Features, value: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        config, memory = self.config, features.get("memory")
        keep = state is not None and "memory" in state
        one = value.shape[1] == 1 and memory is not None
        b, c, g = features["b"], features["c"], features.get("decay")
        if (config.delta or config.decay == "vector") and config.n_groups < config.n_heads:
            b, c = (t.repeat_interleave(config.n_heads // config.n_groups, dim=2) for t in (b, c))
        inputs: tuple[Tensor | None, ...]
        parallel: Callable[..., tuple[Tensor, Tensor | None]]
        step: Callable[..., tuple[Tensor, Tensor]]
        if config.delta:
            name = {"none": "delta", "scalar": "gated delta", "rates": "channel delta"}[config.decay]
            parallel, step = delta_parallel, delta_step
            inputs = (c, b, value, g, features["beta"], memory)
        elif config.decay == "vector":
            name, parallel, step, inputs = "vector", vector_gate_parallel, vector_gate_step, (c, b, value, g, memory)
        else:
            v = value * features["dt"][..., None].to(value.dtype) if "dt" in features else value
            name, parallel, step, inputs = "scalar", ssd_parallel, ssd_step, (c, b, v, g, memory)
        y, memory = step(*inputs) if one else fastest(name, parallel, b, value)(*inputs, keep)
        if config.skip:
            y = y + self.skip.to(value.dtype)[:, None] * value
        if state is not None and keep and memory is not None:
            state = state | {"memory": kept(memory)}
        return y.flatten(2), state

    def unflatten_value(self, value: Tensor) -> Tensor:
        return value.unflatten(-1, (-1, self.config.head_dim))


def wide(x: Tensor) -> torch.dtype:
    """The dtype of gates and states: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def configure(operator: Operator, d_model: int, head_dim: int, rope_theta: float) -> RecurrenceConfig:
    """The sized operator. Raises UserError if it does not fit the width."""
    width, decay = d_model * operator.feature("v").expansion, operator.feature("decay")
    n_heads, n_groups = count_heads("recurrence", width, head_dim, operator.feature("b").repeat)
    return RecurrenceConfig(
        d_model,
        operator.branches,
        n_heads,
        n_groups,
        head_dim,
        state_size=operator.feature("b").expansion or head_dim,
        filters=tuple(g for g in "bcv" if operator.feature(g).token == 3),
        decay={0: "none", 2: "rates" if operator.has("beta") else "vector", 3: "scalar"}[decay.channel],
        decay_rank=head_dim if operator.has("decay") and decay.expansion == 0 else 0,
        delta=float(operator.feature("beta").expansion),
        skip=operator.has("skip"),
        nonlinearity={1: "none", 4: "swish"}[operator.genes.nonlinearity],
        **readout_genes(operator, head_dim),
    )


_STATE: dict[str, Any] = dict(
    token=(1, 3),
    expansion=(1, 2, 4, 8, 16, 32, 64, 128, 0),
    repeat=(1, 2, 4, 8, 0),
    expansion_means="state size N per channel, 0: as wide as a head",
)
FAMILY = Family(
    name="recurrence",
    equation="T_ij = C_i A_i ... A_(j+1) B_j per head",
    token=(4, 2),
    nonlinearity=(1, 4),
    channel=(1,),
    groups={
        "b": GroupSpec(
            "input map B: where a value enters the state; token mixing 3 adds a causal filter of length 4; repeat r: r "
            "heads share it, 0: all heads do",
            **_STATE,
        ),
        "c": GroupSpec("output map C: where the state is read; token mixing and repeat as for b", **_STATE),
        "v": GroupSpec("value path: W_v x; token mixing as for b", token=(1, 3), expansion=(1, 2)),
        "decay": GroupSpec(
            "decay of the state: channel mixing 3 one per head, 2 one per state channel",
            channel=(3, 2),
            expansion=(1, 0),
            optional=True,
            expansion_means="1 by one map of x; 0 by a map through as many channels as a head has",
        ),
        "beta": GroupSpec(
            "strength of the delta rule, one per head: how much of the value held for b is replaced",
            channel=(3,),
            expansion=(1, 2),
            optional=True,
            expansion_means="the greatest strength; 2 allows eigenvalues below 0 (arXiv 2411.12537)",
        ),
        "skip": GroupSpec(
            "adds the value itself to the output, times one number per head", channel=(3,), optional=True
        ),
        **READOUT_GROUPS,
    },
    shareable=(("b", "beta"), ("v", "decay"), ("c",)),
    sharing_genes=("nonlinearity",),
    configure=configure,
    rules=(
        Rule.equal("b.expansion", "c.expansion", "both are the state size"),
        Rule.equal("b.repeat", "c.repeat", "a head reads the state that it writes"),
        Rule(
            "token",
            "decay",
            lambda o: o.has("beta") or (o.genes.token == 4) == o.has("decay"),
            "a decay makes a low-rank mixing semi-separable; without a decay or the delta rule it stays low rank",
        ),
        Rule(
            "token",
            "beta",
            lambda o: o.genes.token == 4 or not o.has("beta"),
            "the delta rule's products I - beta b b^T are semi-separable",
        ),
        Rule(
            "decay.channel",
            "beta",
            lambda o: not (o.has("beta") and o.feature("decay").channel == 2),
            "the delta rule with one decay per state channel is Kimi delta attention (arXiv 2510.26692), and searches "
            "do not draw it",
            named=True,
        ),
        Rule(
            "decay.channel",
            "decay.expansion",
            lambda o: o.feature("decay").expansion != 0 or o.feature("decay").channel != 3,
            "one decay per head is so few channels that its map needs no other map before it",
        ),
    ),
    named_only={f"{group}.expansion": (0,) for group in ("b", "c", "decay", "gate")} | {"beta.expansion": (2,)},
    why={
        "token": "a product of gates between two tokens is semi-separable, and low rank where every gate is 1",
        "nonlinearity": "a nonlinearity on the scores would need every score, and the state holds only their sum; "
        "swish acts earlier, on b, c and v",
        "channel": "the channels of a head share B, C and A and do not mix",
    },
)
