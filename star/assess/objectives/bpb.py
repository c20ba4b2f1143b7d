"""Quality that is comparable between tokenizers: validation loss as bits per byte of the text."""

from star.assess.objectives import Objective

OBJECTIVE = Objective(
    "bpb",
    "bits/byte",
    "bits per byte of the validation text after training",
    lambda metrics: metrics["bpb"],
    error=lambda metrics: metrics.get("bpb_se"),
)
