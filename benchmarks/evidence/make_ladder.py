"""Makes the ladder that the laptop preset learns its horizon from: genomes trained at its budget and at ten times that.

The sample: six public layouts, eight members of the front of an earlier default run, and random genomes of the space of
60 to 350 thousand parameters. One seed each; the search's own recipe. Rows that FILE has already are not trained again;
`--again` trains all, to check them.

    python benchmarks/evidence/make_ladder.py star/search/ladder-laptop.json [--random 20] [--processes 2] [--again]
"""

import argparse
import dataclasses
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from star.config import load_config
from star.cost import costs
from star.data import open_corpus
from star.genome import Genome, from_json, to_json
from star.genome.codec import parse_text
from star.model import build
from star.search.spaces import make_baselines, make_space
from star.training import train

LAYOUTS = "transformer++,lfm2-350m,striped-mamba,griffin-hybrid,samba-hybrid,hyena-hybrid"
EVOLVED = (
    "16-90000-15-16-14",
    "16-90000-15-16",
    "16.1.2.0.0-90000-16.1.2.0.0",
    "70000-90000-16",
    "16-16",
    "16-15",
    "70000-90000",
    "16",
)
SEED = 11
SIZES = (60e3, 350e3)
TIMES = (1.0, 10.0)
CONFIG = load_config("laptop", overrides={"search.baselines": LAYOUTS})


def sample(n: int) -> dict[str, Genome]:
    """The genomes, by id."""
    space = make_space(CONFIG)
    found = {genome.id: genome for _, genome in make_baselines(space, CONFIG)}
    for text in EVOLVED:
        genome = Genome(parse_text(text), CONFIG.space.d_models[0], CONFIG.space.head_dim)
        found[genome.id] = genome
    rng, left = np.random.default_rng(SEED), n
    while left:
        genome = space.decode(space.sample(rng, 1)[0])
        if SIZES[0] < costs(genome, vocab_size=256, seq_len=4096).parameters < SIZES[1] and genome.id not in found:
            found[genome.id] = genome
            left -= 1
    return found


def train_one(job: tuple[str, dict, float]) -> dict:
    """One row."""
    id, genome, times = job
    torch.set_num_threads(1)
    corpus = open_corpus(CONFIG.data.corpus)
    recipe = CONFIG.training.replace(tokens=round(times * CONFIG.training.tokens), device="cpu")
    result = train(build(from_json(genome), corpus.vocab_size, seed=0), corpus, recipe)
    if result.val_loss is None:
        raise RuntimeError(f"{id} at {times:g} times the budget: {result.status}: {result.reason}")
    bpb = round(corpus.bits_per_byte(result.val_loss), 5)
    return {"id": id, "genome": genome, "tokens": times, "width": 1.0, "bpb": bpb}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--random", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--again", action="store_true")
    args = parser.parse_args()
    facts = {"recipe": dataclasses.asdict(CONFIG.training), "tokenizer": "bytes", "corpus": CONFIG.data.corpus}
    known = json.loads(args.file.read_text())["rows"] if args.file.exists() else []
    rows = [] if args.again else list(known)
    done = {(row["id"], row["tokens"]) for row in rows}
    jobs = [
        (id, to_json(genome), t) for t in TIMES for id, genome in sample(args.random).items() if (id, t) not in done
    ]
    with ProcessPoolExecutor(args.processes) as pool:
        for row in pool.map(train_one, jobs):
            rows.append(row)
            before = next((r["bpb"] for r in known if (r["id"], r["tokens"]) == (row["id"], row["tokens"])), None)
            change = "" if before is None else f", was {before:.5f}"
            print(f"{len(rows)}: {row['id']} at {row['tokens']:g}: {row['bpb']:.5f}{change}", flush=True)
            if not args.again:
                lines = ",\n".join(json.dumps(r) for r in rows)
                args.file.write_text(f'{json.dumps(facts)[:-1]},\n"rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
