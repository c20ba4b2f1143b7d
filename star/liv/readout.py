"""The optional gate and RMSNorm at the output of a recurrence.

    y <- norm(y) * swish(W_z x)    norm per head (RetNet, arXiv 2307.08621; gated delta networks, arXiv 2412.06464)
    y <- norm(y * swish(W_z x))    norm over the heads that share b and c (Mamba-2, arXiv 2405.21060)

Kimi delta attention (arXiv 2510.26692) has sigmoid(W_z' W_z x) for the gate. Gate and norm count as features: for a
fixed gate and a fixed 1 / rms, the output is linear in x, so y = T(x) x still holds.

The first y of a sequence is one value times one score c . b. The score may be almost 0 by chance, below its rounding
error in bfloat16; a norm would make that error as large as any other output, and a gradient far larger. So the norm
divides by no less than the usual size of one value times one score: it makes large y small, and not small y large.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.liv.base import LIV, Features, LIVConfig, Weight, constant, low_rank, matrix
from star.liv.functional import rms_norm
from star.liv.genes import GroupSpec, Operator

NORM_EPS = 1e-5  # as in public models; the delta rule of these has about this mean square at the first tokens


@dataclass(frozen=True)
class ReadoutConfig(LIVConfig):
    """Sizes of an operator with an optional output gate and an optional RMSNorm.

    gated: swish(W_z x). gate_rank: if not 0, the gate is a sigmoid, of a map through so many channels.
    norm: "" none; "heads" RMSNorm of every head, before the gate; "groups" after the gate, over blocks of `norm_width`
    channels.
    """

    gated: bool = field(default=False, kw_only=True)
    gate_rank: int = field(default=0, kw_only=True)
    norm: str = field(default="", kw_only=True)

    @property
    def norm_width(self) -> int:
        """Channels that are normalised together."""
        raise NotImplementedError

    @property
    def usual_size(self) -> float:
        """Root mean square of what one token adds to y at the start of training; 0 if it cannot vanish by chance."""
        raise NotImplementedError

    @property
    def norm_eps(self) -> float:
        """Added to the mean square of y."""
        return max(NORM_EPS, self.usual_size**2)

    def readout_weights(self, width: int) -> dict[str, Weight]:
        """The weights of gate and norm. width: channels of one branch."""
        weights: dict[str, Weight] = {}
        if self.gated and self.gate_rank:
            weights = low_rank("z", self.branches * width, self.gate_rank, self.d_model, "gate")
        elif self.gated:
            weights = {"z": matrix(self.branches * width, self.d_model, "gate")}
        if self.norm:
            shape = (self.norm_width,) if self.norm == "heads" else (self.branches * width,)
            weights["norm"] = Weight(shape, "norm", constant(1.0))
        return weights


class Readout(LIV):
    """A LIV with the gate and the norm of `ReadoutConfig`."""

    config: ReadoutConfig
    norm: nn.Parameter

    def gate(self, h: dict[str, Tensor]) -> Features:
        """The output gate from the maps h of x: {"gate": [B, T, C]}, or {} without one."""
        if not self.config.gated:
            return {}
        z = self.mapped(h, "z")
        return {"gate": torch.sigmoid(z) if self.config.gate_rank else F.silu(z)}

    def scale(self, features: Features, y: Tensor) -> Tensor | None:
        """1 / rms of every block of channels, [B, T, blocks]."""
        if not self.config.norm:
            return None
        if self.config.norm == "groups" and "gate" in features:
            y = y * features["gate"]
        blocks = y.unflatten(-1, (-1, self.config.norm_width)).to(torch.promote_types(y.dtype, torch.float32))
        return (blocks.square().mean(-1) + self.config.norm_eps).rsqrt()

    def readout(self, features: Features, y: Tensor) -> Tensor:
        gate = features.get("gate")
        if not self.config.norm:
            return y if gate is None else y * gate
        if gate is not None and self.config.norm == "groups":
            y = y * gate
        y = y.unflatten(-1, (-1, self.config.norm_width))
        weight = self.norm if self.norm.shape[0] == y.shape[-1] else self.norm.view(-1, y.shape[-1])
        if "scale" in features:
            y = y * features["scale"][..., None].to(y.dtype) * weight.to(y.dtype)
        else:
            y = rms_norm(y, weight, self.config.norm_eps)
        y = y.flatten(-2)
        return y if gate is None or self.config.norm == "groups" else y * gate


READOUT_GROUPS = {
    "gate": GroupSpec(
        "gate of the output, as wide as the value path",
        expansion=(1, 0),
        optional=True,
        expansion_means="1 swish(W_z x); 0 sigmoid of a map through as many channels as a head has",
    ),
    "norm": GroupSpec(
        "RMSNorm of the output: channel mixing 3 per head, before the gate; 2 over the heads that share b and c, after "
        "the gate",
        channel=(3, 2),
        optional=True,
    ),
}


def readout_genes(operator: Operator, head_dim: int) -> dict[str, Any]:
    """The arguments of `ReadoutConfig` for the groups of `READOUT_GROUPS` that the operator has."""
    gate, norm = operator.feature("gate"), operator.feature("norm")
    narrow = operator.has("gate") and gate.expansion == 0
    return {
        "gated": operator.has("gate"),
        "gate_rank": head_dim if narrow else 0,
        "norm": {0: "", 2: "groups", 3: "heads"}[norm.channel],
    }
