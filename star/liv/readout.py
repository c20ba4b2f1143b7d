"""What a mixed value passes on its way out of a recurrence: a gate and a normaliser. Both are features, so y = T(x) x
still holds.

y <- norm(y) * swish(W_z x)    per head (RetNet, arXiv 2307.08621; gated delta networks, arXiv 2412.06464)
y <- norm(y * swish(W_z x))    over the heads that share b and c (Mamba-2, arXiv 2405.21060)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from star.liv.base import LIV, Features, LIVConfig, Weight, constant, matrix
from star.liv.functional import rms_norm
from star.liv.genes import GroupSpec, Operator


@dataclass(frozen=True)
class ReadoutConfig(LIVConfig):
    """An operator whose mixed value may pass a gate swish(W_z x) and a normaliser on its way out.

    norm: "" none; "heads" RMSNorm of every head, before the gate (arXiv 2307.08621); "groups" after it, over blocks of
    `norm_width` channels (Mamba-2).
    """

    gated: bool = field(default=False, kw_only=True)
    norm: str = field(default="", kw_only=True)
    norm_eps: float = field(default=1e-5, kw_only=True)

    @property
    def norm_width(self) -> int:
        """Channels that are normalised together."""
        raise NotImplementedError

    def readout_weights(self, width: int) -> dict[str, Weight]:
        """`width`: channels of one branch."""
        weights = {"z": matrix(self.branches * width, self.d_model, "gate")} if self.gated else {}
        if self.norm:
            shape = (self.norm_width,) if self.norm == "heads" else (self.branches * width,)
            weights["norm"] = Weight(shape, "norm", constant(1.0))
        return weights


class Readout(LIV):
    """A LIV with the gate and the normaliser of `ReadoutConfig`. Both are features, so y = T x still holds."""

    config: ReadoutConfig

    def gate(self, h: dict[str, Tensor]) -> Features:
        """The gate of the output from the maps h of x; None without one."""
        return {"gate": F.silu(h["z"])} if "z" in h else {}

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
    "gate": GroupSpec("gate of the output: swish(W_z x), as wide as the value path", optional=True),
    "norm": GroupSpec(
        "RMSNorm of the output: channel mixing 3 of every head, before the gate; 2 of the heads that share b and c "
        "together, after it",
        channel=(3, 2),
        optional=True,
    ),
}


def readout_genes(operator: Operator) -> dict[str, Any]:
    """The arguments of `ReadoutConfig` that the groups of `READOUT_GROUPS` ask for."""
    return {"gated": operator.has("gate"), "norm": {0: "", 2: "groups", 3: "heads"}[operator.feature("norm").channel]}
