"""What a training run gives back, and when it has gone wrong."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingResult:
    """Losses in nats per token, memory in bytes; what was never measured, or is not finite, is None."""

    status: str  # "ok" | "diverged" | "timeout"
    reason: str  # why the status is not "ok"
    curve: list[dict]  # {"step", "tokens", "train_loss" (mean since the last point), "val_loss", "seconds"}
    val_loss: float | None  # the curve's last
    val_loss_se: float | None  # standard error of the mean over the blocks of the validation sample
    tokens: int  # trained on
    steps: int  # of the optimizer
    seconds: float  # with evaluations
    tokens_per_second: float  # without evaluations
    peak_memory: int  # CUDA: of tensors; CPU: of the whole process
    # What sparsification found, see `Sparsifier.summary`; with "genome", the edited one as JSON
    sparsity: dict | None = None


def divergence(curve: list[dict], progress: float, unigram: float, uniform: float) -> str:
    """Why the run of this learning curve has diverged; "" where it has not.

    Early training may be anywhere. In its second half a loss above the unigram level (nats per token) means
    divergence if it was lower before, or if it is even above that of a uniform guess. One that is still on its
    way down, as under a very small budget, is slow and not diverged.
    """
    point = curve[-1]
    if point["train_loss"] is None or point["val_loss"] is None:
        return f"the loss is not finite after {point['tokens']:,} tokens"
    loss, best = point["val_loss"], min(earlier["val_loss"] for earlier in curve)
    if progress >= 0.5 and loss > unigram and (loss > best + 0.1 or loss > uniform):
        return f"the loss is {loss:.2f} after {point['tokens']:,} tokens, past the unigram level of {unigram:.2f}"
    return ""
