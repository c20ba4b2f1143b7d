"""Is one checkout of the operators slower than another? Alternating processes, forward and backward, one thread.

    python benchmarks/operators/compare_versions.py OLD NEW [--rounds 7] [--out FILE.txt]

OLD and NEW are checkouts. For each operator class (width 256, batch 4, 1,024 tokens, float32) every process times the
module's forward and backward; processes of OLD and NEW alternate. Reported: minimum of OLD over minimum of NEW, above 1
is faster. Decoding: one token after 256, the same ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

CLASSES = (
    "SA-1",
    "SWA-64",
    "Rec-1",
    "LinAttn",
    "GLA",
    "DeltaNet",
    "GatedDelta",
    "Mamba-2",
    "RG-LRU",
    "GConv-1",
    "GConv-2",
)
WORKER = """
import json, sys, time, torch
torch.set_num_threads(1)
from star.genome import POOL
found = {}
for name in sys.argv[1].split(","):
    torch.manual_seed(0)
    liv = next(c for c in POOL if c.name == name).config(256, 32, 10_000.0).build()
    liv.reset_parameters(torch.Generator().manual_seed(0))
    x = torch.randn(4, 1024, 256, requires_grad=True)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        liv(x)[0].sum().backward()
        times.append(time.perf_counter() - began)
    found[name] = min(times)
    with torch.no_grad():
        state = liv.init_state(4, 512)
        _, state = liv(x[:, :256], state)
        token, times = x[:, :1], []
        for i in range(60):
            began = time.perf_counter()
            _, state = liv(token, state, offset=256 + i)
            times.append(time.perf_counter() - began)
    found[name + ", one token"] = min(times)
print(json.dumps(found))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    best: dict[Path, dict[str, float]] = {args.old: {}, args.new: {}}
    for _ in range(args.rounds):
        for path, times in best.items():
            command = [sys.executable, "-c", WORKER, ",".join(CLASSES)]
            environment = os.environ | {"PYTHONPATH": str(path.resolve()), "OMP_NUM_THREADS": "1"}
            text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
            for name, seconds in json.loads(text).items():
                times[name] = min(times.get(name, seconds), seconds)
    lines = [f"{'class':24}{'old ms':>9}{'new ms':>9}{'old / new':>11}"]
    for name, old in best[args.old].items():
        new = best[args.new][name]
        lines.append(f"{name:24}{1e3 * old:9.3f}{1e3 * new:9.3f}{old / new:11.3f}")
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
