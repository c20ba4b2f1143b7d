"""What three public layouts can do at the size and the budget of the laptop preset: the suite of `star capabilities`.

The baselines are scaled as the preset scales them (width 64, six LIVs), a model of each is trained for each task with
`objectives.skill_tokens` tokens, and one under the preset's recipe for the loss by position. Rows that FILE has already
are not measured again.

    python benchmarks/evidence/capabilities.py benchmarks/evidence/results/capabilities.json [--seeds 2]
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from star.assess.skill_tests import EXTRAPOLATION, loss_by_position, measuring
from star.config import load_config
from star.data import open_corpus
from star.data.skills import SKILLS
from star.genome import Genome
from star.model import build
from star.search.spaces import make_baselines, make_space
from star.training import train
from star.turns import finish

LAYOUTS = "transformer++,striped-mamba,lfm2-350m"
CONFIG = load_config("laptop", overrides={"search.baselines": LAYOUTS})


def measure(genome: Genome, task: str, seed: int) -> dict[str, float]:
    """Metrics of one model on one task."""
    if task != EXTRAPOLATION:
        return finish(measuring(genome, {task: SKILLS[task]}, CONFIG.objectives.skill_tokens, seed))
    corpus = open_corpus(CONFIG.data.corpus)
    model = build(genome, corpus.vocab_size, seed=seed)
    recipe = CONFIG.training.replace(device="cpu", seed=seed)
    trained = train(model, corpus, recipe)
    return loss_by_position(model, corpus, recipe) | {"bpb": corpus.bits_per_byte(trained.val_loss)}


def table(rows: list[dict]) -> str:
    """Means over seeds, and the lowest and highest: accuracy by task and part; bits per byte by position."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    lines = [f"{'':24}" + "".join(f"{name:>26}" for name in names)]
    for task in (*SKILLS, EXTRAPOLATION):
        own = [row for row in rows if row["task"] == task]
        keys = [task, *(key for key in own[0]["metrics"] if key not in (task, f"{task}_se"))] if own else []
        for key in keys:
            error = key == task and task in SKILLS
            cells = []
            for name in names:
                values = [row["metrics"][key] for row in own if row["name"] == name]
                values = [1 - v for v in values] if error else values
                mean, ends = statistics.fmean(values), f"[{min(values):.3f}, {max(values):.3f}]"
                cells.append(f"{mean:.3f} {ends}")
            chance = f" (chance {SKILLS[task].chance:.3g})" if error else ""
            lines.append(f"{key + chance:24}" + "".join(f"{cell:>26}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(args.file.read_text())["rows"] if args.file.exists() else []
    done = {(row["name"], row["task"], row["seed"]) for row in rows}
    for seed in range(args.seeds):
        for task in (*SKILLS, EXTRAPOLATION):
            for name, genome in make_baselines(make_space(CONFIG), CONFIG):
                if (name, task, seed) in done:
                    continue
                started = time.process_time()
                metrics = {key: round(value, 4) for key, value in measure(genome, task, seed).items()}
                seconds = round(time.process_time() - started, 1)
                rows.append({"name": name, "genome": genome.text, "task": task, "seed": seed})
                rows[-1] |= {"metrics": metrics, "cpu_seconds": seconds}
                print(name, task, seed, metrics, seconds, flush=True)
                facts = {"tokens": CONFIG.objectives.skill_tokens, "sizes": {k: str(v) for k, v in SKILLS.items()}}
                lines = ",\n".join(json.dumps(row) for row in rows)
                args.file.write_text(f'{json.dumps(facts)[:-1]},\n"rows": [\n{lines}\n]}}\n')
    text = table(rows)
    args.file.with_suffix(".txt").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
