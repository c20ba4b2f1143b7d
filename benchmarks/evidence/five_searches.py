"""Does the default search find better models than random search and than its own first population, at equal size?

    python benchmarks/evidence/five_searches.py --out runs/five [--seeds 11 12 13 14 15] [--report]

Protocol, fixed before any of these searches was run (2026-12-01):
- Five searches: `star evolve` with the default preset `laptop` on a CPU, seeds 11 to 15. No seed of them was used for
  any decision about the search, the horizon or its ladder.
- In each: `star evidence` with `--members best --match parameters --at lfm2 --rates 1 --seeds 2 --headline 2`. So its
  arms are the best member of the front, the best of the first population (8 genomes), the best of as many random
  genomes of the same region as the search trained (chosen by the same objective, at the same budget), and the baselines
  transformer++ and lfm2; all at the parameters of the lfm2 layout (228 K, by width), at ten times the tokens of the
  search (655,360), at the recipe's own learning rate, two fresh seeds each, on test text.
- Measure: the difference between each arm and the best member, averaged over its two seeds; mean over the five searches
  with a 95 % t interval (4 degrees of freedom). A win is at least 0.0072 bits/byte (0.005 nats) at p < 0.01; everything
  else is "no difference shown".
- Also reported, without a test: the hypervolume of each search inside its region, at its budget, and that of its random
  genomes in the same unit.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy.stats import t as student

EVIDENCE = "--members best --match parameters --at lfm2 --rates 1 --seeds 2 --headline 2 --json".split()


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/five"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13, 14, 15])
    parser.add_argument("--workers", default="2")
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--report", action="store_true", help="report what is there, run nothing")
    options = parser.parse_args()
    for seed in () if options.report else options.seeds:
        run = options.out / f"search-{seed}"
        words = ("--seed", seed, "--workers", options.workers, "--set", "training.device=cpu")
        star("evolve", run, "--preset", options.preset, *words)
        found = star("evidence", run, *EVIDENCE, "--workers", options.workers)
        (options.out / f"evidence-{seed}.json").write_text(found)
    report(options.out, options.seeds)


def star(*words: object) -> str:
    """Run the command line; its output."""
    command = [sys.executable, "-m", "star", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def report(out: Path, seeds: list[int]) -> None:
    """Print one row for each arm and one for the hypervolume."""
    from star.evidence.comparison import Comparison
    from star.run import Run

    values: dict[str, list[float]] = {}
    volumes, sizes = [], []
    found = [(seed, out / f"evidence-{seed}.json") for seed in seeds]
    found = [(seed, path) for seed, path in found if path.exists()]
    win = level = 0.0
    for seed, path in found:
        data = json.loads(path.read_text())
        win, level = data["protocol"]["win"], data["protocol"]["level"]
        for row in data["standings"]["parameters"]:
            kind = {"front": "best member", "initial": "best of the first population"}.get(row["origin"], row["arm"])
            values.setdefault(kind, []).append(row["mean"])
            sizes.append((seed, kind, row["size"], row["mean"], row["se"]))
        if "best of the first population" not in {kind for s, kind, *_ in sizes if s == seed}:
            values.setdefault("best of the first population", []).append(values["best member"][-1])  # it is the same
        run = Run(out / f"search-{seed}")
        objectives = [o.name for o in run.objectives]
        rows = [row for row in run.comparisons() if row["stage"] == "random" and row["objectives"]]
        candidates = [Random(row["id"], {name: row["objectives"][name] for name in objectives}) for row in rows]
        volumes.append((run.hypervolume()[-1]["hypervolume"], run.hypervolume_of(candidates)))
        assert Comparison(run).protocol["id"] == data["protocol"]["id"]
    print(f"{len(found)} searches, seeds {', '.join(str(seed) for seed, _ in found)}; bits/byte of test text\n")
    reference = np.array(values["best member"])
    print(f"{'arm':34} {'mean':>7}  above the best member [95 %], p")
    for kind, row in sorted(values.items(), key=lambda item: np.mean(item[1])):
        difference = np.array(row) - reference
        mean, n = difference.mean(), len(difference)
        if kind == "best member" or n < 2:
            print(f"{kind:34} {np.mean(row):7.4f}")
            continue
        error = difference.std(ddof=1) / np.sqrt(n)
        half = student.ppf(0.975, n - 1) * error
        p = 2 * student.sf(abs(mean) / error, n - 1) if error > 0 else 1.0
        shown = abs(mean) >= win and p < level
        verdict = ("the search wins" if mean > 0 else "the search loses") if shown else "no difference shown"
        print(
            f"{kind:34} {np.mean(row):7.4f}  {mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}], {p:.2g}: {verdict}"
        )
    print("\nhypervolume inside the region, search and random:", ", ".join(f"{a:.2f} {b:.2f}" for a, b in volumes))
    print("\nseed  arm                                parameters  bits/byte (se)")
    for seed, kind, size, mean, se in sizes:
        print(f"{seed:4}  {kind:34} {size:10,.0f}  {mean:.4f} ({se:.4f})")


class Random:
    """A random genome as `Run.hypervolume_of` reads one."""

    def __init__(self, id: str, values: dict[str, float]):
        self.id, self.values = id, values


if __name__ == "__main__":
    main()
