"""Does a long search stay as light as a short one?

    python benchmarks/search/soak.py [--candidates 5000] [--out benchmarks/search/results]

One search of 5,000 candidates whose evaluation is free, so that all time and memory are those of the search: variation,
record and files. 100 generations of 50, the laptop preset otherwise, without the surrogate (its time grows with the
front, see surrogate.py). Every generation: memory of the process, bytes of the record, and time per candidate.
At the end: the time that reading and resuming the run take.

Goal: a late candidate takes at most 1.5 times as long as an early one (medians of the second and the last tenth), and
memory grows by no more than the record holds as Python objects.
"""

from __future__ import annotations

import argparse
import json
import platform
import sqlite3
import tempfile
import time
from contextlib import closing
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from star.config import load_config
from star.engine import InProcess
from star.report.style import new_figure
from star.run import Run
from star.search import evolve
from star.store.database import NAME

POPULATION = 50
SETTINGS = {"evaluation": "tabular", "engine.kind": "inprocess", "search.population": POPULATION, "search.screen": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=5000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    generations = args.candidates // POPULATION
    config = load_config(
        "laptop", overrides=SETTINGS | {"search.offspring": POPULATION, "search.generations": generations}
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = soak(Path(folder) / "run", config)
        times = {"reading": seconds(lambda: Run(Path(folder) / "run").front())}
        times["resuming"] = seconds(lambda: evolve(Path(folder) / "run", config))
    data = summary(rows) | {f"seconds_{name}": value for name, value in times.items()}
    for name, value in data.items():
        print(f"{name:32} {value:,.4g}")
    device = f"{platform.machine()} CPU, 1 thread"
    (args.out / "soak-cpu.json").write_text(json.dumps({"device": device} | data | {"generations": rows}) + "\n")
    figure(rows, device).savefig(args.out / "soak-cpu.png", dpi=150)


def soak(run: Path, config: Any) -> list[dict]:
    """One row for each generation: candidates so far, MiB of memory and of the record, milliseconds per candidate."""
    rows: list[dict] = []
    last = time.perf_counter()

    def look(event: dict) -> None:
        nonlocal last
        if event["kind"] != "generation_end":
            return
        now, done = time.perf_counter(), event["done"]
        new = done - (rows[-1]["candidates"] if rows else 0)
        disk = record_size(run)
        row = {"candidates": done, "memory": resident() / 2**20, "disk": disk / 2**20, "ms": 1000 * (now - last) / new}
        rows.append(row)
        last = time.perf_counter()

    evolve(run, config, engine=InProcess("star.assess.evaluations.tabular:assess", POPULATION), callbacks=[look])
    return rows


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def record_size(run: Path) -> int:
    """Bytes of the record, with what is still in its log of transactions."""
    with closing(sqlite3.connect(f"file:{run / NAME}?mode=ro", uri=True)) as connection:
        return prod(connection.execute(f"PRAGMA page_{name}").fetchone()[0] for name in ("count", "size"))


def seconds(call: Any) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def summary(rows: list[dict]) -> dict[str, float]:
    """Growth of memory and disk for each candidate, after the first tenth; time early and late."""
    n = len(rows) // 10
    x = np.array([row["candidates"] for row in rows[n:]])
    kib = {name: 1024 * np.polyfit(x, [row[name] for row in rows[n:]], 1)[0] for name in ("memory", "disk")}
    early, late = (float(np.median([row["ms"] for row in part])) for part in (rows[n : 2 * n], rows[-n - 1 : -1]))
    return {
        "candidates": rows[-1]["candidates"],
        "memory_mib_at_the_end": rows[-1]["memory"],
        "memory_kib_per_candidate": float(kib["memory"]),
        "disk_kib_per_candidate": float(kib["disk"]),
        "ms_per_candidate_early": early,
        "ms_per_candidate_late": late,
        "late_over_early": late / early,
    }


def figure(rows: list[dict], device: str) -> Figure:
    """Memory, disk and time over candidates."""
    total = rows[-1]["candidates"]
    drawn = new_figure(2.9)
    axes = drawn.subplots(1, 3)
    rows = rows[:-1]  # no proposals follow the last generation
    for axis, key, label in zip(axes, ("memory", "disk", "ms"), ("memory (MiB)", "record (MiB)", "ms per candidate")):
        axis.plot([row["candidates"] for row in rows], [row[key] for row in rows], linewidth=1.4)
        axis.set(xlabel="candidates", ylabel=label, ylim=(0, None))
    drawn.suptitle(f"A search of {total:,} candidates with free evaluation, {device}")
    return drawn


if __name__ == "__main__":
    main()
