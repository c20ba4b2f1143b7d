"""Question: at nanoGPT's published small setting, is our loss below its 1.88, and how much faster are better recipes?

Setting: tinyshakespeare by characters, 4 blocks (8 LIVs) of width 128 with 4 heads, context 64, 12 sequences per step,
2,000 steps, no dropout, CPU; the first 90 % are training text and all of the last 10 % validation text. nanoGPT's
README reports 1.88 nats per character.

Arms, each with complete schedules of several budgets, because a loss in the middle of a schedule says nothing about a
shorter one:
  plain   AdamW, cosine to a tenth, rate 1e-3, betas 0.9 and 0.99: nanoGPT's own recipe
  tuned   AdamW, linear to zero, rate tuned
  muon    Muon for hidden matrices, linear to zero, rate tuned
Tuned: the best of a grid at 500 steps with a separate seed. Time to 1.88: the shortest complete budget whose final loss
is 1.88, interpolated in log tokens, times the arm's measured seconds per token (median over runs that took turns). The
final evaluation is included in the time, which on a CPU is the CPU time of the process with one thread.

    python benchmarks/training/nanogpt_parity.py [--text FILE] [--seeds 3] [--device cpu] [--large]
--large: the README's large setting (6 blocks of 384, context 256, batch 64, 5,000 steps, dropout in theirs: 1.4697),
for a GPU.
"""

import argparse
import itertools
import json
import math
import statistics
import time
from pathlib import Path

import torch

from star.data import open_corpus
from star.genome import Genome
from star.genome.codec import parse_text
from star.model import build
from star.training import Recipe, train

HERE = Path(__file__).parent
TEXT = HERE.parents[2] / "shared/data/text/tinyshakespeare.txt"
SMALL = {"published": 1.88, "d_model": 128, "head_dim": 32, "blocks": 4, "steps": 2000, "batch_size": 12, "seq_len": 64}
LARGE = {"published": 1.4697, "d_model": 384, "head_dim": 64, "blocks": 6}
LARGE |= {"steps": 5000, "batch_size": 64, "seq_len": 256}
SHARES = (1.0, 0.5, 0.25)  # of the published steps: the budgets
COMMON = {"betas": (0.9, 0.99), "warmup": 0.05, "base_width": 0}
ARMS = {
    "plain": COMMON | {"learning_rate": 1e-3, "schedule": "cosine", "floor": 0.1},
    "tuned": COMMON | {"optimizer": "adamw", "schedule": "linear"},
    "muon": COMMON | {"optimizer": "muon", "schedule": "linear"},
}
GRIDS = {"tuned": (1e-3, 2e-3, 4e-3), "muon": (4e-3, 8e-3, 1.6e-2)}


def run(corpus, setting: dict, changes: dict, steps: int, seed: int, device: str) -> dict:
    backbone = parse_text("-".join(["1-9"] * setting["blocks"]))
    genome = Genome(backbone, d_model=setting["d_model"], head_dim=setting["head_dim"])
    model = build(genome, corpus.vocab_size, seed)
    batch = {"batch_size": setting["batch_size"], "seq_len": setting["seq_len"]}
    tokens = steps * batch["batch_size"] * batch["seq_len"]
    recipe = Recipe(tokens=tokens, eval_interval=1.0, eval_tokens=10**7, seed=seed, device=device, **batch, **changes)
    clock = time.process_time if device == "cpu" else time.perf_counter
    started = clock()
    result = train(model, corpus, recipe)
    seconds = clock() - started
    loss = result.val_loss if result.status == "ok" else math.inf
    parameters = sum(p.numel() for p in model.parameters())
    return {"loss": loss, "seconds": seconds, "tokens": tokens, "parameters": parameters}


def tokens_to(target: float, points: list[tuple[int, float]]) -> tuple[float | None, bool]:
    """Tokens of the shortest complete run that ends at `target` (None: never), and whether this is an upper bound.

    points: (tokens, final loss), interpolated in log tokens. A bound: even the smallest budget ends below the target.
    """
    points = sorted(points)
    for (t0, l0), (t1, l1) in itertools.pairwise(points):
        if l0 > target >= l1:
            return math.exp(math.log(t0) + (l0 - target) / (l0 - l1) * (math.log(t1) - math.log(t0))), False
    return (float(points[0][0]), True) if points[0][1] <= target else (None, False)


def summarise(
    setting: dict, rates: dict, runs: dict[str, dict[int, list[dict]]], device: str
) -> tuple[list[str], dict]:
    """The lines to print, and the numbers of each arm."""
    target, report = setting["published"], {}
    for arm, budgets in runs.items():
        per_token = statistics.median(r["seconds"] / r["tokens"] for rs in budgets.values() for r in rs)
        full = budgets[setting["steps"]]
        per_seed = []
        for seed in range(len(full)):
            points = [(found[seed]["tokens"], found[seed]["loss"]) for found in budgets.values()]
            per_seed.append(tokens_to(target, points))
        reached = [tokens for tokens, _ in per_seed if tokens is not None]
        report[arm] = {
            "rate": rates[arm],
            "final": [r["loss"] for r in full],
            "seconds_per_token": per_token,
            "tokens_to_published": per_seed,
            "at_most": any(bound for _, bound in per_seed),
            "seconds_to_published": statistics.median(reached) * per_token if reached else None,
            "full_seconds": full[0]["tokens"] * per_token,
        }
    plain = report["plain"]
    lines = [f"published {target}; ours: {full[0]['parameters']:,} parameters; {len(full)} seed(s); {device}"]
    for arm, row in report.items():
        final = f"{statistics.mean(row['final']):.4f} [{min(row['final']):.4f}, {max(row['final']):.4f}]"
        text = f"{arm:6} rate {row['rate']:g}: final {final}, {row['full_seconds']:.0f} s; to {target}: "
        if row["seconds_to_published"] is None:
            lines.append(text + "never")
            continue
        tokens, seconds = statistics.median(t for t, _ in row["tokens_to_published"] if t), row["seconds_to_published"]
        base = statistics.median(t for t, _ in plain["tokens_to_published"] if t)
        row["fraction_of_plain_to_published"] = seconds / plain["seconds_to_published"]
        row["fraction_of_plain_full"] = seconds / plain["full_seconds"]
        at_most = "at most " if row["at_most"] else ""
        lines.append(
            text + f"{at_most}{seconds:.0f} s = {row['fraction_of_plain_to_published']:.2f} of plain's time "
            f"({tokens / base:.2f} of its tokens), {row['fraction_of_plain_full']:.2f} of plain's whole run"
        )
    met = all(loss < target for row in report.values() for loss in row["final"])
    lines.append(f"goal, below {target} with the same tokens: {'met by every arm and seed' if met else 'MISSED'}")
    return lines, report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--large", action="store_true")
    args = parser.parse_args()
    if not args.text.exists():
        raise SystemExit(f"{args.text} does not exist: give the file of tinyshakespeare with --text")
    torch.set_num_threads(1)
    setting = LARGE if args.large else SMALL
    corpus = open_corpus(args.text)
    rates = {"plain": ARMS["plain"]["learning_rate"]}
    tuning = {}
    for arm, grid in GRIDS.items():
        tuning[arm] = {}
        for rate in grid:
            changes = ARMS[arm] | {"learning_rate": rate}
            tuning[arm][rate] = run(corpus, setting, changes, setting["steps"] // 4, 1000, args.device)["loss"]
        rates[arm] = min(tuning[arm], key=tuning[arm].get)
        losses = ", ".join(f"{rate:g}: {loss:.3f}" for rate, loss in tuning[arm].items())
        print(f"{arm}: rate {rates[arm]:g} of {losses}", flush=True)
    runs: dict[str, dict[int, list[dict]]] = {arm: {} for arm in ARMS}
    for seed in range(args.seeds):
        for share in SHARES:
            steps = round(setting["steps"] * share)
            for arm, changes in ARMS.items():  # arms take turns, so that a slow minute affects all
                found = run(corpus, setting, changes | {"learning_rate": rates[arm]}, steps, seed, args.device)
                runs[arm].setdefault(steps, []).append(found)
                print(f"{arm} {steps} steps, seed {seed}: {found['loss']:.4f} in {found['seconds']:.1f} s", flush=True)

    lines, report = summarise(setting, rates, runs, args.device)
    print("\n".join(lines))
    name = f"nanogpt-{'large' if args.large else 'small'}-{'cpu' if args.device == 'cpu' else 'cuda'}"
    out = {"setting": setting, "arms": ARMS, "tuning": tuning, "runs": runs, "report": report, "device": args.device}
    (HERE / "results" / f"{name}.json").write_text(json.dumps(out, indent=1))
    (HERE / "results" / f"{name}.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
