"""Capability: strings copied at and beyond the lengths trained on, at the sizes of `star.data.skills`."""

import math

from star.assess.objectives import Objective

OBJECTIVE = Objective("copying", "error", "error on copying strings", lambda metrics: metrics.get("copying", math.nan))
