"""Everything that decides how a model is trained."""

from dataclasses import dataclass, field, fields, replace

from star.errors import UserError
from star.training.schedule import SCHEDULES

OPTIMIZERS = ("adamw",)
DTYPES = ("auto", "float32", "bfloat16")
INFINITY = float("inf")


def setting(default, doc: str, low: float = -INFINITY, high: float = INFINITY, choices: tuple[str, ...] = ()):
    return field(default=default, metadata={"doc": doc, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class Recipe:
    """Budget, batches, optimizer, schedule and evaluation of one training run. Fractions are of `tokens`."""

    tokens: int = setting(131_072, "training budget; rounded up to whole batches", 1)
    batch_size: int = setting(2, "sequences per optimizer step", 1)
    seq_len: int = setting(128, "tokens per sequence, in training and validation", 1)
    optimizer: str = setting("adamw", "how gradients change weights", choices=OPTIMIZERS)
    learning_rate: float = setting(4e-3, "peak, of hidden matrices", 1e-9)
    embedding_multiplier: float = setting(
        1.0, "learning rate of the token embedding (also the head, where they are tied) over `learning_rate`", 0
    )
    head_multiplier: float = setting(1.0, "learning rate of an output head of its own over `learning_rate`", 0)
    vector_multiplier: float = setting(1.0, "learning rate of norms, gates, biases and filters over `learning_rate`", 0)
    betas: tuple[float, float] = setting((0.9, 0.98), "decay of Adam's two averages per step", 0, 0.999999)
    weight_decay: float = setting(0.1, "on matrices, relative to their learning rate; vectors have none", 0)
    clip: float = setting(1.0, "largest norm of the gradient; 0: any", 0)
    schedule: str = setting("linear", "learning rate over the run, see star/training/schedule.py", choices=SCHEDULES)
    warmup: float = setting(0.05, "fraction over which the learning rate rises", 0, 0.99)
    cooldown: float = setting(0.2, "fraction over which the schedule wsd falls", 0, 1)
    floor: float = setting(0.0, "what the schedule ends at, over the peak", 0, 1)
    eval_interval: float = setting(0.2, "fraction between two points of the learning curve", 1e-6, 1)
    eval_tokens: int = setting(32_768, "size of the fixed validation sample", 1)
    dtype: str = setting("auto", "of activations; auto: bfloat16 on CUDA, else float32. Weights are always float32", choices=DTYPES)
    device: str = setting("auto", "cpu, cuda or cuda:N; auto: CUDA where there is one")
    seed: int = setting(0, "order of the batches", 0)

    def __post_init__(self):
        object.__setattr__(self, "betas", tuple(self.betas))  # JSON and TOML have only lists
        if len(self.betas) != 2:
            raise UserError(f"the training recipe's betas are {self.betas}; they must be two numbers")
        for f in fields(self):
            value, low, high, choices = getattr(self, f.name), *(f.metadata[key] for key in ("low", "high", "choices"))
            if choices and value not in choices:
                raise UserError(f"the training recipe's {f.name} is {value!r}; it must be one of {', '.join(choices)}")
            for number in value if isinstance(value, tuple) else (value,):
                if not isinstance(number, str) and not low <= number <= high:
                    legal = f"at least {low:g}" if high == INFINITY else f"from {low:g} to {high:g}"
                    raise UserError(f"the training recipe's {f.name} is {value}; it must be {legal}")

    @property
    def steps(self) -> int:
        return -(-self.tokens // (self.batch_size * self.seq_len))

    def replace(self, **changes) -> "Recipe":
        """This recipe with some settings changed; an unknown name is a UserError."""
        known = [f.name for f in fields(self)]
        for name in changes:
            if name not in known:
                raise UserError(f"the training recipe has no setting {name!r}; it has {', '.join(known)}")
        return replace(self, **changes)


LAPTOP = Recipe()
