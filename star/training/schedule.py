"""Learning-rate schedules as functions of tokens, so that they do not depend on batch size or accumulation."""

import numpy as np
from numpy.typing import ArrayLike

SCHEDULES = ("linear", "wsd", "cosine")


def learning_rate_factor(
    schedule: str, tokens: ArrayLike, total: float, warmup: float = 0.02, cooldown: float = 0.2, floor: float = 0.0
) -> np.ndarray:
    """Factors of the peak learning rate after `tokens` of `total` training tokens, in the shape of `tokens`.

    Every schedule first rises linearly from 0 to 1 over the fraction `warmup` of the tokens; then
    linear: falls linearly to `floor` at the end (Bergsma et al. 2025, arXiv 2502.15938);
    cosine: falls to `floor` on half a cosine;
    wsd: stays at 1 and falls linearly to `floor` over the last fraction `cooldown` (arXiv 2405.18392).

    Raises ValueError for another schedule.
    """
    progress = np.asarray(tokens, dtype=np.float64) / total
    if schedule == "linear":
        decayed = (progress - warmup) / (1 - warmup)
    elif schedule == "cosine":
        decayed = (1 - np.cos(np.pi * (progress - warmup) / (1 - warmup))) / 2
    elif schedule == "wsd":
        decayed = np.maximum(0.0, (progress - (1 - cooldown)) / cooldown) if cooldown else np.zeros_like(progress)
    else:
        raise ValueError(f"unknown schedule {schedule!r}")
    rising = progress / warmup if warmup else progress
    return np.where(progress < warmup, rising, 1 - np.minimum(decayed, 1.0) * (1 - floor))
