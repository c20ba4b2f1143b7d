"""Question: which kernels take the time of a training step on this GPU?

    python benchmarks/gpu/kernels.py [--cases mixed classes large compiled] [--top 20] [--out FOLDER]

Trains each case in bfloat16 with its step captured as a CUDA graph, times it, and lists its kernels with their share of
the time, how often each runs in a step, and microseconds. Prints the list and writes kernels-DEVICE.txt. To compare two
versions, run both on the same machine, one after the other. With `--device cpu` it runs in miniature: a test of the
script.

- mixed: 16 LIVs of nine kinds, widths 512 and 256, 32 x 512 tokens;
- classes: 8 LIVs of one class, width 512;
- large: Transformer++ with 125 M parameters, vocabulary 50,304, 32 x 1,024 tokens;
- compiled: the last two, and LFM2 at width 512, with compiled blocks: ten seconds each before the start.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "training")]

from gpu import mixed, named, recipe, small, text_of  # noqa: E402
from throughput import CPU_SIZES, CUDA_SIZES, genome_of  # noqa: E402

from star.data import Corpus, open_corpus  # noqa: E402
from star.genome import POOL, Gene, Genome  # noqa: E402
from star.model import build  # noqa: E402
from star.training import Recipe  # noqa: E402
from star.training.program import on_own_stream  # noqa: E402
from star.training.trainer import TrainingRun  # noqa: E402

CASES = ("mixed", "classes", "large", "compiled")
CLASSES = ("Rec-1", "Rec-1-Diff", "GLA", "GConv-2", "SA-1", "GMemless")
WARMUP, TIMED, PROFILED = 5, 20, 3  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["mixed", "classes", "large"])
    parser.add_argument("--top", type=int, default=20)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("not run: this machine has no CUDA GPU (--device cpu tests the script)")
    device = torch.device(args.device)
    name = torch.cuda.get_device_name().replace(" ", "-") if args.device == "cuda" else "cpu"
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / f"kernels-{name}.txt", "w") as file:
        print(f"{name}, torch {torch.__version__}", file=file)
        for case, genome, corpus, settings in cases(args.cases, device):
            for line in kernels(case, genome, corpus, settings, device, args.top):
                print(line, flush=True)
                print(line, file=file, flush=True)


def cases(wanted: list[str], device: torch.device) -> Iterator[tuple[str, Genome, Corpus, Recipe]]:
    """(name, genome, corpus, recipe) of every case."""
    text = open_corpus("stdlib")
    width, head_dim = (64, 16) if small(device) else (512, 64)
    step = recipe(device, 2, 32) if small(device) else recipe(device, 32, 512)
    size = CPU_SIZES["1M"] if small(device) else CUDA_SIZES["125M"]
    large = genome_of("transformer++", size), text_of(size.vocab_size), recipe(device, size.batch, size.seq_len)
    if "mixed" in wanted:
        yield f"mixed, width {width}", mixed(width, 16), text, step
        if not small(device):
            yield "mixed, width 256", mixed(256, 16), text, step
    if "classes" in wanted:
        numbers = {row.name: number for number, row in enumerate(POOL, 1)}
        for name in CLASSES[:1] if small(device) else CLASSES:
            yield name, Genome((Gene(numbers[name]),) * 8, d_model=width, head_dim=head_dim), text, step
    if "large" in wanted:
        yield "transformer++", *large
    if "compiled" in wanted:
        yield "transformer++, blocks compiled", *large[:2], large[2].replace(compile="blocks")
        yield "lfm2, blocks compiled", named("lfm2-350m", width), text, step.replace(compile="blocks")


def kernels(
    name: str, genome: Genome, corpus: Corpus, settings: Recipe, device: torch.device, top: int
) -> Iterator[str]:
    """Lines about one case: the whole step, then its `top` kernels."""
    run = TrainingRun(build(genome, corpus.vocab_size), corpus, settings.replace(tokens=2**40), device)

    def steps() -> Iterator[None]:
        while True:
            run.advance()
            yield

    work = on_own_stream(steps(), device)
    take(work, WARMUP, device)
    started = time.perf_counter()
    take(work, TIMED, device)
    seconds = (time.perf_counter() - started) / TIMED
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        take(work, PROFILED, device)
    spent: dict[str, list[float]] = defaultdict(list)
    for event in profiler.events():
        if device.type == "cpu" or event.device_type == torch.autograd.DeviceType.CUDA:
            spent[event.name].append(event.time_range.elapsed_us())
    total, count = sum(map(sum, spent.values())), sum(map(len, spent.values()))
    captured = any(program.replay is not None for program in run.programs.values())
    yield (
        f"{name}: {seconds * 1e3:.2f} ms a step, {settings.micro_batch / seconds:,.0f} tokens/s, "
        f"{'graph' if captured else 'no graph'}, {count / PROFILED:.0f} kernels of {total / PROFILED / 1e3:.2f} ms"
    )
    for kernel, times in sorted(spent.items(), key=lambda item: -sum(item[1]))[:top]:
        share, each = 100 * sum(times) / total, sum(times) / len(times)
        yield f"  {share:5.1f} % {len(times) / PROFILED:6.0f} x {each:8.1f} us  {kernel[:120]}"
    work.close()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def take(work: Iterator[None], steps: int, device: torch.device) -> None:
    """So many steps, to their end on the device."""
    for _ in range(steps):
        next(work)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
