"""How many genomes a second can the cost formulas judge, one by one and as a population?

    python benchmarks/search/costs.py [--out benchmarks/search/results]

Arms: `star.costs` of each genome (a plan is resolved for each), and `star.cost.population_costs` of all at once; the
same 10,000 random genomes of 24 slots, one thread, the best and the median of 5 runs. Goal: 50,000 genomes a second for
the second.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import star
from star.cost import population_costs
from star.genome import Space


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    space = Space(24, (768,))
    X = space.sample(np.random.default_rng(0), 10_000)
    few = [space.decode(x) for x in X[:500]]
    arms = {
        "one by one": (len(few), lambda: [star.costs(genome) for genome in few]),
        "population": (len(X), lambda: population_costs(space, X)),
    }
    results = {name: rate(n, call) for name, (n, call) in arms.items()}
    for name, (best, median) in results.items():
        print(f"{name:12} best {best:10,.0f} genomes/s   median {median:10,.0f}")
    ratio = results["population"][1] / results["one by one"][1]
    met = "met" if results["population"][0] >= 50_000 else "missed"
    print(f"ratio of medians {ratio:.0f}; goal of 50,000 genomes/s {met}")
    data = {"device": f"{platform.machine()} CPU, 1 thread", "slots": 24, "genomes_per_second": results, "ratio": ratio}
    (args.out / "costs-cpu.json").write_text(json.dumps(data, indent=1) + "\n")


def rate(n: int, call: Callable[[], object]) -> tuple[float, float]:
    """Best and median genomes a second of 5 runs, after one that fills the tables."""
    call()
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return n / min(seconds), n / statistics.median(seconds)


if __name__ == "__main__":
    main()
