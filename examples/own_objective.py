"""A search with an objective of your own: the memory traffic of decoding one token, in bytes.

    python examples/own_objective.py runs/traffic [--candidates 24]

To decode one token, a device reads every weight and the whole cache once, so on most hardware their sum is what a token
costs. `star evolve` takes the same objective by name where this file is importable:

    PYTHONPATH=examples star evolve runs/traffic --objectives loss,own_objective:TRAFFIC
"""

import argparse
import sys
from pathlib import Path

import star
from star.assess import Objective
from star.config import load_config
from star.search import evolve

BYTES = 2  # of a weight in bfloat16
TRAFFIC = Objective(
    name="traffic",
    unit="bytes/token",
    doc="weights and cache read to decode one token",
    measure=lambda costs: BYTES * costs.parameters + costs.cache_bytes,
    cheap=True,  # from the plan alone, exact, known before training
    log_scale=True,
)


def main(run: Path, candidates: int = 24, **settings: object) -> list[tuple[str, float, float]]:
    """Evolve and print the front; returns (genome, loss, traffic) of its members."""
    sys.path.insert(0, str(Path(__file__).parent))  # so that "own_objective" can be imported by name
    population = max(2, candidates // 3)
    overrides = {
        "objectives.names": ("loss", "own_objective:TRAFFIC"),
        "search.population": population,
        "search.offspring": population,
        "search.generations": 3,
    }
    evolve(run, load_config("laptop", overrides=overrides | settings))
    rows = []
    for member in star.Run(run).front():
        loss, traffic = member.objectives["loss"], member.objectives["traffic"]
        rows.append((member.genome.text, loss, traffic))
        print(
            f"{member.id}  {loss:.3f} nats/byte  {traffic / 1024:8.1f} KiB/token  {' '.join(member.genome.class_names)}"
        )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--candidates", type=int, default=24)
    args = parser.parse_args()
    main(args.run, args.candidates)
