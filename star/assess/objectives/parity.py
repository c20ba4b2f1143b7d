"""Capability: parity of a sequence, at the sizes of `star.data.skills`."""

import math

from star.assess.objectives import Objective

OBJECTIVE = Objective("parity", "error", "error on parity", lambda metrics: metrics.get("parity", math.nan))
