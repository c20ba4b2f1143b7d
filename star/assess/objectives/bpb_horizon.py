"""Quality at the horizon: bits per byte predicted for a multiple of the training budget (`search.horizon`)."""

from star.assess.objectives import Objective

OBJECTIVE = Objective(
    "bpb_horizon",
    "bits/byte",
    "predicted validation loss",
    lambda metrics: metrics["bpb_horizon"],
    error=lambda metrics: metrics.get("bpb_horizon_se"),
)
