"""Everything that decides how a model is trained."""

import math
from dataclasses import dataclass, fields, replace

from star.errors import UserError
from star.fields import setting
from star.training.schedule import SCHEDULES

OPTIMIZERS = ("adamw", "muon")
DTYPES = ("auto", "float32", "bfloat16")
COMPILE = ("auto", "off", "blocks", "graph")


@dataclass(frozen=True)
class Recipe:
    """Budget, batches, optimizer, schedule, techniques and evaluation of one training. Fractions are of `tokens`."""

    tokens: int = setting(131_072, "training budget; rounded up to whole micro-batches", 1)
    batch_size: int = setting(2, "sequences per micro-batch", 1)
    accumulate: int = setting(1, "micro-batches per optimizer step", 1, 65_536)
    seq_len: int = setting(128, "tokens per sequence, in training and validation", 1)
    documents: str = setting(
        "joined",
        "joined: sequences run on from one document into the next; separate: each lies in one document, so that no "
        "operator looks across",
        choices=("joined", "separate"),
    )

    optimizer: str = setting("adamw", "of hidden matrices; everything else is trained by AdamW", choices=OPTIMIZERS)
    learning_rate: float = setting(4e-3, "peak, of hidden matrices in a model as wide as `base_width`", 1e-9)
    embedding_multiplier: float = setting(
        1.0, "learning rate of the token embedding (also the head, where they are tied) over `learning_rate`", 0
    )
    head_multiplier: float = setting(1.0, "learning rate of an output head of its own over `learning_rate`", 0)
    vector_multiplier: float = setting(1.0, "learning rate of norms, gates, biases and filters over `learning_rate`", 0)
    layer_decay: float = setting(
        1.0, "gamma of the layer-wise rate gamma^(l / L) of LIV l of L; 1: the same for all", 0.01, 100
    )
    base_width: int = setting(
        64, "width at which `learning_rate` was tuned; it is carried over to others. 0: used as it is", 0
    )
    betas: tuple[float, float] = setting(
        (0.9, 0.98), "decay of Adam's two averages per step of `accumulate` micro-batches", 0, 0.999999
    )
    momentum: float = setting(0.95, "decay of Muon's average per step of `accumulate` micro-batches", 0, 0.999999)
    weight_decay: float = setting(0.1, "on matrices, relative to their learning rate; vectors have none", 0)
    clip: float = setting(1.0, "largest norm of the gradient; 0: any", 0)
    schedule: str = setting("linear", "learning rate over the run, see star/training/schedule.py", choices=SCHEDULES)
    warmup: float = setting(0.05, "fraction over which the learning rate rises", 0, 0.99)
    cooldown: float = setting(0.2, "fraction over which the schedule wsd falls", 0, 1)
    floor: float = setting(0.0, "what the schedule ends at, over the peak", 0, 1)

    adaptive: bool = setting(
        False, "adapt the micro-batches per step to the noise of the gradient, up to `accumulate_max`"
    )
    accumulate_max: int = setting(16, "most micro-batches per step, where they adapt", 1, 65_536)
    precision: float = setting(1.0, "eps: the error that the mean gradient may have; small means large batches", 1e-9)
    precision_of: str = setting(
        "relative",
        "relative: eps is a share of the gradient's norm; absolute: eps as it is",
        choices=("relative", "absolute"),
    )
    confidence: float = setting(1.0, "alpha: squared standard errors that must fit into eps squared", 1e-9)

    sparsify: float = setting(
        0.0, "tau: share of its attention score that a head may lose to a shorter window, such as 0.5; 0: dense", 0, 0.9
    )
    sparsify_heads: float = setting(
        0.03, "heads that score below this share of their layer's mean are dropped; 0: none", 0, 0.5
    )

    eval_interval: float = setting(0.2, "fraction between two points of the learning curve", 1e-6, 1)
    eval_tokens: int = setting(32_768, "size of the fixed validation sample", 1)
    dtype: str = setting(
        "auto", "of activations; auto: bfloat16 on CUDA, else float32. Weights are always float32", choices=DTYPES
    )
    compile: str = setting(
        "auto",
        "auto: on CUDA the step is captured as a graph, and the blocks of a long training are compiled meanwhile; "
        "blocks: they are compiled first; off: neither; graph: as auto, of older runs",
        choices=COMPILE,
    )
    device: str = setting("auto", "cpu, cuda or cuda:N; auto: CUDA where there is one")
    seed: int = setting(0, "order of the batches", 0)

    def __post_init__(self):
        object.__setattr__(self, "betas", tuple(self.betas))  # JSON and TOML have only lists
        if len(self.betas) != 2:
            raise UserError(f"the training recipe's betas are {self.betas}; they must be two numbers")
        for f in fields(self):
            value, choices = getattr(self, f.name), f.metadata["choices"]
            low, high = f.metadata["low"], f.metadata["high"]
            if choices and value not in choices:
                raise UserError(f"the training recipe's {f.name} is {value!r}; it must be one of {', '.join(choices)}")
            for number in value if isinstance(value, tuple) else (value,):
                if not isinstance(number, str) and not low <= number <= high:
                    legal = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
                    raise UserError(f"the training recipe's {f.name} is {value}; it must be {legal}")
        if self.adaptive and self.accumulate_max < self.accumulate:
            low = f"it must be at least accumulate, {self.accumulate}"
            raise UserError(f"the training recipe's accumulate_max is {self.accumulate_max}; {low}")

    @property
    def micro_batch(self) -> int:
        """Tokens of a micro-batch."""
        return self.batch_size * self.seq_len

    @property
    def micro_batches(self) -> int:
        """Micro-batches of the whole budget."""
        return -(-self.tokens // self.micro_batch)

    def describe(self) -> str:
        """The optimizer, the schedule and the techniques in use, for a report."""
        parts = [f"{self.optimizer}, {self.schedule}"]
        parts += [f"accumulation adapts up to {self.accumulate_max}"] if self.adaptive else []
        parts += [f"rates x {self.layer_decay:g}^(l/L)"] if self.layer_decay != 1 else []
        parts += [f"attention sparsified (tau {self.sparsify:g})"] if self.sparsify else []
        return ", ".join(parts)

    def replace(self, **changes) -> "Recipe":
        """A copy with changed settings. Raises UserError for an unknown name or a value out of range."""
        known = [f.name for f in fields(self)]
        for name in changes:
            if name not in known:
                raise UserError(f"the training recipe has no setting {name!r}; it has {', '.join(known)}")
        return replace(self, **changes)


LAPTOP = Recipe()
