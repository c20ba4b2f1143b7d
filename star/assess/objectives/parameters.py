"""Size: all parameters of the model, embedding included, shared ones once."""

from star.assess.objectives import Objective

OBJECTIVE = Objective(
    "parameters", "parameters", "model size", lambda costs: costs.parameters, cheap=True, log_scale=True
)
