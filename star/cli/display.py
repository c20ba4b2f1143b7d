"""Progress while a command runs: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from star.cli.console import console, say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from star.config import RunConfig

QUIET = 15.0  # seconds without output after which a progress line is printed


def EvolveDisplay(config: RunConfig) -> Lines:
    """A callback for `star.search.evolve`; use it as a context manager."""
    return Bars(config) if console().is_terminal else Lines(config)


class Lines:
    """One line per finished candidate and generation, and progress lines in between.

    A method named after a kind of event handles that event.
    """

    def __init__(self, config: RunConfig):
        self.config = config
        self.generation, self.done, self.total, self.workers = 0, 0, config.candidates, 1
        self.eta: float | None = None
        self.started = self.last_output = time.monotonic()

    def __enter__(self) -> Lines:
        self.line(f"preset {self.config.preset}; preparing text: {self.config.data.corpus}")
        return self

    def __exit__(self, *error) -> None:
        pass

    def __call__(self, event: dict) -> None:
        self.done, self.total = event.get("done", self.done), event.get("total", self.total)
        self.eta = event.get("eta_seconds", self.eta)
        if event["kind"] == "candidate_progress" and not self.done and event.get("eta") is not None:
            # Until a candidate has finished, assume that all take as long as the first.
            first = time.monotonic() - self.started + event["eta"]
            self.eta = first * self.total / self.workers
        handler = getattr(self, event["kind"], None)
        if handler is not None:
            handler(event)

    def line(self, text: str) -> None:
        """Print a line."""
        self.last_output = time.monotonic()
        say(text)

    def run_start(self, event: dict) -> None:
        """Print how much there is to train."""
        self.generation, self.workers, self.started = event["generation"], event["workers"], time.monotonic()
        self.line(describe_start(event))

    def candidate_progress(self, event: dict) -> None:
        """Print the progress of a candidate if nothing was printed for a while."""
        if time.monotonic() - self.last_output > QUIET:
            where = f"generation {self.generation}, candidate {event['id']}"
            self.line(f"{where}: {progress_of(event):.0%}, {loss_of(event)}{left(self.eta)}")

    def candidate_end(self, event: dict) -> None:
        """Print how a candidate ended."""
        so_far = f"{event['done']} of {event['total']}{left(event['eta_seconds'])}"
        self.line(f"{describe_end(event, self.config)} ({so_far})")

    def generation_end(self, event: dict) -> None:
        """Print the state of the front."""
        self.generation = event["generation"] + 1
        self.line(describe_generation(event))

    def message(self, event: dict) -> None:
        """Print a message of the search."""
        self.line(event["text"])


class Bars(Lines):
    """A bar for the run and one for each candidate in training, below the lines of finished generations."""

    def __init__(self, config: RunConfig):
        from rich.progress import BarColumn, Progress, TextColumn

        super().__init__(config)
        text, note = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[note]}", markup=False)
        self.progress = Progress(text, BarColumn(24), note, console=console(), transient=True, refresh_per_second=4)
        self.all = self.progress.add_task("preparing text", total=None, note=str(config.data.corpus))
        self.tasks: dict[str, TaskID] = {}
        self.best: tuple[str, float] | None = None

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, *error) -> None:
        self.progress.stop()

    def line(self, text: str) -> None:
        self.progress.console.print(text)

    def __call__(self, event: dict) -> None:
        super().__call__(event)
        if event["kind"] == "message":
            return
        last = self.config.search.generations - 1
        description = f"generation {min(self.generation, last)} of {last}"
        best = "" if self.best is None else f", best {self.best[0]} {self.best[1]:.3f}"
        note = f"{self.done} of {self.total} candidates{best}{left(self.eta)}"
        self.progress.update(self.all, description=description, total=self.total, completed=self.done, note=note)

    def candidate_start(self, event: dict) -> None:
        """Add a bar for the candidate."""
        from star.genome import layout_name

        name = layout_name(event["name"]) if event["origin"] == "baseline" else event["name"] or event["text"]
        note = name if len(name) <= 60 else name[:57] + "..."
        self.tasks[event["id"]] = self.progress.add_task(f"  {event['id'][:6]}", total=1.0, note=note)

    def candidate_progress(self, event: dict) -> None:
        if (task := self.tasks.get(event["id"])) is not None:
            self.progress.update(task, completed=progress_of(event), note=loss_of(event))

    def candidate_end(self, event: dict) -> None:
        if (task := self.tasks.pop(event["id"], None)) is not None:
            self.progress.remove_task(task)
        quality = quality_of(event["objectives"])
        if quality is not None and event["origin"] != "baseline":
            self.best = quality if self.best is None else min(self.best, quality)
        if event["status"] != "ok":
            self.line(describe_end(event, self.config))


class TrainingDisplay:
    """A callback for `star.training.train`; use it as a context manager."""

    def __enter__(self) -> TrainingDisplay:
        from rich.progress import BarColumn, Progress, TextColumn

        out = console()
        self.last_output = 0.0
        self.progress: Progress | None = None
        if out.is_terminal:
            text = TextColumn("{task.description}", markup=False)
            self.progress = Progress(BarColumn(32), text, console=out, transient=True)
            self.task = self.progress.add_task("starting", total=None)
            self.progress.start()
        return self

    def __exit__(self, *error) -> None:
        if self.progress is not None:
            self.progress.stop()

    def __call__(self, event: dict) -> None:
        speed = f"{event['tokens_per_second']:,.0f} tokens/s"
        text = f"step {event['step']} of {event['steps']}, {loss_of(event)}, {speed}{left(event.get('eta'))}"
        if self.progress is not None:
            self.progress.update(self.task, total=event["steps"], completed=event["step"], description=text)
        elif time.monotonic() - self.last_output > 5:
            self.last_output = time.monotonic()
            say(text)


def describe_start(event: dict) -> str:
    """runs/first: 42 candidates to train, 2 at a time; text: stdlib"""
    how = f"{event['total']} candidates to train"
    if event["resumed"]:
        how = f"resuming with {event['done']} of {event['total']} candidates done"
    token = event.get("token", "byte")
    unit = math.log(2) * event.get("bytes_per_token", 1.0)
    references = ", ".join(f"{token} {name} {loss / unit:.3f}" for name, loss in event["baselines"].items())
    text = f"{event['corpus']} ({references} bits/byte)" if references else event["corpus"]
    return f"{event['run']}: {how}, {event['workers']} at a time; text: {text}"


def describe_end(event: dict, config: RunConfig) -> str:
    """generation 1, candidate 3ff01f0e11ce: bpb 2.761, parameters 25.1 K, cache 512 KiB, on the front"""
    from star.assess import load_objectives
    from star.genome import layout_name
    from star.report.units import format_value

    where = f"generation {event['generation']}, candidate {event['id']}"
    if event["origin"] == "baseline":
        where = f"baseline {layout_name(event['name'])}"
    values = event["objectives"]
    if values:
        objectives = load_objectives(config.objectives.names)
        shown = ", ".join(f"{o.name} {format_value(o, values[o.name])}" for o in objectives)
        return f"{where}: {shown}" + (", on the front" if event["on_front"] else "")
    reason = f" ({event['reason']})" if event["reason"] else ""
    return f"{where}: {event['status']}{reason}" + ("" if event["final"] else "; it will be tried again")


def describe_generation(event: dict) -> str:
    """generation 1 of 8 done: 5 on the front, best bpb 2.121, hypervolume 0.592"""
    number = event["generation"]
    name = f"generation {number} of {event['generations'] - 1}" if number else "initial population"
    quality = quality_of(event["best"])
    best = "" if quality is None else f", best {quality[0]} {quality[1]:.3f}"
    volume = "" if event["hypervolume"] is None else f", hypervolume {event['hypervolume']:.3f}"
    return f"{name} done: {len(event['front'])} on the front{best}{volume}"


def quality_of(values: dict[str, float] | None) -> tuple[str, float] | None:
    """The quality among objectives, by name and value; None if they have none."""
    from star.assess import QUALITY

    return next(((name, values[name]) for name in QUALITY if name in values), None) if values else None


def progress_of(event: dict) -> float:
    """Share of a candidate's training steps that are done."""
    return event.get("step", 0) / max(event.get("steps") or 1, 1)


def loss_of(event: dict) -> str:
    """Training loss of the last step, and validation loss once it is known."""
    parts = [f"loss {event['loss']:.2f}" if event.get("loss") is not None else "loss unknown"]
    if event.get("val_loss") is not None:
        parts.append(f"validation {event['val_loss']:.3f}")
    return ", ".join(parts)


def left(seconds: float | None) -> str:
    """ ", 3 min left", or nothing if it is not known."""
    from star.report.units import format_seconds

    return "" if not seconds else f", {format_seconds(seconds)} left"
