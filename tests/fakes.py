"""Small runs whose candidates cost nothing, reliable or not, for the tests of store and search."""

import random
import time

import numpy as np

from star.assess.evaluations import tabular
from star.config import RunConfig, load_config
from star.cost import population_costs
from star.engine import InProcess
from star.genome import Space, from_json, to_json
from star.search import evolve
from star.store import Store, read_events

TABULAR = "star.assess.evaluations.tabular:assess"


def slow(job: dict, report) -> dict:
    """The tabular objective after some milliseconds, during which the worker can be killed."""
    time.sleep(0.02 + int(job["id"][0], 16) * 1e-3)
    return tabular.assess(job, report)


def unreliable(job: dict, report) -> dict:
    """The tabular objective, but a third of the genomes fail, each in a fixed way."""
    luck = int(job["id"][-2:], 16)
    if luck < 16:
        raise RuntimeError("this genome never works")
    if luck < 32:
        raise MemoryError
    if luck < 48:
        return {"status": "diverged", "reason": "the loss is not finite", "metrics": {"bpb": float("nan")}}
    if luck < 64:
        return {"status": "ok", "metrics": {"bpb": float("nan")}}
    if luck < 80:
        return {"status": "timeout", "reason": "too slow", "metrics": {"bpb": 0.1}}
    return tabular.assess(job, report)


def hopeless(job: dict, report) -> dict:
    raise RuntimeError("no candidate can work here")


def config(**overrides) -> RunConfig:
    """A fast run: 8 genomes x 6 generations, no training, no baselines by default. In keys, __ stands for the dot."""
    settings = {"evaluation": "tabular", "search.baselines": (), "search.population": 8, "search.generations": 6}
    settings |= {"search.parents": 0, "search.offspring": 0, "search.screen": 1}
    settings |= {"search.region": "", "search.horizon": 0}
    settings |= {f"search.{kind}_probability": 0.0 for kind in ("insert", "delete", "swap")}
    settings |= {"space.slots": 6, "engine.kind": "inprocess"}
    return load_config(
        "laptop", overrides=settings | {key.replace("__", "."): value for key, value in overrides.items()}
    )


def run(path, config: RunConfig, function: str = TABULAR, slots: int = 1, callbacks=()):
    """`evolve` with any function in place of the configured evaluation."""
    return evolve(path, config, engine=InProcess(function, slots=slots), callbacks=callbacks)


def history(path) -> list[tuple]:
    """All asks and tells of a run with the algorithm's state after each; equal only if bit-identical."""
    events = [event for event in read_events(path) if event.kind in ("ask", "tell")]
    return [
        (event.kind, event.data["digest"], repr(event.data.get("told")), repr(event.data.get("proposals")))
        for event in events
        if event.data["digest"] is not None
    ]


class Shuffled(InProcess):
    """Ends jobs in a random order, several at a time or none."""

    def __init__(self, function, slots, seed):
        super().__init__(function, slots)
        self.rng, self.held = random.Random(seed), []

    def poll(self, timeout):
        self.held += super().poll(timeout)
        self.rng.shuffle(self.held)
        n = self.rng.randint(0, len(self.held))
        out, self.held = self.held[:n], self.held[n:]
        return out


class Interrupted(InProcess):
    """Stops after some outcomes, like a coordinator that is killed."""

    def __init__(self, function, slots, seed, left):
        super().__init__(function, slots)
        self.rng, self.left = random.Random(seed), left

    def poll(self, timeout):
        if self.left <= 0:
            raise ConnectionError("killed")
        outcomes = super().poll(timeout)
        self.left -= len(outcomes)
        self.rng.shuffle(outcomes)
        return outcomes


SEEN: list[dict] = []
SLOW = {"attention"}  # families that gain with tokens


def attention_is_slow(job: dict, report) -> dict:
    """The tabular loss, 1 more for attention alone, which a hundred times the tokens would take away."""
    SEEN.append(job)
    result = tabular.assess(job | {"stop_tokens": None}, report)
    genome = from_json(job["genome"])
    genes = [gene for gene in genome.backbone if gene.class_id]
    share = np.mean([genome.operator(gene).family in SLOW for gene in genes])
    result["metrics"]["bpb"] += share * (1 - np.log10(job["recipe"]["tokens"] / 65_536) / 2) - 0.2 * np.log2(
        genome.d_model / 64
    )
    if job.get("test"):  # another text, and some luck of the seed and of the model
        luck = np.random.default_rng([job["seed"] % 1000, int(job["id"][:6], 16)]).normal(scale=0.002)
        result["metrics"]["test_bpb"] = result["metrics"]["bpb"] + 0.5 + luck
    return result


def large(path, candidates: int, generations: int, seed: int = 0) -> None:
    """A finished run, written without a search: random genomes, parents, losses and curves."""
    size = -(-candidates // generations)
    run(path, config(search__population=8, search__offspring=size, search__generations=1))
    rng, space = np.random.default_rng(seed), Space(6, (64,), 16, max_groups=2)
    X = space.sample(rng, min(candidates, 500))[np.arange(candidates) % 500]
    genomes, found = [space.decode(x) for x in X], population_costs(space, X)
    events, last = [], []
    for g in range(generations):
        proposals = []
        for n in range(g * size, min((g + 1) * size, candidates)):
            values = {"parameters": float(found.parameters[n]), "cache": float(found.cache_bytes[n])}
            parents = [last[int(k)]["id"] for k in rng.integers(len(last), size=2)] if last else []
            about = {"id": f"{g:04x}{n:08x}", "genome": to_json(genomes[n]), "generation": g + 1, "costs": values}
            made = {"origin": "offspring", "name": None, "parents": parents, "operators": ["crossover"]}
            proposals.append(about | made | {"repaired": False, "violations": {}, "predicted": None})
        counts = {"wanted": size, "duplicates": 0, "generated": size, "repaired": 0, "by_operator": {}}
        events.append(("ask", {"generation": g + 1, "proposals": proposals, "digest": None} | counts))
        for proposal in proposals:
            loss = 4.5 - 0.3 * np.log10(proposal["costs"]["parameters"]) - g / generations + 0.2 * rng.random()
            result = {"id": proposal["id"], "attempt": 0, "status": "ok", "reason": "", "seconds": 1.0, "worker": ""}
            result |= {"metrics": {"bpb": loss, "tokens": 65536}, "objectives": {"bpb": loss} | proposal["costs"]}
            points = [{"tokens": 8192 * k, "val_loss": loss + 1 / k} for k in range(1, 9)]
            events.append(("curve", {"id": proposal["id"], "attempt": 0, "points": points}))
            events.append(("finish", result | {"final": True}))
        last = proposals
    store = Store(path)
    store.record(events)
    whole = config(search__population=8, search__offspring=size, search__generations=generations + 1)
    store.set_meta("config", whole.to_json())
    store.close()
