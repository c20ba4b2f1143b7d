"""Log the progress of a training run to TensorBoard or Weights & Biases, both optional.

logger = open_logger("tensorboard:logs/a", recipe)  # or "wandb:PROJECT"; needs the extra of that name
result = train(model, corpus, recipe, on_progress=logger)
logger.finish(result)
"""

from collections.abc import Callable
from dataclasses import asdict

from star.errors import UserError
from star.training.recipe import Recipe
from star.training.result import TrainingResult

SCALARS = ("loss", "val_loss", "learning_rate", "tokens_per_second")


class Logger:
    """A callback for `train`: logs losses (nats per token) and rates by tokens, and the learning curve at the end."""

    def __init__(self, write: Callable[[dict[str, float], int], None], close: Callable[[], None]):
        self.write, self.close = write, close

    def __call__(self, event: dict) -> None:
        self.write({f"train/{name}": event[name] for name in SCALARS if event.get(name) is not None}, event["tokens"])

    def finish(self, result: TrainingResult) -> None:
        """Log the result and close."""
        for point in result.curve:
            losses = {name: point[name] for name in ("train_loss", "val_loss")}
            self.write({f"curve/{name}": loss for name, loss in losses.items() if loss is not None}, point["tokens"])
        self.close()


def open_logger(spec: str, recipe: Recipe, name: str = "") -> Logger:
    """The logger that `spec` names: tensorboard:FOLDER or wandb:PROJECT.

    Raises UserError if it is neither, or its package is not installed.
    """
    kind, _, place = spec.partition(":")
    if kind not in ("tensorboard", "wandb") or not place:
        raise UserError(f"cannot log to '{spec}'; write tensorboard:FOLDER or wandb:PROJECT")
    try:
        return (_tensorboard if kind == "tensorboard" else _wandb)(place, recipe, name)
    except ImportError as error:
        raise UserError(
            f"logging to {kind} needs a package that is not installed ({error.name}); run: pip install 'star[{kind}]'"
        ) from None


def _tensorboard(folder: str, recipe: Recipe, name: str) -> Logger:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(folder)
    writer.add_text("recipe", "\n".join(f"{key}: {value}  " for key, value in asdict(recipe).items()))

    def write(scalars: dict[str, float], tokens: int) -> None:
        for key, value in scalars.items():
            writer.add_scalar(key, value, tokens)

    return Logger(write, writer.close)


def _wandb(project: str, recipe: Recipe, name: str) -> Logger:
    import wandb

    run = wandb.init(project=project, name=name or None, config=asdict(recipe))
    run.define_metric("tokens")
    for part in ("train/*", "curve/*"):
        run.define_metric(part, step_metric="tokens")
    return Logger(lambda scalars, tokens: run.log({**scalars, "tokens": tokens}), run.finish)
