"""Training compute: FLOPs per token, forward and backward."""

from star.assess.objectives import Objective

OBJECTIVE = Objective(
    "flops", "FLOP/token", "training compute", lambda costs: costs.train_flops_per_token, cheap=True, log_scale=True
)
