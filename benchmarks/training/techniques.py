"""Question: how much faster do the techniques reach the baseline's final loss, alone, combined and with Muon?

Techniques, each a switch of the recipe: AGA (adaptive gradient accumulation), LCLR (layer-wise rates), SAS (structured
attention sparsification). All 2^3 combinations on three baselines, and with Muon the full recipe and the recipes
without one part:
  conventional  AdamW, cosine to a tenth; rate and batch tuned
  oversized     the same with four times the batch; rate tuned. A large batch alone costs so much that gains over it
                prove little. It is included for AGA, which is made for it; no goal is measured on it
  tuned         AdamW, linear to zero; rate and batch tuned
  muon          Muon for hidden matrices, linear to zero, the tuned batch; rate tuned
Rules (most claims about optimizers do not hold under them, arXiv 2509.02046): every run is a complete schedule of its
own length; the target is the baseline's mean final loss at the full budget; the time to it is the time of the shortest
complete run that ends there, interpolated between budgets in log time; everything is timed, the final evaluation too;
arms take turns; tuning uses a separate seed and the full budget, and is printed. On a CPU the time is the CPU time of
the process (one thread), to exclude other programs. A busy machine is still slower, so the seconds per token of the
arms are measured separately: all arms in turn, three rounds.

    python benchmarks/training/techniques.py [--tokens 65536] [--seeds 3] [--device cpu]

Runs are stored in a JSONL file beside the results and not repeated: the same command continues where it stopped.
"""

import argparse
import itertools
import json
import math
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from star.data import open_corpus, validation_blocks
from star.genome import Genome
from star.genome.codec import parse_text
from star.model import build
from star.training import Recipe, evaluate, train

RESULTS = Path(__file__).parent / "results"
TARGETS = ("conventional", "oversized", "tuned")
SHARES = (0.4, 0.7, 1.0, 1.3)  # budgets, of the full one
EARLIER = (0.1, 0.2)  # further budgets of arms that reach a target earlier
BASES = {
    "conventional": {"optimizer": "adamw", "schedule": "cosine", "floor": 0.1},
    "oversized": {"optimizer": "adamw", "schedule": "cosine", "floor": 0.1},
    "tuned": {"optimizer": "adamw", "schedule": "linear"},
    "muon": {"optimizer": "muon", "schedule": "linear"},
}
TECHNIQUES = ("AGA", "LCLR", "SAS")
SWITCHES = {"AGA": ("precision", (0.5, 1.0, 2.0)), "LCLR": ("layer_decay", (0.5, 2.0)), "SAS": ("sparsify", (0.3, 0.6))}
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
GOAL = 0.53  # 47 % less time


class Runs:
    """Trainings by (recipe, tokens, seed), stored in a file."""

    def __init__(self, args, path: Path):
        self.args, self.path, self.corpus = args, path, open_corpus("stdlib")
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        self.known = {row["key"]: row for row in rows}

    def __call__(self, changes: dict, share: float, seed: int) -> dict:
        key = json.dumps([self.args.d_model, self.args.blocks, self.args.tokens, changes, share, seed], sort_keys=True)
        if key not in self.known:
            self.known[key] = {"key": key} | self.run(changes, share, seed)
            with self.path.open("a") as file:
                file.write(json.dumps(self.known[key]) + "\n")
        return self.known[key]

    def build(self, seed: int) -> torch.nn.Module:
        genome = Genome(parse_text("-".join(["1-9"] * self.args.blocks)), d_model=self.args.d_model, head_dim=16)
        return build(genome, self.corpus.vocab_size, seed)

    def run(self, changes: dict, share: float, seed: int) -> dict:
        tokens, device = round(self.args.tokens * share), self.args.device
        recipe = Recipe(tokens=tokens, eval_interval=1.0, eval_tokens=32_768, seed=seed, device=device)
        model, clock = self.build(seed), time.process_time if device == "cpu" else time.perf_counter
        started = clock()
        result = train(model, self.corpus, recipe.replace(**changes))
        seconds = clock() - started
        loss = result.val_loss if result.status == "ok" else math.inf
        saved = (result.sparsity or {}).get("cache_saved", 0.0)
        return {"loss": loss, "tokens": result.tokens, "steps": result.steps, "seconds": seconds, "saved": saved}


def timing(runs: Runs, recipes: dict[str, dict], rounds: int = 3) -> tuple[dict[str, float], float]:
    """Seconds per training token of each arm (median over rounds in which all take turns), and of the evaluation."""
    seconds: dict[str, list[float]] = {arm: [] for arm in recipes}
    clock = time.process_time if runs.args.device == "cpu" else time.perf_counter
    tokens, evaluations = round(runs.args.tokens * SHARES[0]), []
    sample = validation_blocks(runs.corpus.validation, 128, 32_768)
    for _ in range(rounds):
        for arm, changes in recipes.items():
            seconds[arm].append(runs.run(changes, SHARES[0], 1000)["seconds"])
        model = runs.build(0).to(runs.args.device).eval()
        started = clock()
        evaluate(model, *(part.to(runs.args.device) for part in sample))
        evaluations.append(clock() - started)
    evaluation = statistics.median(evaluations)
    return {arm: (statistics.median(values) - evaluation) / tokens for arm, values in seconds.items()}, evaluation


def tune(runs: Runs) -> tuple[dict[str, dict], list[str]]:
    """The recipe of each base, and the setting of each technique on it: the best of small grids."""
    lines, found = [], {}
    for base, changes in BASES.items():
        batches = (1, 2, 4)
        if base == "oversized":
            batches = (4 * found["conventional"]["accumulate"],)
        elif base == "muon":
            batches = (found["tuned"]["accumulate"],)
        grid = [changes | {"learning_rate": rate, "accumulate": n} for rate in RATES for n in batches]
        losses = [runs(recipe, 1.0, 1000)["loss"] for recipe in grid]
        found[base] = grid[int(np.argmin(losses))]
        lines.append(
            f"{base}: rate {found[base]['learning_rate']:g}, {found[base]['accumulate']} micro-batches, the best of "
            f"{len(grid)}: {min(losses):.3f}"
        )
        for name in TECHNIQUES:
            setting, values = SWITCHES[name]
            options = [{setting: value} | ({"adaptive": True} if name == "AGA" else {}) for value in values]
            losses = [runs(found[base] | option, 1.0, 1000)["loss"] for option in options]
            found[f"{base} {name}"] = options[int(np.argmin(losses))]
            tried = ", ".join(f"{v:g}: {loss:.3f}" for v, loss in zip(values, losses, strict=True))
            lines.append(f"{base}, {name}: {setting} {tried}")
    return found, lines


def arms(found: dict[str, dict]) -> dict[str, dict]:
    def recipe(base: str, names: tuple[str, ...]) -> dict:
        changes = dict(found[base])
        for name in names:
            changes |= found[f"{base} {name}"]
        return changes

    subsets = [tuple(itertools.compress(TECHNIQUES, on)) for on in itertools.product((0, 1), repeat=3)]
    result = {" + ".join((base, *names)): recipe(base, names) for base in TARGETS for names in subsets}
    for names in ((), TECHNIQUES, *itertools.combinations(TECHNIQUES, 2)):
        result[" + ".join(("muon", *names))] = recipe("muon", names)
    return result


def time_to(target: float, points: list[tuple[float, float]]) -> tuple[float, str]:
    """Time to end at `target`, from (time, final loss) of complete runs, and its kind: "" exact, "<" or ">" a bound."""
    points = sorted(points)
    for (t0, l0), (t1, l1) in itertools.pairwise(points):
        if l0 > target >= l1:
            return math.exp(math.log(t0) + (l0 - target) / (l0 - l1) * math.log(t1 / t0)), ""
    return (points[0][0], "<") if points[0][1] <= target else (points[-1][0], ">")


def interval(values: list[float]) -> str:
    """Geometric mean and its 95 % interval (t, on logs)."""
    logs = np.log(values)
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    return f"{math.exp(logs.mean()):.3f} [{math.exp(logs.mean() - half):.3f}, {math.exp(logs.mean() + half):.3f}]"


def anova(table: dict[str, list[float]], base: str) -> list[str]:
    """Effect of each technique and interaction on the final loss at equal tokens, in nats, with its p value."""
    import pandas
    import statsmodels.formula.api as smf
    from statsmodels.stats.anova import anova_lm

    rows = [
        {"loss": loss, "seed": seed} | {name: int(name in arm.split(" + ")) - 0.5 for name in TECHNIQUES}
        for arm, losses in table.items()
        if arm.split(" + ")[0] == base
        for seed, loss in enumerate(losses)
    ]
    fitted = smf.ols("loss ~ AGA * LCLR * SAS + C(seed)", pandas.DataFrame(rows)).fit()
    effects = anova_lm(fitted, typ=2)
    return [
        f"  {term:14} {fitted.params[term]:+.4f} nats, p = {effects.loc[term, 'PR(>F)']:.3g}"
        for term in fitted.params.index
        if "seed" not in term and term != "Intercept"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--d-model", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    name = f"techniques-{'cpu' if args.device == 'cpu' else 'cuda'}"
    runs = Runs(args, RESULTS / f"{name}.jsonl")
    found, lines = tune(runs)
    print("\n".join(lines), flush=True)
    recipes = arms(found)
    shares = {arm: (EARLIER if arm.startswith("muon") or arm in TARGETS else ()) + SHARES for arm in recipes}
    table = {arm: {share: [None] * args.seeds for share in shares[arm]} for arm in recipes}
    for seed in range(args.seeds):
        for share in EARLIER + SHARES:
            for arm, changes in recipes.items():
                if share in shares[arm]:
                    table[arm][share][seed] = runs(changes, share, seed)
            losses = [f"{arm} {rows[share][seed]['loss']:.3f}" for arm, rows in table.items() if share in rows]
            print(f"seed {seed}, {share:g} of the budget: {', '.join(losses)}", flush=True)

    per_token, evaluation = timing(runs, recipes)
    report = {}
    head = (
        f"{args.blocks} blocks of attention and SwiGLU, {args.d_model} wide, {args.tokens:,} tokens, "
        f"{args.seeds} seeds, {args.device}"
    )
    note = "relative to the baseline; geometric mean [95 %]; <, >: outside the budgets"
    lines = [head, "tuning (seed 1000):", *lines, "", f"time and tokens to the baseline's final loss, {note}"]
    for base in TARGETS:
        target = statistics.mean(r["loss"] for r in table[base][1.0])
        lines.append(f"target: {base}, {target:.4f} nats/byte")
        for arm, rows in table.items():
            if arm.split(" + ")[0] not in (base, "muon") and arm not in TARGETS:
                continue
            points = [[(rs[s]["tokens"], rs[s]["loss"]) for rs in rows.values()] for s in range(args.seeds)]
            tokens, bounds = zip(*(time_to(target, found) for found in points), strict=True)
            by_tokens = [t / table[base][1.0][0]["tokens"] for t in tokens]
            whole = evaluation + args.tokens * per_token[base]
            by_time = [(evaluation + t * per_token[arm]) / whole for t in tokens]
            final = [rows[1.0][s]["loss"] - table[base][1.0][s]["loss"] for s in range(args.seeds)]
            bound = "".join(sorted(set(bounds) - {""}))
            report[f"{base}: {arm}"] = {
                "tokens": by_tokens,
                "seconds": by_time,
                "bound": bound,
                "loss_difference": final,
                "steps": rows[1.0][0]["steps"],
                "cache_saved": [r["saved"] for r in rows[1.0]],
            }
            mean = statistics.mean(final)
            lines.append(
                f"  {arm:34} time {interval(by_time)} tokens {interval(by_tokens)} {bound:2} loss at equal tokens "
                f"{mean:+.4f}, {rows[1.0][0]['steps']} steps"
            )
    finals = {arm: [r["loss"] for r in rows[1.0]] for arm, rows in table.items()}
    for base in TARGETS:
        lines += [f"effects on the final loss at equal tokens ({base}):", *anova(finals, base)]
    best = report["conventional: muon + AGA + LCLR + SAS"]
    mean, equal = math.exp(np.log(best["seconds"]).mean()), statistics.mean(best["loss_difference"]) <= 0
    verdict = "met" if mean <= GOAL and equal else "MISSED"
    lines.append(
        f"goal, full recipe in {GOAL} of the conventional baseline's time at equal or better final loss: "
        f"{mean:.3f}, {verdict}"
    )
    print("\n".join(lines))
    out = {
        "arguments": vars(args),
        "recipes": recipes,
        "report": report,
        "finals": finals,
        "seconds_per_token": per_token,
        "evaluation_seconds": evaluation,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(out, indent=1))
    (RESULTS / f"{name}.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
