"""Quality: validation loss after training under the run's recipe. Every tokenizer is bytes, so a token is a byte."""

from star.assess.objectives import Objective

OBJECTIVE = Objective(
    "loss",
    "nats/byte",
    "validation loss after training",
    lambda metrics: metrics["val_loss"],
    error=lambda metrics: metrics.get("val_loss_se"),
)
