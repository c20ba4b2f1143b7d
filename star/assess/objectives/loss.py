"""Quality: validation loss after training under the run's recipe."""

from star.assess.objectives import Objective

OBJECTIVE = Objective("loss", "nats/token", "validation loss after training", lambda metrics: metrics["val_loss"])
