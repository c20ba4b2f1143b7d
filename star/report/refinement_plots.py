"""Pictures of a refinement: progress over its cost, calibration in three panels, and how the policy behaved."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy.stats import binom, norm

from star.refined import Refined
from star.report.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, new_figure

COLORS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)


def refinement_progress(refined: Refined) -> Figure:
    """Loss of the best made from each member so far, and hypervolume, over the full trainings spent. Lines are with one
    seed each, and the best of them are too good on average; points are with fresh seeds, with 95 % intervals.
    """
    rows = refined.progress()
    figure = new_figure(height=3.4)
    left, right = figure.subplots(1, 2)
    left.set_xlabel("full trainings")
    left.set_ylabel(f"best so far minus member ({refined.loss.unit})")
    right.set_xlabel("full trainings")
    right.set_ylabel("hypervolume")
    if not rows:
        return _empty(figure, left, "nothing trained yet")
    cost = np.array([0.0, *(row["cost"] for row in rows)])
    fresh = {row.member: row for row in refined.members()}
    for i, id in enumerate(refined.searched_members()):
        start = refined.loss.scaled(refined.searched_members()[id].values[refined.loss.name])
        best = np.array([start, *(row["best"][id] for row in rows)])
        left.plot(cost, best - start, drawstyle="steps-post", color=COLORS[i % len(COLORS)], linewidth=1.6, label=id)
        row = fresh[id]
        if row.difference is not None:
            low, high = (row.difference if end is None else end for end in (row.low, row.high))
            error = [[row.difference - low], [high - row.difference]]
            place = cost[-1] * (1.02 + 0.015 * i)
            left.errorbar([place], [row.difference], yerr=error, fmt="o", markersize=4, color=COLORS[i % len(COLORS)])
    left.axhline(0.0, color=GREY, linewidth=0.9, linestyle="--")
    left.legend(
        fontsize=7.5,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
        frameon=False,
        borderaxespad=0.2,
        columnspacing=1.2,
    )
    volumes = [row["hypervolume"] for row in rows]
    if volumes[0] is not None:
        right.plot(cost[1:], volumes, drawstyle="steps-post", color=BLUE, linewidth=1.6, label="one seed each")
        before, after = refined.hypervolume() or (0.0, 0.0)
        if after > 0:
            marks = (("members", before, "white"), ("with the refined", after, GREEN))
            for name, value, face in marks:
                look: dict[str, Any] = {
                    "marker": "D",
                    "linestyle": "",
                    "markersize": 5,
                    "color": GREEN,
                    "markerfacecolor": face,
                }
                right.plot(cost[-1:], [value], label=f"fresh seeds, {name}: {value:.3f}", **look)
        right.legend(fontsize=7.5, loc="lower left", bbox_to_anchor=(0, 1), frameon=False, borderaxespad=0.2)
    first = next((row["cost"] for row in rows if row["purpose"] == "confirm"), None)
    for axes in (left, right):
        axes.set_xlim(left=0)
        if first is not None:
            axes.axvline(first, color=GREY, linewidth=0.9, linestyle=(0, (1, 2)))
            axes.annotate(
                "fresh seeds",
                (first, 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -3),
                textcoords="offset points",
                va="top",
                fontsize=7.5,
                color="#555555",
            )
    return figure


def calibration_panels(refined: Refined) -> Figure:
    """Nominal against observed coverage with its binomial band; predicted against measured; probability integral
    transforms.
    """
    predicted, actual = refined.forecasts()
    figure = new_figure(height=3.0)
    coverage, scatter, pit = figure.subplots(1, 3)
    coverage.set(xlabel="nominal coverage", ylabel="observed coverage", xlim=(0, 1), ylim=(0, 1))
    scatter.set(xlabel=f"predicted loss ({refined.loss.unit})", ylabel=f"measured loss ({refined.loss.unit})")
    pit.set(xlabel="probability integral transform", ylabel="trials")
    n = len(actual)
    if not n:
        return _empty(figure, coverage, "no forecasts yet")
    mean, sd = np.array(predicted).T
    truth, levels = np.array(actual), np.linspace(0.02, 0.98, 49)
    z = (truth - mean) / np.maximum(sd, 1e-12)
    low, high = (binom.ppf(q, n, levels) / n for q in (0.025, 0.975))
    coverage.fill_between(levels, low, high, color="#E4EAF0", linewidth=0, label="95 % band")
    coverage.plot([0, 1], [0, 1], color=GREY, linewidth=0.9, linestyle="--")
    coverage.plot(
        levels,
        [(np.abs(z) <= norm.ppf(0.5 + level / 2)).mean() for level in levels],
        color=BLUE,
        linewidth=1.6,
        label=f"{n} trials",
    )
    for axis in (coverage.xaxis, coverage.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    coverage.legend(loc="upper left", fontsize=7.5)
    noise = None if refined.noise is None else refined.noise.sd
    scatter.errorbar(mean, truth, xerr=sd, yerr=noise, fmt="none", ecolor="#C9CDD2", elinewidth=0.8, zorder=1)
    points = scatter.scatter(mean, truth, c=np.arange(n), cmap="viridis", s=11, zorder=2)
    ends = [min(mean.min(), truth.min()), max(mean.max(), truth.max())]
    scatter.plot(ends, ends, color=GREY, linewidth=0.9, linestyle="--")
    figure.colorbar(points, ax=scatter, label="in order of time", pad=0.02).ax.tick_params(labelsize=7)
    bins = max(4, min(10, n // 5))
    pit.hist(norm.cdf(z), bins=bins, range=(0, 1), color=SKY, edgecolor="white")
    pit.axhline(n / bins, color=GREY, linewidth=0.9, linestyle="--")
    pit.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def convergence(refined: Refined) -> Figure:
    """Over proposals: entropy of the policy and its distance to Bayesian optimization; simulated gain, and what was
    gained.
    """
    rows = [row for row in refined.decisions() if row.get("entropy") is not None]
    figure = new_figure(height=3.2)
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.set_xlabel("proposal")
    left.set_ylabel("nats")
    right.set_ylabel(f"gain ({refined.loss.unit})")
    if not rows:
        return _empty(figure, left, "the policy was off" if not refined.settings.policy else "no proposals yet")
    x = np.arange(1, len(rows) + 1)
    left.plot(x, [row["entropy"] for row in rows], color=BLUE, linewidth=1.5, label="entropy of the policy")
    left.plot(x, [row["kl"] for row in rows], color=VERMILION, linewidth=1.5, label="KL to Bayesian optimization")
    left.legend(fontsize=7.5)
    right.plot(
        x, [row["gain"] for row in rows], color=PURPLE, linewidth=1.2, label="simulated, over Bayesian optimization"
    )
    right.bar(
        x,
        [row["realised"] for row in rows],
        color="#BFD7EA",
        width=0.9,
        zorder=0,
        label="realised: below the best so far",
    )
    acts = [i for i, row in zip(x, rows, strict=True) if row.get("acts")]
    right.plot(
        acts,
        [rows[i - 1]["gain"] for i in acts],
        linestyle="",
        marker="o",
        markersize=3.5,
        color=PURPLE,
        label="the gate let it act",
    )
    right.legend(fontsize=7.5)
    return figure


def _empty(figure: Figure, axes, text: str) -> Figure:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color=GREY)
    return figure
