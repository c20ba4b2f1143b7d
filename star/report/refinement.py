"""A refinement as text, data and pictures: what it brought, whether its forecasts were honest, and which settings
mattered.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from star.candidate import Measured
from star.refined import Refined
from star.report.listing import Column, Listing
from star.report.refinement_plots import calibration_panels, convergence, refinement_progress
from star.report.setting_effects import everything_seen, importances, planner_of, regression
from star.report.style import save_figure
from star.report.tables import objective_columns, plain
from star.report.units import format_measured, format_objective, heading, plural
from star.surrogate.calibration import calibration
from star.training.recipe_space import recipe_space, settings_text

if TYPE_CHECKING:
    from star.run import Candidate, Run

SHOWN = 10  # importances
REFINEMENT_PLOTS = (refinement_progress, calibration_panels, convergence)


def write_refinement(refined: Refined, folder: Path) -> str:
    """Write the three plots as PNG and SVG; returns a sentence that says where."""
    for plot in REFINEMENT_PLOTS:
        save_figure(plot(refined), folder / plot.__name__)
    return f"{folder} (refinement_progress, calibration_panels, convergence; PNG and SVG)"


def settings_table(run: Run, ranges: dict[str, str]) -> Listing:
    """The settings that can be tuned, with the ranges for this run."""
    listing = Listing(
        Column("setting"), Column("search", spare=1), Column("range"), Column("meaning", spare=2, fill=True)
    )
    for d in recipe_space(run.config.training, ranges).dimensions:
        legal = (
            ", ".join(d.choices)
            if d.choices
            else f"{d.low:g} to {d.high:g}"
            if d.high > d.low
            else "off"
            if d.off
            else f"{d.low:g}"
        )
        legal = f"off, {legal}" if d.off and d.high > d.low else legal
        base = settings_text({d.name: d.base}).removeprefix(f"{d.name} ")
        listing.add(d.name, base, "fixed" if d.fixed else legal, d.doc)
    return listing


def refinement_table(refined: Refined) -> Listing:
    """The refined front, with losses from fresh seeds; below it what has no fresh seeds yet."""
    columns = [
        Column("id"),
        *objective_columns(refined.run.objectives),
        Column("seeds", right=True, spare=1),
        Column("from", spare=2),
    ]
    listing = Listing(*columns, Column("what was changed", spare=3, fill=True))

    def add(c: Candidate, member: str, changes: str, style: str = "") -> None:
        cells = [format_objective(o, c) for o in refined.run.objectives]
        listing.add(c.id, *cells, str(c.measured[refined.loss.name].n), member, changes, style=style)

    for c in refined.front():
        if c.recipe is None:
            add(c, "search", "")
        else:
            add(c, c.parents[0][:6], changes_text(refined, c), "bold")
    listing.section()
    for c in refined.unmeasured():
        add(c, "search", "no fresh seeds yet", "dim")
    return listing


def changes_text(refined: Refined, candidate: Candidate) -> str:
    """How a refined candidate differs from its member: edits of the genome and settings."""
    trial = next(t for t, _ in refined.trials if t.candidate == candidate.id)
    return "; ".join(part for part in [*trial.edits, settings_text(refined.space.changed(trial.settings))] if part)


def origin_text(run: Run, candidate: Candidate) -> str:
    """Where a candidate of a run comes from, and what it measured: 'refined from 3af5fe61822b: optimizer muon; loss
    1.98 nats/byte, ...'
    """
    if candidate.recipe is None:
        ways = f" by {', '.join(candidate.operators)}" if candidate.operators else ""
        origin = f"{candidate.origin}, generation {candidate.generation}{ways}" + (
            f", from {', '.join(candidate.parents)}" if candidate.parents else ""
        )
    else:
        refined = next(r for r in reversed(run.refinements()) if any(t.candidate == candidate.id for t, _ in r.trials))
        origin = f"refined from {candidate.parents[0]}: {changes_text(refined, candidate)}"
    values = (
        ", ".join(f"{heading(o)} {format_objective(o, candidate)}" for o in run.objectives)
        if candidate.objectives
        else candidate.status
    )
    return f"{origin}; {values}"


def refinement_lines(refined: Refined, analysis: bool = False) -> list[str]:
    """What it brought member by member, hypervolume, calibration; with `analysis` also regression and importances."""
    lines, name, unit = [""], refined.loss.name, refined.loss.unit
    for row in refined.members():
        now = f", {_measured(refined, row.loss)} with fresh seeds" if row.loss else ""
        text = f"{row.member}: {name} {row.searched:.3f} in the search{now}"
        if row.refined is None or row.difference is None or row.perplexity is None:
            lines.append(f"{text}; nothing made from it has fresh seeds yet")
            continue
        gain = f"{row.difference:+.3f}" + ("" if row.low is None else f" [{row.low:+.3f}, {row.high:+.3f}]")
        made = f"{_measured(refined, row.refined)} refined ({row.candidate})"
        lines.append(f"{text}, {made}: {gain} {unit}, perplexity {100 * (row.perplexity - 1):+.1f} %")
    volumes, missing = refined.hypervolume(), len(refined.unmeasured())
    if volumes is not None and volumes[0] > 0:
        members = len(refined.run.front(searched=True))
        of = f"{members - missing} of {members} members" if missing else "the front"
        gain = f"{100 * (volumes[1] / volumes[0] - 1):+.2f} %"
        lines.append(f"hypervolume with fresh seeds: {of} {volumes[0]:.3f}, with the refined {volumes[1]:.3f} ({gain})")
    if missing:
        lines.append(f"star rescore {refined.run.path} measures the other {plural(missing, 'member')} too")
    noise = refined.noise
    if noise is not None:
        lines.append(
            f"noise between seeds: sd {noise.sd:.4f} {unit} (95 % interval {noise.low:.4f} to {noise.high:.4f})"
        )
    lines += _counts(refined) + _calibration_lines(refined)
    return lines + (_analysis_lines(refined) if analysis else [])


def _measured(refined: Refined, measured: Measured) -> str:
    return f"{format_measured(refined.loss, measured)} (n = {measured.n})"


def _counts(refined: Refined) -> list[str]:
    failed = [r for _, r in refined.trials if r and r.status != "ok"]
    decisions = refined.decisions()
    policy = sum(row["source"] == "policy" for row in decisions)
    lines = [
        f"{len(refined.trials)} trials, {refined.spent:.4g} full trainings, {len(failed)} failed"
        + (f" (last: {failed[-1].reason})" if failed else "")
    ]
    if decisions and refined.settings.policy:
        lines.append(f"the policy chose {policy} of {len(decisions)} proposals, Bayesian optimization the rest")
    return lines


def _calibration_lines(refined: Refined) -> list[str]:
    found = calibration(*refined.forecasts())
    if not found["n"]:
        return []
    text = ", ".join(
        f"{level} % intervals hold {found[f'coverage_{level}']:.0%} [{found[f'coverage_{level}_low']:.0%}, "
        f"{found[f'coverage_{level}_high']:.0%}]"
        for level in (50, 90)
    )
    lines = [
        f"forecasts of {found['n']} trials: {text}; mean NLL {found['nll']:.2f}, sd of z {found['z_sd']:.2f}, "
        f"sharpness {found['sharpness']:.3f} {refined.loss.unit}"
    ]
    last = next((t.log["scale"] for t, _ in reversed(refined.trials) if t.log.get("scale")), 1.0)
    if last > 1:
        lines.append(f"warning: calibration has degraded: predicted uncertainties are multiplied by {last:.2f}")
    return lines


def _analysis_lines(refined: Refined) -> list[str]:
    planner, unit = planner_of(refined), refined.loss.unit
    seen = everything_seen(refined, planner)
    lines = [""]
    found = regression(refined, planner)
    if found is None:
        lines.append("too few trials for a regression")
    else:
        near = "" if np.isinf(found.near) else f" within {found.near:g} {unit} of the best of their member"
        lines.append(
            f"regression of the loss, {found.n} trials{near}: R2 {found.r2:.2f}, residual sd "
            f"{found.residual_sd:.4f} {unit}; effects in {unit} (HC3):"
        )
        for c in sorted(found.coefficients, key=lambda c: -abs(c.effect) / max(c.se, 1e-12)):
            lines.append(f"  {c.name:<36}{c.effect:+.4f} [{c.low:+.4f}, {c.high:+.4f}]{'  *' if c.matters else ''}")
    lines += [
        "",
        f"what the process listens to (share of 1 / length scale^2; change of its mean when shuffled, {unit}):",
    ]
    setups = list({s.setup.key: s.setup for s in seen}.values())
    for row in importances(planner, planner.posterior(seen), setups)[:SHOWN]:
        lines.append(f"  {row.name:<36}{row.sensitivity:6.1%}   {row.permutation:.4f}")
    return lines


def refinement_json(refined: Refined, analysis: bool = False) -> dict:
    """For programs: settings, members (see `star.refined.MemberRow`), front, hypervolume, calibration,
    decisions; regression.
    """
    data = {
        "id": refined.id,
        "settings": refined.settings.to_json(),
        "finished": refined.finished,
        "spent": refined.spent,
        "members": [dataclasses.asdict(row) | {"perplexity": row.perplexity} for row in refined.members()],
        "front": [
            {
                "id": c.id,
                "objectives": c.objectives,
                "measured": {name: dataclasses.asdict(found) for name, found in c.measured.items()},
                "parents": c.parents if c.recipe else [],
            }
            for c in refined.front()
        ],
        "unmeasured": [c.id for c in refined.unmeasured()],
        "hypervolume": refined.hypervolume(),
        "calibration": calibration(*refined.forecasts()),
        "decisions": refined.decisions(),
    }
    if analysis:
        planner = planner_of(refined)
        seen, found = everything_seen(refined, planner), regression(refined, planner)
        setups = list({s.setup.key: s.setup for s in seen}.values())
        data["regression"] = (
            None
            if found is None
            else dataclasses.asdict(found) | {"near": None if np.isinf(found.near) else found.near}
        )
        data["importances"] = [dataclasses.asdict(row) for row in importances(planner, planner.posterior(seen), setups)]
    return plain(data)
