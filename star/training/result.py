"""The result of a training run, and the rule for divergence."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingResult:
    """Losses in nats per token, memory in bytes; None for values that were not measured or are not finite."""

    status: str  # "ok" | "diverged" | "timeout"
    reason: str  # why the status is not "ok"; else empty
    curve: list[dict]  # {"step", "tokens", "train_loss" (mean since the last point), "val_loss", "seconds"}
    val_loss: float | None  # the curve's last
    val_loss_se: float | None  # standard error of the mean over the blocks of the validation sample
    tokens: int  # trained on
    steps: int  # of the optimizer
    seconds: float  # with evaluations
    tokens_per_second: float  # without evaluations
    peak_memory: int  # CUDA: of tensors; CPU: of the whole process
    # The `Sparsifier.summary`, and as "genome" the edited genome in JSON; None without sparsification
    sparsity: dict | None = None


def divergence(curve: list[dict], progress: float, unigram: float) -> str:
    """Why the run with this learning curve has diverged; "" if it has not.

    progress: fraction of the budget; unigram: loss of this baseline, in nats per token. Diverged means that the loss is
    not finite, or that in the second half of training it is above the unigram level after it was lower. A loss that
    still falls, as under a very small learning rate, is slow and not diverged.
    """
    point = curve[-1]
    if point["train_loss"] is None or point["val_loss"] is None:
        return f"the loss is not finite after {point['tokens']:,} tokens"
    loss, best = point["val_loss"], min(earlier["val_loss"] for earlier in curve)
    if progress >= 0.5 and loss > unigram and loss > best + 0.1:
        return (
            f"the loss has risen from {best:.2f} to {loss:.2f} after {point['tokens']:,} tokens, "
            f"past the unigram level of {unigram:.2f}"
        )
    return ""
