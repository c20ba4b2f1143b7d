"""Quality: validation loss as bits per byte of the text, which is comparable between tokenizers."""

from star.assess.objectives import Objective

OBJECTIVE = Objective(
    "bpb",
    "bits/byte",
    "validation loss after training",
    lambda metrics: metrics["bpb"],
    error=lambda metrics: metrics.get("bpb_se"),
)
