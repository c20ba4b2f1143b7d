"""Capability: multi-query associative recall, at the sizes of `star.data.skills`."""

import math

from star.assess.objectives import Objective

OBJECTIVE = Objective("mqar", "error", "error on associative recall", lambda metrics: metrics.get("mqar", math.nan))
