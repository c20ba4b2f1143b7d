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
processes and ruins those with more threads, and CPU time is what an arm costs. Writes packing-DEVICE.json and the table as .txt.
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
            recipe = LAPTOP.replace(tokens=10**9, eval_tokens=256, device=device_name)
            runs = [TrainingRun(m, corpus, recipe.replace(seed=k), device) for k, m in enumerate(models(width, backbone, count))]
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
            recipes = [LAPTOP.replace(tokens=LAPTOP_TOKENS, device=device_name, seed=seed) for seed in range(LAPTOP_SEEDS)]
            built, started = models(width, backbone, LAPTOP_SEEDS), (time.perf_counter(), time.process_time())
            results = train_many(built, corpus, recipes) if together else [train(m, corpus, r) for m, r in zip(built, recipes, strict=True)]
            settled()
            answer = time.perf_counter() - started[0], time.process_time() - started[1], [result.val_loss for result in results]
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


def measure(workers: Workers, arms: tuple[Arm, ...], width: int, backbone: str, rounds: int) -> dict:
    """Tokens per second, by the clock and of CPU time, of every arm in every round, and the parameters of the model."""
    speeds: dict[str, list[tuple[float, float]]] = {arm.name: [] for arm in arms}
    for k in range(rounds):
        for arm in arms[k % len(arms) :] + arms[: k % len(arms)]:
            count = MODELS // arm.workers
            _, (parameters, *_) = workers.ask(arm.workers, "prepare", width, backbone, count, min(arm.together, count), arm.threads, arm.streams)
            steps = STEPS[width] if arm.threads == 1 else 1
            workers.ask(arm.workers, "go", 1)
            seconds, cpu_seconds = workers.ask(arm.workers, "go", steps)
            speeds[arm.name].append(tuple(MODELS * steps * 2 * 128 / s for s in (seconds, sum(cpu_seconds))))
    return {"parameters": parameters, "speeds": speeds}


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
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    arms = CPU if args.device == "cpu" else CUDA
    workers = Workers(max(arm.workers for arm in arms), args.device)
    lines, rows = [], []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    say(f"Training {MODELS} models of one genome on {args.device}: tokens/s of all together, and the ratio to one after the other")
    say(f"(median of {args.rounds} rounds in turn, 95 % bootstrap interval)")
    for width in args.widths:
        for name, backbone in BACKBONES.items():
            found = measure(workers, arms, width, backbone, args.rounds)
            say(f"\n{name}, width {width}, {found['parameters']:,} parameters")
            for arm in arms:
                pairs = list(zip(found["speeds"][arm.name], found["speeds"]["sequential"], strict=True))
                clock, cpu = (interval([here[i] / there[i] for here, there in pairs]) for i in (0, 1))
                speed = statistics.median(here for (here, _), _ in pairs)
                say(f"  {arm.name:22s} {speed:9,.0f} tokens/s   by the clock {shown(clock)}   per CPU second {shown(cpu)}")
                facts = {"genome": name, "width": width, "parameters": found["parameters"], "arm": arm.name}
                rows.append(facts | {"ratio_clock": clock, "ratio_cpu": cpu, "tokens_per_second_clock_and_cpu": found["speeds"][arm.name]})
            write(args, lines, rows)
    say(f"\nWhole runs, evaluations included: {LAPTOP_SEEDS} seeds x {LAPTOP_TOKENS:,} tokens, one process with one thread")
    for name, backbone in BACKBONES.items():
        pairs = []
        for k in range(args.whole_rounds):
            order = (True, False) if k % 2 else (False, True)
            done = {together: workers.ask(1, "whole", 64, backbone, together)[1][0] for together in order}
            pairs.append((done[False], done[True]))
            apart = max(abs(a - b) / a for a, b in zip(done[False][2], done[True][2], strict=True))
        clock, cpu = (interval([a[i] / b[i] for a, b in pairs]) for i in (0, 1))
        say(f"  {name:14s} width 64   by the clock {shown(clock)}   per CPU second {shown(cpu)}; losses differ by {apart:.1e} at most")
        seconds = [(a[:2], b[:2]) for a, b in pairs]
        rows.append({"genome": name, "width": 64, "arm": "whole runs", "ratio_clock": clock, "ratio_cpu": cpu, "seconds": seconds, "largest_difference": apart})
    for pipe in workers.pipes:
        pipe.send(("stop",))
    write(args, lines, rows)


def shown(ratio: tuple[float, float, float]) -> str:
    return f"{ratio[0]:5.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]"


def write(args: argparse.Namespace, lines: list[str], rows: list[dict]) -> None:
    import torch

    machine = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    facts = {"device": machine, "cores": os.cpu_count(), "torch": torch.__version__, "models": MODELS, "rounds": args.rounds, "load": os.getloadavg()[0], "rows": rows}
    (args.out / f"packing-{args.device}.json").write_text(json.dumps(facts, indent=1) + "\n")
    (args.out / f"packing-{args.device}.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
