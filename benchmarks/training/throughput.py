"""Question: how many tokens per second does a training step of ours process, compared with other implementations?

    python benchmarks/training/throughput.py [--device cpu|cuda] [--sizes 1M 14M] [--compile] [--out FOLDER]

Arms, each with whole steps (loss, backward, clip at 1, fused AdamW) on the same tokens and the same context:
- star: our Transformer++ (genome transformer++) and our LFM2 (genome lfm2-350m), at that size;
- nanogpt: a plain GPT of the same width, depth and parameter count: one map for q, k and v, LayerNorm, GELU of 4
  widths, learned positions, tied head. It has neither RoPE nor a gate, so it has less work than the others;
- llama, lfm2: transformers' LlamaForCausalLM and Lfm2ForCausalLM of the same shape, with equal parameters;
- loss: only the head and the cross-entropy, all logits at once or ours in chunks (time, and the largest tensor).

Arms of one size take turns in one process, in a rotating order, so that the drift of a noisy machine cancels in the
ratios. With one thread on a CPU, time is the CPU time of the process, because other programs may share the machine.
Prints tokens/s, MFU (our count of training FLOPs, causal attention, over the device's peak; on a CPU the peak is that
of a matrix product measured here) and star / peer in tokens/s (above 1: ours is faster), as the median of paired ratios
with a 95 % bootstrap interval. Writes throughput-DEVICE.json and .txt. On CUDA all arms use bfloat16, ours by
`compute_dtype`, the peers by autocast. Goal: at least 1.0 against every peer on a CPU. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import star
from star.genome import load_genome
from star.model.cross_entropy import cross_entropy, plain_cross_entropy

HEAD_DIM = 64
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}  # dense bfloat16 FLOP/s


@dataclass(frozen=True)
class Size:
    """pairs: of a mixer and a memoryless operator."""

    width: int
    pairs: int
    vocab_size: int
    batch: int
    seq_len: int


CPU_SIZES = {"1M": Size(128, 5, 256, 8, 128), "14M": Size(384, 6, 8192, 4, 256)}
CUDA_SIZES = {"14M": Size(384, 6, 8192, 64, 1024), "125M": Size(768, 12, 50_304, 32, 1024)}


@dataclass(frozen=True)
class Row:
    size: str
    family: str
    arm: str
    parameters: int
    tokens_per_second: float  # median over rounds
    mfu: float | None
    peak_mib: float | None  # CUDA only
    ratio: float | None = None  # tokens/s of star over those of this arm
    low: float | None = None
    high: float | None = None
    rounds: int = 0


class GPT(nn.Module):
    """A GPT as in nanoGPT, in plain PyTorch."""

    def __init__(self, size: Size):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(size.vocab_size, size.width), nn.Embedding(size.seq_len, size.width)
        self.blocks = nn.ModuleList(GPTBlock(size.width) for _ in range(size.pairs))
        self.norm = nn.LayerNorm(size.width, bias=False)

    def loss(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class GPTBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (h.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for h in self.qkv(self.norm_1(x)).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(y)
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class Causal(nn.Module):
    """A transformers model with our interface."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def loss(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self.model(tokens, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def now() -> float:
    """Seconds; CPU time of the process if one thread of a CPU does everything."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time() if alone else time.perf_counter()


def genome_of(family: str, size: Size) -> star.Genome:
    name = {"transformer++": "transformer++", "lfm2": "lfm2-350m"}[family]
    return load_genome(name, d_model=size.width, depth=2 * size.pairs, head_dim=HEAD_DIM)


def llama(size: Size) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=size.vocab_size,
        hidden_size=size.width,
        intermediate_size=8 * size.width // 3,
        num_hidden_layers=size.pairs,
        num_attention_heads=size.width // HEAD_DIM,
        max_position_embeddings=size.seq_len,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    return Causal(transformers.LlamaForCausalLM(config))


def lfm2(size: Size) -> nn.Module:
    attention = [i for i, name in enumerate(genome_of("lfm2", size).class_names[::2]) if name.startswith("GQA")]
    config = transformers.Lfm2Config(
        vocab_size=size.vocab_size,
        hidden_size=size.width,
        intermediate_size=9 * size.width // 2,
        block_auto_adjust_ff_dim=False,
        num_hidden_layers=size.pairs,
        num_attention_heads=size.width // HEAD_DIM,
        num_key_value_heads=size.width // HEAD_DIM // 2,
        full_attn_idxs=attention,
        max_position_embeddings=size.seq_len,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    return Causal(transformers.Lfm2ForCausalLM(config))


PEERS = {"transformer++": {"nanogpt": GPT, "llama": llama}, "lfm2": {"lfm2": lfm2}}


class Trainer:
    """One arm: a model and its optimizer on its device."""

    def __init__(self, name: str, model: nn.Module, device: str, compiled: bool):
        self.name, self.model, self.device = name, model.to(device).train(), device
        self.parameters = sum(p.numel() for p in model.parameters())
        self.context = contextlib.nullcontext
        if device == "cuda":
            if name == "star":
                model.compute_dtype = torch.bfloat16
            else:
                self.context = lambda: torch.autocast("cuda", torch.bfloat16)
        self.loss = model.loss
        if compiled:
            if name == "star":
                from star.training.compile import compile_blocks

                compile_blocks(model)
            else:
                self.loss = torch.compile(model.loss)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(self, tokens: torch.Tensor, targets: torch.Tensor) -> None:
        with self.context():
            loss = self.loss(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def seconds(self, tokens: torch.Tensor, targets: torch.Tensor, steps: int) -> float:
        started = now()
        for _ in range(steps):
            self.step(tokens, targets)
        if self.device == "cuda":
            torch.cuda.synchronize()
        return now() - started


def compare(
    size_name: str, size: Size, family: str, device: str, compiled: bool, seconds: float, peak: float | None
) -> list[Row]:
    """The arms of one family in turn for about `seconds`, at least 5 rounds."""
    genome = genome_of(family, size)
    flops = star.costs(genome, size.vocab_size, size.seq_len).train_flops_per_token
    arms = [Trainer("star", star.build(genome, size.vocab_size), device, compiled)]
    arms += [Trainer(name, build(size), device, compiled) for name, build in PEERS[family].items()]
    for arm in arms:
        # The GPT has learned positions, and our inner width is rounded.
        extra = size.seq_len * size.width + 0.02 * arms[0].parameters if arm.name == "nanogpt" else 0
        if abs(arm.parameters - arms[0].parameters) > extra:
            raise AssertionError(f"{arm.name} has {arm.parameters:,} parameters and star {arms[0].parameters:,}")
    batch = [torch.randint(size.vocab_size, (size.batch, size.seq_len), device=device) for _ in range(2)]
    steps, memory = 1, {}
    for arm in arms:
        arm.seconds(*batch, 2)  # warm-up
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            arm.seconds(*batch, 1)
            memory[arm.name] = torch.cuda.max_memory_allocated() / 2**20
    steps = max(1, round(0.2 / arms[0].seconds(*batch, 1)))
    times: dict[str, list[float]] = {arm.name: [] for arm in arms}
    started, rounds = time.perf_counter(), 0
    while rounds < 5 or time.perf_counter() - started < seconds:
        for arm in arms[rounds % len(arms) :] + arms[: rounds % len(arms)]:
            times[arm.name].append(arm.seconds(*batch, steps))
        rounds += 1
    rows = []
    for arm in arms:
        rate = steps * size.batch * size.seq_len / statistics.median(times[arm.name])
        mfu = rate * flops / peak if peak else None
        row = Row(size_name, family, arm.name, arm.parameters, rate, mfu, memory.get(arm.name), rounds=rounds)
        if arm is not arms[0]:
            ratio, low, high = median_interval(np.array(times[arm.name]) / np.array(times["star"]))
            row = replace(row, ratio=ratio, low=low, high=high)
        rows.append(row)
    return rows


def median_interval(values: np.ndarray, draws: int = 10_000) -> tuple[float, float, float]:
    """The median and its 95 % bootstrap interval."""
    resampled = np.median(np.random.default_rng(0).choice(values, (draws, len(values))), axis=1)
    return float(np.median(values)), *(float(q) for q in np.quantile(resampled, (0.025, 0.975)))


class Largest(TorchDispatchMode):
    """Measures the bytes of the largest tensor created in the context."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.nbytes = max(self.nbytes, *(t.nbytes for t in tree_leaves(result) if isinstance(t, torch.Tensor)), 0)
        return result


def losses(device: str, seconds: float) -> list[dict]:
    """Head and cross-entropy with their backward, at several vocabularies."""
    rows = []
    dtype, n_tokens = (torch.bfloat16, 16_384) if device == "cuda" else (torch.float32, 2048)
    for vocab_size, width in ((256, 128), (8192, 384), (50_304, 384)):
        x = torch.randn(n_tokens, width, device=device, dtype=dtype).requires_grad_()
        head = (torch.randn(vocab_size, width, device=device) * width**-0.5).requires_grad_()
        targets = torch.randint(vocab_size, (n_tokens,), device=device)
        forms: dict[str, Callable] = {
            "all at once": lambda x=x, head=head, targets=targets: plain_cross_entropy(x, head.to(x.dtype), targets),
            "star": lambda x=x, head=head, targets=targets: cross_entropy(x, head, targets),
        }
        times, largest = {name: [] for name in forms}, {}
        for name, form in forms.items():
            with Largest() as mode:
                torch.autograd.grad(form(), (x, head))
            largest[name] = mode.nbytes / 2**20
        started = time.perf_counter()
        while len(times["star"]) < 5 or time.perf_counter() - started < seconds:
            for name, form in forms.items():
                before = now()
                torch.autograd.grad(form(), (x, head))
                if device == "cuda":
                    torch.cuda.synchronize()
                times[name].append(now() - before)
        ratio, low, high = median_interval(np.array(times["all at once"]) / np.array(times["star"]))
        row = {"vocab_size": vocab_size, "width": width, "tokens": n_tokens}
        row |= {"ratio": ratio, "low": low, "high": high, "rounds": len(times["star"])}
        row |= {
            "ms": 1e3 * statistics.median(times["star"]),
            "largest_mib": largest["star"],
            "largest_mib_at_once": largest["all at once"],
        }
        rows.append(row)
    return rows


def peak_flops(device: str) -> float | None:
    """FLOP/s: of a GPU from the table, of a CPU in the fastest of several 1,024 x 1,024 matrix products."""
    if device == "cuda":
        return next((peak for name, peak in PEAKS.items() if name in torch.cuda.get_device_name()), None)
    a, times = torch.randn(1024, 1024), []
    for _ in range(20):
        started = now()
        a @ a
        times.append(now() - started)
    return 2 * 1024**3 / min(times)


def cpu_name() -> str:
    """Such as "AMD EPYC, x86_64 CPU"."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return ", ".join([*names[:1], f"{platform.machine()} CPU"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    names = f"CPU: {', '.join(CPU_SIZES)}; CUDA: {', '.join(CUDA_SIZES)} (default: all)"
    parser.add_argument("--sizes", nargs="+", metavar="SIZE", help=names)
    parser.add_argument(
        "--compile", action="store_true", help="compile our models block by block and the peers as a whole"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="time for each family of each size")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    sizes = CPU_SIZES if args.device == "cpu" else CUDA_SIZES
    if unknown := sorted(set(args.sizes or ()) - set(sizes)):
        parser.error(f"size {unknown[0]} is none of {', '.join(sizes)}")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"{cpu_name()}, {args.threads} thread(s)"
    peak = peak_flops(args.device)
    lines: list[str] = []

    def show(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    dtype = "bfloat16" if args.device == "cuda" else "float32"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    show(f"{device}, {dtype}, {versions}, peak {peak / 1e9:,.0f} GFLOP/s" if peak else device)
    show(f"\n{'size':6}{'family':15}{'arm':10}{'parameters':>13}{'tokens/s':>11}{'MFU':>7}   star / peer")
    rows: list[Row] = []
    for name in args.sizes or sizes:
        for family in PEERS:
            for row in compare(name, sizes[name], family, args.device, args.compile, args.seconds, peak):
                rows.append(row)
                mfu = f"{row.mfu:.0%}" if row.mfu else "-"
                ratio = f"{row.ratio:.2f} [{row.low:.2f}, {row.high:.2f}]" if row.ratio else ""
                ratio += "  slower" if row.ratio and row.high < 1 else ""
                show(
                    f"{row.size:6}{row.family:15}{row.arm:10}{row.parameters:13,}"
                    f"{row.tokens_per_second:11,.0f}{mfu:>7}   {ratio}"
                )
    columns = f"{'vocabulary':>10}{'width':>7}{'tokens':>8}{'ms':>9}{'largest MiB':>13}{'at once':>9}"
    show(f"\nloss: {columns}   at once / ours")
    loss_rows = losses(args.device, args.seconds / 4)
    for row in loss_rows:
        show(
            f"      {row['vocab_size']:10,}{row['width']:7}{row['tokens']:8}{row['ms']:9.1f}"
            f"{row['largest_mib']:13.1f}{row['largest_mib_at_once']:9.1f}"
            f"   {row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"throughput-{args.device}{'-compiled' if args.compile else ''}.json"
    about = {
        "device": device,
        "dtype": dtype,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peak_flops": peak,
    }
    about |= {"sizes": {name: asdict(sizes[name]) for name in args.sizes or sizes}}
    path.write_text(json.dumps(about | {"rows": [asdict(row) for row in rows], "loss": loss_rows}, indent=1) + "\n")
    path.with_suffix(".txt").write_text("\n".join(lines) + "\n")
    print(f"\n{path}")


if __name__ == "__main__":
    main()
