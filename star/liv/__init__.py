"""The operators: y = T(x) x, each in one file, described by integers alone (`star.liv.genes`).

The bottom layer. Imports nothing of STAR but `star.errors`. A new operator is one file here, with its `FAMILY` listed
below, and one row in `star.genome.classes`.
"""

from star.liv import attention, convolution, elementwise, memoryless, recurrence
from star.liv.base import LIV, LIVConfig, StateEntry, Weight
from star.liv.genes import ABSENT, Family, FeatureGenes, Operator, OperatorGenes

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY for module in (attention, recurrence, convolution, memoryless, elementwise)
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
