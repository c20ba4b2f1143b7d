"""Validation loss with its standard error, on a sample that is the same for every candidate."""

import math

import torch
from torch import nn

TOKENS_AT_ONCE = 8192  # bounds the memory of an evaluation


@torch.no_grad()
def evaluate(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[float, float]:
    """Mean loss of blocks, int64 [n, T], in nats per token, and the standard error of that mean over blocks.

    The error is that of the sample as a sample of text. Candidates measured on the same blocks differ by much
    less than two such errors suggest, because they find the same blocks hard.
    """
    at_once = max(1, TOKENS_AT_ONCE // inputs.shape[1])
    means = [
        model.loss(x, y, reduction="none").double().mean(dim=1)
        for x, y in zip(inputs.split(at_once), targets.split(at_once), strict=True)
    ]
    blocks = torch.cat(means)  # [n]
    return blocks.mean().item(), blocks.std().item() / math.sqrt(len(blocks))
