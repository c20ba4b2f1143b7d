"""Train one model well under a token budget.

    result = train(model, corpus, LAPTOP)
    result.status, result.val_loss, result.val_loss_se, result.curve

The recipe says everything that the result depends on; the same model, corpus and recipe give the same bits
on a CPU with the same number of threads. Imports `star.data`; a model needs `loss` and `parameter_groups`, and to be a
`star.model.LanguageModel` only for compiled blocks and sparsification.
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
