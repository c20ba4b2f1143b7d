"""Train one model well under a token budget.

    result = train(model, corpus, LAPTOP)
    result.status, result.val_loss, result.val_loss_se, result.curve

The result depends only on model, corpus and recipe: it is bit-identical on a CPU with the same number of threads. A
model is any module with the two methods of `star.training.trainable.Trainable`; only compiled blocks and sparsification
need a `star.model.LanguageModel`.
"""

from star.training.checkpoint import CheckpointError
from star.training.evaluation import evaluate
from star.training.loggers import Logger, open_logger
from star.training.recipe import LAPTOP, Recipe
from star.training.result import TrainingResult
from star.training.schedule import learning_rate_factor
from star.training.trainer import train

__all__ = [
    "LAPTOP",
    "CheckpointError",
    "Logger",
    "Recipe",
    "TrainingResult",
    "evaluate",
    "learning_rate_factor",
    "open_logger",
    "train",
]
