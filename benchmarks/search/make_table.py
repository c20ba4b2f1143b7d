"""Every architecture of a small space, really trained: a table in which a search can be judged in seconds, and its
optimum is known.

    python benchmarks/search/make_table.py --workers 2          # about an hour on two cores; goes on where it was
        stopped

Question: none of its own. It makes `benchmarks/search/results/table-1364.csv`, the ground truth of
`benchmarks/search/search_on_tables.py`. Space: five slots of SA-1, Rec-1, GConv-1 or GMemless at width 32, all 4 + 16 +
64 + 256 + 1,024 of them, nothing shared. Training: 131,072 bytes of the standard library's sources in batches of 16 x
64, AdamW, warm-up - stable - decay; validation loss in nats per byte at eighths of the budget, so that rungs can be
read from it: all but the last two lie before the decay.
"""

import argparse
import csv
import itertools
import multiprocessing
import os
from pathlib import Path

CLASSES, SLOTS, D_MODEL, HEAD_DIM = (1, 5, 7, 9), 5, 32, 8
RECIPE = {
    "tokens": 131_072,
    "batch_size": 16,
    "seq_len": 64,
    "schedule": "wsd",
    "eval_interval": 0.125,
    "eval_tokens": 16_384,
    "learning_rate": 4e-3,
    "device": "cpu",
}
RESULTS = Path(__file__).parent / "results"
COLUMNS = ["classes", "seed", "parameters", "cache", *(f"loss_{k}" for k in range(1, 9)), "status"]


def architectures() -> list[tuple[int, ...]]:
    """In an order without a trend, so that a part of the table is a fair sample of it."""
    rows = [row for depth in range(1, SLOTS + 1) for row in itertools.product(CLASSES, repeat=depth)]
    import numpy as np

    return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]


def measure(task: tuple[tuple[int, ...], int]) -> dict:
    import torch

    import star
    from star.data import open_corpus
    from star.genome import Gene, Genome
    from star.training import Recipe, train

    classes, seed = task
    torch.set_num_threads(1)
    genome = Genome(tuple(Gene(c) for c in classes), d_model=D_MODEL, head_dim=HEAD_DIM)
    costs = star.costs(genome, vocab_size=256)
    model = star.build(genome, vocab_size=256, seed=seed)
    result = train(model, open_corpus("stdlib"), Recipe(**RECIPE, seed=seed))
    losses = [point["val_loss"] for point in result.curve]
    losses += [None] * (8 - len(losses))
    row = {
        "classes": "-".join(map(str, classes)),
        "seed": seed,
        "parameters": costs.parameters,
        "cache": costs.cache_bytes,
    }
    return row | {f"loss_{k + 1}": loss and round(loss, 5) for k, loss in enumerate(losses)} | {"status": result.status}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--seeds", type=int, default=4, help="seeds of the first 40 architectures, to see the noise; one of all others"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "table-1364.csv")
    args = parser.parse_args()
    rows = architectures()
    tasks = [(row, 0) for row in rows] + [(row, seed) for seed in range(1, args.seeds) for row in rows[:40]]
    done = set()
    if args.out.exists():
        with args.out.open() as file:
            done = {(tuple(map(int, row["classes"].split("-"))), int(row["seed"])) for row in csv.DictReader(file)}
    tasks = [task for task in tasks if task not in done]
    print(
        f"{len(done)} of {len(done) + len(tasks)} trainings are done; {args.workers} workers on {os.cpu_count()} cores",
        flush=True,
    )
    with args.out.open("a", newline="") as file, multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        writer = csv.DictWriter(file, COLUMNS)
        if not done:
            writer.writeheader()
        for n, row in enumerate(pool.imap_unordered(measure, tasks), start=1):
            writer.writerow(row)
            file.flush()
            if n % 50 == 0:
                print(f"{n} of {len(tasks)}", flush=True)


if __name__ == "__main__":
    main()
