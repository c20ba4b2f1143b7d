"""Question: does the best learning rate stay the same when a model gets four times as wide, or four times as deep?

Arms: AdamW and Muon with scaled learning rates (`base_width`), and AdamW without. Each model is trained at every rate
of a grid with factors of two, on the same number of tokens of the standard library. The goal is that the best rate
moves by at most one step of the grid. "kept": the loss of the largest model at the best rate of the smallest one, in
nats above its own best.

    python benchmarks/training/transfer.py [--tokens 65536] [--seeds 1] [--device cpu]
"""

import argparse
import json
import math
import statistics
from pathlib import Path

import torch

from star.data import open_corpus
from star.genome import Genome
from star.genome.codec import parse_text
from star.model import build
from star.training import Recipe, train

RESULTS = Path(__file__).parent / "results"
ARMS = {
    "adamw": {"optimizer": "adamw"},
    "muon": {"optimizer": "muon"},
    "adamw, not carried over": {"optimizer": "adamw", "base_width": 0},
}
RATES = [2.0**-k for k in range(10, 3, -1)]  # 0.001 to 0.06
# (width, copies of the four LIVs)
SIZES = {"width": [(64, 1), (128, 1), (256, 1)], "depth": [(64, 1), (64, 2), (64, 4)]}
BACKBONE = "1-9-7-9"


def train_one(
    corpus, width: int, copies: int, changes: dict, rate: float, tokens: int, seed: int, device: str
) -> float:
    genome = Genome(parse_text("-".join([BACKBONE] * copies)), d_model=width, head_dim=16)
    model = build(genome, corpus.vocab_size, seed)
    if changes.get("base_width") == 0:  # also the usual initial values: embedding of 1 / sqrt(width)
        with torch.no_grad():
            model.embedding.mul_((64 / width) ** 0.5)
            model.final_norm.fill_(1.0)
        groups = [{key: value for key, value in group.items() if key != "scale"} for group in model.parameter_groups()]
        model.parameter_groups = lambda: groups
    recipe = Recipe(tokens=tokens, learning_rate=rate, batch_size=4, eval_interval=1.0, seed=seed, device=device)
    result = train(model, corpus, recipe.replace(**changes))
    return result.val_loss if result.status == "ok" else math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    corpus = open_corpus("stdlib")
    lines, report = [f"best rate over {args.tokens:,} tokens, {args.seeds} seed(s), {args.device}; LIVs {BACKBONE}"], {}
    known: dict[tuple, float] = {}
    for arm, changes in ARMS.items():
        for way, sizes in SIZES.items():
            if way == "depth" and "base_width" in changes:
                continue
            best, table = [], {}
            for width, copies in sizes:
                for rate in RATES:
                    key = (arm, width, copies, rate)
                    if key not in known:
                        options = (width, copies, changes, rate, args.tokens)
                        found = [train_one(corpus, *options, seed, args.device) for seed in range(args.seeds)]
                        known[key] = statistics.mean(found)
                losses = [known[arm, width, copies, rate] for rate in RATES]
                table[f"width {width}, {4 * copies} LIVs"] = losses
                best.append(losses.index(min(losses)))
            moved, kept = max(best) - min(best), losses[best[0]] - min(losses)
            verdict = "met" if moved <= 1 else "MISSED"
            report[f"{arm}, {way}"] = {"losses": table, "rates": RATES, "moved": moved, "kept": kept}
            found = [f"{name}: {RATES[at]:.2g} ({min(table[name]):.3f})" for name, at in zip(table, best, strict=True)]
            rates = ", ".join(found)
            goal = "" if "not" in arm else f"; goal, at most 1: {verdict}"
            lines.append(
                f"{arm}, {way}: best rate (loss) at {rates}; moves by {moved} steps, keeping it costs {kept:.3f}{goal}"
            )
            print(lines[-1], flush=True)
    name = f"transfer-{'cpu' if args.device == 'cpu' else 'cuda'}"
    (RESULTS / f"{name}.json").write_text(json.dumps({"arguments": vars(args), "report": report}, indent=1))
    (RESULTS / f"{name}.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
