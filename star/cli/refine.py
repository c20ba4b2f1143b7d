"""star refine RUN"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from star.cli.console import console, say


def refine(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of the run.")],
    members: Annotated[
        str,
        typer.Option(
            metavar="N|ID,...", help="Members of the front: so many, from the lowest loss to the knee, or these."
        ),
    ] = "3",
    budget: Annotated[
        float, typer.Option(metavar="N", help="Full trainings in all, the last measurements included.")
    ] = 60.0,
    minutes: Annotated[
        float, typer.Option(metavar="N", help="Propose nothing new after so many minutes of this call (0: no limit).")
    ] = 0.0,
    range_: Annotated[
        list[str] | None,
        typer.Option(
            "--range",
            metavar="NAME=LOW:HIGH",
            help="Range of a setting, or one value, choices with commas, or off; may be repeated.",
        ),
    ] = None,
    change: Annotated[str, typer.Option(help="What may change: both, recipes or edits (of the genome).")] = "both",
    aim: Annotated[
        str,
        typer.Option(help="members: a lower loss of each at no larger size; front: hypervolume, whatever the size."),
    ] = "members",
    fidelities: Annotated[
        str, typer.Option(metavar="SHARES", help="Shares of the training budget at which candidates are tried.")
    ] = "1",
    seeds: Annotated[int, typer.Option(min=1, help="Fresh seeds of the best, and of the members, at the end.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="From which every random choice follows.")] = 0,
    workers: Annotated[
        int | None, typer.Option(help="Candidates trained at one time (default: as in the run).")
    ] = None,
    no_policy: Annotated[
        bool,
        typer.Option(
            "--no-policy",
            help="Bayesian optimization alone; else a learned policy chooses where it wins in imagination.",
        ),
    ] = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report", help="Only say what a refinement found out: which settings mattered, calibration, plots."
        ),
    ] = False,
    settings: Annotated[
        bool, typer.Option("--settings", help="Only list what can be tuned, with ranges for this run.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result for programs, and nothing else.")] = False,
) -> None:
    """Tune members of the front: their recipes and local choices of their genomes, by Bayesian optimization and a
    learned policy.

    \b
    Example: star refine runs/first
             star refine runs/first --members knee --budget 40 --range learning_rate=2e-3:2e-2
             star refine runs/first --report
    The same command goes on after a kill, and takes a finished refinement further with a larger --budget.
    """
    from star.refine.coordinator import choose_members
    from star.refine.coordinator import refine as tune
    from star.refine.settings import RefineSettings
    from star.report.refinement import (
        refinement_json,
        refinement_lines,
        refinement_table,
        settings_table,
        write_refinement,
    )
    from star.run import Run

    opened = Run(run)
    if settings:
        console().print(settings_table(opened, ranges_of(range_ or [])))
        return
    if not report:
        with RefineDisplay(quiet=json) as display:
            chosen = RefineSettings(
                choose_members(opened, members), budget, minutes, shares_of(fidelities), ranges_of(range_ or []), change,
                aim, not no_policy, confirm=seeds, seed=seed,
            )  # fmt: skip
            ending = tune(run, chosen, workers, callbacks=[display])
        if not json:
            say(ending.text)
        if ending.status == "interrupted":
            raise typer.Exit(1)
    refined = Run(run).refinement() if report else Run(run).refinement(chosen.id)
    if json:
        import json as codec

        say(codec.dumps(refinement_json(refined, analysis=report), indent=2))
        return
    say()
    console().print(refinement_table(refined))
    for line in refinement_lines(refined, analysis=report):
        say(line)
    say(f"plots: {write_refinement(refined, run / 'plots')}")


def ranges_of(pairs: list[str]) -> dict[str, str]:
    """Raises UserError for one that is not NAME=RANGE."""
    from star.errors import UserError

    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise UserError(f"--range {pair!r}: write NAME=LOW:HIGH, such as learning_rate=1e-3:1e-2")
        found[name.strip()] = value.strip()
    return found


def shares_of(text: str) -> tuple[float, ...]:
    from star.errors import UserError

    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UserError(f"--fidelities {text!r}: write shares of the training budget, such as 0.25,1") from None


class RefineDisplay:
    """A callback for `star.refine.coordinator` and a context to use it in: a line for each trial, bars of running ones
    on a terminal.
    """

    def __init__(self, quiet: bool = False):
        self.quiet, self.progress, self.tasks = quiet, None, {}

    def __enter__(self) -> RefineDisplay:
        out = console()
        if not self.quiet and out.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(24),
                TextColumn("{task.fields[note]}", markup=False),
            )
            self.progress = Progress(*columns, console=out, transient=True, refresh_per_second=4)
            self.all = self.progress.add_task("preparing", total=None, note="")
            self.progress.start()
        return self

    def __exit__(self, *error) -> None:
        if self.progress is not None:
            self.progress.stop()

    def line(self, text: str) -> None:
        if self.progress is not None:
            self.progress.console.print(text)
        elif not self.quiet:
            say(text)

    def __call__(self, event: dict) -> None:
        from star.cli.display import left, loss_of

        kind = event["kind"]
        if kind == "refine_start":
            how = f"going on after {event['trials']} trials" if event["resumed"] else "starting"
            self.line(
                f"{event['run']}: {how}; refinement {event['refinement']} of {', '.join(event['members'])}; {event['workers']} at a time"
            )
        elif kind == "trial_end":
            self.line(
                f"{describe_trial(event)} ({event['spent']:.4g} of {event['budget']:g} full trainings{left(event['eta_seconds'])})"
            )
        elif kind == "message":
            self.line(event["text"])
        if self.progress is None or kind == "message":
            return
        if kind == "trial_start":
            self.tasks[event["id"]] = self.progress.add_task(
                f"  {event['candidate'][:6]}", total=1.0, note=event["purpose"]
            )
        elif kind == "candidate_progress" and event["id"] in self.tasks:
            done = event.get("step", 0) / max(event.get("steps") or 1, 1)
            self.progress.update(self.tasks[event["id"]], completed=done, note=loss_of(event))
        elif kind == "trial_end" and event["id"] in self.tasks:
            self.progress.remove_task(self.tasks.pop(event["id"]))
        if "spent" in event:
            note = f"{event['spent']:.4g} of {event['budget']:g} full trainings{left(event['eta_seconds'])}"
            self.progress.update(
                self.all, description="refining", total=event["budget"], completed=event["spent"], note=note
            )


def describe_trial(event: dict) -> str:
    """proposal r3f..., 25 %: loss 2.371, foreseen 2.38 +- 0.02; muon; LIV 2: GMemless -> SA-1"""
    from star.refine.recipe_space import settings_text

    name = {"member": "member", "confirm": f"again, seed {event['repeat']}:"}.get(event["purpose"], event["purpose"])
    where = f"{name} {event['candidate']}" + (f", {event['share']:.0%} of the tokens" if event["share"] < 1 else "")
    if event["status"] != "ok":
        return f"{where}: {event['status']} ({event['reason']})" + ("" if event["final"] else "; it is tried again")
    foreseen = (
        "" if event["predicted"] is None else f", foreseen {event['predicted'][0]:.3f} +- {event['predicted'][1]:.3f}"
    )
    loss = "" if event["loss"] is None else f" loss {event['loss']:.4f}"
    what = (
        "; ".join([*event["edits"], *([settings_text(event["changed"])] if event["changed"] else [])])
        if event["purpose"] not in ("member", "confirm")
        else ""
    )
    chosen = " by the policy" if event["source"] == "policy" else ""
    return f"{where}{chosen}:{loss}{foreseen}" + (f"; {what}" if what else "")
