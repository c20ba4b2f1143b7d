"""Several runs in one frame: hypervolumes with one reference, bands over seeds, and who owns what of the best front."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.special import stdtrit

from star.assess import Frame, Front
from star.candidate import Candidate
from star.errors import UserError
from star.report.fronts import attainment
from star.report.listing import Column, Listing
from star.report.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, axis_label, new_figure, scale_axis
from star.report.units import format_objective, heading, plural
from star.run import Run

COLORS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, GREY)


class RunComparison:
    """Runs with the same objectives; those that differ only in the seed are one group.

    frame: from the best to the worst value of all runs' own frames. joint: the members of all fronts that no other
    dominates, each with the number of its run. Fronts are those with fresh seeds if all runs have them, else the
    search's.
    Raises UserError for fewer than two runs, a run that is given twice, different objectives, or a run without a front.
    """

    def __init__(self, paths: Sequence[Path]):
        if len({path.resolve() for path in paths}) < max(2, len(paths)):
            raise UserError("star compare needs two different runs or more: star compare runs/a runs/b")
        self.runs = [Run(path) for path in paths]
        self.objectives = self.runs[0].objectives
        names = [[o.name for o in run.objectives] for run in self.runs]
        for run, own in zip(self.runs, names):
            if own != names[0]:
                raise UserError(
                    f"{run.path} has the objectives {', '.join(own)} and {self.runs[0].path} has "
                    f"{', '.join(names[0])}; compare runs with the same objectives"
                )
            if run.frame is None or not run.front():
                raise UserError(f"{run.path} has no complete first generation yet; leave it out or wait for it")
        self.fresh = all(run.rescored for run in self.runs)
        self.fronts = [run.front(searched=not self.fresh) for run in self.runs]
        frames = [run.frame for run in self.runs if run.frame is not None]
        self.frame = Frame(
            {o.name: max(frame.reference[o.name] for frame in frames) for o in self.objectives},
            {o.name: min(frame.ideal[o.name] for frame in frames) for o in self.objectives},
        )
        whole = self._front(range(len(self.runs)))
        owners = {id: (int(id.partition(":")[0]), id.partition(":")[2]) for id in whole.ids}
        found = [{c.id: c for c in front} for front in self.fronts]
        self.joint: list[tuple[int, Candidate]] = [(n, found[n][id]) for n, id in owners.values()]
        self.joint.sort(key=lambda row: self.objectives[0].scaled(row[1].values[self.objectives[0].name]))
        self.total = self.frame.hypervolume(whole)
        groups: dict[str, list[int]] = {}
        for n, run in enumerate(self.runs):
            settings = {key: value for key, value in run.config.to_json().items() if key not in ("seed", "engine")}
            groups.setdefault(repr([settings, run.corpus["fingerprint"]]), []).append(n)
        self.groups = list(groups.values())

    def _front(self, numbers: Sequence[int] | range) -> Front:
        front = Front(self.objectives)
        for n in numbers:
            for c in self.fronts[n]:
                front.add(f"{n}:{c.id}", c.values)
        return front

    def hypervolume(self, n: int) -> float:
        """Of the front of a run."""
        return self.frame.hypervolume(self._front([n]))

    def alone(self, n: int) -> float:
        """The hypervolume that the joint front would lose without a run."""
        return self.total - self.frame.hypervolume(self._front([k for k in range(len(self.runs)) if k != n]))

    def progress(self, n: int) -> list[float]:
        """Hypervolume after each candidate of a run, one seed each."""
        front, volumes = Front(self.objectives), [0.0]
        for c in self.runs[n].settled():
            if c.objectives and front.add(c.id, c.values):
                volumes.append(self.frame.hypervolume(front))
            else:
                volumes.append(volumes[-1])
        return volumes[1:]

    def band(self, group: Sequence[int]) -> dict[str, Any]:
        """Mean hypervolume of the runs of a group, with its 95 % interval (None for one run)."""
        values = np.array([self.hypervolume(n) for n in group])
        mean, n = float(values.mean()), len(values)
        half = float(stdtrit(n - 1, 0.975) * values.std(ddof=1) / np.sqrt(n)) if n > 1 else None
        ends = {"low": None, "high": None} if half is None else {"low": mean - half, "high": mean + half}
        return {"runs": [str(self.runs[k].path) for k in group], "hypervolume": mean} | ends

    def table(self) -> Listing:
        """One row for each run, group by group."""
        listing = Listing(
            Column("run"),
            Column("seed", right=True, spare=1),
            Column("candidates", right=True, spare=2),
            Column("front", right=True),
            Column("hypervolume", right=True),
            Column("of the\njoint front", right=True),
            Column("lost\nwithout it", right=True),
            *(Column(f"best {heading(o)}".replace(" (", "\n("), right=True, spare=3 + k) for k, o in self._noisy()),
        )
        for group in self.groups:
            listing.section()
            for n in group:
                run, own = self.runs[n], [c for owner, c in self.joint if owner == n]
                share = f"{len(own)} ({len(own) / len(self.joint):.0%})"
                cells = [str(run.path), str(run.config.seed), str(len(run.settled())), str(len(self.fronts[n]))]
                cells += [f"{self.hypervolume(n):.3f}", share, f"{self.alone(n):.3f}"]
                for _, o in self._noisy():
                    cells.append(format_objective(o, min(self.fronts[n], key=lambda c: o.scaled(c.values[o.name]))))
                listing.add(*cells)
        return listing

    def _noisy(self) -> list[tuple[int, Any]]:
        return [(k, o) for k, o in enumerate(self.objectives) if not o.cheap]

    def lines(self) -> list[str]:
        """The groups, and what the numbers mean, in sentences."""
        lines = []
        for group in self.groups:
            row = self.band(group)
            if row["low"] is not None:
                seeds = ", ".join(str(self.runs[n].config.seed) for n in group)
                interval = f"{row['hypervolume']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
                lines.append(f"{', '.join(row['runs'])}: one group, seeds {seeds}, mean hypervolume {interval}")
        reference = ", ".join(f"{o.name} {o.unscaled(self.frame.reference[o.name]):.4g}" for o in self.objectives)
        lines.append(
            f"joint front: {plural(len(self.joint), 'member')}, hypervolume {self.total:.3f}; reference {reference}"
        )
        kind = "fresh seeds" if self.fresh else "one seed each, as the search measured them"
        lines.append(f"fronts: {kind}; [95 % interval of the mean over seeds]")
        texts = {run.corpus["fingerprint"] for run in self.runs}
        budgets = {run.config.training.tokens for run in self.runs}
        if len(texts) > 1:
            lines.append("warning: the runs have different texts, so their losses cannot be compared")
        if len(budgets) > 1:
            lines.append(
                "warning: the runs have different training budgets (training.tokens), so losses differ by them too"
            )
        return lines

    def json(self) -> dict:
        """All of it for programs."""
        return {
            "reference": {o.name: o.unscaled(self.frame.reference[o.name]) for o in self.objectives},
            "fresh": self.fresh,
            "hypervolume": self.total,
            "runs": [
                {
                    "path": str(run.path),
                    "seed": run.config.seed,
                    "candidates": len(run.settled()),
                    "front": [c.id for c in self.fronts[n]],
                    "hypervolume": self.hypervolume(n),
                    "alone": self.alone(n),
                    "progress": self.progress(n),
                }
                for n, run in enumerate(self.runs)
            ],
            "groups": [self.band(group) for group in self.groups],
            "joint": [{"run": str(self.runs[n].path), "id": c.id, "objectives": dict(c.values)} for n, c in self.joint],
        }

    def figure(self) -> Figure:
        """The fronts of all runs in every pair of objectives, and hypervolume over candidates with bands over seeds."""
        pairs = list(itertools.combinations(self.objectives, 2))
        rows = -(-(len(pairs) + 1) // 2)
        figure = new_figure(height=3.2 * rows + 0.5)
        grid = figure.subplots(rows, 2, squeeze=False).flatten()
        color = {n: COLORS[k % len(COLORS)] for k, group in enumerate(self.groups) for n in group}
        marker = {n: "osD^vP"[k % 6] for group in self.groups for k, n in enumerate(group)}
        own = {(n, c.id) for n, c in self.joint}
        for axes, (y, x) in zip(grid, pairs):
            axes.set_xlabel(axis_label(x))
            axes.set_ylabel(axis_label(y))
            points = {n: [(c.values[x.name], c.values[y.name]) for c in front] for n, front in enumerate(self.fronts)}
            for which, o, k in (("x", x, 0), ("y", y, 1)):
                scale_axis(axes, which, o, [p[k] for front in points.values() for p in front])
            corners = attainment([p for n, c in self.joint for p in [(c.values[x.name], c.values[y.name])]])
            axes.plot(*zip(*corners), drawstyle="steps-post", color=GREY, linewidth=1.2, zorder=1)
            for n, front in enumerate(self.fronts):
                full = [(n, c.id) in own for c in front]
                faces = [color[n] if joint else "white" for joint in full]
                look: dict[str, Any] = {"marker": marker[n], "edgecolor": color[n], "linewidth": 0.9, "zorder": 3}
                axes.scatter(*zip(*points[n]), 24, facecolor=faces, **look)
        axes = grid[len(pairs)]
        axes.set_xlabel("candidates trained")
        axes.set_ylabel("hypervolume, common reference")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles = []
        for k, group in enumerate(self.groups):
            curves = [self.progress(n) for n in group]
            length = min(map(len, curves))
            values = np.array([curve[:length] for curve in curves])
            x_axis = np.arange(1, length + 1)
            if len(group) > 1:
                axes.fill_between(
                    x_axis, values.min(0), values.max(0), step="post", color=COLORS[k % len(COLORS)], alpha=0.18
                )
            axes.step(x_axis, values.mean(0), where="post", color=COLORS[k % len(COLORS)], linewidth=1.8)
        for n, run in enumerate(self.runs):
            style: dict[str, Any] = {"marker": marker[n], "linestyle": "", "color": color[n]}
            handles.append(axes.plot([], [], label=str(run.path), **style)[0])
        joint: dict[str, Any] = {"marker": "o", "linestyle": "", "color": GREY, "markerfacecolor": "white"}
        handles.append(axes.plot([], [], label="not on the joint front", **joint)[0])
        for spare in grid[len(pairs) + 1 :]:
            spare.set_axis_off()
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
        return figure
