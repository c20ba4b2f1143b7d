"""Genomes as text and as JSON. Both are only data: parsed, bounded and validated, never executed.

Text is one segment per LIV, joined by dashes. A segment is five digits as in the paper (`21211`), five integers joined
by dots if one has two digits (`12.1.2.0.0`), or the class alone (`9`) for a LIV that shares nothing.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from star.errors import UserError
from star.genome.classes import POOL, PoolClass, operator
from star.genome.genome import Gene, Genome

FORMAT = "star-genome"
VERSION = 1
SIZE_LIMIT = 1_000_000  # bytes of a genome file
NUMBERS = {"d_model": int, "head_dim": int, "norm": int, "residual": int, "rope_theta": float}
LATER = {"embedding": 1, "positions": 0}  # genes that came later, with their defaults: written only if they differ
NUMBERS |= dict.fromkeys(LATER, int)
KEYS = {"format", "version", "name", "description", "vocab_size", "evidence", *NUMBERS, "backbone", "pool", "evolved"}
KEYS.add("first_evolved")
FIRST_EVOLVED = 57  # number of the first class of "evolved" in files that do not say it


@dataclass(frozen=True)
class NamedGenome:
    """A genome and what its file says about it."""

    genome: Genome
    name: str = ""
    description: str = ""
    vocab_size: int | None = None
    evidence: Any = None


def parse_text(text: str) -> tuple[Gene, ...]:
    """The genes of a text genome. Raises UserError naming the malformed segment."""
    genes = []
    for index, segment in enumerate(text.strip().split("-"), start=1):
        if re.fullmatch(r"[0-9]{5}", segment):
            numbers = [int(digit) for digit in segment]
        elif re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4}){4}", segment):
            numbers = [int(number) for number in segment.split(".")]
        elif re.fullmatch(r"[0-9]{1,2}", segment):
            numbers = [int(segment)]
        else:
            raise UserError(
                f"genome text: segment {index} is '{segment}'; write five digits (21211), five integers joined by "
                "dots (12.1.2.0.0) or one class (9)"
            )
        genes.append(Gene(*numbers))
    return tuple(genes)


def looks_like_text(text: str) -> bool:
    """Whether this may be genome text rather than a name or a path."""
    return re.fullmatch(r"[\d.\-]+", text.strip()) is not None


def to_json(genome: Genome, **about: Any) -> dict[str, Any]:
    """A dictionary for JSON, which `from_json` reads back. about: name, description, vocab_size, evidence."""
    data: dict[str, Any] = {"format": FORMAT, "version": VERSION} | {k: v for k, v in about.items() if v}
    data |= {key: getattr(genome, key) for key in NUMBERS if getattr(genome, key) != LATER.get(key)}
    data["backbone"] = genome.text
    if genome.pool[: len(POOL)] == POOL:
        own = genome.pool[len(POOL) :]
        return data | ({"first_evolved": len(POOL) + 1, "evolved": [_class_to_json(c) for c in own]} if own else {})
    return data | {"pool": [_class_to_json(c) for c in genome.pool]}


def _class_to_json(c: PoolClass) -> dict[str, Any]:
    return {
        "name": c.name,
        "operator": list(c.operator.genes),
        "features": {group: list(row) for group, row in c.operator.features},
        "differential": c.operator.differential,
    }


def from_json(data: Any, where: str = "genome") -> Genome:
    """The genome of a dictionary. Raises UserError naming the key, its value and the legal values."""
    return read_json(data, where).genome


def read_json(data: Any, where: str = "genome") -> NamedGenome:
    """The genome of a dictionary with its name, description and so on. Raises UserError as `from_json` does."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f'{where}: this is not a genome; a genome file is a JSON object with "format": "{FORMAT}"')
    if data.get("version") != VERSION:
        raise UserError(
            f"{where}: genome version {data.get('version')!r} is not supported; this program reads version {VERSION}"
        )
    unknown = sorted(set(data) - KEYS)
    if unknown:
        raise UserError(f"{where}: unknown key '{unknown[0]}'; legal keys are {', '.join(sorted(KEYS))}")
    numbers: dict[str, Any] = {}
    for key, kind in NUMBERS.items():
        if key in data:
            value = data[key]
            if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
                raise UserError(
                    f"{where}: '{key}' is {value!r}; it must be {'a number' if kind is float else 'an integer'}"
                )
            numbers[key] = kind(value)
    try:
        if "pool" in data and "evolved" in data:
            raise UserError(f"{where}: 'pool' replaces the pool and 'evolved' adds to it; give one of them")
        own = _pool(data["evolved"], where) if "evolved" in data else ()
        backbone = _backbone(data.get("backbone"), where)
        if own:
            backbone = _renumbered(backbone, data.get("first_evolved", FIRST_EVOLVED))
        genome = Genome(backbone, pool=_pool(data.get("pool"), where) + own, **numbers)
    except UserError as error:
        raise error if str(error).startswith(where) else UserError(f"{where}: {error}") from None
    vocab_size = data.get("vocab_size")
    if vocab_size is not None and (not isinstance(vocab_size, int) or not 2 <= vocab_size <= 10_000_000):
        raise UserError(f"{where}: 'vocab_size' is {vocab_size!r}; it must be an integer from 2 to 10,000,000")
    name, description = str(data.get("name", "")), str(data.get("description", ""))
    return NamedGenome(genome, name, description, vocab_size, data.get("evidence"))


def _are_integers(row: Any) -> bool:
    return isinstance(row, list) and not any(isinstance(n, bool) or not isinstance(n, int) for n in row)


def _backbone(value: Any, where: str) -> tuple[Gene, ...]:
    if isinstance(value, str):
        return parse_text(value)
    if not isinstance(value, list) or not value:
        raise UserError(
            f"{where}: 'backbone' is {value!r:.60}; write it as text (\"21211-31112\") or as a list of five "
            "integers per LIV"
        )
    for index, row in enumerate(value, start=1):
        if not _are_integers(row) or len(row) != 5:
            raise UserError(
                f"{where}: LIV {index} is {row!r:.60}; it takes five integers: class, featurizer group and "
                "strategy, feature group and strategy"
            )
    return tuple(Gene(*row) for row in value)


def _renumbered(backbone: tuple[Gene, ...], first: Any) -> tuple[Gene, ...]:
    """The genes with the numbers of evolved classes moved to the end of the pool, which may have grown since."""
    if isinstance(first, bool) or not isinstance(first, int) or not 1 <= first <= len(POOL) + 1:
        raise UserError(f"'first_evolved' is {first!r}; it must be an integer from 1 to {len(POOL) + 1}")
    moved = len(POOL) + 1 - first
    return tuple(gene._replace(class_id=gene.class_id + moved * (gene.class_id >= first)) for gene in backbone)


def _pool(value: Any, where: str) -> tuple[PoolClass, ...]:
    if value is None:
        return POOL
    if not isinstance(value, list) or not 1 <= len(value) <= 999:
        raise UserError(f"{where}: 'pool' must be a list of 1 to 999 operator classes")
    pool = []
    for index, row in enumerate(value, start=1):
        at = f"{where}: pool class {index}"
        if not isinstance(row, dict) or set(row) != {"name", "operator", "features", "differential"}:
            raise UserError(f"{at} must have exactly the keys name, operator, features, differential")
        integers = [row["operator"], *(row["features"].values() if isinstance(row["features"], dict) else [None])]
        if not all(map(_are_integers, integers)):
            raise UserError(f"{at}: operator and features must be lists of integers")
        try:
            made = operator(tuple(row["operator"]), row["differential"] is True, **row["features"])
            pool.append(PoolClass(str(row["name"]), made))
        except UserError as error:
            raise UserError(f"{at}: {error}") from None
    return tuple(pool)


def read_file(path: Path) -> NamedGenome:
    """A named genome from a JSON file. Raises UserError naming the file."""
    data = read_object(path)
    if isinstance(data, dict) and "model_type" in data and "format" not in data:
        raise UserError(f"{path}: is a configuration of transformers; star import {path} makes a genome of it")
    return read_json(data, str(path))


def read_object(path: Path) -> Any:
    """The contents of a JSON file of bounded size. Raises UserError naming the file."""
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise UserError(
                f"{path}: {path.stat().st_size:,} bytes is too large for a genome; the limit is {SIZE_LIMIT:,}"
            )
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); give a readable genome file"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); repair the file or export the genome again") from None
