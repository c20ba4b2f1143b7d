"""The pool of operator classes that a backbone gene can name.

Class ids 1-17 are the paper's (STAR, arXiv 2411.17800, appendix); the rest are extensions. Ids are part of stored genomes,
so rows are only ever appended. Class 0 is "no operator". Each row is data: the integers of one operator.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from star.errors import UserError
from star.liv import ABSENT, FAMILIES, FeatureGenes, LIVConfig, Operator, OperatorGenes

# Which family of feature groups a featurizer class (first gene of the operator genome) has.
FEATURIZERS = {
    1: "attention",
    2: "attention",
    3: "attention",
    4: "attention",
    5: "recurrence",
    6: "recurrence",
    7: "convolution",
    8: "convolution",
    9: "memoryless",
}


@dataclass(frozen=True)
class PoolClass:
    """A named operator. The name is for people; the integers are the operator."""

    name: str
    operator: Operator

    def config(self, d_model: int, head_dim: int, rope_theta: float) -> LIVConfig:
        """The sized operator; raises UserError if it does not fit the width."""
        try:
            return FAMILIES[self.operator.family].configure(self.operator, d_model, head_dim, rope_theta)
        except UserError as error:
            raise UserError(f"class {self.name}: {error}") from None


def operator(genes: str | OperatorGenes | tuple[int, ...], differential: bool = False, **features: tuple[int, ...]) -> Operator:
    """An operator from its integers: five digits such as "12123", and four integers for each feature group."""
    if isinstance(genes, str):
        genes = tuple(int(digit) for digit in (genes.split(".") if "." in genes else genes))
    if len(genes) != 5:
        raise UserError(f"operator genome {genes} has {len(genes)} integers; it takes five: featurizer, token, sparsity, nonlinearity, channel")
    genes = OperatorGenes(*genes)
    if genes.featurizer not in FEATURIZERS:
        raise UserError(f"operator genome {tuple(genes)}: featurizer {genes.featurizer} is unknown; legal is {', '.join(map(str, FEATURIZERS))}")
    rows = []
    for name, row in features.items():
        if len(row) != 4:
            raise UserError(f"feature group '{name}' has {len(row)} integers; it takes four: token, channel, expansion, repeat")
        if FeatureGenes(*row) != ABSENT:
            rows.append((name, FeatureGenes(*row)))
    result = Operator(FEATURIZERS[genes.featurizer], genes, tuple(sorted(rows)), differential)
    FAMILIES[result.family].validate(result)
    return result


def attention(genes: str, repeat: int = 1, filtered: bool = False, norm: bool = False) -> Operator:
    q = (3 if filtered else 1, 2, 1, 1)
    kv = (q[0], 2, 1, repeat)
    return operator(genes, q=q, k=kv, v=kv, **({"norm": (1, 1, 1, 1)} if norm else {}))


def recurrence(genes: str, state_size: int) -> Operator:
    bc = (3, 2, state_size, 1)
    return operator(genes, b=bc, c=bc, v=(3, 2, 1, 1), decay=(1, 3, 1, 1))


def convolution(genes: str, length: int, implicit: bool = False, filtered: bool = False) -> Operator:
    gate = (3 if filtered else 1, 2, 1, 1)
    poles = {"poles": (3, 1, 1, 1)} if implicit else {}
    return operator(genes, b=gate, c=gate, h=gate, kernel=(3, 1, length, 1), **poles)


def memoryless(genes: str, twelfths: int, gated: bool = True) -> Operator:
    row = (1, 2, twelfths, 1)
    return operator(genes, value=row, **({"gate": row} if gated else {}))


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
POOL: tuple[PoolClass, ...] = (
    *_BASE,
    PoolClass("GMemless", memoryless("91142", twelfths=32)),
    *_DIFFERENTIAL,
    # Beyond the paper: what LFM2 (arXiv 2511.23404), Llama 3 and Griffin are made of.
    PoolClass("GQA-2-QKN", attention("42123", repeat=2, norm=True)),
    PoolClass("GQA-3-QKN", attention("42123", repeat=3, norm=True)),
    PoolClass("GQA-4-QKN", attention("32123", repeat=4, norm=True)),
    PoolClass("SwiGLU-4", memoryless("91142", twelfths=48)),
    PoolClass("SwiGLU-4.5", memoryless("91142", twelfths=54)),
    PoolClass("SwiGLU-5.25", memoryless("91142", twelfths=63)),
    PoolClass("ReLU2-4", memoryless("91132", twelfths=48, gated=False)),
)
