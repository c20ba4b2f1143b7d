"""What the interactive page needs to know about the candidates of a run, as JSON data: one list per fact, in the order
of creation, so that 5,000 candidates stay a few megabytes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from matplotlib.colors import to_hex, to_rgb

from star.assess import Front, Objective
from star.genome import Genome, Layer, resolve
from star.liv import FAMILIES
from star.report.genome_diagram import FAMILY_COLORS
from star.report.sharing import layer_cache, layer_parameters, sharing_links
from star.report.show import CACHE_LENGTHS, digits, operator_words, sharing_text
from star.report.style import log_ticks
from star.report.units import baseline_name, error_bar, format_bytes, format_count, format_objective, format_value

if TYPE_CHECKING:
    from star.run import Candidate, Run


class Axis:
    """Places of the values of one objective on a linear axis: logarithms where it spans orders of magnitude.

    Zero lies half a power of the base below the least positive value.
    """

    def __init__(self, objective: Objective, values: list[float]):
        self.objective = objective
        positive = [value for value in values if value > 0]
        self.log = objective.log_scale and bool(positive)
        self.base = 2 if objective.unit == "bytes" else 10
        self.least = min(positive, default=1.0)
        self.most = max(positive, default=1.0)
        self.zero = any(value <= 0 for value in values)

    def place(self, value: float) -> float:
        """Where a value is."""
        if not self.log:
            return value
        return math.log10(value) if value > 0 else math.log10(self.least) - 0.5 * math.log10(self.base)

    def ticks(self) -> dict[str, list]:
        """Keys tickvals and ticktext of Plotly; nothing for a linear axis, which finds its own."""
        if not self.log:
            return {}
        margin = (self.most / self.least) ** 0.08 if self.most > self.least else 1.2
        values = log_ticks(self.least / margin, self.most * margin, self.base, gap=0.13)
        values = [0.0, *(v for v in values if v >= self.least)] if self.zero else values
        return {
            "tickvals": [self.place(value) for value in values],
            "ticktext": [format_value(self.objective, value) for value in values],
        }


class Kinds:
    """The operators of some genomes, numbered by family and name.

    Rows: name, family, equation, words, and the colours of a box and of the ink in it.
    """

    def __init__(self, genomes: Iterable[Genome]):
        named = {genome.pool[gene.class_id - 1] for genome in genomes for gene in genome.backbone if gene.class_id}
        families = list(FAMILIES)
        found = sorted(
            ((c.name, c.operator) for c in named), key=lambda c: (families.index(c[1].family), c[0], repr(c[1]))
        )
        self.numbers = {kind: number for number, kind in enumerate(found)}

    def number(self, genome: Genome, class_id: int) -> int:
        """Of the operator that a class gene names."""
        found = genome.pool[class_id - 1]
        return self.numbers[found.name, found.operator]

    def rows(self) -> list[dict]:
        """One row for each kind."""
        colors, rows = dict(zip(FAMILIES, FAMILY_COLORS * 9)), []
        found: Counter = Counter()  # kinds of each family so far
        for name, operator in self.numbers:
            color = _shade(colors[operator.family], found[operator.family])
            found[operator.family] += 1
            rows.append(
                {
                    "name": name,
                    "family": operator.family,
                    "equation": FAMILIES[operator.family].equation,
                    "words": operator_words(operator),
                    "color": color,
                    "ink": "#10161D" if sum(to_rgb(color)[:2]) > 0.75 else "#FFFFFF",
                }
            )
        return rows


def _shade(color: str, n: int) -> str:
    """Shades of one colour that can be told apart: the colour, a lighter, a darker one, ..."""
    share = (0.0, 0.4, -0.28, 0.65, -0.5, 0.2, -0.14, 0.53)[n % 8]  # of white, or of black below 0
    red, green, blue = (channel * (1 - abs(share)) + max(share, 0.0) for channel in to_rgb(color))
    return to_hex((red, green, blue))


class PageData:
    """Candidates of a run and the axes of its objectives."""

    def __init__(self, run: Run):
        self.run, self.candidates = run, run.candidates()
        self.kinds = Kinds(c.genome for c in self.candidates)
        self.numbers = {c.id: n for n, c in enumerate(self.candidates)}
        self.fresh = {c.id: again for c in self.candidates if (again := run.as_measured(c)) is not c}
        everything = [c for c in [*self.candidates, *self.fresh.values()] if c.objectives]
        self.axes = [Axis(o, [c.values[o.name] for c in everything]) for o in run.objectives]
        self.sizes: dict[tuple, list[int]] = {}
        self.layers = [self._layers(c.genome) for c in self.candidates]
        self.last = max((c.generation for c in self.candidates if c.origin != "baseline"), default=0)

    def json(self) -> dict[str, Any]:
        """All of it, without numbers that are not finite."""
        run, front = self.run, self.run.front()
        stays, curves = self.front_stays, run.curves()
        return {
            "objectives": [self._objective(o, axis) for o, axis in zip(run.objectives, self.axes)],
            "generations": self.last + 1,
            "rescored": run.rescored,
            "front": [self.numbers[c.id] for c in front],
            "best": self.numbers[front[0].id] if front else None,
            "knee": self.numbers[run.knee().id] if front else None,
            "kinds": self.kinds.rows(),
            "cacheLengths": list(CACHE_LENGTHS),
            "bitsPerByte": run.references,
            "ids": [c.id for c in self.candidates],
            "labels": [self.label(c) for c in self.candidates],
            "origins": [c.origin for c in self.candidates],
            "generation": [c.generation for c in self.candidates],
            "status": [c.status for c in self.candidates],
            "reasons": [c.reason for c in self.candidates],
            "parents": [[self.numbers[p] for p in c.parents if p in self.numbers] for c in self.candidates],
            "operators": [", ".join(c.operators) for c in self.candidates],
            "texts": [c.genome.text for c in self.candidates],
            "widths": [c.genome.d_model for c in self.candidates],
            "values": [self._texts(c) for c in self.candidates],
            "places": [self._places(c) for c in self.candidates],
            "bars": [self._bars(c) for c in self.candidates],
            "fresh": {
                self.numbers[id]: {"values": self._texts(c), "places": self._places(c), "bars": self._bars(c)}
                for id, c in self.fresh.items()
            },
            "stays": [stays.get(c.id) for c in self.candidates],
            "layers": self.layers,
            "curves": [self._curve(curves.get(c.id, [])) for c in self.candidates],
        }

    def label(self, c: Candidate) -> str:
        """The name of a baseline with its size, or an id."""
        return baseline_name(self.run, c) if c.origin == "baseline" else c.id

    def _objective(self, objective: Objective, axis: Axis) -> dict:
        title = f"{objective.doc.removesuffix(' after training')} ({objective.unit})"
        sign = 1 if objective.direction == "min" else -1
        return {"name": objective.name, "title": title, "sign": sign, "exact": objective.cheap, "ticks": axis.ticks()}

    def _layers(self, genome: Genome) -> dict:
        """Of each LIV: kind, genes, parameters, cache at each length, sharing in words; and the links."""
        genome = genome.canonical()
        plan = resolve(genome)
        pairs = list(zip(genome.backbone, plan.layers, strict=True))
        sizes = [self._sizes(layer) for layer in plan.layers]
        totals = [sum(column) for column in zip(*sizes, strict=True)]
        return {
            "kinds": [self.kinds.number(genome, gene.class_id) for gene, _ in pairs],
            "genes": [digits(gene) for gene, _ in pairs],
            "parameters": [row[0] for row in sizes],
            "cache": [[row[k + 1] for row in sizes] for k in range(len(CACHE_LENGTHS))],
            "sharing": [sharing_text(genome, gene, layer) for gene, layer in pairs],
            "links": [
                [link.kind, link.owner, consumer, link.lane, " ".join(groups)]
                for link in sharing_links(plan)
                for consumer, groups in link.consumers.items()
            ],
            "total": [format_count(totals[0]), *map(format_bytes, totals[1:])],
        }

    def _sizes(self, layer: Layer) -> list[int]:
        """Parameters and cache bytes at each length of a LIV; those of equal ones are known."""
        key = layer.config, layer.given, frozenset(layer.weights_from)
        if key not in self.sizes:
            self.sizes[key] = [layer_parameters(layer), *(layer_cache(layer, length) for length in CACHE_LENGTHS)]
        return self.sizes[key]

    @cached_property
    def front_stays(self) -> dict[str, tuple[int, int]]:
        """The generations from which and until which (without it) a candidate is non-dominated, one seed each."""
        stays: dict[str, tuple[int, int]] = {}
        front = Front(self.run.objectives)
        settled = [c for c in self.candidates if c.objectives and c.origin != "baseline"]
        for c in sorted(settled, key=lambda c: c.generation):
            before = set(front.ids)
            if front.add(c.id, c.values):
                stays[c.id] = (c.generation, self.last + 1)
                for gone in before - set(front.ids):
                    stays[gone] = (stays[gone][0], c.generation)
        return stays

    def _texts(self, c: Candidate) -> list[str] | None:
        return [format_objective(o, c) for o in self.run.objectives] if c.objectives else None

    def _places(self, c: Candidate) -> list[float] | None:
        if not c.objectives:
            return None
        return [round(axis.place(c.values[axis.objective.name]), 6) for axis in self.axes]

    def _bars(self, c: Candidate) -> list[list[float] | None] | None:
        """Lengths of the 95 % interval above and below the place of each noisy objective."""
        if not c.objectives:
            return None
        bars: list[list[float] | None] = []
        for axis in self.axes:
            measured = c.measured.get(axis.objective.name)
            if measured is None:
                bars.append(None)
                continue
            place, (below, above) = axis.place(measured.mean), error_bar(measured)
            low, high = axis.place(measured.mean - below), axis.place(measured.mean + above)
            bars.append([round(high - place, 6), round(place - low, 6)])
        return bars

    def _curve(self, points: list[dict]) -> list[list[float]]:
        """Tokens and bits per byte."""
        shown = [p for p in points if p.get("val_loss") is not None]
        bits = [round(p["val_loss"] * self.run.bits_per_nat, 4) for p in shown]
        return [[p["tokens"] for p in shown], bits]
