"""The costs of a whole population at once, by table look-up.

The costs of a LIV depend on its class, on the width, on what it takes from its provider (the strategy of its feature
group) and on which of its weights an earlier LIV owns (a set of feature groups). There are few combinations, so each is
computed once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from star.cost.single import NUMBER_BYTES, RECURRENT_BYTES, Costs
from star.genome import NORMS, POOL, RESIDUALS, BlockConfig, OperatorSpace, Space
from star.genome.space import GENES, HEADER
from star.liv import FAMILIES


def population_costs(
    space: Space, X: np.ndarray, vocab_size: int = 256, seq_len: int = 4096, tie_embeddings: bool = True
) -> Costs:
    """`costs(space.decode(x), ...)` for every row x of X int64 [n, n_var]: every field is an array [n].

    Rows must be valid, as `space.sample` and `space.repair` return them. Takes about a microsecond per LIV.
    Raises ValueError for an `OperatorSpace`.
    """
    if isinstance(space, OperatorSpace):
        raise ValueError(
            "population_costs reads tables of fixed operators; at the operator level call costs(space.decode(x)) "
            "for each row"
        )
    X = np.asarray(X, dtype=np.int64).reshape(-1, space.n_var)
    tables = cost_tables(space, seq_len)
    n, rows = len(X), np.arange(len(X))
    width, norm, residual = X[:, : len(HEADER)].T
    d_model = np.array(space.d_models)[width]
    n_groups = 1 + int(X[:, len(HEADER) :].reshape(n, -1, len(GENES))[:, :, [1, 3]].max(initial=0))
    strategy_of = np.zeros((n, n_groups), dtype=np.int64)  # of each feature group, once its provider is seen
    owned = np.zeros((n, n_groups), dtype=np.int64)  # of each featurizer group, the set of weights that has an owner

    depth, deaf, backbone, cache, exact, channel = (np.zeros(n, dtype=np.int64) for _ in range(6))
    mixing, decoding = np.zeros(n), np.zeros(n)
    for segment in space.segments:
        class_id, weight_group, weight_strategy, feature_group, strategy = X[:, segment].T
        there = class_id > 0
        member = there & (feature_group > 0) & (strategy > 1) & (strategy <= tables.n_strategies[class_id])
        earlier = strategy_of[rows, feature_group]
        taken = np.where(member, earlier, 0)  # the strategy by which this LIV consumes, or 0
        first = member & (earlier == 0)
        strategy_of[rows[first], feature_group[first]] = strategy[first]

        at = (width * tables.n_classes + class_id) * tables.max_strategies + taken
        weights = tables.own_weights[class_id * tables.max_strategies + taken]
        tied = there & (weight_group > 0) & (weight_strategy == 2)
        before = np.where(tied, owned[rows, weight_group], 0)
        owned[rows[tied], weight_group[tied]] |= weights[tied]
        backbone += tables.parameters[(width * tables.n_classes + class_id) * tables.n_sets + (weights & ~before)]
        cache += tables.cache[at]
        exact += tables.cache_exact[at]
        channel += tables.channel_flops[at]
        mixing += tables.mixing_flops[at]
        decoding += tables.decode_mixing_flops[at]
        depth += there
        deaf += there & ~tables.reads_input[class_id * tables.max_strategies + taken]

    blocks = [[BlockConfig(1, n, r) for r in RESIDUALS] for n in NORMS]
    per_block = np.array([[len(block.weights()) for block in row] for row in blocks])[norm - 1, residual - 1]
    input_norm = np.array([len(row[0].weights()) - len(row[0].weights(False)) for row in blocks])[norm - 1]
    final_norm = np.array([len(row[0].norm_weights("final_norm")) for row in blocks])[norm - 1]
    embedding = vocab_size * d_model * (1 if tie_embeddings else 2)
    head = 2 * vocab_size * d_model
    arrays: dict[str, Any] = dict(  # Costs of many genomes: every field is an array [n]
        parameters=backbone + (depth * per_block - deaf * input_norm + final_norm) * d_model + embedding,
        backbone_parameters=backbone,
        cache_bytes=cache,
        cache_bytes_exact=exact,
        train_flops_per_token=3 * (channel + head + mixing),
        decode_flops_per_token=channel + head + decoding,
    )
    return Costs(**arrays)


@dataclass(frozen=True)
class CostTables:
    """Flat arrays with the index [width, class, strategy taken], unless a comment says otherwise.

    A set of weights is an integer with one bit for each feature group of the class.
    """

    n_classes: int
    max_strategies: int
    n_sets: int
    n_strategies: np.ndarray  # [class]
    own_weights: np.ndarray  # [class, strategy taken] -> set of weights
    reads_input: np.ndarray  # [class, strategy taken] -> whether a LIV needs a norm of its input
    parameters: np.ndarray  # [width, class, set of weights]
    cache: np.ndarray
    cache_exact: np.ndarray
    channel_flops: np.ndarray
    mixing_flops: np.ndarray
    decode_mixing_flops: np.ndarray


@lru_cache(maxsize=8)
def cost_tables(space: Space, seq_len: int) -> CostTables:
    """The costs of every class of a space at every width (cached)."""
    classes = [c for c in space.classes if c]
    families = {c: FAMILIES[POOL[c - 1].operator.family] for c in classes}
    widest = [POOL[c - 1].config(space.d_models[0], space.head_dim, space.rope_theta).weights() for c in classes]
    groups = {c: sorted({w.group for w in weights.values()} - {"out"}) for c, weights in zip(classes, widest)}
    n_classes, n_sets = max(classes) + 1, 2 ** max(map(len, groups.values()))
    max_strategies = 1 + max(f.n_strategies for f in families.values())
    n_strategies = np.zeros(n_classes, dtype=np.int64)
    own = np.zeros((n_classes, max_strategies), dtype=np.int64)
    reads = np.zeros((n_classes, max_strategies), dtype=bool)
    parameters = np.zeros((len(space.d_models), n_classes, n_sets), dtype=np.int64)
    integers = np.zeros((3, len(space.d_models), n_classes, max_strategies), dtype=np.int64)
    numbers = np.zeros((2, len(space.d_models), n_classes, max_strategies))
    for c in classes:
        operator, n_strategies[c] = POOL[c - 1].operator, families[c].n_strategies
        for width, d_model in enumerate(space.d_models):
            config = POOL[c - 1].config(d_model, space.head_dim, space.rope_theta)
            sizes = {group: 0 for group in [*groups[c], "out"]}
            for weight in config.weights().values():
                sizes[weight.group] += math.prod(weight.shape)
            for members in range(2 ** len(groups[c])):
                parameters[width, c, members] = sizes["out"] + sum(
                    sizes[g] for bit, g in enumerate(groups[c]) if members >> bit & 1
                )
            for taken in range(families[c].n_strategies + 1):
                given = families[c].shared_groups(operator, taken)
                own[c, taken] = sum(1 << bit for bit, group in enumerate(groups[c]) if group not in given)
                reads[c, taken] = config.reads_input(given)
                entries = config.own_state(given).values()
                cells = [(NUMBER_BYTES, NUMBER_BYTES), (RECURRENT_BYTES, NUMBER_BYTES)]
                for i, (recurrent, other) in enumerate(cells):
                    integers[i, width, c, taken] = sum(
                        e.numbers(seq_len) * (recurrent if e.role == "recurrent" else other) for e in entries
                    )
                integers[2, width, c, taken] = config.channel_flops(given)
                numbers[:, width, c, taken] = config.mixing_flops(seq_len), config.decode_mixing_flops(seq_len)
    flat = [a.reshape(-1) for a in (own, reads, parameters, *integers, *numbers)]
    return CostTables(n_classes, max_strategies, n_sets, n_strategies, *flat)
