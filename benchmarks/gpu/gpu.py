"""Question: does everything that STAR does on a GPU work on this one, and how fast is it?

    python benchmarks/gpu/gpu.py [--minutes 8] [--parts steps evolution ...] [--out FOLDER] [--device cpu]

It stops by itself. Each part runs in a process of its own with a time limit, cheap and certain parts first; a part that
fails or does not end costs only itself. Writes gpu-DEVICE.json after every part, and prints one table last. Needs one
CUDA GPU; the part `mfu` compares with transformers where that is installed. With `--device cpu` the parts run in
miniature, to test the script.

- machine: star doctor without its measurement; can a training step be captured?
- steps: tokens/s of whole training steps, eager and as a CUDA graph, for the genomes of the first measurements;
- together: tokens/s in all of several models side by side;
- replay: every class trained for some steps eagerly and as a graph: the same weights, bit for bit?
- numerics: every class in the activations of training against float64 on the CPU: logits and gradients;
- first: seconds from `star evolve --preset gpu` to its first finished candidate;
- mfu: model FLOPs utilisation at 14 M and 125 M against a plain GPT, compiled whole, and transformers' Llama;
- compile: seconds that compiled blocks cost before the first step, and the rate after it;
- evolution: `star evolve --preset gpu-quick`: candidates per minute, tokens/s in all, GPU utilisation;
- kill: a worker of such a search is killed: what it trained is repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import star
from star.data import Corpus, open_corpus
from star.genome import POOL, Gene, Genome, load_genome
from star.search.forecast import training_rate
from star.search.machine import can_capture, describe_machine
from star.store.database import read_events
from star.training import Recipe, train

HERE = Path(__file__).parent
MIXED = (7, 9, 5, 9, 1, 9, 8, 9, 14, 9, 3, 9, 16, 9, 6, 9)  # classes of the first measurements: nine kinds of block
SECONDS = {  # limit of each part
    "machine": 15,
    "steps": 55,
    "together": 50,
    "replay": 45,
    "numerics": 45,
    "first": 60,
    "mfu": 55,
    "compile": 40,
    "evolution": 200,
    "kill": 60,
}
GOALS = {  # of the project, on one H100
    "steps: mixed, width 256, 32 x 512, graph": "1,500,000 tokens/s",
    "steps: mixed, width 512, 32 x 512, graph": "1,000,000 tokens/s",
    "together: width 64, 16 x 128, 16 models": "5,000,000 tokens/s",
    "first: seconds to the first candidate": "60",
    "mfu: 125M transformer++ star, blocks compiled": "45 %",
    "evolution: GPU utilisation": "90 %",
}
Report = Callable[[str, Any], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--parts", nargs="+", choices=SECONDS, default=list(SECONDS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # the process of one part
    args = parser.parse_args()
    if args.part:
        with open(args.out, "a") as file:

            def report(name: str, value: Any) -> None:
                print(json.dumps([f"{args.part}: {name}", value]), file=file, flush=True)

            PARTS[args.part](torch.device(args.device), report, 60 * args.minutes)
        return
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("not run: this machine has no CUDA GPU (--device cpu tests the script)")
    run_all(args)


def run_all(args: argparse.Namespace) -> None:
    """Run the parts one after the other until the time is over; write what they report."""
    deadline = time.monotonic() + 60 * args.minutes
    name = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    facts: dict[str, Any] = {"device": name, "torch": torch.__version__, "star": star.__version__}
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"gpu-{name.replace(' ', '-')}.json"
    rows: dict[str, Any] = {}
    for part in args.parts:
        left = min(SECONDS[part], deadline - time.monotonic())
        if left < 5:
            rows[f"{part}: not run"] = "no time left"
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            reported, log = Path(folder) / "reported", Path(folder) / "log"
            command = [sys.executable, __file__, "--part", part, "--device", args.device, "--out", str(reported)]
            command += ["--minutes", str(left / 60)]
            with open(log, "w") as file:
                process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
                try:
                    code = process.wait(left)
                    failure = None if code == 0 else log.read_text()[-1500:]
                except subprocess.TimeoutExpired:
                    failure = f"stopped after {left:.0f} s"
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if reported.exists():
                rows |= dict(json.loads(line) for line in reported.read_text().splitlines())
        if failure:
            rows[f"{part}: FAILED"] = failure
        rows[f"{part}: seconds"] = round(time.monotonic() - started, 1)
        path.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")
        print(f"{part}: {rows[f'{part}: seconds']} s{', FAILED' if failure else ''}", flush=True)
    path.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")
    print(f"\n{name}, torch {torch.__version__}, star {star.__version__}")
    width = max(map(len, rows))
    for key, value in rows.items():
        goal = f"   (goal on an H100: {GOALS[key]})" if key in GOALS else ""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        text = f"{value:,.3f}".rstrip("0").rstrip(".") if is_number else str(value)
        print(f"{key:{width}}  {text.strip().splitlines()[-1] if text.strip() else ''}{goal}")
    print(path)


def small(device: torch.device) -> bool:
    """Whether parts run in miniature."""
    return device.type == "cpu"


def mixed(width: int, livs: int) -> Genome:
    return Genome(tuple(Gene(c) for c in MIXED[:livs]), d_model=width, head_dim=64 if width >= 256 else 16)


def named(name: str, width: int, livs: int = 16) -> Genome:
    return load_genome(name, d_model=width, depth=livs, head_dim=64 if width >= 256 else 16)


def fitting(classes: tuple[int, ...], head_dim: int) -> Genome:
    """These classes at the first width that suits all of them."""
    for heads in (4, 6, 8, 12, 16, 24):
        genome = Genome(tuple(map(Gene, classes)), d_model=heads * head_dim, head_dim=head_dim)
        with contextlib.suppress(star.UserError):
            star.costs(genome, 97, 64)
            return genome
    raise ValueError(f"no width for {classes}")


def recipe(device: torch.device, batch: int, seq_len: int, **changes: Any) -> Recipe:
    return Recipe(batch_size=batch, seq_len=seq_len, device=device.type, eval_tokens=seq_len, **changes)


def text_of(vocab_size: int) -> Corpus:
    """Random tokens of another vocabulary, for measurements of speed."""
    rng, corpus = np.random.default_rng(0), open_corpus("stdlib")
    train, validation = (rng.integers(vocab_size, size=n).astype(np.uint16) for n in (4_000_000, 200_000))
    tokenizer: Any = SimpleNamespace(vocab_size=vocab_size)
    return dataclasses.replace(corpus, train=train, validation=validation, tokenizer=tokenizer)


def mfu(genome: Genome, vocab_size: int, seq_len: int, rate: float) -> float | None:
    """Share of the device's peak; None if that is not known."""
    peak = throughput().peak_flops("cuda") if torch.cuda.is_available() else None
    flops = star.costs(genome, vocab_size, seq_len).train_flops_per_token
    return rate * flops / peak if peak else None


def throughput() -> Any:
    """The script with the peers."""
    sys.path.insert(0, str(HERE.parent / "training"))
    import throughput

    return throughput


# ---- parts


def machine(device: torch.device, report: Report, limit: float) -> None:
    for number, line in enumerate(describe_machine(device)):
        report(str(number), line)
    report("a graph can be captured", device.type == "cuda" and can_capture(device))


def steps(device: torch.device, report: Report, limit: float) -> None:
    corpus = open_corpus("stdlib")
    cases = [
        ("mixed, width 64", mixed(64, 6), 2, 128),
        ("mixed, width 64", mixed(64, 6), 16, 128),
        ("transformer++, width 256", named("transformer++", 256), 32, 512),
        ("lfm2, width 256", named("lfm2-350m", 256), 32, 512),
        ("mixed, width 256", mixed(256, 16), 32, 512),
        ("transformer++, width 512", named("transformer++", 512), 32, 512),
        ("lfm2, width 512", named("lfm2-350m", 512), 32, 512),
        ("mixed, width 512", mixed(512, 16), 32, 512),
    ]
    for name, genome, batch, seq_len in cases[:1] if small(device) else cases:
        for arm, compiled in (("graph", "auto"), ("eager", "off")):
            settings = recipe(device, batch, seq_len, compile=compiled)
            rate = training_rate([genome], corpus, settings, 0.2 if small(device) else 1.0)
            report(f"{name}, {batch} x {seq_len}, {arm}", rate)
            share = mfu(genome, corpus.vocab_size, seq_len, rate)
            if share is not None:
                report(f"{name}, {batch} x {seq_len}, {arm}, MFU", share)


def together(device: torch.device, report: Report, limit: float) -> None:
    corpus = open_corpus("stdlib")
    for width, batch, counts in (
        (64, 16, (1, 4, 8, 16)),
        (128, 16, (1, 4, 8, 16)),
        (64, 2, (1, 16)),
        (256, 16, (1, 2)),
    ):
        for models in (1, 2) if small(device) else counts:
            rate = training_rate([mixed(width, 6)] * models, corpus, recipe(device, batch, 128), 0.7)
            report(f"width {width}, {batch} x 128, {models} models", rate)
        if small(device):
            return


def replay(device: torch.device, report: Report, limit: float) -> None:
    """Trained for 12 steps of a short run: of these, all after the warm-up are replays."""
    corpus, different = open_corpus("stdlib"), []
    for number, row in enumerate(POOL[:3] if small(device) else POOL, 1):
        genome = fitting((number, 9), 16)
        weights = []
        for compiled in ("off", "auto"):
            model = star.build(genome, corpus.vocab_size, seed=0)
            result = train(model, corpus, recipe(device, 4, 128, tokens=12 * 512, compile=compiled))
            weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
            if result.status != "ok":
                different.append(f"{row.name} ({result.status})")
        if not torch.equal(*weights):
            different.append(f"{row.name} ({(weights[0] - weights[1]).abs().max():.1e})")
        report("classes compared", number)
        report("classes that differ", ", ".join(different) or "none")


def numerics(device: torch.device, report: Report, limit: float) -> None:
    def error(a: torch.Tensor, b: torch.Tensor) -> float:
        return ((a.double().cpu() - b).norm() / b.norm()).item()

    generator, worst = torch.Generator().manual_seed(0), []
    for number, row in enumerate(POOL[:3] if small(device) else POOL, 1):
        genome = fitting((number, 9), 32)
        exact = star.build(genome, 97, seed=0).double()
        low = star.build(genome, 97, seed=0).to(device)
        low.compute_dtype = torch.bfloat16
        x, y = (torch.randint(97, (1, 200), generator=generator) for _ in range(2))
        exact.loss(x, y).backward()
        low.loss(x.to(device), y.to(device)).backward()
        with torch.no_grad():
            logits = error(low(x.to(device))[0], exact(x)[0])
        gradient = error(
            torch.cat([p.grad.flatten() for p in low.parameters() if p.grad is not None]),
            torch.cat([p.grad.flatten() for p in exact.parameters() if p.grad is not None]),
        )
        worst.append((gradient, logits, row.name))
        report("classes compared", number)
        report("largest error of logits", "{1:.4f} ({2})".format(*max(worst, key=lambda w: w[1])))
        report("largest error of gradients", "{0:.4f} ({2})".format(*max(worst)))
        report("classes with gradients off by over 5 %", ", ".join(n for g, _, n in worst if g > 0.05) or "none")


def first(device: torch.device, report: Report, limit: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        started = time.time()
        process = evolve(run, ["--preset", "smoke" if small(device) else "gpu"])
        try:
            while process.poll() is None and not finished(run):
                time.sleep(0.2)
            times = [e.time for e in finished(run)]
            report("seconds to the first candidate", min(times) - started if times else said(run))
        finally:
            stop(process)


def mfu_part(device: torch.device, report: Report, limit: float) -> None:
    peers = throughput()
    sizes = {"1M": peers.Size(64, 1, 256, 2, 64)} if small(device) else peers.CUDA_SIZES
    for name, size in sizes.items():
        corpus = text_of(size.vocab_size)
        genome = peers.genome_of("transformer++", size)
        settings = recipe(device, size.batch, size.seq_len)
        plain = training_rate([genome], corpus, settings, 1.5)
        report(f"{name} transformer++ star", mfu(genome, size.vocab_size, size.seq_len, plain))
        report(f"{name} transformer++ star, tokens/s", plain)
        ours = plain if small(device) else training_rate([genome], corpus, settings.replace(compile="blocks"), 1.5)
        report(f"{name} transformer++ star, blocks compiled", mfu(genome, size.vocab_size, size.seq_len, ours))
        report(f"{name} transformer++ star, blocks compiled, tokens/s", ours)
        batch = [torch.randint(size.vocab_size, (size.batch, size.seq_len), device=device) for _ in range(2)]
        for arm, build, compiled in (("GPT, compiled", peers.GPT, not small(device)), ("Llama", peers.llama, False)):
            peer = peers.Trainer(arm, build(size), device.type, compiled)
            peer.seconds(*batch, 3)
            times = [peer.seconds(*batch, 3) for _ in range(3)]
            theirs = 3 * size.batch * size.seq_len / statistics.median(times)
            report(f"{name} {arm}, tokens/s", theirs)
            report(f"{name} star over {arm}", ours / theirs)


def compile_part(device: torch.device, report: Report, limit: float) -> None:
    corpus = open_corpus("stdlib")
    genome = mixed(32, 2) if small(device) else named("lfm2-350m", 512)
    settings = recipe(device, 2, 32) if small(device) else recipe(device, 32, 512)
    plain = training_rate([genome], corpus, settings, 1.0)
    started = time.monotonic()
    compiled = training_rate([genome], corpus, settings.replace(compile="blocks"), 1.0)
    report("seconds before the first step", time.monotonic() - started - 1.0)
    report("tokens/s with graph", plain)
    report("tokens/s with graph and compiled blocks", compiled)


def evolution(device: torch.device, report: Report, limit: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run, busy = Path(folder) / "run", list[tuple[float, float]]()
        process, began = evolve(run, ["--preset", "smoke" if small(device) else "gpu-quick"]), time.time()
        try:
            while process.poll() is None and time.time() - began < (20.0 if small(device) else limit - 20):
                time.sleep(1.0)
                busy.append((time.time(), utilisation() if device.type == "cuda" else float("nan")))
            settled = [event for event in finished(run) if event.data["final"]]
            report("said", said(run))
            report("candidates", len(settled))
            report("of these not ok", sum(event.data["status"] != "ok" for event in settled))
            if settled:
                times, tokens = [event.time for event in settled], sum(tokens_of(event) for event in settled)
                report("seconds to the first", times[0] - began)
                report("candidates per minute, in all", len(settled) / (times[-1] - began) * 60)
                report("tokens/s in all", tokens / (times[-1] - began))
                after = [percent for moment, percent in busy if moment > times[0]]
                report("GPU utilisation", f"{statistics.mean(after or [float('nan')]):.0f} %")
            report("GPU utilisation, start included", f"{statistics.mean(percent for _, percent in busy):.0f} %")
        finally:
            stop(process)
        report("exit code after Ctrl-C", process.returncode)


def kill(device: torch.device, report: Report, limit: float) -> None:
    """A worker is killed as soon as a candidate has finished: what it trained is repeated, the search goes on."""
    options = ["--preset", "smoke"] if small(device) else ["--preset", "gpu-quick", "--tokens", "2e6"]
    with tempfile.TemporaryDirectory() as folder:
        run, killed = Path(folder) / "run", False
        process, began = evolve(run, options), time.time()
        lost, again = set[str](), set[str]()
        try:
            while process.poll() is None and time.time() - began < limit - 10 and not (lost and lost == again):
                time.sleep(0.2)
                events = finished(run)
                if not killed and events and (workers := workers_of(process.pid)):
                    os.kill(workers[0], signal.SIGKILL)
                    killed = True
                lost = {event.data["id"] for event in events if event.data["status"] == "lost"}
                again = {event.data["id"] for event in events if event.data["status"] == "ok"} & lost
            report("killed", killed)
            report("lost with the killed worker", len(lost))
            report("of these repeated and ok", len(again))
        finally:
            stop(process)


def evolve(run: Path, options: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "star", "evolve", str(run), *options]
    with open(said_in(run), "w") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)


def said_in(run: Path) -> Path:
    return run.with_suffix(".txt")


def said(run: Path) -> str:
    """The last lines of its output."""
    return " | ".join(said_in(run).read_text().split("\n")[-6:])


def stop(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def finished(run: Path) -> list:
    try:
        return [event for event in read_events(run) if event.kind == "finish"]
    except star.UserError:  # not there yet
        return []


def tokens_of(event: Any) -> int:
    return (event.data.get("metrics") or {}).get("tokens") or 0


def utilisation() -> float:
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    if shutil.which(query[0]) is None:
        return float("nan")
    return float(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0])


def workers_of(pid: int) -> list[int]:
    """Worker processes of a search that have started."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            with contextlib.suppress(OSError):
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
    return found


PARTS: dict[str, Callable[[torch.device, Report, float], None]] = {
    "machine": machine,
    "steps": steps,
    "together": together,
    "replay": replay,
    "numerics": numerics,
    "first": first,
    "mfu": mfu_part,
    "compile": compile_part,
    "evolution": evolution,
    "kill": kill,
}

if __name__ == "__main__":
    main()
