"""Linear input-varying operators (LIVs): y = T(x) x, one family per file, every operator described by integers.

This is the bottom layer: it imports nothing of STAR but `star.errors`. Read `base.py` (the interface), `genes.py` (the
integers), then any family. A new family is one file here, its `FAMILY` listed below, and one row in
`star.genome.classes`.
"""

from star.liv import attention_genes, convolution, elementwise, memoryless, recurrence
from star.liv import kernels as kernels  # registers the forms of fla
from star.liv.base import LIV, LIVConfig, StateEntry, Weight
from star.liv.genes import ABSENT, Family, FeatureGenes, Operator, OperatorGenes

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY for module in (attention_genes, recurrence, convolution, memoryless, elementwise)
}

__all__ = [
    "ABSENT",
    "FAMILIES",
    "Family",
    "FeatureGenes",
    "LIV",
    "LIVConfig",
    "Operator",
    "OperatorGenes",
    "StateEntry",
    "Weight",
]
