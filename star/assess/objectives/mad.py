"""Skill: mean error on six synthetic tasks, for models trained on each of them (`star.assess.synthetic_tasks`)."""

import math

from star.assess.objectives import Objective

OBJECTIVE = Objective("mad", "error", "mean error on synthetic tasks", lambda metrics: metrics.get("mad", math.nan))
