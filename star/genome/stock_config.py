"""The genome of a config.json of transformers: what `star.export.stock` writes, and checkpoints that others publish.

    found = genome_of_config(json.loads(text), where="config.json")      # a NamedGenome, with the vocabulary

A genome has as many parameters as the model that the configuration describes. What it cannot say (such as a
rescaling of rotary positions) is in its description.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from star.errors import UserError
from star.genome.classes import attention, convolution, memoryless, recurrence
from star.genome.codec import NamedGenome
from star.genome.edit import with_operators
from star.genome.genome import Gene, Genome
from star.liv import Operator
from star.liv.genes import WINDOW_UNIT

EPS = ("rms_norm_eps", "norm_eps", "layer_norm_epsilon")
MOST_LAYERS = 512


class Config:
    """The keys of a configuration, each checked when it is read. Raises UserError naming the key and its value."""

    def __init__(self, data: Mapping[str, Any], where: str):
        self.data, self.where = data, where

    def get(self, key: str, default: Any = None) -> Any:
        """The value; the default where it is missing or null."""
        value = self.data.get(key)
        return default if value is None else value

    def whole(self, key: str, default: int | None = None, most: int = 10_000_000) -> int:
        """A whole number from 1 to `most`."""
        value = self.get(key, default)
        if type(value) is not int or not 1 <= value <= most:
            raise UserError(f"{self.where}: '{key}' is {value!r}; it must be a whole number from 1 to {most:,}")
        return value

    def refuse(self, key: str, why: str) -> UserError:
        """An error about a value that no genome has."""
        return UserError(f"{self.where}: '{key}' is {self.data.get(key)!r}, and {why}")

    def no(self, key: str, why: str) -> None:
        """Raises UserError if the key is set and not false."""
        if self.get(key):
            raise self.refuse(key, why)

    def twelfths(self, key: str, width: int, most: int = 96) -> int:
        """A width as twelfths of that of the model, rounded down."""
        value = self.whole(key)
        n = -(-12 * value // width)
        if n * width // 12 != value or not 12 <= n <= most:
            raise self.refuse(key, f"an inner width must be 12 to {most} twelfths of {width} ('hidden_size')")
        return n


def genome_of_config(data: Any, where: str = "config.json") -> NamedGenome:
    """The genome of a configuration. Raises UserError naming the key, its value and what a genome can have."""
    if not isinstance(data, dict) or "model_type" not in data:
        raise UserError(
            f"{where}: this is no configuration of transformers; it must be a JSON object with 'model_type'"
        )
    config, kind = Config(data, where), str(data["model_type"])
    if kind not in READERS:
        raise UserError(f"{where}: model_type {kind!r} is not known; known are {', '.join(READERS)}")
    operators, norm, tied = READERS[kind](config)
    d_model = config.whole("hidden_size", most=65_536)
    head_dim = config.whole("head_dim", d_model // config.whole("num_attention_heads", 1), most=1024)
    notes = [f"From a config.json of {kind}."]
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if isinstance(rope, dict) and rope.get("rope_type", rope.get("type", "default")) not in ("default", None):
        notes.append("Its rescaling of rotary positions is left out.")
    theta = config.get("rope_theta") or (rope.get("rope_theta") if isinstance(rope, dict) else None) or 10_000.0
    eps = next((config.get(key) for key in EPS if config.get(key) is not None), 1e-5)
    if eps != 1e-5:
        notes.append(f"Its norms have an epsilon of {eps}, here 1e-05.")
    embedding = 1 if config.get("tie_word_embeddings", tied) else 2
    genes = (Gene(1),) * len(operators)
    try:
        plain = Genome(genes, d_model, head_dim, norm, rope_theta=float(theta), embedding=embedding)
        genome = with_operators(plain, operators)
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None
    vocab_size = config.whole("vocab_size")
    return NamedGenome(genome, "", " ".join(notes), vocab_size)


def heads(config: Config, qk_norm: str = "", window: int | None = None, rope: bool = True) -> Operator:
    """Attention."""
    config.no("attention_bias", "no class of transformers and no genome has the same biases of attention")
    d_model, n_heads = config.whole("hidden_size"), config.whole("num_attention_heads")
    n_kv_heads = config.whole("num_key_value_heads", n_heads)
    head_dim = config.whole("head_dim", d_model // n_heads)
    expansion, repeat = n_heads * head_dim // d_model, n_heads // n_kv_heads
    if expansion * d_model != n_heads * head_dim or expansion not in (1, 2):
        raise config.refuse(
            "num_attention_heads", f"all heads must be together as wide as the model ({d_model}) or twice"
        )
    if n_kv_heads == 1 and repeat not in (1, 2, 3, 4, 8):
        repeat = 0
    elif repeat * n_kv_heads != n_heads or repeat not in (1, 2, 3, 4, 8):
        raise config.refuse("num_key_value_heads", "1, 2, 3, 4, 8 or all heads can have one key")
    sizes = {WINDOW_UNIT * 2**n: n + 2 for n in range(9)}  # window -> gene
    if window is not None and window not in sizes:
        raise config.refuse("sliding_window", f"a window is one of {', '.join(map(str, sizes))}")
    featurizer = {1: 1, 2: 4}.get(repeat, 3)
    genes = f"{featurizer}.2.{sizes[window] if window else 1}.2.3"
    return attention(genes, repeat, norm=qk_norm, expansion=expansion, unrotated=int(not rope))


def swiglu(config: Config) -> Operator:
    """SwiGLU."""
    config.no("mlp_bias", "SwiGLU has no biases")
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise config.refuse("hidden_act", "it must be silu")
    return memoryless("91142", config.twelfths("intermediate_size", config.whole("hidden_size")))


Layout = tuple[Sequence[Operator], int, bool]  # the operators, the norm scheme, and whether the head is tied by default


def decoder(qk_norm: str = "", norm: int = 1) -> Callable[[Config], Layout]:
    """Attention and SwiGLU in turn."""

    def read(config: Config) -> Layout:
        n, mlp = config.whole("num_hidden_layers", most=MOST_LAYERS), swiglu(config)
        kinds = config.get("layer_types") or ["full_attention"] * n
        window = config.get("sliding_window")
        if config.data["model_type"] == "mistral":
            kinds = ["sliding_attention" if window else "full_attention"] * n
        if config.data["model_type"] == "qwen3" and not config.get("use_sliding_window"):
            kinds = ["full_attention"] * n
        mixers = [heads(config, qk_norm, window if kind == "sliding_attention" else None) for kind in kinds[:n]]
        return [operator for mixer in mixers for operator in (mixer, mlp)], norm, False

    return read


def lfm2(config: Config) -> Layout:
    """Attention or a gated convolution, and SwiGLU, in turn."""
    n = config.whole("num_hidden_layers", most=MOST_LAYERS)
    if config.get("block_auto_adjust_ff_dim", True):  # as the class does
        width = int(config.get("block_ffn_dim_multiplier", 1.0) * (2 * config.whole("intermediate_size") // 3))
        unit = config.whole("block_multiple_of", 256)
        config = Config({**config.data, "intermediate_size": unit * -(-width // unit)}, config.where)
    config.no("conv_bias", "gated convolutions have no biases")
    full = config.get("full_attn_idxs", range(n))
    kinds = config.get("layer_types") or ["full_attention" if i in full else "conv" for i in range(n)]
    mixer = {"full_attention": heads(config, "head"), "conv": convolution("73111", config.whole("conv_L_cache", 3))}
    if not set(kinds) <= mixer.keys():
        raise config.refuse("layer_types", "known are full_attention and conv")
    return [operator for kind in kinds[:n] for operator in (mixer[kind], swiglu(config))], 1, True


def mamba(config: Config, n_heads: str, head_dim: str, state: str) -> Operator:
    """Mamba-2; the names of its keys."""
    if config.get("use_conv_bias", True):
        raise config.refuse("use_conv_bias", "the short filters of a genome have no biases; it must be false")
    config.no("use_bias", "Mamba-2 has no biases here")
    n, groups, d_model = config.whole(n_heads), config.whole("n_groups", 8), config.whole("hidden_size")
    expansion, repeat = n * config.whole(head_dim) // d_model, 0 if groups == 1 else n // groups
    if expansion not in (1, 2) or expansion * d_model != n * config.whole(head_dim):
        raise config.refuse(n_heads, f"all heads must be together as wide as the model ({d_model}) or twice")
    if repeat not in (0, 1, 2, 4, 8) or (repeat and repeat * groups != n):
        raise config.refuse("n_groups", "1, 2, 4, 8 or all heads can share b and c")
    if config.whole("conv_kernel", 4) != 4:
        raise config.refuse("conv_kernel", "short filters have 4 taps")
    options: dict[str, Any] = {"expansion": expansion, "repeat": repeat, "skip": True, "gate": True, "norm": "groups"}
    return recurrence("54141", config.whole(state), **options)


def mamba2(config: Config) -> Layout:
    """Mamba-2 alone."""
    n = config.whole("num_hidden_layers", most=MOST_LAYERS)
    return [mamba(config, "num_heads", "head_dim", "state_size")] * n, 1, False


def nemotron_h(config: Config) -> Layout:
    """Mamba-2, attention without positions and ReLU^2 in any order."""
    made: dict[str, Operator] = {}
    kinds = config.get("layers_block_type") or config.get("layer_types")
    if not kinds and isinstance(config.get("hybrid_override_pattern"), str):
        kinds = [
            {"M": "linear_attention", "*": "full_attention", "-": "mlp"}.get(c, c)
            for c in config.data["hybrid_override_pattern"]
        ]
    for kind in kinds or ():
        if kind in ("linear_attention", "mamba"):
            made[kind] = mamba(config, "mamba_num_heads", "mamba_head_dim", "ssm_state_size")
        elif kind in ("full_attention", "attention"):
            made[kind] = heads(config, rope=False)
        elif kind == "mlp":
            config.no("mlp_bias", "ReLU^2 has no biases here")
            made[kind] = memoryless(
                "91132", config.twelfths("intermediate_size", config.whole("hidden_size")), gated=False
            )
        else:
            raise config.refuse("layers_block_type", f"{kind!r} is not known: Mamba-2, attention and mlp are")
    if not kinds:
        raise config.refuse("layers_block_type", "it must list the kind of every layer")
    return [made[kind] for kind in kinds], 1, False


READERS: dict[str, Callable[[Config], Layout]] = {
    "llama": decoder(),
    "mistral": decoder(),
    "qwen3": decoder("head"),
    "olmo2": decoder("full", norm=3),
    "lfm2": lfm2,
    "mamba2": mamba2,
    "nemotron_h": nemotron_h,
}
