"""Genomes that are a model class of the library transformers: its configuration, and its names for our weights.

    for name, reason in where(plan): ...     # reason: "" if the class can express the plan, else why it cannot
    config, weights = STOCK["Llama"]         # weights: LanguageModel -> tensors by their names in transformers

Nothing here needs transformers; `star.export.hugging_face_checkpoint` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from star.genome import Plan
from star.liv import LIV, LIVConfig
from star.liv.attention import AttentionConfig
from star.liv.convolution import ConvolutionConfig
from star.liv.memoryless import MemorylessConfig
from star.liv.recurrence import RecurrenceConfig
from star.model import LanguageModel

POSITIONS = 32_768  # the longest context that a configuration names; nothing else depends on it
Weights = dict[str, Tensor]
C = TypeVar("C", bound=LIVConfig)


class Cannot(Exception):
    """Why a class cannot express a plan, in words that follow its name."""


class Stock(NamedTuple):
    """One class: its configuration for a plan and a vocabulary, or `Cannot`; and its names for the weights."""

    config: Callable[[Plan], dict[str, Any]]
    weights: Callable[[LanguageModel], Weights]


def where(plan: Plan) -> list[tuple[str, str]]:
    """Every class of `STOCK`, and "" or the first reason why it cannot express the plan."""
    found = []
    for name, stock in STOCK.items():
        try:
            stock.config(plan)
            found.append((name, ""))
        except Cannot as reason:
            found.append((name, str(reason)))
    return found


# What several classes have in common.


def need(holds: bool, otherwise: str) -> None:
    """Raises Cannot unless it holds."""
    if not holds:
        raise Cannot(otherwise)


def plain(plan: Plan, norm: int = 1) -> None:
    """Raises Cannot for what no class has: sharing, gains, differential forms; and for another norm."""
    for layer in plan.layers:
        need(
            not layer.given and not layer.weights_from, f"LIV {layer.index + 1} ({layer.name}) shares with another LIV"
        )
        need(layer.config.branches == 1, f"LIV {layer.index + 1} ({layer.name}) is differential")
    need(plan.block.residual == 1, "it has no gain on the residual branches")
    norms = {1: "before", 2: "before and after", 3: "after", 4: "as LayerNorm before"}
    need(plan.block.norm == norm, f"its norms are {norms[norm]} an operator, here {norms[plan.block.norm]} it")
    need(not plan.positions or norm == 4, "it has no learned positions")


def one(configs: Sequence[C], what: str) -> C:
    """The configuration that all have. Raises Cannot if they differ or there is none."""
    need(bool(configs), f"it needs {what}, and there is none")
    need(all(config == configs[0] for config in configs), f"all its {what} must be equal")
    return configs[0]


def of_kind(plan: Plan, kind: type[C], start: int = 0, step: int = 1, what: str = "") -> list[C]:
    """The configurations of every `step`-th LIV from `start` on, which must be of this kind. Raises Cannot."""
    for layer in plan.layers[start::step]:
        need(isinstance(layer.config, kind), f"LIV {layer.index + 1} ({layer.name}) would have to be {what}")
    return [layer.config for layer in plan.layers[start::step] if isinstance(layer.config, kind)]


def attention_sizes(config: AttentionConfig, qk_norm: str = "", window: bool = False, rope: bool = True) -> dict:
    """The sizes of attention. Raises Cannot for what the class does not have."""
    need(type(config) is AttentionConfig, "its attention has no latent")
    need(not config.filters, "its attention has no short filters of q, k or v")
    need(not config.gated, "its attention has no output gate")
    need(not config.sink, "its attention has no sinks")
    need(not config.biased, "its attention has no biases")
    words = {
        "": "no norm of q and k",
        "head": "a norm of q and k for each head",
        "full": "a norm of q and k of all heads",
    }
    need(config.qk_norm == qk_norm, f"its attention has {words[qk_norm]}")
    need(window or config.window is None, "its attention has no window")
    need(config.rope_theta is None or config.rotary is None, "its rotary positions are on all channels of a head")
    need((config.rope_theta is not None) == rope, f"its attention has {'' if rope else 'no '}rotary positions")
    return {
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
    }


def swiglu_size(configs: Sequence[MemorylessConfig]) -> dict:
    """The inner width of SwiGLU. Raises Cannot."""
    mlp = one(configs, "SwiGLU")
    need(mlp.gated and mlp.nonlinearity == "swish" and not mlp.biased, "its MLP is SwiGLU without biases")
    return {"intermediate_size": mlp.width}


def general(plan: Plan) -> dict:
    """The sizes of any decoder with rotary positions."""
    theta = next((c.rope_theta for layer in plan.layers if (c := _attention(layer.config)) and c.rope_theta), 10_000.0)
    return {
        "hidden_size": plan.d_model,
        "max_position_embeddings": POSITIONS,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
    }


def _attention(config: LIVConfig) -> AttentionConfig | None:
    return config if isinstance(config, AttentionConfig) else None


def ends(model: LanguageModel, embedding: str, norm: str) -> Weights:
    """Embedding, final norm and head."""
    weights: Weights = {embedding: model.embedding, norm: model.final_norm}
    return weights if model.tie_embeddings else weights | {"lm_head.weight": model.head}


# Decoders: attention and SwiGLU in turn.


def decoder_config(plan: Plan, qk_norm: str = "", window: bool = False, norm: int = 1) -> tuple[dict, AttentionConfig]:
    """Configuration of a decoder, and its attention. window: whether it has one window for all."""
    plain(plan, norm)
    need(len(plan.layers) % 2 == 0, "it has attention and SwiGLU in turn, an even number of LIVs")
    mixers = of_kind(plan, AttentionConfig, 0, 2, "attention")
    mlp = swiglu_size(of_kind(plan, MemorylessConfig, 1, 2, "SwiGLU"))
    attention = one(mixers, "attention")
    sizes = attention_sizes(attention, qk_norm, window)
    return general(plan) | sizes | mlp | {"num_hidden_layers": len(mixers), "rms_norm_eps": 1e-5}, attention


def llama(plan: Plan) -> dict:
    """Grouped-query attention and SwiGLU."""
    return decoder_config(plan)[0]


def mistral(plan: Plan) -> dict:
    """As Llama, with one window for all."""
    config, attention = decoder_config(plan, window=True)
    need(attention.window is not None, "its attention has a window; this is a Llama")
    return config | {"sliding_window": attention.window}


def qwen3(plan: Plan) -> dict:
    """As Llama, with a norm of q and k for each head."""
    return decoder_config(plan, qk_norm="head")[0]


def olmo2(plan: Plan) -> dict:
    """A norm of q and k over all heads, and norms after the operators."""
    config, attention = decoder_config(plan, qk_norm="full", norm=3)
    need(attention.n_heads * attention.head_dim == plan.d_model, "its heads are together as wide as the model")
    config.pop("head_dim")
    return config


def decoder_weights(model: LanguageModel) -> Weights:
    """Names of Llama, Mistral, Qwen3 and OLMo 2."""
    weights = ends(model, "model.embed_tokens.weight", "model.norm.weight")
    norms = ("norm_in", "input_layernorm", "post_attention_layernorm")
    if model.plan.block.norm == 3:
        norms = ("norm_out", "post_attention_layernorm", "post_feedforward_layernorm")
    for i, (mixer, mlp) in enumerate(zip(model.blocks[::2], model.blocks[1::2], strict=True)):
        layer, attention = f"model.layers.{i}.", mixer.liv
        weights |= {f"{layer}{norms[n]}.weight": getattr(b, norms[0]) for n, b in enumerate((mixer, mlp), start=1)}
        weights |= {f"{layer}self_attn.{g}_proj.weight": getattr(attention, g) for g in "qkv"}
        weights[f"{layer}self_attn.o_proj.weight"] = attention.out
        if attention.config.qk_norm:
            weights |= {f"{layer}self_attn.{g}_norm.weight": getattr(attention, f"{g}_norm") for g in "qk"}
        names = {"gate": "gate", "up": "value_map", "down": "out"}
        weights |= {f"{layer}mlp.{theirs}_proj.weight": getattr(mlp.liv, ours) for theirs, ours in names.items()}
    return weights


# LFM2: attention or a short gated convolution, and SwiGLU, in turn.


def lfm2(plan: Plan) -> dict:
    """Configuration of LFM2."""
    plain(plan)
    need(len(plan.layers) % 2 == 0, "it has a mixer and SwiGLU in turn, an even number of LIVs")
    mixers = [layer.config for layer in plan.layers[::2]]
    mlp = swiglu_size(of_kind(plan, MemorylessConfig, 1, 2, "SwiGLU"))
    convolutions = [config for config in mixers if isinstance(config, ConvolutionConfig)]
    attentions = [config for config in mixers if isinstance(config, AttentionConfig)]
    need(len(convolutions) + len(attentions) == len(mixers), "its mixers are attention and gated convolutions")
    convolution = one(convolutions, "gated convolutions")
    need(not convolution.implicit and not convolution.filters, "its convolutions have free taps and no short filters")
    attention = one(attentions, "attention")
    sizes = attention_sizes(attention, "head")
    need(attention.n_heads * attention.head_dim == plan.d_model, "its heads are together as wide as the model")
    sizes.pop("head_dim")
    return (
        general(plan)
        | sizes
        | mlp
        | {
            "num_hidden_layers": len(mixers),
            "block_auto_adjust_ff_dim": False,
            "norm_eps": 1e-5,
            "conv_L_cache": convolution.length,
            "layer_types": ["full_attention" if isinstance(c, AttentionConfig) else "conv" for c in mixers],
        }
    )


def lfm2_weights(model: LanguageModel) -> Weights:
    """Names of LFM2."""
    weights = ends(model, "model.embed_tokens.weight", "model.embedding_norm.weight")
    for i, (mixer, mlp) in enumerate(zip(model.blocks[::2], model.blocks[1::2], strict=True)):
        layer, liv = f"model.layers.{i}.", mixer.liv
        weights |= {f"{layer}operator_norm.weight": mixer.norm_in, f"{layer}ffn_norm.weight": mlp.norm_in}
        names = {"w1": "gate", "w3": "value_map", "w2": "out"}
        weights |= {f"{layer}feed_forward.{theirs}.weight": getattr(mlp.liv, ours) for theirs, ours in names.items()}
        if isinstance(liv.config, AttentionConfig):
            weights |= {f"{layer}self_attn.{g}_proj.weight": getattr(liv, g) for g in "qkv"}
            weights |= {f"{layer}self_attn.{g}_layernorm.weight": getattr(liv, f"{g}_norm") for g in "qk"}
            weights[f"{layer}self_attn.out_proj.weight"] = liv.out
        else:
            weights[f"{layer}conv.in_proj.weight"] = torch.cat([liv.b, liv.c, liv.h])
            weights |= {f"{layer}conv.out_proj.weight": liv.out, f"{layer}conv.conv.weight": liv.kernel[:, None]}
    return weights


# Mamba-2 alone, and Nemotron-H, where each block is one LIV: Mamba-2, attention without positions or ReLU^2.


def mamba_sizes(config: RecurrenceConfig) -> dict:
    """The sizes of Mamba-2. Raises Cannot."""
    need(config.decay == "scalar" and not config.delta, "its recurrence is Mamba-2's, with one decay per head")
    need(not config.gate_rank and not config.decay_rank, "Mamba-2 has no maps through few channels")
    need(config.skip and config.gated and config.norm == "groups", "Mamba-2 has a skip, a gate and a norm after it")
    need(
        config.nonlinearity == "swish" and config.filters == ("b", "c", "v"), "Mamba-2 has filters and swish on b, c, v"
    )
    return {"n_groups": config.n_groups, "conv_kernel": 4, "use_conv_bias": False, "layer_norm_epsilon": 1e-5}


def mamba_weights(liv: LIV, prefix: str) -> Weights:
    """Names of a Mamba-2 mixer."""
    w = {name: getattr(liv, name) for name in liv.config.weights()}
    return {
        f"{prefix}in_proj.weight": torch.cat([w["z"], w["v"], w["b"], w["c"], w["dt"]]),
        f"{prefix}conv1d.weight": torch.cat([w["v_filter"], w["b_filter"], w["c_filter"]])[:, None],
        f"{prefix}dt_bias": w["dt_bias"],
        f"{prefix}A_log": w["log_rate"],
        f"{prefix}D": w["skip"],
        f"{prefix}norm.weight": w["norm"],
        f"{prefix}out_proj.weight": w["out"],
    }


def mamba2(plan: Plan) -> dict:
    """Configuration of Mamba-2."""
    plain(plan)
    mixer = one(of_kind(plan, RecurrenceConfig, what="Mamba-2"), "Mamba-2")
    return mamba_sizes(mixer) | {
        "hidden_size": plan.d_model,
        "num_hidden_layers": len(plan.layers),
        "num_heads": mixer.n_heads,
        "head_dim": mixer.head_dim,
        "state_size": mixer.state_size,
        "expand": mixer.n_heads * mixer.head_dim // plan.d_model,
    }


def mamba2_weights(model: LanguageModel) -> Weights:
    """Names of Mamba-2."""
    weights = ends(model, "backbone.embeddings.weight", "backbone.norm_f.weight")
    for i, block in enumerate(model.blocks):
        layer = f"backbone.layers.{i}."
        weights |= {f"{layer}norm.weight": block.norm_in} | mamba_weights(block.liv, f"{layer}mixer.")
    return weights


KINDS: dict[type[LIVConfig], str] = {
    AttentionConfig: "full_attention",
    MemorylessConfig: "mlp",
    RecurrenceConfig: "linear_attention",
}


def nemotron_h(plan: Plan) -> dict:
    """Configuration of Nemotron-H. What it does not have gets sizes that nothing uses."""
    plain(plan)
    configs = [layer.config for layer in plan.layers]
    for layer in plan.layers:
        known = type(layer.config) in KINDS
        need(known, f"LIV {layer.index + 1} ({layer.name}) would have to be attention, Mamba-2 or ReLU^2")
    attentions = [config for config in configs if isinstance(config, AttentionConfig)]
    mlps = [config for config in configs if isinstance(config, MemorylessConfig)]
    mambas = [config for config in configs if isinstance(config, RecurrenceConfig)]
    sizes: dict = {
        "hidden_size": plan.d_model,
        "max_position_embeddings": POSITIONS,
        "layers_block_type": [KINDS[type(config)] for config in configs],
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": False,  # the class does not tie them
    }
    if attentions:
        sizes |= attention_sizes(one(attentions, "attention"), rope=False)
    if mlps:
        mlp = one(mlps, "ReLU^2")
        need(not mlp.gated and mlp.nonlinearity == "relu" and not mlp.biased, "its MLP is ReLU^2 without a gate")
        sizes |= {"intermediate_size": mlp.width}
    if mambas:
        mamba = one(mambas, "Mamba-2")
        sizes |= mamba_sizes(mamba) | {
            "mamba_num_heads": mamba.n_heads,
            "mamba_head_dim": mamba.head_dim,
            "ssm_state_size": mamba.state_size,
            "expand": mamba.n_heads * mamba.head_dim // plan.d_model,
            "time_step_min": 1e-30,  # steps are not clamped
        }
    return sizes


def nemotron_h_weights(model: LanguageModel) -> Weights:
    """Names of Nemotron-H."""
    weights = ends(model, "model.embeddings.weight", "model.norm_f.weight") | {"lm_head.weight": model.head_weight}
    for i, block in enumerate(model.blocks):
        layer, liv = f"model.layers.{i}.", block.liv
        weights[f"{layer}norm.weight"] = block.norm_in
        if isinstance(liv.config, RecurrenceConfig):
            weights |= mamba_weights(liv, f"{layer}mixer.")
        elif isinstance(liv.config, AttentionConfig):
            weights |= {f"{layer}mixer.{g}_proj.weight": getattr(liv, g) for g in "qkv"}
            weights[f"{layer}mixer.o_proj.weight"] = liv.out
        else:
            weights |= {f"{layer}mixer.up_proj.weight": liv.value_map, f"{layer}mixer.down_proj.weight": liv.out}
    return weights


STOCK: dict[str, Stock] = {
    "Llama": Stock(llama, decoder_weights),
    "Mistral": Stock(mistral, decoder_weights),
    "Qwen3": Stock(qwen3, decoder_weights),
    "Olmo2": Stock(olmo2, decoder_weights),
    "Lfm2": Stock(lfm2, lfm2_weights),
    "Mamba2": Stock(mamba2, mamba2_weights),
    "NemotronH": Stock(nemotron_h, nemotron_h_weights),
}
