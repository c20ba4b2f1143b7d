"""Memoryless operator: T_ii = W_out diag(sigma(g_i)) W_v, diagonal in tokens, dense in channels.

    g, v = W_g x, W_v x
    y    = W_out . (sigma(g) * v)

Each token is mapped by itself, so there is nothing to remember. With swish as sigma it is SwiGLU. Without a gate group
the value gates itself: relu(v) * v is ReLU^2, and the normal distribution function times v is GELU. It is still linear
in the value once the gate is fixed.

Shapes: x [B, T, D]; g, v [B, T, F] with F the inner width of all branches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from star.liv.base import LIV, Features, LIVConfig, State, StateEntry, Weight, biases, matrix
from star.liv.functional import gated
from star.liv.genes import BIAS_GROUP, Family, GroupSpec, Operator, Rule

ALIGNMENT, ALIGNED_DEVICES = 8, {"cuda"}
WIDTH_UNIT = 12  # expansions are given in twelfths of the model width, so that 8/3 is the integer 32


@dataclass(frozen=True)
class MemorylessConfig(LIVConfig):
    """Sizes of a memoryless operator."""

    width: int  # inner width of one branch
    nonlinearity: str  # "none", "relu", "swish", "gelu" or "normal_cdf"
    gated: bool = True

    def weights(self) -> dict[str, Weight]:
        inner = self.branches * self.width
        gate = {"gate": matrix(inner, self.d_model, "gate")} if self.gated else {}
        weights = gate | {"value_map": matrix(inner, self.d_model, "value")} | self.output_weights(self.width)
        return weights | (biases(weights) if self.biased else {})

    def state(self) -> dict[str, StateEntry]:
        return {}

    def mixing_flops(self, seq_len: int) -> float:
        return self.branches * self.width

    def decode_mixing_flops(self, seq_len: int) -> float:
        return self.branches * self.width

    def build(self, given=frozenset(), tied=None) -> Memoryless:
        return Memoryless(self, given, tied)


class Memoryless(LIV):
    """A gate times a value, token by token: SwiGLU and similar."""

    MAPS = ("gate", "value_map")
    VALUE = "value_map"
    config: MemorylessConfig

    def features_of(
        self, h: dict[str, Tensor], state: State | None, given: Features, offset: int
    ) -> tuple[Features, State | None]:
        if "gate" in self.given:
            return {"gate": given["gate"]}, state
        source = "gate" if self.config.gated else self.VALUE
        return {"gate": h[source] if source in h else given[self.VALUE]}, state

    def value(
        self, features: Features, h: Tensor | None, state: State | None, given: Features, offset: int
    ) -> tuple[Tensor, State | None]:
        return (given[self.VALUE] if h is None else h), state

    def core(self, features: Features, value: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        return gated(features["gate"], value, self.config.nonlinearity), state

    def linear(self, x: Tensor, name: str) -> Tensor:
        """The map `name` of x. On a GPU the inner width is filled up with zeros, which stay zeros, to a multiple of 8.

        For other widths, such as 1,365 of 8/3 x 512, there are only slow matrix products: five to eight times slower on
        an H100.
        """
        missing = -self.config.width % ALIGNMENT
        if not missing or self.config.branches > 1 or x.device.type not in ALIGNED_DEVICES:
            return super().linear(x, name)
        weight, bias = self.weight(name, x.dtype), self.bias(name, x.dtype)
        if name == "out":
            return F.linear(x, F.pad(weight, (0, missing)), bias)
        return F.linear(x, F.pad(weight, (0, 0, 0, missing)), bias if bias is None else F.pad(bias, (0, missing)))


def configure(operator: Operator, d_model: int, head_dim: int, rope_theta: float) -> MemorylessConfig:
    """The sized operator. Raises UserError if it does not fit the width."""
    width = d_model * operator.feature("value").expansion // WIDTH_UNIT
    nonlinearity = {1: "none", 3: "relu", 4: "swish", 5: "gelu", 6: "normal_cdf"}[operator.genes.nonlinearity]
    gated, biased = operator.has("gate"), operator.has("bias")
    return MemorylessConfig(d_model, operator.branches, width, nonlinearity, gated, biased=biased)


_WIDTHS = tuple(range(12, 97))
_NAMED_WIDTHS = tuple(width for width in _WIDTHS if width not in (12, 16, 24, 32, 36, 48, 54, 63, 72, 96))
_TWELFTHS = "inner width in twelfths of the model width, rounded down (32 is 8/3)"
FAMILY = Family(
    name="memoryless",
    equation="T_ii = W_out diag(sigma(g_i)) W_v",
    token=(1,),
    nonlinearity=(1, 3, 4, 5, 6),
    channel=(2,),
    groups={
        "gate": GroupSpec(
            "the gate: sigma(W_g x); absent, the value gates itself",
            expansion=_WIDTHS,
            expansion_means=_TWELFTHS,
            optional=True,
        ),
        "value": GroupSpec("value path: W_v x", expansion=_WIDTHS, expansion_means=_TWELFTHS),
        "bias": BIAS_GROUP,
    },
    shareable=(("gate",), ("value",)),
    sharing_genes=("nonlinearity",),
    configure=configure,
    rules=(Rule.equal("gate.expansion", "value.expansion", "gate and value are multiplied"),),
    why={
        "token": "without memory a token sees only itself",
        "nonlinearity": "softmax needs several tokens to choose from",
        "channel": "mixing channels is all it does, so its maps are dense",
        "differential": "two subtracted SwiGLUs are one SwiGLU of twice the width",
    },
    named_only={"nonlinearity": (6,), "gate.expansion": _NAMED_WIDTHS, "value.expansion": _NAMED_WIDTHS, "bias": ()},
    differentiable_branches=False,
)
