"""Does what `search.py` says of tables hold where every candidate is really trained?

    python benchmarks/search/search_on_training.py                    # 3 seeds, two arms; about a quarter of an hour on
        two cores

Arms: the paper's NSGA-II (k-point crossover and mutation, no surrogate, no changes of depth) with 8 genomes x 5
generations, and the default search; both train 40 candidates of the laptop preset's space, for TOKENS bytes of the
standard library each. A seed draws the same first population in both arms, so both measure hypervolume in the same
frame.
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path

import numpy as np

import star
from star.config import load_config
from star.search import evolve

PAPER = {
    "search.parents": 0,
    "search.offspring": 8,
    "search.generations": 5,
    "search.screen": 1,
    "search.link_probability": 0.0,
    "search.insert_probability": 0.0,
    "search.delete_probability": 0.0,
    "search.swap_probability": 0.0,
}
ARMS = {"paper": PAPER, "star": {}}
TOKENS = 32_768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "search-real-cpu.json")
    args = parser.parse_args()
    rows = []
    for seed in range(args.seeds):
        for arm, settings in ARMS.items():
            fixed = {"seed": seed, "training.tokens": args.tokens, "search.baselines": (), "keep": "none"}
            with tempfile.TemporaryDirectory() as folder:
                evolve(Path(folder) / "run", load_config("laptop", overrides=fixed | settings))
                volumes = star.Run(Path(folder) / "run").hypervolume()
            final = (
                next(row["hypervolume"] for row in reversed(rows) if row["seed"] == seed)
                if arm == "star"
                else volumes[-1]["hypervolume"]
            )
            reached = next((row["tokens"] for row in volumes if row["hypervolume"] >= final), None)
            row = {
                "arm": arm,
                "seed": seed,
                "candidates": len(volumes),
                "tokens": volumes[-1]["tokens"],
                "initial": volumes[7]["hypervolume"],
            }
            rows.append(
                row
                | {
                    "hypervolume": volumes[-1]["hypervolume"],
                    "share_of_tokens": reached and reached / volumes[-1]["tokens"],
                }
            )
            print(rows[-1], flush=True)
            args.out.write_text(
                json.dumps({"device": f"{platform.machine()} CPU", "tokens": args.tokens, "rows": rows}, indent=1)
                + "\n"
            )
    for arm in ARMS:
        found = [row["hypervolume"] / row["initial"] for row in rows if row["arm"] == arm]
        print(
            f"{arm}: hypervolume over that of the first population {np.mean(found):.2f} (seeds: "
            f"{', '.join(f'{v:.2f}' for v in found)})"
        )


if __name__ == "__main__":
    main()
