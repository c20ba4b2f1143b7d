"""Capability: the word problem of S5, at the sizes of `star.data.skills`."""

import math

from star.assess.objectives import Objective

OBJECTIVE = Objective("s5", "error", "error on tracking a permutation", lambda metrics: metrics.get("s5", math.nan))
