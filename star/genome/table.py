"""The gene table as rows of text, made from the declarations that the code itself reads."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from star.genome.classes import POOL
from star.genome.genome import EMBEDDINGS, MAX_DEPTH, MAX_POSITIONS, MAX_WIDTH, NORMS, RESIDUALS
from star.liv import FAMILIES, Family, FeatureGenes
from star.liv.genes import CHANNEL_MIXING, OPERATOR_GENES, TOKEN_MIXING, as_ranges

# Why no family combines this token mixing (first) with this channel mixing (second).
NOT_BUILT = {
    (1, 1): "gates alone mix nothing; with the maps around them they are diagonal in tokens and dense in channels",
    (1, 3): "block-diagonal maps only: a memoryless operator with fewer weights, like one with a smaller expansion",
    (2, 2): "separate scores for every pair of channels are T^2 D^2 numbers; heads make them computable",
    (3, 2): "a dense map for every tap is k channel maps; the maps around a filter per channel do the same work",
    (3, 3): "one filter per head instead of one per channel saves a few numbers and no time",
    (4, 2): "a dense transition couples all channels, and its products have no chunk form, only a token loop",
    (4, 3): "transitions that mix the values of a head have no chunk form; heads already share B, C and A",
}
COLUMNS = ("level", "gene", "values", "meaning")


def gene_table() -> list[dict[str, str]]:
    """Every gene with its legal values and meaning: rows of text with the keys `COLUMNS`."""

    def listed(values: Mapping) -> str:
        return ", ".join(f"{k} {v}" for k, v in values.items())

    groups = f"0 none, 1 to {MAX_DEPTH:,}"

    def drawn(address: str, family: Family) -> str:
        legal, searched = as_ranges(family.legal(address)), as_ranges(family.searched(address))
        inside = address.partition(".")[0] in family.searched_groups
        return f"{legal}; searches draw {searched}" if inside and searched != legal else legal

    rows = [
        ("genome", "d_model", f"1 to {MAX_WIDTH:,}", "width of the residual stream"),
        ("genome", "head_dim", "even, 2 to 1,024", "width of an attention or recurrence head"),
        ("genome", "norm", listed(NORMS), "where the norm is in a block, RMSNorm if it does not say LayerNorm"),
        ("genome", "embedding", listed(EMBEDDINGS), "whether the head is a matrix of its own"),
        ("genome", "positions", f"0 none, 1 to {MAX_POSITIONS:,}", "learned positions, added to the embedding"),
        ("genome", "residual", listed(RESIDUALS), "how a block adds to the residual stream"),
        (
            "backbone",
            "1 class",
            f"0 none, 1 to {len(POOL)}",
            "which operator; 0 leaves the slot empty, so depth varies",
        ),
        ("backbone", "2 featurizer group", groups, "LIVs of one class in one group use the same featurizer weights"),
        ("backbone", "3 featurizer strategy", "0, 1 none; 2 all weights", "what is shared; never the output map"),
        ("backbone", "4 feature group", groups, "LIVs of one family in one group use the same computed tensors"),
    ]
    for family in FAMILIES.values():
        strategies = {1 + 2**bit: " + ".join(shared) for bit, shared in enumerate(family.shareable)}
        text = f"0, 1 none; {listed(strategies)}"
        if len(strategies) > 1:
            text += f"; sums of (strategy - 1) share several, {family.n_strategies} all"
        gene = f"5 feature strategy ({family.name})"
        rows.append(("backbone", gene, text, "which tensors a consumer takes from its provider"))
    for family in FAMILIES.values():
        for gene, meanings in OPERATOR_GENES.items():
            legal = {value: meanings[value] for value in getattr(family, gene)}
            text = listed(legal) + "".join(f"; no search draws {n}" for n in family.named_only.get(gene, ()))
            rows.append((f"operator ({family.name})", gene, text, family.why.get(gene, "")))
        for group, spec in family.groups.items():
            text = ", ".join(f"{gene} ({drawn(f'{group}.{gene}', family)})" for gene in FeatureGenes._fields)
            optional = "; optional, 0000 leaves it out" if spec.optional else ""
            optional += "; no search draws it" if group not in family.searched_groups else ""
            meaning = f"{spec.meaning} (expansion: {spec.expansion_means}){optional}"
            rows.append((f"featurizer ({family.name})", group, text, meaning))
        for rule in family.rules:
            rows.append(
                (
                    f"rule ({family.name})",
                    f"{rule.first}, {rule.second}",
                    "restrict each other" + " in searches" * rule.named,
                    rule.why,
                )
            )
    for token, channel in product(TOKEN_MIXING, CHANNEL_MIXING):
        built = [f for f in FAMILIES.values() if token in f.token and channel in f.channel]
        meaning = "; ".join(f"{f.name}: {f.equation}" for f in built) or f"not built: {NOT_BUILT[token, channel]}"
        gene = f"token {token} {TOKEN_MIXING[token]} x channel {channel} {CHANNEL_MIXING[channel]}"
        text = "; ".join(f"{f.name}: nonlinearity {', '.join(map(str, f.nonlinearity))}" for f in built) or "none"
        rows.append(("mixing", gene, text, meaning))
    return [dict(zip(COLUMNS, row)) for row in rows]
