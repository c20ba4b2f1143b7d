"""Validation loss and its standard error, on a sample that is the same for every candidate."""

import math

import torch
from torch import Tensor

from star.model import LanguageModel
from star.model.cross_entropy import IGNORED
from star.training.trainable import Trainable

TOKENS_AT_ONCE = 8192  # bounds the memory of an evaluation


def evaluate(model: LanguageModel | Trainable, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
    """Mean loss in nats per token on blocks, int64 [n, T], and its standard error, from the variance between blocks.

    This error describes the choice of the text. The difference between two candidates on the same blocks is much more
    precise than two such errors suggest, because both find the same blocks difficult.
    """
    return summary(block_losses(model, inputs, targets))


@torch.no_grad()
def block_losses(model: LanguageModel | Trainable, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean loss in nats per token of every block, float64 [n], of blocks int64 [n, T].

    Where targets do not count (-100): the sum over those that do, over their mean number in a block, so that the mean
    of the blocks is the mean over all targets that count.
    """
    losses = position_losses(model, inputs, targets)
    return losses.mean(dim=1) * (targets.numel() / (targets != IGNORED).sum())


@torch.no_grad()
def position_losses(model: LanguageModel | Trainable, inputs: Tensor, targets: Tensor) -> Tensor:
    """Loss in nats of every token, float64 [n, T], of blocks int64 [n, T]; 0 where a target does not count."""
    at_once = max(1, TOKENS_AT_ONCE // inputs.shape[1])
    pairs = zip(inputs.split(at_once), targets.split(at_once), strict=True)
    return torch.cat([model.loss(x, y, reduction="none").double() for x, y in pairs])


def summary(blocks: Tensor) -> tuple[float, float]:
    """Mean and standard error of `block_losses` [n]."""
    return blocks.mean().item(), blocks.std().item() / math.sqrt(len(blocks))
