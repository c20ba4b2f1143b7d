"""What the members of a run can do, as tables and as sentences."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from star.assess import QUALITY
from star.assess.skill_tests import CONTEXTS, EXTRAPOLATION, NAMES
from star.evidence.suite import capability_rows
from star.genome import layout_name
from star.report.listing import Column, Listing
from star.report.units import format_count, plural
from star.surrogate.calibration import correlation

if TYPE_CHECKING:
    from star.run import Run

Variant = tuple[str, str, int | None]  # task, sizes as text, training tokens


def capability_table(run: Run, ids: Collection[str] | None = None, tasks: Collection[str] = NAMES) -> Listing:
    """One row for each candidate, the front first, and one column for each task with its sizes and budget."""
    rows = _rows(run, ids, tasks)
    variants = _variants(rows)
    listing = Listing(Column("genome"), *(Column(_head(rows, v), right=True) for v in variants), Column("of"))
    cells = {(row["id"], _variant(row)): _cell(row) for row in rows}
    for id, name, style in _members(run, rows):
        listing.add(id, *(cells.get((id, v), "") for v in variants), name, style=style)
    return listing


def part_tables(
    run: Run, ids: Collection[str] | None = None, tasks: Collection[str] = NAMES
) -> list[tuple[str, Listing]]:
    """A title and a table for each task that has parts, such as the depths of a needle."""
    rows, found = _rows(run, ids, tasks), []
    for variant in _variants(rows):
        own = {row["id"]: row for row in rows if _variant(row) == variant and row["parts"]}
        parts = next((list(row["parts"]) for row in own.values()), [])
        if not parts:
            continue
        listing = Listing(Column("genome"), *(Column(part, right=True) for part in parts), Column("of"))
        for id, name, style in _members(run, list(own.values())):
            listing.add(id, *(f"{own[id]['parts'][part]:.3f}" for part in parts), name, style=style)
        found.append((f"{_title(rows, variant)}: {PARTS[variant[0]]}", listing))
    return found


NEAR = 0.1  # of the way from chance to 1: below that, a value counts as near chance
PARTS = {
    "needle": "accuracy by depth of the context",
    "parity": "accuracy by length",
    "s5": "accuracy by length",
    "copying": "accuracy by length, times the longest of the training",
    EXTRAPOLATION: "bits per byte by position, up to so many training contexts",
}


def capability_lines(run: Run, ids: Collection[str] | None = None, tasks: Collection[str] = NAMES) -> list[str]:
    """Of each task: the best, who is no better than chance, and whether the quality shows it; then what failed."""
    rows = _rows(run, ids, tasks)
    if not rows:
        return [f"{run.path} has no capabilities yet: star capabilities {run.path} measures them"]
    quality = next((o for o in run.objectives if o.name in QUALITY), None)
    losses = {c.id: quality.scaled(c.values[quality.name]) for c in run.candidates() if c.objectives and quality}
    lines, correlated = [], False
    for variant in _variants(rows):
        own = [row for row in rows if _variant(row) == variant and row["value"] is not None]
        if not own:
            continue
        beyond, name = variant[0] == EXTRAPOLATION, _title(rows, variant)
        best = (min if beyond else max)(own, key=lambda row: row["value"])
        low, text = 0, f"{name}: best {_value(best)} ({best['id']})"
        if not beyond:
            low = sum(row["value"] < row["chance"] + NEAR * (1 - row["chance"]) for row in own)
            text += f"; {low} of {len(own)} near chance"
        pairs = [(losses[row["id"]], row["value"] if beyond else -row["value"]) for row in own if row["id"] in losses]
        if quality and pairs and low < len(own):
            x, y = np.array(pairs).T
            r = correlation("r", x, y)
            if r["r"] is not None:
                correlated = True
                text += f"; rank correlation with {quality.name} {r['r']:+.2f} [{r['r_low']:+.2f}, {r['r_high']:+.2f}]"
        lines.append(text)
    if quality and correlated:
        lines.append(f"rank correlation above 0: a lower {quality.name} goes with a better score")
    for row in rows:
        if row["failed"]:
            lines.append(
                f"{row['id']} on {row['task']}: {plural(row['failed'], 'measurement')} failed: {row['reason']}"
            )
    return lines


def _rows(run: Run, ids: Collection[str] | None, tasks: Collection[str]) -> list[dict]:
    rows = [row for row in capability_rows(run) if (ids is None or row["id"] in ids) and row["task"] in tasks]
    return sorted(rows, key=lambda row: NAMES.index(row["task"]))


def _variant(row: dict) -> Variant:
    return row["task"], ", ".join(f"{key} {value:g}" for key, value in sorted(row["sizes"].items())), row["tokens"]


def _variants(rows: list[dict]) -> list[Variant]:
    return list(dict.fromkeys(_variant(row) for row in rows))


def _head(rows: list[dict], variant: Variant) -> str:
    task, sizes, tokens = variant
    if task == EXTRAPOLATION:
        return f"{task}\nbits/byte at {CONTEXTS[-1]}x"
    chance = next(row["chance"] for row in rows if _variant(row) == variant)
    several = len({row["tokens"] for row in rows if row["task"] == task}) > 1
    budget = [f"{format_count(tokens)} tokens"] if several and tokens else []
    return "\n".join([task, *([sizes] if sizes else []), *budget, f"(chance {chance:.3g})"])


def _title(rows: list[dict], variant: Variant) -> str:
    return _head(rows, variant).replace("\n", " ")


def _value(row: dict) -> str:
    return f"{row['value']:+.3f}" if row["task"] == EXTRAPOLATION else f"{row['value']:.3f}"


def _cell(row: dict) -> str:
    """The mean; of several seeds also the lowest and the highest."""
    if row["value"] is None:
        return "failed"
    if len(row["values"]) < 2:
        return _value(row)
    low, high = min(row["values"]), max(row["values"])
    return f"{_value(row)} ({low:.2f} to {high:.2f})"


def _members(run: Run, rows: list[dict]) -> list[tuple[str, str, str]]:
    """Id, what it is, and the style of its line: the front by its order, other candidates, baselines."""
    front = {c.id: n for n, c in enumerate(run.front())}
    found = {row["id"]: row for row in rows}

    def place(row: dict) -> tuple[bool, int, str]:
        return row["origin"] == "baseline", front.get(row["id"], len(front)), row["id"]

    members = []
    for row in sorted(found.values(), key=place):
        baseline = row["origin"] == "baseline"
        kind = layout_name(row["name"] or row["id"]) if baseline else "front" if row["id"] in front else row["origin"]
        members.append((row["id"], kind, "dim" if baseline else ""))
    return members
