"""A refinement as text, data and pictures: what it brought, whether its forecasts were honest, and which settings
mattered.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from star.refined import Measured, Refined
from star.report.refinement_plots import calibration_panels, convergence, refinement_progress
from star.report.setting_effects import everything_seen, importances, planner_of, regression
from star.report.style import save_figure
from star.report.units import format_value, heading
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


def settings_table(run: Run, ranges: dict[str, str]) -> Table:
    """The settings that can be tuned, with the ranges for this run."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("setting", "search", "range", "meaning"):
        table.add_column(name, no_wrap=name != "meaning")
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
        table.add_row(
            d.name, settings_text({d.name: d.base}).removeprefix(f"{d.name} "), "fixed" if d.fixed else legal, d.doc
        )
    return table


def refinement_table(refined: Refined) -> Table:
    """The refined front: members with losses from fresh seeds, and the refined candidates."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("id", no_wrap=True)
    for objective in refined.run.objectives:
        table.add_column(heading(objective).replace(" ", "\n"), justify="right", no_wrap=True)
    table.add_column("from", no_wrap=True)
    table.add_column("what was changed", overflow="fold")
    for c in refined.front():
        values = [format_value(o, c.objectives[o.name]) for o in refined.run.objectives]
        if c.recipe is None:
            table.add_row(c.id, *values, "search", "", style="" if c.id in refined.settings.members else "dim")
        else:
            trial = next(t for t, _ in refined.trials if t.candidate == c.id)
            table.add_row(
                c.id,
                *values,
                c.parents[0][:6],
                "; ".join([*trial.edits, settings_text(refined.space.changed(trial.settings))]).strip("; "),
            )
    return table


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
        refined, trial = next(
            (r, t) for r in reversed(run.refinements()) for t, _ in r.trials if t.candidate == candidate.id
        )
        changes = [*trial.edits, settings_text(refined.space.changed(trial.settings))]
        origin = f"refined from {trial.member}: " + "; ".join(part for part in changes if part)
    values = (
        ", ".join(f"{heading(o)} {format_value(o, candidate.objectives[o.name])}" for o in run.objectives)
        if candidate.objectives
        else candidate.status
    )
    return f"{origin}; {values}"


def refinement_lines(refined: Refined, analysis: bool = False) -> list[str]:
    """What it brought member by member, hypervolume, calibration; with `analysis` also regression and importances."""
    lines = [""]
    for row in refined.members():
        if row.refined is None:
            now = f" (fresh seeds {_measured(row.loss)})" if row.loss else ""
            lines.append(f"{row.member}: loss {row.searched:.4f} in the search{now}; no fresh measurement yet")
            continue
        gain = f"{row.difference:+.4f}" + ("" if row.low is None else f" [{row.low:+.4f}, {row.high:+.4f}]")
        lines.append(
            f"{row.member}: loss {row.searched:.4f} in the search, {_measured(row.loss)} with fresh seeds, "
            f"{_measured(row.refined)} refined "
            f"({row.candidate}): {gain} nats, perplexity {100 * (row.perplexity - 1):+.1f} %"
        )
    volumes = refined.hypervolume()
    if volumes is not None and volumes[0] > 0:
        lines.append(
            f"hypervolume of the front: {volumes[0]:.3f} as searched, {volumes[1]:.3f} refined "
            f"({100 * (volumes[1] / volumes[0] - 1):+.2f} %)"
        )
    noise = refined.noise
    if noise is not None:
        lines.append(f"noise between seeds: sd {noise.sd:.4f} nats (95 % interval {noise.low:.4f} to {noise.high:.4f})")
    lines += _counts(refined) + _calibration_lines(refined)
    return lines + (_analysis_lines(refined) if analysis else [])


def _measured(measured: Measured) -> str:
    return (
        f"{measured.mean:.4f}"
        + (f" +- {measured.se:.4f}" if measured.n > 1 and np.isfinite(measured.se) else "")
        + f" (n = {measured.n})"
    )


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
        f"sharpness {found['sharpness']:.3f} nats"
    ]
    last = next((t.log["scale"] for t, _ in reversed(refined.trials) if t.log.get("scale")), 1.0)
    if last > 1:
        lines.append(f"warning: calibration has degraded: predicted uncertainties are multiplied by {last:.2f}")
    return lines


def _analysis_lines(refined: Refined) -> list[str]:
    planner = planner_of(refined)
    seen = everything_seen(refined, planner)
    lines = [""]
    found = regression(refined, planner)
    if found is None:
        lines.append("too few trials for a regression")
    else:
        near = "" if np.isinf(found.near) else f" within {found.near:g} nats of the best of their member"
        lines.append(
            f"regression of the loss, {found.n} trials{near}: R2 {found.r2:.2f}, residual sd "
            f"{found.residual_sd:.4f} nats; effects in nats (HC3):"
        )
        for c in sorted(found.coefficients, key=lambda c: -abs(c.effect) / max(c.se, 1e-12)):
            lines.append(f"  {c.name:<36}{c.effect:+.4f} [{c.low:+.4f}, {c.high:+.4f}]{'  *' if c.matters else ''}")
    lines += ["", "what the process listens to (share of 1 / length scale^2; change of its mean when shuffled, nats):"]
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
            {"id": c.id, "objectives": c.objectives, "parents": c.parents if c.recipe else []} for c in refined.front()
        ],
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


def plain(data):
    """JSON data: numbers of Python, None for what is not finite."""
    if isinstance(data, dict):
        return {key: plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(value) for value in data]
    if isinstance(data, float | np.floating):
        return float(data) if np.isfinite(data) else None
    return data.item() if isinstance(data, np.generic) else data
