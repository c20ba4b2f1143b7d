"""Makes an evolved backbone larger: deeper by whole copies, and wider.

The paper evolves backbones of 24 LIVs at width 768, and trains one of 48 LIVs at width 2048 (STAR, arXiv 2411.17800,
the 1B model). It does not say how it makes the deeper one. There are two ways (compared in Composer, arXiv 2510.00379):

    stack      ABC  ->  ABC ABC        repeats the whole backbone: motifs and their order stay (our default)
    stretch    ABC  ->  AA BB CC       repeats every LIV in place: early LIVs stay early, late ones late

Sharing stays within a copy: if A shares with C, copy n of A shares with copy n of C. So every copy has the parameters
and the cache of the original, and a provider still comes before its consumers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from star.errors import UserError
from star.genome.genome import MAX_DEPTH, MAX_WIDTH, Gene, Genome, canonical_genes, copy_gene

WAYS = ("stack", "stretch")


@dataclass(frozen=True)
class Scale:
    """How much larger. depth: copies of every LIV; width: factor of `d_model`; way: one of `WAYS`."""

    depth: int = 1
    width: Fraction = Fraction(1)
    way: str = "stack"

    def apply(self, genome: Genome) -> Genome:
        """The enlarged genome. Raises UserError if it does not fit."""
        return scaled(genome, self.depth, self.width, self.way)


def parse_scale(text: str) -> Scale:
    """The scale of a text such as "2x-depth,2x-width", "8/3x-width" or "2x-depth,stretch". Raises UserError."""
    found: dict[str, Any] = {}  # depth and width: Fraction; way: text
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6}|/\d{1,6})?)x-(depth|width)", part, re.ASCII)
        if match is None and part not in WAYS:
            raise UserError(
                f"scale '{text}': '{part}' is no part of a scale; write such as 2x-depth,2x-width, 8/3x-width, or "
                "2x-depth,stretch"
            )
        name = match[2] if match else "way"
        if name in found:
            raise UserError(f"scale '{text}': {name} is given twice; give it once")
        if match and re.search(r"/0+$", match[1]):
            raise UserError(f"scale '{text}': '{part}' divides by zero; write such as 8/3x-width")
        found[name] = Fraction(match[1]) if match else part
    depth = found.get("depth", Fraction(1))
    if depth.denominator != 1:
        raise UserError(f"scale '{text}': depth is multiplied by {depth}; whole copies only, such as 2x-depth")
    return Scale(int(depth), found.get("width", Fraction(1)), found.get("way", "stack"))


def scaled(genome: Genome, depth: int = 2, width: int | Fraction = Fraction(2), way: str = "stack") -> Genome:
    """`genome` with `depth` copies of every LIV and a residual stream `width` times as wide.

    Heads keep their width, so their number grows. Raises UserError if the result is beyond the limits of a genome, or a
    class does not fit the new width.
    """
    if way not in WAYS:
        raise UserError(f"the way of scaling is '{way}'; it must be {' or '.join(WAYS)}")
    genes = canonical_genes(genome.backbone)
    if depth < 1 or depth * len(genes) > MAX_DEPTH:
        raise UserError(
            f"scale {depth}x-depth makes {depth * len(genes)} LIVs of {len(genes)}; legal is 1 to {MAX_DEPTH}, "
            "choose another factor"
        )
    d_model = Fraction(width) * genome.d_model
    if d_model.denominator != 1 or not 1 <= d_model <= MAX_WIDTH:
        raise UserError(
            f"scale {width}x-width makes a width of {float(d_model):g} of {genome.d_model}; legal is a whole number "
            f"from 1 to {MAX_WIDTH:,}"
        )
    result = replace(genome, backbone=copies(genes, depth, way), d_model=int(d_model))
    if not result.fits and genome.fits:
        raise UserError(f"scale {width}x-width makes a width of {d_model}: {result.misfit}")
    return result


def copies(genes: tuple[Gene, ...], n: int, way: str) -> tuple[Gene, ...]:
    """n copies of canonical genes, each with sharing groups of its own."""
    by_copy = [[copy_gene(gene, number, genes) for gene in genes] for number in range(n)]
    return canonical_genes(tuple(gene for row in (by_copy if way == "stack" else zip(*by_copy)) for gene in row))
