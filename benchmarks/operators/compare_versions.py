"""Is one checkout of the operators slower than another?

    python benchmarks/operators/compare_versions.py OLD NEW [--seconds 8] [--out FILE.txt]

OLD and NEW are checkouts; both are imported into one process. For each operator class, forward and backward (width 256,
batch 4, 1,024 tokens, float32, one thread) and the decoding of one token after 256 others are timed in pairs, old new,
new old, and so on, in CPU time: the drift of a loaded machine cancels in the ratio of a pair. Prints the smallest
times, and the median of old / new with its quartiles: above 1, NEW is faster.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

CLASSES = "SA-1 SWA-64 Rec-1 LinAttn GLA DeltaNet GatedDelta Mamba-2 RG-LRU GConv-1 GConv-2".split()
WIDTH, BATCH, TOKENS, PAST = 256, 4, 1024, 256


def pool(checkout: Path) -> dict:
    """The operator classes of a checkout by name."""
    for name in [name for name in sys.modules if name.split(".")[0] == "star"]:
        del sys.modules[name]
    sys.path.insert(0, str(checkout.resolve()))
    genome = importlib.import_module("star.genome")
    assert Path(genome.__file__).is_relative_to(checkout.resolve())
    sys.path.pop(0)
    return {c.name: c for c in genome.POOL}


def calls(classes: dict, name: str) -> dict[str, Callable[[], object]]:
    """What is timed, by its name in the table."""
    liv = classes[name].config(WIDTH, 32, 10_000.0).build()
    liv.reset_parameters(torch.Generator().manual_seed(0))
    x = torch.randn(BATCH, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()
    gradient = torch.ones_like(x)
    with torch.no_grad():
        _, state = liv(x[:, :PAST], liv.init_state(BATCH, 2 * PAST))

    def decode() -> None:
        with torch.no_grad():
            liv(x[:, PAST : PAST + 1], state, offset=PAST)

    return {name: lambda: liv(x)[0].backward(gradient), f"{name}, one token": decode}


def clock(call: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    started = time.thread_time()
    call()
    return time.thread_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--seconds", type=float, default=8.0, help="time for each row of the table")
    parser.add_argument("--out", type=Path, help="file for the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    old, new = pool(args.old), pool(args.new)
    lines = [f"torch {torch.__version__}, width {WIDTH}, batch {BATCH}, {TOKENS} tokens, float32, one CPU thread", ""]
    lines += [f"{'class':24}{'old ms':>9}{'new ms':>9}   old / new [quartiles]"]
    for name in CLASSES:
        pairs = zip(calls(old, name).items(), calls(new, name).values())
        for (label, before), after in pairs:
            before(), after()  # warm up
            times: list[tuple[float, float]] = []
            started = time.perf_counter()
            while time.perf_counter() - started < args.seconds or len(times) < 8:
                a, b = clock(before), clock(after)
                d, c = clock(after), clock(before)
                times += [(a, b), (c, d)]
            low, middle, high = statistics.quantiles([a / b for a, b in times], n=4)
            fastest = (1e3 * min(side) for side in zip(*times))
            lines.append(f"{label:24}{''.join(f'{ms:9.3f}' for ms in fastest)}   {middle:.3f} [{low:.3f}, {high:.3f}]")
            print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
