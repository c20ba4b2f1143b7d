"""Capability: bits per byte that are lost at 4 to 8 times the training context (`star.assess.skill_tests`)."""

import math

from star.assess.objectives import Objective

OBJECTIVE = Objective(
    "extrapolation",
    "bits/byte",
    "loss added by a context 8 times as long",
    lambda metrics: metrics.get("extrapolation", math.nan),
    error=lambda metrics: metrics.get("extrapolation_se"),
)
