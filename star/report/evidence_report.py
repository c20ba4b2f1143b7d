"""What a comparison found, as tables, as sentences and as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from star.evidence.comparison import Comparison
from star.evidence.design import describe
from star.evidence.matching import MATCHINGS
from star.evidence.verdict import LARGER, Standing, standings
from star.report.listing import Column, Listing
from star.report.style import BLUE, GREY, VERMILION, new_figure
from star.report.units import format_count, plural

if TYPE_CHECKING:
    from star.run import Run

UNITS = {"parameters": "", "flops": "FLOP", "cache": "B"}


def evidence_tables(comparison: Comparison) -> list[tuple[str, Listing]]:
    """A title and a table for each matching: the reference first, then the best first."""
    found = []
    for name, matching in comparison.matchings.items():
        listing = Listing(
            Column("arm"),
            Column(name, right=True),
            Column("learning\nrate", right=True),
            Column("bits/byte\nof test text", right=True),
            Column("above the reference\n[95 %]", right=True),
            Column("p", right=True),
            Column("verdict"),
        )
        for s in standings(comparison, name):
            listing.add(
                s.arm.name,
                "" if s.size is None else f"{format_count(s.size)}{UNITS[name]}",
                "" if s.rate is None else f"x {s.rate:g}",
                "" if s.mean is None else f"{s.mean:.4f} ± {s.se:.4f}",
                "" if s.difference is None else f"{s.difference:+.4f} [{s.low:+.4f}, {s.high:+.4f}]",
                "" if s.p is None else f"{s.p:.2g}",
                VERDICTS.get(s.verdict, s.verdict),
            )
        title = f"equal {MATCHINGS[name]} ({format_count(matching['target'])}{UNITS[name]}), {matching['seeds']} seeds"
        found.append((title, listing))
    return found


VERDICTS = {"win": "the reference wins", "loss": "the reference loses", "larger": "sizes differ too much"}


def evidence_lines(comparison: Comparison) -> list[str]:
    """One sentence for each claim, and what has not been shown."""
    lines = []
    for name, matching in comparison.matchings.items():
        first, *others = standings(comparison, name)
        for s in others:
            lines.append(f"at equal {MATCHINGS[name]}: {_sentence(first, s, matching['seeds'])}")
    return lines


def protocol_lines(comparison: Comparison) -> list[str]:
    """The protocol, as it was recorded before anything was trained."""
    return [f"protocol {comparison.protocol['id']}", *describe(comparison.protocol, f"{comparison.run.token}s")]


def _sentence(first: Standing, s: Standing, seeds: int) -> str:
    pair = f"{first.arm.name} against {s.arm.name}"
    if s.verdict == "out of reach":
        return f"{pair}: not compared, no width between half and twice its own brings it to this size"
    if s.difference is None or s.low is None or s.high is None or s.p is None:
        return f"{pair}: not compared, {s.n} of {plural(seeds, 'training')} ended well"
    by = f"{abs(s.difference):.4f} bits/byte (95 % interval {s.low:+.4f} to {s.high:+.4f}, p = {s.p:.2g})"
    side = "better" if s.difference > 0 else "worse"
    if s.verdict == "no difference shown":
        return f"{pair}: no difference shown; {side} by {by}"
    if s.verdict == "larger":
        ratio = (first.size or 0) / (s.size or 1)
        return f"{pair}: {side} by {by}, but {ratio:.3f} times as large, which is not equal (at most {1 + LARGER:g})"
    return f"{pair}: {side} by {by}"


def evidence_figure(run: Run) -> Figure:
    """Differences of all arms above the reference with 95 % intervals, one panel for each matching."""
    comparison = Comparison(run)
    panels = {name: standings(comparison, name) for name in comparison.matchings}
    most = max(len(found) for found in panels.values())
    figure = new_figure(height=1.2 + 0.32 * most)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    names = [s.arm.name for s in next(iter(panels.values()))][1:]
    for ax, (name, found) in zip(axes, panels.items(), strict=True):
        by_name = {s.arm.name: s for s in found}
        for y, arm in enumerate(names):
            s = by_name.get(arm)
            if s is None or s.difference is None or s.low is None or s.high is None:
                ax.text(0.02, y, s.verdict if s else "", color=GREY, fontsize=7, va="center")
                continue
            color = {"win": BLUE, "loss": VERMILION}.get(s.verdict, GREY)
            ax.plot([s.low, s.high], [y, y], color=color, linewidth=1.6)
            ax.plot([s.difference], [y], "o", color=color, markersize=5)
        win = comparison.protocol["win"]
        ax.axvspan(-win, win, color="0.93", zorder=0)
        ax.axvline(0, color="0.4", linewidth=0.8)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_yticks(range(len(names)), names if ax is axes[0] else [""] * len(names))
        ax.set_title(f"equal {MATCHINGS[name]}", fontsize=8.5)
        ax.set_xlabel("bits/byte above the reference", fontsize=8)
    figure.suptitle(f"reference: {found[0].arm.name} (to the right: the reference is better)", fontsize=9)
    return figure


def evidence_json(comparison: Comparison) -> dict:
    """Everything that was found, as JSON: protocol, standings of each matching, sentences."""
    rows = {}
    for name in comparison.matchings:
        rows[name] = [
            {key: value for key, value in s.__dict__.items() if key != "arm"}
            | {"arm": s.arm.name, "origin": s.arm.origin, "id": s.arm.genome.id}
            for s in standings(comparison, name)
        ]
    return {
        "protocol": comparison.protocol,
        "standings": rows,
        "claims": evidence_lines(comparison),
        "trainings": [
            {key: row[key] for key in ("stage", "id", "budget", "rate", "number", "status", "bpb", "test_bpb")}
            for row in comparison.rows.values()
        ],
    }
