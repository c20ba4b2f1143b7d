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


def divergence(curve: list[dict], progress: float, unigram: float, uniform: float) -> str:
    """Why the run with this learning curve has diverged; "" if it has not.

    progress: fraction of the budget; unigram, uniform: losses of these baselines, in nats per token. In the first half
    of training any finite loss is accepted. In the second half a loss above the unigram level means divergence if it
    was lower before, or if it is above the loss of a uniform guess. A loss that still falls, as under a very small
    budget, is slow and not diverged.
    """
    point = curve[-1]
    if point["train_loss"] is None or point["val_loss"] is None:
        return f"the loss is not finite after {point['tokens']:,} tokens"
    loss, best = point["val_loss"], min(earlier["val_loss"] for earlier in curve)
    if progress >= 0.5 and loss > unigram and (loss > best + 0.1 or loss > uniform):
        return f"the loss is {loss:.2f} after {point['tokens']:,} tokens, past the unigram level of {unigram:.2f}"
    return ""
