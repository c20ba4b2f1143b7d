"""Tables, verdicts and plots of `benchmarks/refine/refine_on_tables.py`, from its cache of finished runs."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from paired import anova, bca, holm, interquartile_mean, mean_difference, probability_of_improvement, ratio
from table_tasks import PRICE, TASKS, load

from star.surrogate.calibration import calibration

PEERS = ("random", "TPE", "GPSampler", "ASHA")
# What this package does by default with all that is there: transfer if it can, else the rule if there is one, else BO;
# full trainings
STAR = "STAR"
STAR_IS = ("BO + transfer, full", "BO + rule, full", "BO")
ALONE = "BO"  # and without any earlier run
WORST = 200.0  # regrets are cut off here, so that a first divergence is not the whole area
NEAR = 10.0
MARGIN = 0.10  # of BO's area: "not worse"
GOAL = 0.85
# Where a policy might help: the same without it, and what is compared.
PLACES = {
    "fidelities that mislead": ("BO + rate + RL", "BO + rate", "area"),
    "results of a related task": ("BO + transfer + RL", "BO + transfer", "area"),
    "when to stop": ("BO + RL, stopping", "BO, stopping", "utility"),
}
COLORS = {
    "random": "#999999",
    "TPE": "#e69f00",
    "GPSampler": "#56b4e9",
    "ASHA": "#009e73",
    "RL only": "#cc79a7",
    "BO": "#0072b2",
    "BO + KG": "#b8a000",
    "BO + rate": "#7f5fc0",
    "BO + rule": "#5c3a21",
    "GPSampler + rule": "#8fd0f0",
    "BO + RL gated": "#d00000",
    "BO + transfer": "black",
    "BO + rule, full": "#c0a080",
    "BO + transfer, full": "#606060",
}


def report(runs: list[dict], out: Path, device: str) -> None:
    """Prints, and writes out (.json), out.txt, and plots out.png, out-calibration.png, out-policy.png."""
    by: dict[str, dict[str, dict[int, dict]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        by[run["task"]][run["arm"]][run["seed"]] = run
    by = {name: by[name] for name in TASKS if name in by}
    for arms in by.values():
        arms[STAR] = arms[next(arm for arm in STAR_IS if arm in arms)]
    rows = [
        measures(name, arm, seed, run)
        for name, arms in by.items()
        for arm, seeds in arms.items()
        for seed, run in seeds.items()
    ]
    lines, facts = [], {"device": device, "runs": len(runs), "tasks": {}}
    for name, arms in by.items():
        task = load(name)
        lines += [
            "",
            f"{name}: {len(task.full)} configurations, budget {task.budget:g} full trainings; regret 0 = best, 100 "
            "= median of the table",
        ]
        lines.append(
            f"{'arm':18s} {'seeds':>5s} {'area under regret [95 %]':>28s} {'IQM':>6s} {'final':>6s} "
            f"{'to best 1 % (never)':>20s} {f'to regret {NEAR:g}':>14s} {'s/run':>6s}"
        )
        facts["tasks"][name] = {}
        for arm in arms:
            mine = [row for row in rows if row["task"] == name and row["arm"] == arm]
            area = np.array([row["area"] for row in mine])
            never = sum(row["to_best"] > task.budget for row in mine)
            means = {
                key: float(np.mean([row[key] for row in mine])) for key in ("final", "to_best", "to_near", "seconds")
            }
            low, high = bca(area)
            facts["tasks"][name][arm] = {
                "seeds": len(mine),
                "area": [float(area.mean()), low, high],
                "never": never,
            } | means
            lines.append(
                f"{arm:18s} {len(mine):5d} {f'{area.mean():.1f} [{low:.1f}, {high:.1f}]':>28s} "
                f"{interquartile_mean(area):6.1f} {means['final']:6.1f} "
                f"{'{:.1f} ({})'.format(means['to_best'], never):>20s} {means['to_near']:14.1f} {means['seconds']:6.1f}"
            )
    for part in (comparisons, goals, places, policy_facts, calibration_facts):
        text, found = part(rows, by)
        lines += ["", *text]
        facts[part.__name__] = found
    print("\n".join(lines))
    out.write_text(json.dumps(facts, indent=1) + "\n")
    out.with_suffix(".txt").write_text("\n".join(lines).lstrip("\n") + "\n")
    plots(by, out)


def measures(name: str, arm: str, seed: int, run: dict) -> dict:
    """Of one run: area under regret over cost, final regret, costs to the table's best 1 % and to a regret of 10
    (budget + 1: never).
    """
    task = load(name)
    cost, regret = np.array(run["cost"]), np.array([min(task.regret(loss), WORST) for loss in run["loss"]])

    def until(level: float) -> float:
        reached = np.flatnonzero(np.array([task.regret(loss) for loss in run["loss"]]) <= level + 1e-9)
        full = [k for k in reached if cost[k] >= 1.0 - 1e-9]  # before a full training nothing is had
        return float(cost[full[0]]) if full else task.budget + 1.0

    return {
        "task": name,
        "arm": arm,
        "seed": seed,
        "area": float(on_grid(task, cost, regret).mean()),
        "final": float(regret[-1]),
        "to_best": until(task.regret(task.target)),
        "to_near": until(NEAR),
        "seconds": run["seconds"],
        "spent": float(cost[-1]),
        "utility": float(regret[-1]) + PRICE * float(cost[-1]),
    }


def on_grid(task, cost: np.ndarray, regret: np.ndarray) -> np.ndarray:
    """Regret at costs 1 to the budget, in tenths."""
    at = np.searchsorted(cost, np.arange(1.0, task.budget + 0.05, 0.1) + 1e-9, side="right") - 1
    return regret[np.maximum(at, 0)]


def pairs(rows: list[dict], a: str, b: str, key: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Values of both arms for the (task, seed) that both have."""
    left, right = ({(r["task"], r["seed"]): r[key] for r in rows if r["arm"] == arm} for arm in (a, b))
    both = [k for k in left if k in right]
    return np.array([left[k] for k in both]), np.array([right[k] for k in both]), [k[0] for k in both]


def comparisons(rows: list[dict], by: dict) -> tuple[list[str], dict]:
    """Every arm against BO, paired by task and seed, p adjusted; analysis of variance of the common arms."""
    arms = [arm for arm in COLORS if arm != ALONE and len(pairs(rows, arm, ALONE, "area")[0]) > 1]
    found = {}
    for arm in [*arms, STAR]:
        a, b, _ = pairs(rows, arm, ALONE, "area")
        found[arm] = mean_difference(a, b) | {"improves": probability_of_improvement(a, b), "bo_area": float(b.mean())}
    for key in ("t_p", "wilcoxon_p"):
        for arm, p in zip(arms, holm([found[arm][key] for arm in arms]), strict=True):
            found[arm][f"{key}_holm"] = p
    lines = ["area under regret, arm minus BO, paired by task and seed (tasks that have the arm); p after Holm"]
    for arm, r in found.items():
        p = f"t p {r.get('t_p_holm', r['t_p']):.1e}  Wilcoxon p {r.get('wilcoxon_p_holm', r['wilcoxon_p']):.1e}"
        lines.append(
            f"{arm:18s} n {r['n']:4d}  {r['mean']:+7.2f} [{r['low']:+.2f}, {r['high']:+.2f}]  {p}  dz "
            f"{r['dz']:+.2f}  better {r['better']} worse {r['worse']} ties {r['ties']}"
        )
    everywhere = [arm for arm in COLORS if all(arm in arms_of for arms_of in by.values())]
    seeds = sorted(
        set.intersection(
            *({r["seed"] for r in rows if r["arm"] == arm and r["task"] == name} for arm in everywhere for name in by)
        )
    )
    if len(seeds) > 1 and len(everywhere) > 1 and len(by) > 1:
        area = {(r["task"], r["arm"], r["seed"]): r["area"] for r in rows}
        found["anova"] = anova(
            np.array([[[area[name, arm, seed] for seed in seeds] for arm in everywhere] for name in by])
        )
        for term, r in found["anova"].items():
            lines.append(
                f"ANOVA over {len(everywhere)} arms, {len(by)} tasks, {len(seeds)} seeds: {term}: F({r['df']}, "
                f"{r['df_error']}) = {r['F']:.1f}, p = {r['p']:.1e}, partial eta squared {r['eta2']:.2f}"
            )
    return lines, found


def goals(rows: list[dict], by: dict) -> tuple[list[str], dict]:
    """The goals, each met or missed with its interval."""
    peers = [arm for arm in PEERS if any(row["arm"] == arm for row in rows)]
    found: dict = {}
    lines = ["goals"]
    for key, words in (("to_best", "the table's best 1 %"), ("to_near", f"a regret of {NEAR:g}")):
        for mine in (STAR, ALONE):
            against = {peer: ratio(*pairs(rows, mine, peer, key)[:2]) for peer in peers}
            best = max(against, key=lambda peer: against[peer]["ratio"])
            r = against[best]
            verdict = (
                "met"
                if r["high"] < GOAL
                else "missed"
                if r["low"] > GOAL
                else "met on average, interval reaches over it"
                if r["ratio"] < GOAL
                else "missed on average, interval reaches it"
            )
            found[f"{mine} {key}"] = against | {"best_peer": best, "verdict": verdict}
            what = (
                "with earlier results where there are any"
                if mine == STAR
                else "no earlier results, full trainings alone"
            )
            lines.append(
                f"cost to {words}, {mine} ({what}) over its best peer, {best}: {r['ratio']:.2f} [{r['low']:.2f}, "
                f"{r['high']:.2f}], goal {GOAL}: {verdict}"
            )
    for mine, peer, what in (
        ("BO + rule, full", "GPSampler + rule", "both with the rule"),
        ("BO + transfer, full", "GPSampler + rule", "with a related task against the rule alone"),
    ):
        a, b, _ = pairs(rows, mine, peer, "to_best")
        if len(a) > 1:
            r = found[f"{mine} over {peer}"] = ratio(a, b)
            lines.append(
                f"cost to the table's best 1 %, {mine} over {peer} ({what}): {r['ratio']:.2f} [{r['low']:.2f}, "
                f"{r['high']:.2f}]"
            )
    for arm in ("BO + RL gated",):
        parts = []
        for base, only in (("BO + rule", None), (ALONE, [name for name in by if "BO + rule" not in by[name]])):
            a, b, tasks_of = pairs(rows, arm, base, "area")
            keep = [i for i, name in enumerate(tasks_of) if only is None or name in only]
            parts.append((a[keep], b[keep]))
        a, b = (np.concatenate(part) for part in zip(*parts, strict=True))
        if len(a) < 2:
            continue
        r = mean_difference(a, b)
        share = {key: r[key] / b.mean() for key in ("mean", "low", "high")}
        verdict = "met" if share["high"] < MARGIN else "missed" if share["low"] > MARGIN else "not shown"
        gain = "a gain" if r["high"] < 0 else "a loss" if r["low"] > 0 else "RL adds nothing that can be seen"
        found[arm] = r | {"share": share, "verdict": verdict}
        lines.append(
            f"{arm} not worse than the same without RL (area, margin {MARGIN:.0%}): {share['mean']:+.1%} "
            f"[{share['low']:+.1%}, {share['high']:+.1%}], n {r['n']}, "
            f"better {r['better']} worse {r['worse']} ties {r['ties']}, t p {r['t_p']:.2f}: {verdict}; {gain}"
        )
    return lines, found


def places(rows: list[dict], by: dict) -> tuple[list[str], dict]:
    """The policy where Bayesian optimization has no formula, or a misleading one."""
    lines, found = ["where else a policy might help (gated; with it minus without)"], {}
    for words, (arm, base, key) in PLACES.items():
        a, b, _ = pairs(rows, arm, base, key)
        if len(a) < 2:
            continue
        r = found[words] = mean_difference(a, b) | {"base": float(b.mean())}
        verdict = "a gain" if r["high"] < 0 else "a loss" if r["low"] > 0 else "nothing that can be seen"
        what = "area under regret" if key == "area" else f"final regret + {PRICE:g} x full trainings"
        text = (
            f"{words}: {what} {r['base']:.1f} without, {r['mean']:+.2f} [{r['low']:+.2f}, {r['high']:+.2f}], n "
            f"{r['n']}, better {r['better']} worse {r['worse']} ties {r['ties']}, t p {r['t_p']:.2f}: {verdict}"
        )
        if key == "utility":
            spent, spent_without, _ = pairs(rows, arm, base, "spent")
            r |= {"spent": float(spent.mean()), "spent_without": float(spent_without.mean())}
            text += f"; {spent.mean():.1f} full trainings spent instead of {spent_without.mean():.1f}"
        lines.append(text)
    return lines, found


def policy_facts(rows: list[dict], by: dict) -> tuple[list[str], dict]:
    """What the policy did: how often the gate let it act, gains imagined, entropy, divergence, share of good picks by
    window.
    """
    lines, found = ["the policy, by task"], {}
    for name, arms in by.items():
        steps = [entry for run in arms.get("BO + RL gated", {}).values() for entry in run["log"] if "acts" in entry]
        if not steps:
            continue
        acted = [s for s in steps if s["acts"]]
        r = {
            "steps": len(steps),
            "acts": len(acted) / len(steps),
            "differs": sum(s["source"] == "policy" for s in steps) / len(steps),
        }
        r |= {key: float(np.mean([s[key] for s in steps])) for key in ("gain", "entropy", "kl")}
        r["gain_when_acting"] = float(np.mean([s["gain"] for s in acted])) if acted else None
        found[name] = r
        lines.append(
            f"{name:14s} gate open in {r['acts']:.1%} of {r['steps']} steps, another choice than BO's in "
            f"{r['differs']:.1%}; imagined gain {r['gain']:+.5f} on average"
            + (f", {r['gain_when_acting']:+.5f} where open" if acted else "")
            + f"; entropy {r['entropy']:.2f}, KL to BO {r['kl']:.4f} nats"
        )
    return lines, found


def calibration_facts(rows: list[dict], by: dict) -> tuple[list[str], dict]:
    """Of predictions that were recorded before each result, along the runs of BO and of what STAR does."""
    lines, found = ["calibration of the averaged posterior, before each result"], {}
    for arm in (ALONE, "BO + rule", "BO + rule, full", "BO + transfer", "BO + transfer, full", "BO + RL gated"):
        every = []
        for name, arms in by.items():
            told = [row for run in arms.get(arm, {}).values() for row in run["predicted"]]
            if not told:
                continue
            every += standardised(name, told)
            found[f"{arm}, {name}"] = summary(told)
        if every:
            r = found[arm] = summary(every)
            verdict = "met" if 0.85 <= r["coverage_90"] <= 0.95 else "missed"
            cover = "  ".join(
                f"{level} %: {r[f'coverage_{level}']:.3f} [{r[f'coverage_{level}_low']:.3f}, "
                f"{r[f'coverage_{level}_high']:.3f}]"
                for level in (50, 80, 90, 95)
            )
            lines.append(
                f"{arm}: {r['n']} predictions; {cover}; goal 85-95 at 90: {verdict}; median NLL "
                f"{r['nll_median']:.2f}, ENCE {r['ence']:.2f}, sd of z {r['z_sd']:.2f}, Spearman(sd, |error|) "
                f"{r['sd_error']:.2f}"
            )
            lines += [
                f"    {key[len(arm) + 2 :]}: 90 %: {v['coverage_90']:.3f} [{v['coverage_90_low']:.3f}, "
                f"{v['coverage_90_high']:.3f}] of {v['n']}"
                for key, v in found.items()
                if key.startswith(f"{arm}, ") and key[len(arm) + 2 :] in by
            ]
    return lines, found


def summary(told: list) -> dict:
    return {
        key: value
        for key, value in calibration([row[:2] for row in told], [row[2] for row in told]).items()
        if key != "pit"
    }


def standardised(name: str, told: list) -> list:
    """In units of the table's spread, so that tasks can be pooled."""
    unit = float(np.quantile(load(name).full, 0.75) - np.quantile(load(name).full, 0.25))
    return [[mean / unit, sd / unit, truth / unit] for mean, sd, truth in told]


def plots(by: dict, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
        2, int(np.ceil(len(by) / 2)), figsize=(5.2 * np.ceil(len(by) / 2), 8), squeeze=False, layout="constrained"
    )
    handles = {}
    for axes, (name, arms) in zip(panels.ravel(), by.items(), strict=False):
        task = load(name)
        grid = np.arange(1.0, task.budget + 0.05, 0.1)
        for arm, color in COLORS.items():
            if arm not in arms:
                continue
            curves = np.array(
                [
                    on_grid(task, np.array(r["cost"]), np.array([min(task.regret(v), WORST) for v in r["loss"]]))
                    for r in arms[arm].values()
                ]
            )
            mean, main = curves.mean(axis=0), arm in ("BO", "BO + RL gated", "BO + transfer", "GPSampler")
            (handles[arm],) = axes.plot(
                grid,
                mean,
                color=color,
                linewidth=2.0 if main else 1.1,
                label=arm,
                linestyle="--" if "+ R" in arm else "-",
            )
            if main and len(curves) > 1:
                half = 1.96 * curves.std(axis=0, ddof=1) / np.sqrt(len(curves))
                axes.fill_between(grid, mean - half, mean + half, color=color, alpha=0.12, linewidth=0)
        axes.set(title=name, xlabel="cost, full trainings", yscale="symlog", ylim=(0, WORST))
        axes.grid(alpha=0.25)
    figure.supylabel(
        "regret of the best trained in full (100: the table's median), mean over seeds, 95 % bands", fontsize=9
    )
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=7, fontsize=8)
    figure.savefig(out.with_suffix(".png"), dpi=130)
    plt.close(figure)
    calibration_plot(by, out.with_name(out.stem + "-calibration.png"), plt)
    policy_plot(by, out.with_name(out.stem + "-policy.png"), plt)


def calibration_plot(by: dict, path: Path, plt) -> None:
    """Nominal and observed coverage with binomial band; predicted and actual; probability integral transforms."""
    told, when = [], []
    for name, arms in by.items():
        for run in arms.get(ALONE, {}).values():
            told += standardised(name, run["predicted"])
            when += list(range(len(run["predicted"])))
    if not told:
        return
    from scipy.stats import norm

    mean, sd, truth = np.array(told).T
    z = np.abs(truth - mean) / sd
    figure, (a, b, c) = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    nominal = np.linspace(0.02, 0.98, 49)
    observed = np.array([(z <= norm.ppf(0.5 + p / 2)).mean() for p in nominal])
    half = 1.96 * np.sqrt(nominal * (1 - nominal) / len(z))
    a.fill_between(nominal, nominal - half, nominal + half, color="grey", alpha=0.3, label="95 % binomial band")
    a.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    a.plot(nominal, observed, color="#0072b2", label=f"BO, {len(z)} predictions")
    a.set(xlabel="nominal coverage", ylabel="observed coverage", title="central intervals")
    a.legend(fontsize=8)
    chosen = np.random.default_rng(0).permutation(len(z))[:400]
    offset = np.median(truth)
    b.errorbar(
        mean[chosen] - offset,
        truth[chosen] - offset,
        xerr=sd[chosen],
        fmt="none",
        ecolor="grey",
        alpha=0.25,
        linewidth=0.7,
    )
    points = b.scatter(
        mean[chosen] - offset, truth[chosen] - offset, c=np.array(when)[chosen], s=9, cmap="viridis", zorder=3
    )
    low, high = np.quantile(truth - offset, [0.0, 0.99])
    b.plot([low, high], [low, high], color="black", linewidth=0.8)
    b.set(
        xlabel="predicted, quartile ranges of the table",
        ylabel="actual",
        title="predicted before the trial, 1 sd",
        xlim=(low, high),
        ylim=(low, high),
    )
    figure.colorbar(points, ax=b, label="trial")
    c.hist(norm.cdf((truth - mean) / sd), bins=20, range=(0, 1), density=True, color="#0072b2", alpha=0.7)
    c.axhline(1.0, color="black", linewidth=0.8)
    c.set(xlabel="probability integral transform", ylabel="density", title="PIT")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def policy_plot(by: dict, path: Path, plt) -> None:
    """Over the trials of a run: entropy, divergence from BO, imagined gain, and the share of trials among the table's
    best tenth.
    """
    names = [name for name, arms in by.items() if arms.get("BO + RL gated")]
    if not names:
        return
    figure, panels = plt.subplots(1, 4, figsize=(17, 3.8), layout="constrained")
    for name in names:
        logs = [[s for s in run["log"] if "acts" in s] for run in by[name]["BO + RL gated"].values()]
        unit = np.median(load(name).full) - load(name).full.min()
        for axes, key, scale in (
            (panels[0], "entropy", 1.0),
            (panels[1], "kl", 1.0),
            (panels[2], "gain", 100.0 / unit),
        ):
            axes.plot(*by_step([[scale * s[key] for s in log] for log in logs]), label=name)
        good = np.quantile(load(name).full, 0.1)
        hits = [[float(row[2] <= good) for row in run["predicted"]] for run in by[name]["BO + RL gated"].values()]
        steps, share = by_step(hits)
        panels[3].plot(steps, np.convolve(np.pad(share, 2, mode="edge"), np.ones(5) / 5, mode="valid"), label=name)
    for axes, title in zip(
        panels,
        (
            "entropy of the policy, nats",
            "KL(policy, BO), nats",
            "imagined gain over BO, points of regret",
            "trials in the table's best tenth (mean of 5)",
        ),
        strict=True,
    ):
        axes.set(title=title, xlabel="trial")
        axes.grid(alpha=0.25)
    panels[3].axhline(0.1, color="black", linewidth=0.8, linestyle=":")
    panels[0].legend(fontsize=7)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def by_step(series: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean at each step over the runs that came to it, as long as half of them did."""
    lengths = sorted(len(s) for s in series)
    n = lengths[len(lengths) // 2]
    return np.arange(n), np.array([np.mean([s[k] for s in series if len(s) > k]) for k in range(n)])
