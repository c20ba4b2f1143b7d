"""star refine RUN"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from star.cli.arguments import MovedOption, WorkersOption, numbers
from star.cli.console import console, say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def refine(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of the run.")],
    members: Annotated[
        str,
        typer.Option(
            metavar="N|ID,...",
            help="Front members: a number, spread from the lowest loss to the knee, or ids, best or knee.",
        ),
    ] = "3",
    budget: Annotated[
        float, typer.Option(metavar="N", help="Total budget in full trainings, including the final measurements.")
    ] = 60.0,
    minutes: Annotated[
        float, typer.Option(metavar="N", help="No new proposals after this many minutes (0: no limit).")
    ] = 0.0,
    range_: Annotated[
        list[str] | None,
        typer.Option(
            "--range",
            metavar="NAME=LOW:HIGH",
            help="Range of a setting: LOW:HIGH, one value, comma-separated choices, or off. May be repeated.",
        ),
    ] = None,
    change: Annotated[str, typer.Option(help="What may change: recipes, edits (of the genome), or both.")] = "both",
    aim: Annotated[
        str,
        typer.Option(
            help="members: lower the loss of each without making it larger; front: increase the hypervolume at any "
            "size."
        ),
    ] = "members",
    fidelities: Annotated[
        str,
        typer.Option(
            metavar="SHARES", help="Fractions of the training budget at which candidates may be tried, such as 0.25,1."
        ),
    ] = "1",
    seeds: Annotated[
        int,
        typer.Option(min=1, help="Fresh seeds for the final measurement of the best candidates and of the members."),
    ] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    workers: WorkersOption = None,
    data: MovedOption = None,
    no_policy: Annotated[
        bool,
        typer.Option(
            "--no-policy",
            help="Bayesian optimization alone, without the learned policy.",
        ),
    ] = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report", help="Only report an existing refinement: which settings mattered, calibration, plots."
        ),
    ] = False,
    settings: Annotated[
        bool,
        typer.Option("--settings", help="Only list the settings that can be tuned, with their ranges for this run."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")] = False,
) -> None:
    """Tune front members (recipes and local edits of the genome) by Bayesian optimization and a learned policy.

    \b
    Example: star refine runs/first
             star refine runs/first --members knee --budget 40 --range learning_rate=2e-3:2e-2
             star refine runs/first --report
    The same command resumes after a kill; with a larger --budget it extends a finished refinement.
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
                choose_members(opened, members),
                budget,
                minutes,
                numbers("--fidelities", fidelities, "shares of the training budget, such as 0.25,1"),
                ranges_of(range_ or []),
                change,
                aim,
                not no_policy,
                confirm=seeds,
                seed=seed,
            )
            ending = tune(run, chosen, workers, data=data, callbacks=[display])
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
    """Ranges by name. Raises UserError for a pair that is not NAME=RANGE."""
    from star.errors import UserError

    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise UserError(f"--range {pair!r}: write NAME=LOW:HIGH, such as learning_rate=1e-3:1e-2")
        found[name.strip()] = value.strip()
    return found


class RefineDisplay:
    """A callback for `star.refine.coordinator.refine`; use it as a context manager. One line for each trial, and bars
    for running trials on a terminal.
    """

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self.progress: Progress | None = None
        self.tasks: dict[str, TaskID] = {}

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
        """Print a line."""
        if self.progress is not None:
            self.progress.console.print(text)
        elif not self.quiet:
            say(text)

    def __call__(self, event: dict) -> None:
        from star.cli.display import left, loss_of

        kind = event["kind"]
        if kind == "refine_start":
            how = f"resuming after {event['trials']} trials" if event["resumed"] else "starting"
            self.line(
                f"{event['run']}: {how}; refinement {event['refinement']} of {', '.join(event['members'])}; "
                f"{event['workers']} at a time"
            )
        elif kind == "trial_end":
            self.line(
                f"{describe_trial(event)} ({event['spent']:.4g} of {event['budget']:g} full "
                f"trainings{left(event['eta_seconds'])})"
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
    """proposal r3f..., 25 %: loss 2.371, predicted 2.38 +- 0.02; muon; LIV 2: GMemless -> SA-1"""
    from star.training.recipe_space import settings_text

    name = {"member": "member", "confirm": f"fresh seed {event['repeat']}:"}.get(event["purpose"], event["purpose"])
    where = f"{name} {event['candidate']}" + (f", {event['share']:.0%} of the tokens" if event["share"] < 1 else "")
    if event["status"] != "ok":
        return f"{where}: {event['status']} ({event['reason']})" + (
            "" if event["final"] else "; it will be tried again"
        )
    forecast = (
        "" if event["predicted"] is None else f", predicted {event['predicted'][0]:.3f} +- {event['predicted'][1]:.3f}"
    )
    loss = "" if event["loss"] is None else f" loss {event['loss']:.4f}"
    what = (
        "; ".join([*event["edits"], *([settings_text(event["changed"])] if event["changed"] else [])])
        if event["purpose"] not in ("member", "confirm")
        else ""
    )
    chosen = " by the policy" if event["source"] == "policy" else ""
    return f"{where}{chosen}:{loss}{forecast}" + (f"; {what}" if what else "")
