"""The gene table as rows for people, read off the declarations that the code itself obeys."""

from __future__ import annotations

from typing import Any

from star.genome.genome import NORMS, RESIDUALS
from star.genome.pool import POOL
from star.liv import FAMILIES
from star.liv.genes import OPERATOR_GENES


def gene_table() -> list[dict[str, str]]:
    """Every gene, its legal values, its meaning and what it does to the module, as rows for people."""
    def listed(values: Any) -> str:
        return ", ".join(f"{k} {v}" for k, v in values.items())

    rows = [
        {"level": "genome", "gene": "d_model", "values": "1 to 65,536", "meaning": "width of the residual stream"},
        {"level": "genome", "gene": "head_dim", "values": "even, 2 to 1,024", "meaning": "width of an attention or recurrence head"},
        {"level": "genome", "gene": "norm", "values": listed(NORMS), "meaning": "where RMSNorm stands in a block"},
        {"level": "genome", "gene": "residual", "values": listed(RESIDUALS), "meaning": "how a block adds to the residual stream"},
        {"level": "backbone", "gene": "1 class", "values": f"0 none, 1 to {len(POOL)}", "meaning": "which operator; 0 leaves the slot empty, so depth varies"},
        {"level": "backbone", "gene": "2 featurizer group", "values": "0 none, 1 to 1,024", "meaning": "LIVs of one class and one group use the same featurizer weights"},
        {"level": "backbone", "gene": "3 featurizer strategy", "values": "0, 1 none; 2 all weights", "meaning": "what featurizer sharing shares; the output map never"},
        {"level": "backbone", "gene": "4 feature group", "values": "0 none, 1 to 1,024", "meaning": "LIVs of one family and one group use the same computed tensors"},
    ]
    for family in FAMILIES.values():
        values = {1 + 2**bit: " + ".join(groups) for bit, groups in enumerate(family.shareable)}
        text = "0, 1 none; " + ", ".join(f"{k} {v}" for k, v in values.items())
        if len(values) > 1:
            text += f"; sums of (strategy - 1) share several, {family.n_strategies} all"
        rows.append({"level": "backbone", "gene": f"5 feature strategy ({family.name})", "values": text, "meaning": "which tensors a consumer takes from its provider"})
    for family in FAMILIES.values():
        for gene in OPERATOR_GENES:
            legal = {value: OPERATOR_GENES[gene][value] for value in getattr(family, gene)}
            rows.append({"level": f"operator ({family.name})", "gene": gene, "values": listed(legal), "meaning": family.why.get(gene, "")})
        for group, spec in family.groups.items():
            values = f"token {spec.token}, channel {spec.channel}, expansion {spec.expansion}, repeat {spec.repeat}".replace(",)", ")")
            meaning = f"{spec.meaning} (expansion: {spec.expansion_means})" + ("; optional, 0000 leaves it out" if spec.optional else "")
            rows.append({"level": f"featurizer ({family.name})", "gene": group, "values": values, "meaning": meaning})
    return rows
