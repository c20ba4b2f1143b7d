"""Capability: a value retrieved from five depths of a context, at the sizes of `star.data.skills`."""

import math

from star.assess.objectives import Objective

OBJECTIVE = Objective("needle", "error", "error on needles", lambda metrics: metrics.get("needle", math.nan))
