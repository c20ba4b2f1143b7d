"""Quality in nats per token: validation loss after training under the run's recipe. See `bpb` for bits per byte."""

from star.assess.objectives import Objective

OBJECTIVE = Objective(
    "loss",
    "nats/byte",
    "validation loss after training",
    lambda metrics: metrics["val_loss"],
    error=lambda metrics: metrics.get("val_loss_se"),
)
