"""Tables, verdicts and plot of `benchmarks/refine/refine_on_training.py`, from its cache of finished runs."""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path

import numpy as np
from paired import anova, bca, holm, mean_difference

from star.surrogate.calibration import calibration

STAR, ALONE, LEARNT = "BO + RL gated", "BO", "BO + earlier"
GOAL = math.log(0.97)  # 3 % lower perplexity, per unit of the loss
MARGIN = 0.005  # nats: "not worse"; a sixth of the goal
PEERS = ("TPE", "GPSampler")
INFORMED = ("TPE + portfolio", "GPSampler + portfolio")
COLORS = {
    "random": "#999999",
    "TPE": "#e69f00",
    "GPSampler": "#56b4e9",
    "TPE + portfolio": "#b87900",
    "GPSampler + portfolio": "#1f6fb0",
    "halving": "#009e73",
    "RL only": "#cc79a7",
    "BO": "#0072b2",
    "BO + RL gated": "#d00000",
    "BO + earlier": "black",
    "recipes": "#7f5fc0",
    "edits": "#5c3a21",
}


def report(rows: list[dict], out: Path) -> None:
    """Prints, and writes out (.json), out.txt and the plot out.png."""
    runs = {(row["arm"], row["member"], row["seed"]): row for row in rows if "arm" in row}
    trainings = [row for row in rows if "trial" in row]
    arms = [arm for arm in COLORS if any(key[0] == arm for key in runs)]
    tasks = sorted({key[1:] for key in runs})
    # Nats; below 0 is better
    gain = {key: float(np.mean(row["fresh"]) - np.mean(row["before"])) for key, row in runs.items()}
    members = sorted({member for member, _ in tasks})
    facts: dict = {
        "device": f"{platform.machine()} CPU",
        "trainings": len(trainings),
        "cpu_seconds_of_trainings": round(sum(r["seconds"] for r in trainings)),
        "arms": {},
    }
    lines = [
        f"{len(members)} members of the front ({', '.join(members)}), seeds {sorted({seed for _, seed in tasks})}; "
        f"{len(trainings)} different trainings, {facts['cpu_seconds_of_trainings']} CPU seconds"
    ]
    lines += [
        "",
        "loss of what an arm recommends minus that of the member under the search's recipe, nats, fresh seeds on "
        "both sides, mean [95 %]",
    ]
    for arm in arms:
        values = np.array([gain[key] for key in gain if key[0] == arm])
        low, high = bca(values)
        each = {
            member: float(np.mean([gain[key] for key in gain if key[:2] == (arm, member)]))
            for member in members
            if any(k[:2] == (arm, member) for k in gain)
        }
        facts["arms"][arm] = {
            "n": len(values),
            "gain": [float(values.mean()), low, high],
            "perplexity": math.exp(values.mean()) - 1,
            "by_member": each,
        }
        facts["arms"][arm]["pairs"] = {
            f"{member} seed {seed}": round(value, 5)
            for (name, member, seed), value in sorted(gain.items())
            if name == arm
        }
        per = "  ".join(f"{member[:6]} {value:+.3f}" for member, value in each.items())
        lines.append(
            f"{arm:22s} n {len(values):2d}  {values.mean():+.4f} [{low:+.4f}, {high:+.4f}]  perplexity "
            f"{100 * (math.exp(values.mean()) - 1):+.1f} %   {per}"
        )
    for part in (comparisons, verdicts, chosen, forecasts):
        text, facts[part.__name__] = part(runs, gain, arms, tasks)
        lines += ["", *text]
    print("\n".join(lines))
    out.write_text(json.dumps(facts, indent=1) + "\n")
    out.with_suffix(".txt").write_text("\n".join(lines) + "\n")
    plot(runs, arms, members, out.with_suffix(".png"))


def both(gain: dict, a: str, b: str, tasks: list) -> tuple[np.ndarray, np.ndarray]:
    shared = [task for task in tasks if (a, *task) in gain and (b, *task) in gain]
    return np.array([gain[a, *task] for task in shared]), np.array([gain[b, *task] for task in shared])


def comparisons(runs: dict, gain: dict, arms: list[str], tasks: list) -> tuple[list[str], dict]:
    """`star refine` against every other arm, paired by member and seed; analysis of variance over arms and members."""
    found = {
        arm: mean_difference(*both(gain, STAR, arm, tasks))
        for arm in arms
        if arm != STAR and len(both(gain, STAR, arm, tasks)[0]) > 1
    }
    for key in ("t_p", "wilcoxon_p"):
        for arm, p in zip(found, holm([r[key] for r in found.values()]), strict=True):
            found[arm][f"{key}_holm"] = p
    lines = [f"{STAR} minus each arm, nats, paired by member and seed; p after Holm"]
    for arm, r in found.items():
        lines.append(
            f"{arm:22s} n {r['n']:2d}  {r['mean']:+.4f} [{r['low']:+.4f}, {r['high']:+.4f}]  t p "
            f"{r['t_p_holm']:.3f}  Wilcoxon p {r['wilcoxon_p_holm']:.3f}  dz {r['dz']:+.2f}  "
            f"better {r['better']} worse {r['worse']} ties {r['ties']}"
        )
    members = sorted({member for member, _ in tasks})
    seeds = sorted(
        set.intersection(
            *({s for m, s in tasks if m == member and all((arm, m, s) in gain for arm in arms)} for member in members)
        )
    )
    if len(seeds) > 1 and len(members) > 1:
        found["anova"] = anova(
            np.array([[[gain[arm, member, seed] for seed in seeds] for arm in arms] for member in members])
        )
        for term, r in found["anova"].items():
            lines.append(
                f"ANOVA over {len(arms)} arms, {len(members)} members, {len(seeds)} seeds: "
                f"{term.replace('task', 'member')}: F({r['df']}, {r['df_error']}) = {r['F']:.1f}, p = "
                f"{r['p']:.1e}, partial eta squared {r['eta2']:.2f}"
            )
    return lines, found


def verdicts(runs: dict, gain: dict, arms: list[str], tasks: list) -> tuple[list[str], dict]:
    """The goals, each met or missed with its interval."""
    lines, found = [f"goals: 3 % lower perplexity is {GOAL:+.4f} nats"], {}

    def judge(words: str, mean: float, low: float, high: float, n: int) -> None:
        verdict = (
            "met"
            if high < GOAL
            else "missed"
            if low > GOAL
            else "met on average, interval reaches over it"
            if mean < GOAL
            else "missed on average, interval reaches it"
        )
        found[words] = {"mean": mean, "low": low, "high": high, "n": n, "verdict": verdict}
        lines.append(
            f"{words}: {mean:+.4f} [{low:+.4f}, {high:+.4f}] nats ({100 * (math.exp(mean) - 1):+.1f} %), n {n}: "
            f"{verdict}"
        )

    own = np.array([gain[key] for key in gain if key[0] == STAR])
    if len(own) > 1:
        judge(f"{STAR} against the member under the search's recipe", float(own.mean()), *bca(own), len(own))
    for peer in (*PEERS, *INFORMED):
        a, b = both(gain, STAR, peer, tasks)
        if len(a) > 1:
            r = mean_difference(a, b)
            judge(f"{STAR} against {peer} at the same budget", r["mean"], r["low"], r["high"], r["n"])
    for peer in (*PEERS, *INFORMED):
        a, b = both(gain, LEARNT, peer, tasks)
        if len(a) > 1:
            r = mean_difference(a, b)
            judge(f"{LEARNT} against {peer} at the same budget", r["mean"], r["low"], r["high"], r["n"])
    for arm in (STAR,):
        a, b = both(gain, arm, ALONE, tasks)
        if len(a) > 1:
            r = mean_difference(a, b)
            verdict = "met" if r["high"] < MARGIN else "missed" if r["low"] > MARGIN else "not shown"
            words = "a gain" if r["high"] < 0 else "a loss" if r["low"] > 0 else "RL adds nothing that can be seen"
            acts = [entry for key, row in runs.items() if key[0] == arm for entry in row["log"]]
            acted = sum(entry["source"] == "policy" for entry in acts)
            found[f"{arm} not worse than BO"] = r | {"verdict": verdict, "decisions": len(acts), "by_policy": acted}
            lines.append(
                f"{arm} not worse than BO (margin {MARGIN} nats): {r['mean']:+.4f} [{r['low']:+.4f}, "
                f"{r['high']:+.4f}], n {r['n']}: {verdict}; {words}; the policy chose {acted} of {len(acts)} "
                "trials"
            )
    for part in ("recipes", "edits"):
        a, b = both(gain, ALONE, part, tasks)
        if len(a) > 1:
            r = found[f"BO of both minus of {part} alone"] = mean_difference(a, b)
            lines.append(
                f"BO of recipes and edits together minus of {part} alone: {r['mean']:+.4f} [{r['low']:+.4f}, "
                f"{r['high']:+.4f}], n {r['n']}"
            )
    return lines, found


def chosen(runs: dict, gain: dict, arms: list[str], tasks: list) -> tuple[list[str], dict]:
    """What `star refine` recommends: how often an edit, Muon, and the median of each changed number."""
    mine = [row for key, row in runs.items() if key[0] == STAR]
    if not mine:
        return [], {}
    numbers: dict[str, list[float]] = {}
    for row in mine:
        for name, value in row["changed"].items():
            if not isinstance(value, str):
                numbers.setdefault(name, []).append(value)
    found = {
        "edited": sum(bool(row["edits"]) for row in mine),
        "muon": sum(row["changed"].get("optimizer") == "muon" for row in mine),
        "n": len(mine),
    }
    found["median of those changed"] = {
        name: [float(np.median(values)), len(values)] for name, values in numbers.items()
    }
    text = ", ".join(f"{name} {value:.3g} ({n})" for name, (value, n) in found["median of those changed"].items())
    return [
        f"what {STAR} recommends: an edit in {found['edited']}, Muon in {found['muon']} of {found['n']}; medians of "
        f"what was changed (in how many): {text}"
    ], found


def forecasts(runs: dict, gain: dict, arms: list[str], tasks: list) -> tuple[list[str], dict]:
    """Calibration of what was predicted before each trial."""
    lines, found = [], {}
    for arm in (ALONE, STAR, LEARNT):
        told = [
            (entry["predicted"], entry["loss"])
            for key, row in runs.items()
            if key[0] == arm
            for entry in row["log"]
            if math.isfinite(entry["loss"])
        ]
        if not told:
            continue
        r = {
            key: value for key, value in calibration([p for p, _ in told], [y for _, y in told]).items() if key != "pit"
        }
        verdict = "met" if 0.85 <= r["coverage_90"] <= 0.95 else "missed"
        found[arm] = r | {"verdict": verdict}
        cover = "  ".join(
            f"{level} %: {r[f'coverage_{level}']:.3f} [{r[f'coverage_{level}_low']:.3f}, "
            f"{r[f'coverage_{level}_high']:.3f}]"
            for level in (50, 80, 90, 95)
        )
        lines.append(
            f"forecasts of {arm}: {r['n']}; {cover}; goal 85-95 at 90: {verdict}; mean NLL {r['nll']:.2f}, ENCE "
            f"{r['ence']:.2f}, sd of z {r['z_sd']:.2f}, Spearman(sd, |error|) {r['sd_error']:.2f}"
        )
    return lines, found


def curve(row: dict) -> tuple[np.ndarray, np.ndarray]:
    """Cost so far, and the lowest loss of a full training so far."""
    cost = np.cumsum([share for share, _ in row["curve"]])
    best = np.minimum.accumulate([loss if share == 1.0 else math.inf for share, loss in row["curve"]])
    return cost, best - float(np.mean(row["before"]))


def plot(runs: dict, arms: list[str], members: list[str], path: Path) -> None:
    """Lowest loss measured so far over cost, and what came of the recommendations, by member."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, len(members), figsize=(5 * len(members), 8), squeeze=False, layout="constrained")
    handles, grid = {}, np.arange(1, 20.5, 0.25)
    for column, member in enumerate(members):
        above, below = panels[:, column]
        for arm in arms:
            mine = [row for key, row in runs.items() if key[:2] == (arm, member)]
            if not mine:
                continue
            curves = []
            for row in mine:
                cost, best = curve(row)
                at = np.searchsorted(cost, grid + 1e-9, side="right") - 1
                curves.append(np.where(at >= 0, best[np.maximum(at, 0)], np.nan))
            curves = np.array(curves)
            curves[~np.isfinite(curves)] = np.nan
            known = np.isfinite(curves).all(axis=0)
            (handles[arm],) = above.plot(
                grid[known],
                curves[:, known].mean(axis=0),
                color=COLORS[arm],
                linewidth=2.2 if arm in (STAR, ALONE) else 1.1,
                linestyle="--" if "+ R" in arm else "-",
                label=arm,
            )
            values = [np.mean(row["fresh"]) - np.mean(row["before"]) for row in mine]
            below.plot(values, [arms.index(arm)] * len(values), "o", color=COLORS[arm], markersize=5)
            below.plot(
                [np.mean(values)] * 2, [arms.index(arm) - 0.3, arms.index(arm) + 0.3], color=COLORS[arm], linewidth=2
            )
        above.set(
            title=member,
            xlabel="cost, full trainings",
            ylabel="lowest loss measured so far - member's, nats" if not column else "",
        )
        below.axvline(0, color="black", linewidth=0.8)
        below.axvline(GOAL, color="black", linewidth=0.8, linestyle=":")
        below.set(
            yticks=range(len(arms)),
            yticklabels=arms if not column else [],
            xlabel="recommended, fresh seeds - member's, nats (dotted: 3 %)",
        )
        below.invert_yaxis()
        for axes in (above, below):
            axes.grid(alpha=0.25)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
