"""The gene table as rows of text, made from the declarations that the code itself uses."""

from __future__ import annotations

from itertools import product
from typing import Any

from star.genome.classes import POOL
from star.genome.genome import NORMS, RESIDUALS
from star.liv import FAMILIES
from star.liv.genes import CHANNEL_MIXING, OPERATOR_GENES, TOKEN_MIXING

# Why no family has a token mixing (first) with a channel mixing (second).
NOT_BUILT = {
    (1, 1): "gates alone mix nothing; with the maps around them they are diagonal in tokens and dense in channels",
    (1, 3): "block-diagonal maps only: a memoryless operator with fewer weights, which a smaller expansion gives too",
    (2, 2): "scores of its own for every pair of channels are T^2 D^2 numbers; heads are what can be computed",
    (3, 2): "a dense map for every tap is k channel maps; the maps before and after a filter per channel do its work",
    (3, 3): "one filter for a head instead of one per channel saves a few numbers and no time",
    (4, 2): "a dense transition couples all channels: its products have no chunk form, only a token loop",
    (
        4,
        3,
    ): "transitions that mix the values of a head have no chunk form; heads already share B, C and A, which is "
    "diagonal in channels",
}


def gene_table() -> list[dict[str, str]]:
    """Every gene with its legal values and meaning, as rows of text."""

    def listed(values: Any) -> str:
        return ", ".join(f"{k} {v}" for k, v in values.items())

    rows = [
        {"level": "genome", "gene": "d_model", "values": "1 to 65,536", "meaning": "width of the residual stream"},
        {
            "level": "genome",
            "gene": "head_dim",
            "values": "even, 2 to 1,024",
            "meaning": "width of an attention or recurrence head",
        },
        {"level": "genome", "gene": "norm", "values": listed(NORMS), "meaning": "where RMSNorm stands in a block"},
        {
            "level": "genome",
            "gene": "residual",
            "values": listed(RESIDUALS),
            "meaning": "how a block adds to the residual stream",
        },
        {
            "level": "backbone",
            "gene": "1 class",
            "values": f"0 none, 1 to {len(POOL)}",
            "meaning": "which operator; 0 leaves the slot empty, so depth varies",
        },
        {
            "level": "backbone",
            "gene": "2 featurizer group",
            "values": "0 none, 1 to 1,024",
            "meaning": "LIVs of one class and one group use the same featurizer weights",
        },
        {
            "level": "backbone",
            "gene": "3 featurizer strategy",
            "values": "0, 1 none; 2 all weights",
            "meaning": "what featurizer sharing shares; the output map never",
        },
        {
            "level": "backbone",
            "gene": "4 feature group",
            "values": "0 none, 1 to 1,024",
            "meaning": "LIVs of one family and one group use the same computed tensors",
        },
    ]
    for family in FAMILIES.values():
        values = {1 + 2**bit: " + ".join(groups) for bit, groups in enumerate(family.shareable)}
        text = "0, 1 none; " + ", ".join(f"{k} {v}" for k, v in values.items())
        if len(values) > 1:
            text += f"; sums of (strategy - 1) share several, {family.n_strategies} all"
        rows.append(
            {
                "level": "backbone",
                "gene": f"5 feature strategy ({family.name})",
                "values": text,
                "meaning": "which tensors a consumer takes from its provider",
            }
        )
    for family in FAMILIES.values():
        for gene in OPERATOR_GENES:
            legal = {value: OPERATOR_GENES[gene][value] for value in getattr(family, gene)}
            rows.append(
                {
                    "level": f"operator ({family.name})",
                    "gene": gene,
                    "values": listed(legal),
                    "meaning": family.why.get(gene, ""),
                }
            )
        for group, spec in family.groups.items():
            text = (
                f"token {spec.token}, channel {spec.channel}, expansion {spec.expansion}, repeat {spec.repeat}".replace(
                    ",)", ")"
                )
            )
            meaning = f"{spec.meaning} (expansion: {spec.expansion_means})" + (
                "; optional, 0000 leaves it out" if spec.optional else ""
            )
            rows.append({"level": f"featurizer ({family.name})", "gene": group, "values": text, "meaning": meaning})
        for rule in family.rules:
            rows.append(
                {
                    "level": f"rule ({family.name})",
                    "gene": f"{rule.first}, {rule.second}",
                    "values": "restrict each other",
                    "meaning": rule.why,
                }
            )
    for token, channel in product(TOKEN_MIXING, CHANNEL_MIXING):
        built = [f for f in FAMILIES.values() if token in f.token and channel in f.channel]
        meaning = "; ".join(f"{f.name}: {f.equation}" for f in built) or f"not built: {NOT_BUILT[token, channel]}"
        gene = f"token {token} {TOKEN_MIXING[token]} x channel {channel} {CHANNEL_MIXING[channel]}"
        text = "; ".join(f"{f.name}: nonlinearity {', '.join(map(str, f.nonlinearity))}" for f in built) or "none"
        rows.append({"level": "mixing", "gene": gene, "values": text, "meaning": meaning})
    return rows
