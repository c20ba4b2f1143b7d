"""Bring a genome to a given size by its width alone: equal parameters, equal training compute, or equal cache.

    matched(genome, measure_of("parameters", vocab_size=256, seq_len=128, cache_tokens=4096), 228_000)

Depth, operators and sharing stay. The number of heads stays too where that comes near enough, otherwise the width of a
head does, so that widths between the multiples of a head's width can be used.
"""

import math
from collections.abc import Callable
from dataclasses import replace

from star.cost import costs
from star.genome import Genome

MATCHINGS = {"parameters": "parameters", "flops": "training FLOPs per token", "cache": "cache"}
SPAN = 2.0  # widths are searched from 1 / SPAN to SPAN times that of the genome
NEAR = 0.03  # share of the target that counts as met; among such widths the one whose heads change least is taken

Measure = Callable[[Genome], float]


def measure_of(matching: str, vocab_size: int, seq_len: int, cache_tokens: int) -> Measure:
    """What `matching` makes equal: parameters; training FLOPs per token at seq_len; cache in bytes at cache_tokens."""
    tokens = cache_tokens if matching == "cache" else seq_len
    name = {"parameters": "parameters", "flops": "train_flops_per_token", "cache": "cache_bytes"}[matching]
    return lambda genome: float(getattr(costs(genome, vocab_size=vocab_size, seq_len=tokens), name))


def matched(genome: Genome, measure: Measure, target: float, span: float = SPAN) -> Genome | None:
    """`genome` at the width where `measure` is nearest to `target`; None if no width within `span` reaches it.

    A target counts as out of reach if it lies more than a tenth beyond both ends of the range.
    """
    if genome.d_model == 0 or target <= 0:
        return None
    found: list[tuple[float, float, Genome]] = []
    for width in range(math.ceil(genome.d_model / span), math.floor(genome.d_model * span) + 1):
        for head in range(max(2, genome.head_dim // 2), 2 * genome.head_dim + 1, 2):
            if width % head:
                continue
            changed = replace(genome, d_model=width, head_dim=head)
            if not changed.fits:
                continue
            value = measure(changed)
            if value > 0:
                found.append((abs(math.log(value / target)), abs(math.log(head / genome.head_dim)), changed))
    if not found:
        return None
    distance, _, _ = min(found, key=lambda row: row[:2])
    if distance > 0.1:
        return None
    near = [row for row in found if row[0] <= NEAR] or [row for row in found if row[0] == distance]
    return min(near, key=lambda row: (row[1], row[0], row[2].d_model))[2]
