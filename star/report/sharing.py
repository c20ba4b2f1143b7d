"""Which LIVs share what, as links in lanes that never overlap. The diagram and `star show` draw them."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from star.cost import NUMBER_BYTES
from star.genome import Layer, Plan

WEIGHTS, FEATURES = "weights", "features"


@dataclass(frozen=True)
class Link:
    """One LIV, the owner, and all that use something of it, the consumers.

    kind: "weights" (the consumers apply the owner's featurizer weights to their own input) or "features" (they use the
    tensors that the owner computed). consumers: LIV index -> shared feature groups. lane: 0 is next to the LIVs.
    """

    kind: str
    owner: int
    consumers: dict[int, tuple[str, ...]]
    lane: int = 0

    @property
    def last(self) -> int:
        """The last LIV of the link."""
        return max(self.consumers)


def sharing_links(plan: Plan) -> list[Link]:
    """All links of a plan. Each kind has lanes of its own; short links get the inner ones."""
    edges: dict[tuple[str, int], dict[int, tuple[str, ...]]] = {}
    for layer in plan.layers:
        if layer.provider is not None:
            edges.setdefault((FEATURES, layer.provider), {})[layer.index] = _in_order(layer, layer.given)
        for owner in sorted(set(layer.weights_from.values())):
            groups = {group for group, of in layer.weights_from.items() if of == owner}
            edges.setdefault((WEIGHTS, owner), {})[layer.index] = _in_order(layer, groups)
    links: list[Link] = []
    for (kind, owner), consumers in sorted(edges.items(), key=lambda edge: (max(edge[1]) - edge[0][1], edge[0][1])):
        busy = {
            link.lane for link in links if link.kind == kind and link.owner <= max(consumers) and owner <= link.last
        }
        lane = next(n for n in range(len(links) + 1) if n not in busy)
        links.append(Link(kind, owner, consumers, lane))
    return links


def _in_order(layer: Layer, groups: Collection[str]) -> tuple[str, ...]:
    """Feature groups in the order in which the operator names them: q k v."""
    named = dict.fromkeys(weight.group for weight in layer.config.weights().values())
    return tuple(group for group in named if group in groups) + tuple(sorted(set(groups) - set(named)))


def n_lanes(links: list[Link], kind: str) -> int:
    """Number of lanes of the links of one kind."""
    return max((link.lane + 1 for link in links if link.kind == kind), default=0)


def layer_parameters(layer: Layer) -> int:
    """Parameters that this LIV owns; shared ones count only for their owner."""
    return sum(math.prod(weight.shape) for weight in layer.weights().values())


def layer_cache(layer: Layer, seq_len: int) -> int:
    """Cache bytes that this LIV owns at `seq_len` tokens, 2 bytes per number as in `Costs.cache_bytes`."""
    return NUMBER_BYTES * sum(entry.numbers(seq_len) for entry in layer.state().values())
