"""How should many small candidates share a device: one after the other, in several processes, in streams, or batched into one program?

    python benchmarks/packing.py [--widths 32 64 128 256] [--device cpu|cuda] [--rounds 9] [--out benchmarks/results]

Task: steps of `MODELS` models of one genome and different seeds, in batches of 2 x 128 tokens (the default recipe), all that a
step has: data, forward, backward, clipping, optimizer. Genomes of six LIVs: transformer++-like (attention and SwiGLU in turn) and
mixed (attention, recurrence, gated convolution and SwiGLU). Arms:

    sequential      one process, one thread, one model after the other: what 1.00 is
    K batched       one process, K models stacked by torch.func (`star.training.ensemble`), until all have had their steps
    2 threads       the same in one process with two threads
    P workers       P processes with a thread each, MODELS / P models for each; "batched": stacked in each worker
    P streams       CUDA only: one process, models on P streams in turn

A whole candidate has evaluations too, which batching does not make faster: "whole runs" trains three seeds of the default laptop
budget, as `star rescore` does, by `train` and by `train_many`.

Arms take turns within each round, in an order that changes from round to round, so that the drift of a noisy machine cancels in
the ratio of a round. Prints tokens/s of all models together, and the median ratio to `sequential` with a 95 % bootstrap interval,
by the clock and per second of CPU time: where other programs share the cores, as they did here, the clock favours arms with more
processes and ruins those with more threads, and CPU time is what an arm costs. Writes packing-DEVICE.json and the table as .txt,
and goes on where it was stopped (`--fresh` to start anew).
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MODELS = 8
BACKBONES = {"transformer++": "1-9-1-9-1-9", "mixed": "1-9-5-9-7-9"}
STEPS = {32: 6, 64: 4, 128: 2, 256: 1}  # of each model in one measurement
LAPTOP_TOKENS, LAPTOP_SEEDS = 65_536, 3
WHOLE = "whole runs"


@dataclass(frozen=True)
class Arm:
    name: str
    workers: int = 1
    together: int = 1  # models in one batched program
    threads: int = 1
    streams: int = 1


CPU = (
    Arm("sequential"),
    Arm("2 batched", together=2),
    Arm("4 batched", together=4),
    Arm("8 batched", together=8),
    Arm("sequential, 2 threads", threads=2),
    Arm("8 batched, 2 threads", together=8, threads=2),
    Arm("2 workers", workers=2),
    Arm("2 workers, 4 batched", workers=2, together=4),
)
CUDA = (
    Arm("sequential"),
    Arm("4 streams", streams=4),
    Arm("8 streams", streams=8),
    Arm("4 batched", together=4),
    Arm("8 batched", together=8),
    Arm("2 workers", workers=2),
    Arm("4 workers", workers=4),
    Arm("8 workers", workers=8),
    Arm("4 workers, 2 batched", workers=4, together=2),
)


def work(pipe, device_name: str) -> None:
    """A worker process: takes ("prepare", width, backbone, count, together, threads, streams) and ("go", steps), answers with seconds of CPU time."""
    import torch

    import star
    from star.data import open_corpus
    from star.genome import Genome
    from star.genome.codec import parse_text
    from star.training import LAPTOP, train
    from star.training.device import resolve_device
    from star.training.ensemble import Ensemble, train_many
    from star.training.run import TrainingRun

    device, corpus = resolve_device(device_name), open_corpus("stdlib")

    def models(width: int, backbone: str, count: int) -> list:
        genome = Genome(parse_text(backbone), d_model=width, head_dim=16 if width < 128 else 32)
        return [star.build(genome, vocab_size=256, seed=seed) for seed in range(count)]

    def settled() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    while True:
        order, *what = pipe.recv()
        if order == "prepare":
            width, backbone, count, together, threads, streams = what
            torch.set_num_threads(threads)
            recipe = LAPTOP.replace(
                tokens=10**9, eval_tokens=256, device=device_name, compile="off" if together > 1 else "auto"
            )
            runs = [
                TrainingRun(m, corpus, recipe.replace(seed=k), device)
                for k, m in enumerate(models(width, backbone, count))
            ]
            units = [Ensemble(runs[k : k + together]) for k in range(0, count, together)] if together > 1 else runs
            lanes = [torch.cuda.Stream(device) for _ in range(streams)] if streams > 1 else [None]
            answer = sum(p.numel() for p in runs[0].params)
        elif order == "go":
            (steps,), started = what, time.process_time()
            if lanes[0] is None:
                for unit in units:
                    for _ in range(steps):
                        unit.advance()
            else:
                for _ in range(steps):
                    for k, unit in enumerate(units):
                        with torch.cuda.stream(lanes[k % len(lanes)]):
                            unit.advance()
            settled()
            answer = time.process_time() - started
        elif order == "whole":
            width, backbone, together = what
            torch.set_num_threads(1)
            recipes = [
                LAPTOP.replace(tokens=LAPTOP_TOKENS, device=device_name, seed=seed) for seed in range(LAPTOP_SEEDS)
            ]
            built, started = models(width, backbone, LAPTOP_SEEDS), (time.perf_counter(), time.process_time())
            results = (
                train_many(built, corpus, recipes)
                if together
                else [train(m, corpus, r) for m, r in zip(built, recipes, strict=True)]
            )
            settled()
            answer = (
                time.perf_counter() - started[0],
                time.process_time() - started[1],
                [result.val_loss for result in results],
            )
        else:
            return
        pipe.send(answer)


class Workers:
    """Processes that live through the whole benchmark; each holds the models of one arm at a time."""

    def __init__(self, count: int, device: str):
        context = multiprocessing.get_context("spawn")
        self.pipes = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            context.Process(target=work, args=(theirs, device), daemon=True).start()
            self.pipes.append(ours)

    def ask(self, count: int, *order) -> tuple[float, list]:
        """Give an order to `count` workers and wait for all; seconds, and the answers."""
        started = time.perf_counter()
        for pipe in self.pipes[:count]:
            pipe.send(order)
        answers = [pipe.recv() for pipe in self.pipes[:count]]
        return time.perf_counter() - started, answers


def measure(workers: Workers, arms: list[Arm], width: int, name: str, backbone: str, rounds: int) -> list[dict]:
    """A row for every arm: tokens per second in every round, by the clock and of CPU time, and their ratios."""
    speeds: dict[str, list[tuple[float, float]]] = {arm.name: [] for arm in arms}
    for k in range(rounds):
        for arm in arms[k % len(arms) :] + arms[: k % len(arms)]:
            count = MODELS // arm.workers
            _, (parameters, *_) = workers.ask(
                arm.workers, "prepare", width, backbone, count, min(arm.together, count), arm.threads, arm.streams
            )
            steps = STEPS[width] if arm.threads == 1 else 1
            workers.ask(arm.workers, "go", 1)
            seconds, cpu_seconds = workers.ask(arm.workers, "go", steps)
            speeds[arm.name].append(tuple(MODELS * steps * 2 * 128 / s for s in (seconds, sum(cpu_seconds))))
    rows = []
    for arm in arms:
        pairs = list(zip(speeds[arm.name], speeds["sequential"], strict=True))
        clock, cpu = (interval([here[i] / there[i] for here, there in pairs]) for i in (0, 1))
        facts = {"genome": name, "width": width, "parameters": parameters, "arm": arm.name, "load": load()}
        rows.append(
            facts | {"ratio_clock": clock, "ratio_cpu": cpu, "tokens_per_second_clock_and_cpu": speeds[arm.name]}
        )
    return rows


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Median and its 95 % bootstrap interval."""
    drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return statistics.median(ratios), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--whole-rounds", type=int, default=3)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    arms = CPU if args.device == "cpu" else CUDA
    path = args.out / f"packing-{args.device}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() and not args.fresh else []
    done = {(row["genome"], row["width"], row["arm"] == WHOLE) for row in rows}
    workers = Workers(max(arm.workers for arm in arms), args.device)
    for width in args.widths:
        for name, backbone in BACKBONES.items():
            if (name, width, False) not in done:
                # More threads than free cores wait for each other: at the greatest width, for minutes.
                rows += measure(
                    workers,
                    [arm for arm in arms if arm.threads == 1 or width < max(STEPS)],
                    width,
                    name,
                    backbone,
                    args.rounds,
                )
                write(path, args.device, rows)
    for name, backbone in BACKBONES.items():
        if (name, 64, True) not in done:
            rows.append(whole_runs(workers, name, backbone, args.whole_rounds))
            write(path, args.device, rows)
    for pipe in workers.pipes:
        pipe.send(("stop",))
    print(table(rows, args.device))


def whole_runs(workers: Workers, name: str, backbone: str, rounds: int) -> dict:
    pairs, apart = [], 0.0
    for k in range(rounds):
        order = (True, False) if k % 2 else (False, True)
        done = {together: workers.ask(1, "whole", 64, backbone, together)[1][0] for together in order}
        pairs.append((done[False][:2], done[True][:2]))
        apart = max(abs(a - b) / a for a, b in zip(done[False][2], done[True][2], strict=True))
    clock, cpu = (interval([a[i] / b[i] for a, b in pairs]) for i in (0, 1))
    return {
        "genome": name,
        "width": 64,
        "arm": WHOLE,
        "ratio_clock": clock,
        "ratio_cpu": cpu,
        "seconds": pairs,
        "largest_difference": apart,
        "load": load(),
    }


def table(rows: list[dict], device: str) -> str:
    lines = [
        f"Training {MODELS} models of one genome on {device}: tokens/s of all together, and the ratio to one after the other"
    ]
    lines += [
        "(median over rounds in turn, 95 % bootstrap interval; load: processes that wanted a core in the minute before)"
    ]
    heading = None
    for row in (row for row in rows if row["arm"] != WHOLE):
        if (row["genome"], row["width"]) != heading:
            heading = row["genome"], row["width"]
            facts = f"{row['parameters']:,} parameters, {len(row['tokens_per_second_clock_and_cpu'])} rounds"
            lines.append(
                f"\n{row['genome']}, width {row['width']}, {facts}"
                + (f", load {row['load']:.1f}" if row.get("load") else "")
            )
        speed = statistics.median(clock for clock, _ in row["tokens_per_second_clock_and_cpu"])
        lines.append(
            f"  {row['arm']:22s} {speed:9,.0f} tokens/s   by the clock {shown(row['ratio_clock'])}   per CPU second {shown(row['ratio_cpu'])}"
        )
    lines.append(
        f"\nWhole runs, evaluations included: {LAPTOP_SEEDS} seeds x {LAPTOP_TOKENS:,} tokens in one process with one thread"
    )
    for row in (row for row in rows if row["arm"] == WHOLE):
        facts = f"losses differ by {row['largest_difference']:.1e} at most"
        lines.append(
            f"  {row['genome']:14s} width 64   by the clock {shown(row['ratio_clock'])}   per CPU second {shown(row['ratio_cpu'])}; {facts}"
        )
    return "\n".join(lines)


def shown(ratio: tuple[float, float, float]) -> str:
    return f"{ratio[0]:5.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]"


def load() -> float:
    return os.getloadavg()[0]


def write(path: Path, device: str, rows: list[dict]) -> None:
    import torch

    machine = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    facts = {"device": machine, "cores": os.cpu_count(), "torch": torch.__version__, "models": MODELS, "rows": rows}
    path.write_text(json.dumps(facts, indent=1) + "\n")
    path.with_suffix(".txt").write_text(table(rows, device) + "\n")


if __name__ == "__main__":
    main()
