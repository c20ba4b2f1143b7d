"""The pool of operator classes that a backbone gene can name.

Class ids 1 to 17 are the paper's (STAR, arXiv 2411.17800, appendix); the others are extensions. Class 0 is "no
operator". Each row is data: the integers of one operator. Ids are part of stored genomes, so rows are only appended.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from star.errors import UserError
from star.liv import ABSENT, FAMILIES, Family, FeatureGenes, LIVConfig, Operator, OperatorGenes

# The family of each featurizer class (the first gene of the operator genome).
FEATURIZERS = dict.fromkeys(range(1, 5), "attention") | dict.fromkeys((5, 6), "recurrence")
FEATURIZERS |= dict.fromkeys((7, 8), "convolution") | {9: "memoryless", 10: "elementwise"}


def register_family(featurizer: int, family: Family) -> None:
    """Registers a family of operators from outside the package. featurizer: first gene of its operators, 11 or more.

    Raises UserError if another family has this number or name.
    """
    if FEATURIZERS.get(featurizer, family.name) != family.name or featurizer < 1:
        raise UserError(f"featurizer {featurizer} belongs to {FEATURIZERS.get(featurizer)}; choose a number above 10")
    if family.name in FAMILIES and FAMILIES[family.name] is not family and family.name not in FEATURIZERS.values():
        raise UserError(f"there is a family {family.name!r} already; choose another name")
    FAMILIES[family.name], FEATURIZERS[featurizer] = family, family.name


@dataclass(frozen=True)
class PoolClass:
    """An operator with a name."""

    name: str
    operator: Operator

    def config(self, d_model: int, head_dim: int, rope_theta: float) -> LIVConfig:
        """The sized operator; raises UserError if it does not fit the width."""
        try:
            return FAMILIES[self.operator.family].configure(self.operator, d_model, head_dim, rope_theta)
        except UserError as error:
            raise UserError(f"class {self.name}: {error}") from None


def operator(genes: str | OperatorGenes | tuple[int, ...], differential: bool = False, **features: Any) -> Operator:
    """An operator from its integers: five digits such as "12123", and four integers for each feature group.

    Raises UserError if they are not legal.
    """
    if isinstance(genes, str):
        genes = tuple(int(digit) for digit in (genes.split(".") if "." in genes else genes))
    if len(genes) != 5:
        raise UserError(
            f"operator genome {genes} has {len(genes)} integers; it takes five: featurizer, token, sparsity, "
            "nonlinearity, channel"
        )
    genes = OperatorGenes(*genes)
    if genes.featurizer not in FEATURIZERS:
        raise UserError(
            f"operator genome {tuple(genes)}: featurizer {genes.featurizer} is unknown; legal is "
            f"{', '.join(map(str, FEATURIZERS))}"
        )
    rows = []
    for name, row in features.items():
        if len(row) != 4:
            raise UserError(
                f"feature group '{name}' has {len(row)} integers; it takes four: token, channel, expansion, repeat"
            )
        if FeatureGenes(*row) != ABSENT:
            rows.append((name, FeatureGenes(*row)))
    result = Operator(FEATURIZERS[genes.featurizer], genes, tuple(sorted(rows)), differential)
    FAMILIES[result.family].validate(result)
    return result


def random_operator(rng: np.random.Generator, families: Iterable[str] = tuple(FAMILIES)) -> Operator:
    """A random legal operator: a family chosen uniformly, then every gene; conflicting genes are drawn again."""
    family = FAMILIES[sorted(families)[int(rng.integers(len(tuple(families))))]]
    featurizers = [f for f, name in FEATURIZERS.items() if name == family.name]
    return family.sample(featurizers[int(rng.integers(len(featurizers)))], rng)


def attention(
    genes: str,
    repeat: int = 1,
    filtered: bool = False,
    norm: str = "",
    expansion: int = 1,
    unrotated: int = 0,
    latent: int = 0,
    shared_key: bool = False,
    **options: bool,
) -> Operator:
    """An attention class. repeat: query heads per key head, 0 for a single key head.

    norm: of q and k, "head" or "full". expansion: width of all query heads over the width of the model. unrotated: 1
    for no RoPE, r for RoPE on 1/r of the channels. latent: its width in heads, 0 for none; shared_key: beside it.
    options: other groups that it has (bias, gate, sink).
    """
    q = (3 if filtered else 1, 2, expansion, 1)
    kv = (*q[:3], repeat)
    rows: dict[str, Any] = {"norm": (1, {"head": 1, "full": 2}[norm], 1, 1)} if norm else {}
    rows |= {"nope": (1, 1, 1, unrotated)} if unrotated else {}
    rows |= {"latent": (1, 2, latent, 2 if shared_key else 1)} if latent else {}
    rows |= {group: (1, 2 if group == "gate" else 1, 1, 1) for group, there in options.items() if there}
    return operator(genes, q=q, k=kv, v=kv, **rows)


def recurrence(
    genes: str,
    state_size: int,
    *,
    filtered: bool = True,
    decay: str = "scalar",
    delta: int = 0,
    expansion: int = 1,
    repeat: int = 1,
    skip: bool = False,
    gate: bool = False,
    norm: str = "",
    narrow: bool = False,
) -> Operator:
    """A class of recurrence. state_size: 0 for the width of a head. delta: greatest strength of the delta rule.

    repeat: heads that share b and c, 0 for all. norm: "heads" or "groups" (see `star.liv.readout`). narrow: the maps of
    decay and gate go through as many channels as a head has.
    """
    inner = 0 if narrow else 1
    token = 3 if filtered else 1
    bc = (token, 2, state_size, repeat)
    options: dict[str, Any] = {
        "decay": (1, {"scalar": 3, "vector": 2}.get(decay), inner, 1) if decay != "none" else None,
        "beta": (1, 3, delta, 1) if delta else None,
        "skip": (1, 3, 1, 1) if skip else None,
        "gate": (1, 2, inner, 1) if gate else None,
        "norm": (1, {"groups": 2, "heads": 3}.get(norm), 1, 1) if norm else None,
    }
    return operator(genes, b=bc, c=bc, v=(token, 2, expansion, 1), **{k: row for k, row in options.items() if row})


def elementwise(genes: str) -> Operator:
    """An element-wise recurrence class."""
    return operator(genes, b=(1, 3, 1, 1), c=(1, 2, 1, 1), v=(3, 2, 1, 1), decay=(1, 3, 1, 1))


def convolution(genes: str, length: int, implicit: bool = False, filtered: bool = False) -> Operator:
    """A gated convolution class. length: taps, or modes of an implicit filter."""
    gate = (3 if filtered else 1, 2, 1, 1)
    poles: dict[str, Any] = {"poles": (3, 1, 1, 1)} if implicit else {}
    return operator(genes, b=gate, c=gate, h=gate, kernel=(3, 1, length, 1), **poles)


def memoryless(genes: str, twelfths: int, gated: bool = True, bias: bool = False) -> Operator:
    """A memoryless class. twelfths: inner width in twelfths of the model width."""
    row = (1, 2, twelfths, 1)
    options: dict[str, Any] = ({"gate": row} if gated else {}) | ({"bias": (1, 1, 1, 1)} if bias else {})
    return operator(genes, value=row, **options)


_BASE = [
    PoolClass("SA-1", attention("12123")),
    PoolClass("SA-2", attention("22123", filtered=True)),
    PoolClass("SA-3", attention("32123", repeat=4)),
    PoolClass("SA-4", attention("42123", repeat=2)),
    PoolClass("Rec-1", recurrence("54111", state_size=16)),
    PoolClass("Rec-2", recurrence("64111", state_size=2)),
    PoolClass("GConv-1", convolution("73111", length=3)),
    PoolClass("GConv-2", convolution("83111", length=8, implicit=True)),
]
_DIFFERENTIAL = [PoolClass(f"{c.name}-Diff", replace(c.operator, differential=True)) for c in _BASE]

PAPER_CLASSES = tuple(range(18))  # 0 is "no operator"
# ReLU2-4, Mamba-2-64 and GQA-4-NoPE: any sequence of these, without sharing, is a Nemotron-H (`star.export.stock`).
EXPORTABLE_CLASSES = (0, 24, 41, 64)
POOL: tuple[PoolClass, ...] = (
    *_BASE,
    PoolClass("GMemless", memoryless("91142", twelfths=32)),
    *_DIFFERENTIAL,
    # 18-24: beyond the paper, the operators of LFM2 (arXiv 2511.23404), Llama 3 and Griffin.
    PoolClass("GQA-2-QKN", attention("42123", repeat=2, norm="head")),
    PoolClass("GQA-3-QKN", attention("42123", repeat=3, norm="head")),
    PoolClass("GQA-4-QKN", attention("32123", repeat=4, norm="head")),
    PoolClass("SwiGLU-4", memoryless("91142", twelfths=48)),
    PoolClass("SwiGLU-4.5", memoryless("91142", twelfths=54)),
    PoolClass("SwiGLU-5.25", memoryless("91142", twelfths=63)),
    PoolClass("ReLU2-4", memoryless("91132", twelfths=48, gated=False)),
    # 25-28: more ways to share keys. Qwen3 has QK-norm (arXiv 2505.09388), Griffin has one key head (arXiv 2402.19427).
    PoolClass("MHA-QKN", attention("12123", norm="head")),
    PoolClass("GQA-8-QKN", attention("32123", repeat=8, norm="head")),
    PoolClass("GQA-8", attention("32123", repeat=8)),
    PoolClass("MQA", attention("32123", repeat=0)),
    # 29-35: sliding windows, Longformer (arXiv 2004.05150); 2048 in Samba (arXiv 2406.07522), one key head in Griffin.
    PoolClass("SWA-16", attention("12223")),
    PoolClass("SWA-64", attention("12423")),
    PoolClass("SWA-256", attention("12623")),
    PoolClass("SWA-1024", attention("12823")),
    PoolClass("SWA-2048", attention("12923")),
    PoolClass("SWA-64-MQA", attention("32423", repeat=0)),
    PoolClass("SWA-1024-MQA", attention("32823", repeat=0)),
    # 36-42: matrix states. Linear attention with the norm of RetNet (arXiv 2307.08621), gated linear attention
    # (2312.06635), delta networks (2406.06484; gated 2412.06464), Mamba-2 without its biases (2405.21060); and RG-LRU.
    PoolClass("LinAttn", recurrence("52111", 64, filtered=False, decay="none", norm="heads")),
    PoolClass("GLA", recurrence("54111", 64, filtered=False, decay="vector", gate=True, norm="heads")),
    PoolClass("DeltaNet", recurrence("54141", 64, decay="none", delta=1, norm="heads")),
    PoolClass("GatedDelta", recurrence("54141", 64, delta=1, gate=True, norm="heads")),
    PoolClass("Mamba-2", recurrence("54141", 128, expansion=2, repeat=0, skip=True, gate=True, norm="groups")),
    PoolClass("Mamba-2-64", recurrence("54141", 64, expansion=2, repeat=0, skip=True, gate=True, norm="groups")),
    PoolClass("RG-LRU", elementwise("10.4.1.5.1")),
    # 43-48: gated convolutions with other filters: LFM2's space (arXiv 2511.23404), Hyena's (arXiv 2302.10866) in modal
    # form.
    *(PoolClass(f"GConv-k{length}", convolution("73111", length)) for length in (4, 5, 6, 7)),
    PoolClass("Hyena", convolution("83111", 16, implicit=True, filtered=True)),
    PoolClass("Hyena-32", convolution("83111", 32, implicit=True, filtered=True)),
    # 49-56: memoryless at several widths; GEGLU-3 is Griffin's, ReLU2 is Primer's (arXiv 2109.08668).
    *(PoolClass(f"SwiGLU-{n}", memoryless("91142", twelfths=12 * n)) for n in (1, 2, 3, 6)),
    PoolClass("GEGLU-3", memoryless("91152", twelfths=36)),
    *(PoolClass(f"ReLU2-{n}", memoryless("91132", twelfths=12 * n, gated=False)) for n in (2, 3, 6)),
    # 57-63: what layouts of public models need. TinyLlama (arXiv 2401.02385); Mistral (2310.06825), two classes; Qwen3
    # with more query channels than the model has (2505.09388); OLMo 2 (2501.00656); GPT-2, two classes.
    PoolClass("SwiGLU-2.75", memoryless("91142", twelfths=33)),
    PoolClass("SwiGLU-3.5", memoryless("91142", twelfths=42)),
    PoolClass("SWA-4096-GQA-4", attention("3.2.10.2.3", repeat=4)),
    PoolClass("GQA-2-QKN-2x", attention("42123", repeat=2, norm="head", expansion=2)),
    PoolClass("MHA-QKN-full", attention("12123", norm="full")),
    PoolClass("MHA-NoPE-bias", attention("12123", unrotated=1, bias=True)),
    PoolClass("GELU-4-bias", memoryless("91162", twelfths=48, gated=False, bias=True)),
    # 64-68: attention of 2025: no positions in some layers (SmolLM3); output gates (arXiv 2505.06708), the second as
    # in Qwen3-Next; sinks (gpt-oss, arXiv 2508.10925).
    PoolClass("GQA-4-NoPE", attention("32123", repeat=4, unrotated=1)),
    PoolClass("MHA-gate", attention("12123", gate=True)),
    PoolClass("GQA-8-QKN-gate-2x", attention("32123", repeat=8, norm="head", expansion=2, gate=True)),
    PoolClass("GQA-8-sink-bias", attention("32123", repeat=8, sink=True, bias=True)),
    PoolClass("SWA-128-GQA-8-sink-bias", attention("32523", repeat=8, sink=True, bias=True)),
    # 69-72: hybrids of the gated delta rule and attention: Qwen3-Next's mixers (two values to a key; RoPE on 1/4 of the
    # channels), and OLMo Hybrid's (strengths up to 2, arXiv 2411.12537; no positions).
    PoolClass("GatedDelta-2x", recurrence("54141", 0, delta=1, expansion=2, repeat=2, gate=True, norm="heads")),
    PoolClass(
        "GQA-8-QKN-gate-2x-RoPE-quarter",
        attention("32123", repeat=8, norm="head", expansion=2, unrotated=4, gate=True),
    ),
    PoolClass("GatedDelta-negative", recurrence("54141", 0, delta=2, gate=True, norm="heads")),
    PoolClass("MHA-QKN-full-NoPE", attention("12123", norm="full", unrotated=1)),
    # 73-75: Kimi delta attention (arXiv 2510.26692), and multi-head latent attention: with RoPE as in DeepSeek-V2
    # (arXiv 2405.04434), and without as in Kimi Linear.
    PoolClass("KDA", recurrence("54141", 0, decay="vector", delta=1, gate=True, norm="heads", narrow=True)),
    PoolClass("MLA", attention("12123", latent=4, shared_key=True)),
    PoolClass("MLA-NoPE", attention("12123", latent=4, shared_key=True, unrotated=1)),
)
