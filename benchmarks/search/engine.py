"""What does the search itself cost, beside the training that it is for?

    python benchmarks/search/engine.py [--out benchmarks/search/results] [--quick]

1. Free candidates: 10,000 evaluations of the tabular objective at population 100, in process, through the real loop
    with its record
   on the disk; 3 seeds. Goal: 60 s. Beside it the bare objective, called as often, and the run resumed when it is
   complete (all its asks and tells replayed).
2. Candidates that sleep 0.1, 1 and 10 s on two workers of the pool and on two of Ray. Overhead: the share of the
    workers' time in which no
   candidate was at work, from the first submission to the last result, and per candidate in seconds. Goal: under 1 % at
   10 s on the pool. Start: from the call of `evolve` to the first submission, apart, because a run pays it once.
"""

# Imports of STAR are inside functions: a spawned worker imports this file.
import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

POPULATION, WORKERS = 100, 2
TABULAR = "star.assess.evaluations.tabular:assess"


def sleep(job: dict, report) -> dict:
    """The tabular objective, some seconds later. The learning rate of the recipe, which nothing else uses here, says
    how many.
    """
    from star.assess.evaluations import tabular

    time.sleep(job["recipe"]["learning_rate"])
    return tabular.assess(job, report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of everything, nothing written: does it still run?"
    )
    args = parser.parse_args()
    data = {"device": f"{platform.machine()} CPU, {WORKERS} workers", "python": platform.python_version()}
    data["free"] = free(1_000 if args.quick else 10_000, seeds=range(1 if args.quick else 3))
    scale = 0.1 if args.quick else 1.0
    arms = [
        ("pool", 0.1, 48),
        ("ray", 0.1, 16),
        ("pool", 1.0, 16),
        ("ray", 1.0, 16),
        ("pool", 10.0, 16),
        ("ray", 10.0, 8),
    ]
    data["sleeping"] = [sleeping(kind, seconds * scale, n) for kind, seconds, n in arms]
    met = data["free"]["seconds"]["median"] < 60, data["sleeping"][4]["overhead"] < 0.01
    data["goals"] = {"10,000 free evaluations within 60 s": met[0], "overhead under 1 % of candidates of 10 s": met[1]}
    if not args.quick:
        print(json.dumps(data["goals"]))
        (args.out / "engine-cpu.json").write_text(json.dumps(data, indent=1) + "\n")


def free(evaluations: int, seeds) -> dict:
    from star.engine import InProcess
    from star.search import evolve

    rows = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            config = settings(seed=seed, search__population=POPULATION, search__generations=evaluations // POPULATION)
            call = lambda: evolve(f"{folder}/run", config, engine=InProcess(TABULAR, slots=POPULATION))  # noqa: B023, E731
            run = timed(call)
            rows.append(
                {"seed": seed, "run": run, "resume": timed(call), "objective": timed(lambda: bare(evaluations))}
            )
        print(
            f"{evaluations:,} free evaluations, seed {seed}: {run:.1f} s; resumed in {rows[-1]['resume']:.1f} s",
            flush=True,
        )
    columns = {key: [row[key] for row in rows] for key in ("run", "resume", "objective")}
    found = {"evaluations": evaluations, "population": POPULATION, "runs": rows, "seconds": spread(columns["run"])}
    ratio = statistics.median(columns["run"]) / statistics.median(columns["objective"])
    return found | {
        "resume_seconds": spread(columns["resume"]),
        "objective_seconds": spread(columns["objective"]),
        "ratio": ratio,
    }


def bare(evaluations: int) -> None:
    from star.engine.worker import run_job

    for i in range(evaluations):
        run_job(TABULAR, {"id": f"{i:012x}", "costs": {"parameters": 1e5, "cache": 1e4}}, lambda progress: None)


def sleeping(kind: str, seconds: float, n: int) -> dict:
    from star.engine import ProcessPool, Ray
    from star.search import evolve

    marks: list[float] = []

    def mark(event: dict) -> None:
        if event["kind"] in ("candidate_start", "candidate_end"):
            marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        config = settings(search__population=n // 2, search__generations=2, training__learning_rate=seconds)
        made = ProcessPool if kind == "pool" else Ray
        begun = time.perf_counter()
        engine = made("engine:sleep", WORKERS, Path(folder) / ("progress" if kind == "pool" else "run"))
        start = time.perf_counter() - begun
        try:
            evolve(Path(folder) / "run", config, engine=engine, callbacks=[mark])
        finally:
            engine.close()
    wall = marks[-1] - marks[0]
    overhead = 1 - n * seconds / (WORKERS * wall)
    each = WORKERS * wall / n - seconds
    print(
        f"{kind:4} {n} candidates of {seconds:g} s: overhead {overhead:.2%} of the workers' time, {each:.3f} s "
        f"each; start {start:.2f} s",
        flush=True,
    )
    return {
        "engine": kind,
        "seconds": seconds,
        "candidates": n,
        "wall": wall,
        "overhead": overhead,
        "overhead_each": each,
        "start": start,
    }


def settings(**changes):
    from star.config import load_config

    fixed = {"evaluation": "tabular", "search.baselines": (), "space.slots": 6}
    fixed |= {
        "search.parents": 0,
        "search.offspring": 0,
        "search.screen": 1,
    }  # plain NSGA-II: the engine, not the surrogate
    return load_config("laptop", overrides=fixed | {key.replace("__", "."): value for key, value in changes.items()})


def timed(call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


if __name__ == "__main__":
    main()
