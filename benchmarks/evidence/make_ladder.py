"""Makes the ladder that the laptop preset learns its horizon from: genomes trained at its budget and at ten times that.

The sample: six public layouts, eight members of the front of an earlier default run, the corners of the space (each
class alone, at the depth whose size is nearest to 120 thousand parameters), and random genomes of 60 to 350 thousand.
One seed each; the search's own recipe. The corners came in after the first test of the horizon (seed 1 of
`horizon_report.py`), where it was far off for genomes without any mixing of tokens: a random sample has none. With
`--add RUN` the ladder of a run joins the file, such as that of the first test. Rows that FILE has already are not
trained again; `--again` trains all of its genomes, to check them.

    python benchmarks/evidence/make_ladder.py star/search/ladder-laptop.json [--random 20] [--again] [--add RUN]
"""

import argparse
import dataclasses
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

import star
from star.config import load_config
from star.cost import costs
from star.data import open_corpus
from star.genome import Gene, Genome, from_json, to_json
from star.genome.codec import parse_text
from star.model import build
from star.search.ladders import table_of
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
    for number in sorted(set(space.classes) - {0}):
        alone = [
            Genome((Gene(number),) * depth, space.d_models[0], space.head_dim) for depth in range(2, space.n_slots + 1)
        ]
        genome = min(alone, key=lambda genome: abs(parameters(genome) - 120e3))
        found[genome.id] = genome
    rng, left = np.random.default_rng(SEED), n
    while left:
        genome = space.decode(space.sample(rng, 1)[0])
        if SIZES[0] < parameters(genome) < SIZES[1] and genome.id not in found:
            found[genome.id] = genome
            left -= 1
    return found


def parameters(genome: Genome) -> int:
    """Of its model of bytes."""
    return costs(genome, vocab_size=256, seq_len=4096).parameters


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
    parser.add_argument("--add", metavar="RUN", action="append", default=[])
    args = parser.parse_args()
    facts = {"recipe": dataclasses.asdict(CONFIG.training), "tokenizer": "bytes", "corpus": CONFIG.data.corpus}
    known = json.loads(args.file.read_text())["rows"] if args.file.exists() else []
    rows = [] if args.again else list(known)
    done = {(row["id"], row["tokens"]) for row in rows}
    for run in args.add:
        for row in table_of(star.Run(run))["rows"]:
            if row["width"] == 1 and row["tokens"] in TIMES and (row["id"], row["tokens"]) not in done:
                rows.append(row | {"bpb": round(row["bpb"], 5)})
                done.add((row["id"], row["tokens"]))
    genomes = {row["id"]: row["genome"] for row in known} | {id: to_json(g) for id, g in sample(args.random).items()}
    jobs = [(id, genome, times) for times in TIMES for id, genome in genomes.items() if (id, times) not in done]
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
