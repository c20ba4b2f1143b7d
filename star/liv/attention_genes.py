"""The genes of attention: what the family of `star.liv.attention` and `star.liv.latent` can express."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from star.errors import UserError
from star.liv.attention import AttentionConfig
from star.liv.genes import ABSENT, BIAS_GROUP, Family, GroupSpec, Operator, Rule, count_heads
from star.liv.latent import LatentConfig

LATENT_RULES: tuple[tuple[str, Any, str], ...] = (
    ("k.repeat", 1, "every head has keys and values of its own from the latent"),
    ("k.token", 1, "a filter after the latent would need past keys"),
    ("v.token", 1, "a filter after the latent would need past values"),
    ("norm", ABSENT, "a norm of the keys would stand between them and the latent that queries read"),
    ("bias", ABSENT, "the maps from the latent move to the query and behind the sum, where a bias cannot"),
)


def _without_latent(gene: str, legal: Any, why: str) -> Rule:
    """A gene that has one legal value beside a latent."""
    return Rule("latent", gene, lambda o: not o.has("latent") or o.gene(gene) == legal, why)


def configure(operator: Operator, d_model: int, head_dim: int, rope_theta: float) -> AttentionConfig:
    """The sized operator. Raises UserError if it does not fit the width."""
    width = d_model * operator.feature("q").expansion
    n_heads, n_kv_heads = count_heads("attention", width, head_dim, operator.feature("k").repeat)
    rotary = max(2, head_dim // operator.feature("nope").repeat // 2 * 2) if operator.has("nope") else None
    kind: Callable[..., AttentionConfig] = AttentionConfig
    latent = operator.feature("latent")
    if operator.has("latent"):
        rank = latent.expansion * head_dim
        if rank > d_model:
            raise UserError(
                f"attention: the latent has {rank} channels ({latent.expansion} heads of {head_dim}), more than the "
                f"model with {d_model}; choose a smaller latent.expansion or narrower heads"
            )
        rotary = max(2, head_dim // 4 * 2)
        kind = partial(LatentConfig, rank=rank, shared=rotary if latent.repeat == 2 else 0)
    return kind(
        d_model,
        operator.branches,
        n_heads,
        n_kv_heads,
        head_dim,
        window=operator.window,
        filters=tuple(g for g in "qkv" if operator.feature(g).token == 3),
        qk_norm={0: "", 1: "head", 2: "full"}[operator.feature("norm").channel],
        rope_theta=None if operator.feature("nope").repeat == 1 else rope_theta,
        rotary=rotary,
        biased=operator.has("bias"),
        gated=operator.has("gate"),
        sink=operator.has("sink"),
    )


_REPEAT = (1, 2, 3, 4, 8, 0)
_QKV: dict[str, Any] = {
    "token": (1, 3),
    "expansion": (1, 2),
    "expansion_means": "width of all query heads over the width of the model",
}
FAMILY = Family(
    name="attention",
    equation="T_ij = softmax_j(q_i . k_j / sqrt(d)) per head",
    token=(2,),
    sparsity=tuple(range(1, 11)),
    nonlinearity=(2,),
    channel=(3,),
    groups={
        "q": GroupSpec("queries: W_q x, one per head; token mixing 3 adds a causal filter of length 3", **_QKV),
        "k": GroupSpec("keys: W_k x; r query heads share one, 0: all heads do", repeat=_REPEAT, **_QKV),
        "v": GroupSpec("values: W_v x, the value path; repeat as for keys", repeat=_REPEAT, **_QKV),
        "norm": GroupSpec(
            "RMSNorm of q and k (QK-norm): channel mixing 1 per head, 2 over all heads", channel=(1, 2), optional=True
        ),
        "nope": GroupSpec(
            "q and k are not rotated (NoPE, arXiv 2305.19466); repeat r: the first 1/r of the channels of a head are "
            "(partial rotary: GPT-J, Qwen3-Next)",
            channel=(1,),
            repeat=(1, 2, 4),
            optional=True,
        ),
        "bias": BIAS_GROUP,
        "gate": GroupSpec("output gate: sigmoid(W_g x), one per channel (arXiv 2505.06708)", optional=True),
        "sink": GroupSpec(
            "a logit per head that takes weight from the keys (gpt-oss, arXiv 2508.10925)", channel=(1,), optional=True
        ),
        "latent": GroupSpec(
            "keys and values come from a normed latent, which is cached in their place (multi-head latent attention, "
            "DeepSeek-V2, arXiv 2405.04434); repeat 2: all heads share one more key, half as wide, which has the RoPE",
            expansion=(4, 1, 2, 3, 6, 8),
            repeat=(1, 2),
            optional=True,
            expansion_means="width of the latent over that of a head",
        ),
    },
    shareable=(("k",), ("v",)),
    sharing_genes=("sparsity",),
    configure=configure,
    rules=(
        Rule.equal("k.repeat", "v.repeat", "keys and values come in pairs"),
        Rule.equal("q.expansion", "k.expansion", "both say how wide all heads are together"),
        Rule.equal("k.expansion", "v.expansion", "both say how wide all heads are together"),
        *(_without_latent(gene, legal, why) for gene, legal, why in LATENT_RULES),
        Rule(
            "latent",
            "nope",
            lambda o: o.feature("latent").repeat != 1 or o.feature("nope").repeat == 1,
            "keys from a latent are not rotated; only the key that all heads share (latent.repeat 2) can be",
        ),
        Rule(
            "latent.repeat",
            "nope.repeat",
            lambda o: o.feature("latent").repeat != 2 or o.feature("nope").repeat < 2,
            "the shared key is narrow and is rotated as a whole or not at all",
        ),
    ),
    why={
        "token": "softmax acts on the scores q . k, which are low rank",
        "nonlinearity": "without softmax the low-rank scores need no cache of keys: that is the recurrence family",
        "channel": "all channels of a head share its scores",
    },
    named_only={"sparsity": (10,), **{f"{g}.expansion": (2,) for g in "qkv"}, "norm.channel": (2,)}
    | {"nope": (), "bias": (), "gate": (), "sink": (), "latent": ()},
    private=("latent",),
)
