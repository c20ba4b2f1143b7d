"""Memory while decoding: keys, values and states at `objectives.cache_tokens` tokens (STAR's convention)."""

from star.assess.objectives import Objective

OBJECTIVE = Objective("cache", "bytes", "decoding cache", lambda costs: costs.cache_bytes, cheap=True, log_scale=True)
