"""How fast is each operator, in training and in decoding, compared with the fastest installable alternative?

    python benchmarks/operators/operators.py [--width 256] [--seq-len 1024] [--batch 4] [--device cpu|cuda] [--compile]
    [--out benchmarks/operators/results]

Ours and the peer are timed alternately in one process, so the drift of a noisy machine cancels in the ratio:
- a module and a module: the Llama, Lfm2, Mamba-2, Qwen3-Next and RecurrentGemma layers of transformers, same shape;
- a core and a bare call: SDPA for attention, `F.conv1d` or an FFT for convolutions;
- the core of a recurrence and its own token loop, on a GPU also the kernel of fla where one is installed;
- a language model and that of transformers, for one token decoded after `seq_len`, with caches.

Prints the ratio peer / ours (above 1: ours is faster), its median and 10 % and 90 % quantiles over pairs, and writes
operators-DEVICE-dWIDTH-tLEN.json and the table as .txt. `--compile` compiles every module of both sides as one block.
Weights are random, because speed does not depend on them. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRotaryEmbedding
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRecurrentBlock

import star
from star.genome import POOL, Gene, Genome
from star.liv import kernel_check, kernels
from star.liv.attention import softmax_attention
from star.liv.convolution import modal_convolution, modal_kernel
from star.liv.delta import delta_parallel, delta_reference
from star.liv.elementwise import scan_parallel, scan_reference
from star.liv.functional import short_convolution
from star.liv.ssd import ssd_parallel, ssd_reference
from star.liv.vector_gate import vector_gate_parallel, vector_gate_reference

HEAD_DIM = 64
VOCAB = 256
LOOP_STATES = 2e9  # bytes of states that a token loop keeps for its backward, two or three times over
CLASS = {c.name: i for i, c in enumerate(POOL, start=1)}
CORES = {
    "scalar": (ssd_parallel, ssd_reference),
    "vector": (vector_gate_parallel, vector_gate_reference),
    "delta": (delta_parallel, delta_reference),
}


@dataclass(frozen=True)
class Setting:
    width: int
    seq_len: int
    batch: int
    device: str
    compile: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    def randn(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype).requires_grad_()

    def block(self, module: torch.nn.Module) -> torch.nn.Module:
        return torch.compile(module, dynamic=False) if self.compile else module


@dataclass(frozen=True)
class Row:
    operator: str
    peer: str
    what: str  # "forward + backward" or "decode step"
    ours_ms: float
    peer_ms: float
    ratio: float
    low: float
    high: float


def compare(
    operator: str,
    peer: str,
    ours: Callable[[], None],
    theirs: Callable[[], None],
    setting: Setting,
    what: str,
    seconds: float,
) -> Row:
    """Alternates both for about `seconds`, at least 5 pairs, after one warm-up of each."""
    times: list[tuple[float, float]] = []
    for call in (ours, theirs):
        call()
    started = time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - started < seconds and len(times) < 200):
        times.append((clock(ours, setting), clock(theirs, setting)))
    ratios = sorted(b / a for a, b in times)
    tenth = len(ratios) // 10
    return Row(
        operator,
        peer,
        what,
        1e3 * statistics.median(a for a, _ in times),
        1e3 * statistics.median(b for _, b in times),
        statistics.median(ratios),
        ratios[tenth],
        ratios[-1 - tenth],
    )


def clock(call: Callable[[], None], setting: Setting) -> float:
    started = time.perf_counter()
    call()
    if setting.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def training(module: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> Callable[[], None]:
    """Forward and backward into weights and inputs; as in a model, the gradient of the output is a full tensor."""
    gradients: list[torch.Tensor] = []

    def call() -> None:
        y = module(*inputs)
        y = y[0] if isinstance(y, tuple) else y
        if not gradients:
            gradients.append(torch.randn_like(y, memory_format=torch.contiguous_format))
        y.backward(gradients[0])
        for tensor in (*inputs, *(module.parameters() if isinstance(module, torch.nn.Module) else ())):
            tensor.grad = None

    return call


def operator(name: str, setting: Setting) -> torch.nn.Module:
    """A class of the pool as a module of the setting's width."""
    liv = POOL[CLASS[name] - 1].config(setting.width, HEAD_DIM, 10_000.0).build()
    liv.reset_parameters(torch.Generator().manual_seed(0))
    return liv.to(setting.device)


def against_modules(setting: Setting, seconds: float) -> list[Row]:
    """Module against module, for each class of the pool that transformers has too."""
    d, heads = setting.width, setting.width // HEAD_DIM
    x = setting.randn(setting.batch, setting.seq_len, d)
    positions = torch.arange(setting.seq_len, device=setting.device)[None]

    def llama(kv_heads: int) -> Callable[[torch.Tensor], torch.Tensor]:
        config = transformers.LlamaConfig(
            hidden_size=d, num_attention_heads=heads, num_key_value_heads=kv_heads, attn_implementation="sdpa"
        )
        module = LlamaAttention(config, 0).to(setting.device, setting.dtype)
        rotary = LlamaRotaryEmbedding(config).to(setting.device)

        class Layer(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.attention = module

            def forward(self, x):
                return self.attention(x, position_embeddings=rotary(x, positions), attention_mask=None)[0]

        return Layer()

    mlp = transformers.LlamaConfig(hidden_size=d, intermediate_size=8 * d // 3, mlp_bias=False)
    lfm2 = transformers.Lfm2Config(hidden_size=d, conv_L_cache=3, num_attention_heads=heads, num_key_value_heads=heads)
    mamba = transformers.Mamba2Config(
        hidden_size=d,
        num_heads=2 * heads,
        head_dim=HEAD_DIM,
        state_size=128,
        expand=2,
        n_groups=1,
        use_conv_bias=False,
        chunk_size=64,
    )
    qwen = transformers.Qwen3NextConfig(
        hidden_size=d,
        linear_num_value_heads=heads,
        linear_num_key_heads=heads,
        linear_key_head_dim=64,
        linear_value_head_dim=HEAD_DIM,
        layer_types=["linear_attention"],
        num_hidden_layers=1,
    )
    gemma = transformers.RecurrentGemmaConfig(
        hidden_size=d, lru_width=d, num_attention_heads=heads, num_key_value_heads=1, conv1d_width=4
    )

    class Gemma(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = RecurrentGemmaRecurrentBlock(gemma, 0)

        def forward(self, x):
            return self.block(x, positions, None, use_cache=False)

    peers = {
        "SA-1": ("LlamaAttention, SDPA", lambda: llama(heads)),
        "SA-3": ("LlamaAttention, SDPA, 4 queries per key", lambda: llama(heads // 4)),
        "GMemless": ("LlamaMLP", lambda: LlamaMLP(mlp)),
        "GConv-1": ("Lfm2ShortConv", lambda: Lfm2ShortConv(lfm2, 0)),
        "Mamba-2": ("Mamba2Mixer, torch", lambda: Mamba2Mixer(mamba, 0)),
        "GatedDelta": ("Qwen3NextGatedDeltaNet, torch", lambda: Qwen3NextGatedDeltaNet(qwen, 0)),
        "RG-LRU": ("RecurrentGemmaRecurrentBlock", Gemma),
    }
    rows = []
    for name, (label, build) in peers.items():
        ours = setting.block(operator(name, setting))
        theirs = setting.block(build().to(setting.device, setting.dtype))
        pair = training(ours, x), training(theirs, x)
        rows.append(compare(name, label, *pair, setting, "forward + backward", seconds))
    return rows


def against_calls(setting: Setting, seconds: float) -> list[Row]:
    """The cores against a bare call that computes the same."""
    batch, seq_len, d, heads = setting.batch, setting.seq_len, setting.width, setting.width // HEAD_DIM
    q, k, v = (setting.randn(batch, heads, seq_len, HEAD_DIM) for _ in range(3))
    i = torch.arange(seq_len, device=setting.device)
    rows = []

    def add(name: str, peer: str, ours, theirs, *inputs: torch.Tensor) -> None:
        pair = training(ours, *inputs), training(theirs, *inputs)
        rows.append(compare(name, peer, *pair, setting, "forward + backward", seconds))

    sdpa = F.scaled_dot_product_attention
    add("SA-1 core", "bare SDPA, causal", softmax_attention, partial(sdpa, is_causal=True), q, k, v)
    for window in (64, 256):
        if window < seq_len:
            band = (i[None, :] <= i[:, None]) & (i[None, :] > i[:, None] - window)
            ours, theirs = partial(softmax_attention, window=window), partial(sdpa, attn_mask=band)
            add(f"SWA-{window} core", "bare SDPA, band mask", ours, theirs, q, k, v)
    u = setting.randn(batch, seq_len, d)
    for length in (3, 7):
        weight = setting.randn(d, length)

        def bare(u, w, n=length):
            return F.conv1d(F.pad(u.transpose(1, 2), (n - 1, 0)), w[:, None], groups=d).transpose(1, 2)

        add(f"GConv k={length} core", "bare F.conv1d", lambda u, w: short_convolution(u, w)[0], bare, u, weight)
    modes = [torch.randn(d, 8, device=setting.device).sub_(1).requires_grad_() for _ in range(4)]

    def fft(u, *modes):
        n = u.shape[1]
        kernel = torch.fft.rfft(modal_kernel(*modes, n).float(), 2 * n)
        product = torch.fft.rfft(u.float().transpose(1, 2), 2 * n) * kernel
        return torch.fft.irfft(product, 2 * n)[..., :n].transpose(1, 2)

    def modal(u, *modes):
        return modal_convolution(u, *modes, keep_state=False)[0]

    for length in sorted({*(n for n in (32, 64, 96, 128, 256) if n < seq_len), seq_len}):  # to see who wins where
        u = setting.randn(batch, length, d)
        add(f"GConv-2 core, T={length}", "FFT convolution", modal, fft, u, *modes)
    return rows


# Name, kind of core, state size, heads per 64 channels of width.
RECURRENCES = (
    ("Rec-1", "scalar", 16, 1),
    ("Rec-2", "scalar", 2, 1),
    ("LinAttn", "none", 64, 1),
    ("Mamba-2", "shared", 128, 2),
    ("GLA", "vector", 64, 1),
    ("DeltaNet", "delta", 64, 1),
    ("GatedDelta", "gated delta", 64, 1),
)


def recurrence(kind: str, state_size: int, per_width: int, setting: Setting) -> tuple[list[torch.Tensor], bool]:
    """The inputs of a recurrence, c, b, v [, g] [, beta], and whether it has a decay g."""
    batch, seq_len, heads = setting.batch, setting.seq_len, per_width * setting.width // HEAD_DIM
    v = setting.randn(batch, seq_len, heads, HEAD_DIM)
    keys = (batch, seq_len, 1 if kind == "shared" else heads, state_size)
    c, b = (F.normalize(setting.randn(*keys), dim=-1).detach().requires_grad_() for _ in range(2))
    gates = []
    if kind not in ("none", "delta"):
        shape = (batch, seq_len, heads, *([state_size] if kind == "vector" else []))
        gates.append((-0.1 * torch.rand(*shape, device=setting.device)).requires_grad_())
    if "delta" in kind:
        gates.append(torch.rand(batch, seq_len, heads, device=setting.device).requires_grad_())
    return [c, b, v, *gates], kind not in ("none", "delta")


def against_loops(setting: Setting, seconds: float) -> list[Row]:
    """The chunked recurrences against their own token loops, on the same features."""
    rows = []
    for name, kind, state_size, per_width in RECURRENCES:
        inputs, gated = recurrence(kind, state_size, per_width, setting)
        if 4 * state_size * inputs[2].numel() > LOOP_STATES:  # a state for every token
            print(f"{name}: the states of its token loop do not fit the memory of a laptop")
            continue
        parallel, loop = CORES[kind.removeprefix("gated ") if kind in ("vector", "delta", "gated delta") else "scalar"]
        ours, theirs = training(core(parallel, gated, False), *inputs), training(core(loop, gated), *inputs)
        rows.append(compare(f"{name} core", "its token loop", ours, theirs, setting, "forward + backward", seconds / 2))
    u = setting.randn(setting.batch, setting.seq_len, setting.width).detach().float().requires_grad_()
    g = (-0.1 * torch.rand(u.shape)).to(setting.device).requires_grad_()
    ours, theirs = training(scan_parallel, u, g), training(scan_reference, u, g)
    rows.append(compare("RG-LRU core", "its token loop", ours, theirs, setting, "forward + backward", seconds / 2))
    return rows


def against_fla(setting: Setting, seconds: float) -> list[Row]:
    """The same against the kernels of fla. For a kernel that is missing or wrong here, prints the reason."""
    rows = []
    for name, kind, state_size, per_width in RECURRENCES if setting.device == "cuda" else ():
        inputs, gated = recurrence(kind, state_size, per_width, setting)
        kernel = kind if kind in kernels.KERNELS else "scalar"
        parallel, _ = CORES[kernel.removeprefix("gated ")]
        case = kernels.Case(kernel, str(inputs[2].dtype).removeprefix("torch."), inputs[1].shape[-1], HEAD_DIM)
        kernel_check.check([case], inputs[2].device)
        form = kernels.choose(kernel, inputs[1], inputs[2])
        if form is None:
            print(f"{name}: {kernels.explain()[-1]}")
            continue
        ours, theirs = (training(core(f, gated, False), *inputs) for f in (parallel, form))
        rows.append(compare(f"{name} core", "fla", ours, theirs, setting, "forward + backward", seconds))
    return rows


def core(form: Callable, gated: bool, *keep_state: bool) -> Callable[..., torch.Tensor]:
    """A form of a recurrence as a function of the inputs that `recurrence` makes."""

    def call(c, b, v, *rest):
        gates = rest if gated else (None, *rest)
        return form(c, b, v, *gates, None, *keep_state)[0]

    return call


def decoding(setting: Setting, seconds: float) -> list[Row]:
    """One token after `seq_len`, batch 1, four layers: language model against language model."""
    d, heads = setting.width, setting.width // HEAD_DIM
    shape = dict(vocab_size=VOCAB, hidden_size=d, num_hidden_layers=4)
    attention = dict(num_attention_heads=heads, num_key_value_heads=heads, intermediate_size=8 * d // 3)
    pairs = {
        "SA-1 + GMemless": (
            ("SA-1", "GMemless") * 4,
            lambda: transformers.LlamaForCausalLM(
                transformers.LlamaConfig(**shape, **attention, tie_word_embeddings=True)
            ),
        ),
        "LFM2 (1 attention)": (
            ("GConv-1", "SwiGLU-4", "GConv-1", "SwiGLU-4", "MHA-QKN", "SwiGLU-4", "GConv-1", "SwiGLU-4"),
            lambda: transformers.Lfm2ForCausalLM(
                transformers.Lfm2Config(
                    **shape,
                    **(attention | {"intermediate_size": 4 * d}),
                    block_auto_adjust_ff_dim=False,
                    full_attn_idxs=[2],
                )
            ),
        ),
        "Mamba-2": (
            ("Mamba-2",) * 4,
            lambda: transformers.Mamba2ForCausalLM(
                transformers.Mamba2Config(
                    **shape,
                    num_heads=2 * heads,
                    head_dim=HEAD_DIM,
                    state_size=128,
                    n_groups=1,
                    use_conv_bias=False,
                    tie_word_embeddings=True,
                )
            ),
        ),
    }
    tokens = torch.randint(VOCAB, (1, setting.seq_len), device=setting.device)
    token = tokens[:, :1]
    rows = []
    for name, (classes, build) in pairs.items():
        genome = Genome(tuple(Gene(CLASS[c]) for c in classes), d, HEAD_DIM)
        model = star.build(genome, VOCAB).to(setting.device).eval()
        model.compute_dtype = setting.dtype
        peer = build().to(setting.device, setting.dtype).eval()
        is_mamba = name == "Mamba-2"
        with torch.inference_mode():
            _, state = model(tokens, model.init_state(1, setting.seq_len + 4096))
            cache = peer(tokens, use_cache=True)
            cache = cache.cache_params if is_mamba else cache.past_key_values

            def ours(model=model, box=[state]) -> None:  # noqa: B006
                _, box[0] = model(token, box[0])

            def theirs(peer=peer, cache=cache, is_mamba=is_mamba) -> None:
                peer(token, use_cache=True, **({"cache_params": cache} if is_mamba else {"past_key_values": cache}))

            rows.append(compare(name, type(peer).__name__, ours, theirs, setting, "decode step", seconds))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--compile", action="store_true", help="compile modules")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each comparison")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    setting = Setting(args.width, args.seq_len, args.batch, args.device, args.compile)
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"{cpu_name()}, {args.threads} thread(s)"
    lines: list[str] = []

    def show(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    show(
        f"width {args.width}, {args.seq_len} tokens, batch {args.batch}, {setting.dtype}, {device}, torch "
        f"{torch.__version__}\n"
    )
    show(f"{'operator':22}{'what':20}{'peer':42}{'ours ms':>9}{'peer ms':>9}   peer / ours")
    rows: list[Row] = []
    for part in (against_modules, against_calls, against_loops, against_fla, decoding):
        for row in part(setting, args.seconds):
            rows.append(row)
            slower = "  slower" if row.ratio < 0.95 else ""
            show(
                f"{row.operator:22}{row.what:20}{row.peer:42}{row.ours_ms:9.2f}{row.peer_ms:9.2f}   {row.ratio:.2f} "
                f"[{row.low:.2f}, {row.high:.2f}]{slower}"
            )
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"operators-{args.device}-d{args.width}-t{args.seq_len}{'-compiled' if args.compile else ''}.json"
    about = {
        "device": device,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dtype": str(setting.dtype),
    }
    path.write_text(
        json.dumps(about | {"setting": asdict(setting), "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
    )
    path.with_suffix(".txt").write_text("\n".join(lines) + "\n")
    print(f"\n{path}")


def cpu_name() -> str:
    """The name of the processor, such as "AMD EPYC, x86_64 CPU"."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return ", ".join([*names[:1], f"{platform.machine()} CPU"])


if __name__ == "__main__":
    main()
