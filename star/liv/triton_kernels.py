"""One-pass kernels for an NVIDIA GPU, in Triton, for the pointwise work between matrix products.

Eagerly, torch starts one kernel for each multiplication, and each reads and writes all activations: on an H100 that is
half of a training step at width 512. Each function here reads its inputs once and writes its output once, forward and
backward. They compute in float32, whatever the activations are.

    rms_norm(x, weight, eps)              rotate(h, cos, sin)                  RoPE
    convolve(x, weight)                   gated(gate, value, nonlinearity)     SwiGLU and its kin
    softmax_gradient(logits, ...)         token_losses(logits, targets)

`star.liv.functional`, `star.liv.attention` and `star.model.cross_entropy` have the same functions in plain torch. They
are the definitions, and run wherever `star.liv.backends.fused` finds no kernel: on a CPU, under a compiler (which fuses
by itself), and without Triton. Triton compiles each kernel when it is first used, in a fraction of a second, and keeps
it on disk. The tests compare them with the plain forms on a GPU, or anywhere in Triton's interpreter.

In comments: n rows of D columns; a program works on a tile of ROWS x COLS.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # elements of a tile
PROGRAMS = 512  # of a kernel that sums over rows, at most; each leaves one partial sum
WIDEST = 8192  # columns of a row that is held at once


def _tile(columns: int) -> tuple[int, int]:
    """ROWS and COLS for rows of so many columns."""
    cols = triton.next_power_of_2(columns)
    return max(1, TILE // cols), cols


# ---- RMSNorm


@triton.jit
def _rms_norm(x, weight, y, inverse, n, D, eps, ROWS: tl.constexpr, COLS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, COLS)[None, :]
    inside = (row < n) & (col < D)
    h = tl.load(x + row * D + col, mask=inside, other=0.0).to(tl.float32)
    r = 1.0 / tl.sqrt(tl.sum(h * h, axis=1, keep_dims=True) / D + eps)
    w = tl.load(weight + col, mask=col < D, other=0.0).to(tl.float32)
    tl.store(y + row * D + col, (h * r * w).to(y.dtype.element_ty), mask=inside)
    tl.store(inverse + row, r, mask=row < n)


@triton.jit
def _rms_norm_backward(
    x,
    weight,
    inverse,
    dy,
    passed,
    dx,
    dweight,
    n,
    D,
    PASSED: tl.constexpr,
    BLOCKS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, COLS)[None, :]
    w = tl.load(weight + col, mask=col < D, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, COLS), tl.float32)
    for block in range(BLOCKS):
        row = (first + block * tl.num_programs(0)) * ROWS + tl.arange(0, ROWS)[:, None]
        inside = (row < n) & (col < D)
        h = tl.load(x + row * D + col, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(dy + row * D + col, mask=inside, other=0.0).to(tl.float32)
        r = tl.load(inverse + row, mask=row < n, other=0.0)
        h = h * r
        total += g * h
        g = g * w
        along = tl.sum(g * h, axis=1, keep_dims=True) / D
        g = (g - h * along) * r
        if PASSED:
            g += tl.load(passed + row * D + col, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + row * D + col, g.to(dx.dtype.element_ty), mask=inside)
    tl.store(dweight + first * D + col, tl.sum(total, axis=0, keep_dims=True), mask=col < D)


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of contiguous x [..., D], and 1 / rms of every row."""
    columns = x.shape[-1]
    n = x.numel() // columns
    rows, cols = _tile(columns)
    y, inverse = torch.empty_like(x), torch.empty(n, dtype=torch.float32, device=x.device)
    _rms_norm[(triton.cdiv(n, rows),)](x, weight, y, inverse, n, columns, eps, ROWS=rows, COLS=cols)
    return y, inverse


def _norm_gradients(
    x: Tensor, weight: Tensor, inverse: Tensor, dy: Tensor, passed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients by x and the weight. passed: a gradient of x itself, to be added."""
    n, columns = inverse.numel(), x.shape[-1]
    rows, cols = _tile(columns)
    tiles = triton.cdiv(n, rows)
    blocks = triton.next_power_of_2(triton.cdiv(tiles, PROGRAMS))  # few variants to compile
    programs = triton.cdiv(tiles, blocks)
    dx = torch.empty_like(x)
    dweight = torch.empty(programs, columns, dtype=torch.float32, device=x.device)
    added = dy if passed is None else passed.contiguous()
    arguments = (x, weight, inverse, dy.contiguous(), added, dx, dweight, n, columns)
    sizes = {"PASSED": passed is not None, "BLOCKS": blocks, "ROWS": rows, "COLS": cols}
    _rms_norm_backward[(programs,)](*arguments, **sizes)
    return dx, dweight.sum(0).to(weight.dtype)


class RMSNorm(torch.autograd.Function):
    """`star.liv.functional.rms_norm` of x [..., D] with a weight [D]."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        y, inverse = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        return *_norm_gradients(x, weight, inverse, dy), None


class ResidualRMSNorm(torch.autograd.Function):
    """x itself and its norm, so that the backward adds both gradients of x in the same pass."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        y, inverse = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return x.view_as(x), y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, passed: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        return *_norm_gradients(x, weight, inverse, dy, passed), None


# ---- short causal convolution


@triton.jit
def _convolve(x, weight, y, T, C, TAPS: tl.constexpr, BACKWARD: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    sequence = tl.program_id(2).to(tl.int64) * T
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    c = tl.program_id(1) * COLS + tl.arange(0, COLS)[None, :]
    total = tl.zeros((ROWS, COLS), tl.float32)
    for tap in tl.static_range(TAPS):
        if BACKWARD:
            source = t + (TAPS - 1 - tap)
        else:
            source = t - (TAPS - 1 - tap)
        inside = (source >= 0) & (source < T) & (c < C)
        h = tl.load(x + (sequence + source) * C + c, mask=inside, other=0.0).to(tl.float32)
        total += h * tl.load(weight + c * TAPS + tap, mask=c < C, other=0.0).to(tl.float32)
    tl.store(y + (sequence + t) * C + c, total.to(y.dtype.element_ty), mask=(t < T) & (c < C))


@triton.jit
def _convolve_weight(
    x, dy, dweight, n, T, C, TAPS: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    tap = tl.program_id(0)
    c = tl.program_id(1) * COLS + tl.arange(0, COLS)[None, :]
    first = tl.program_id(2).to(tl.int64) * BLOCKS * ROWS
    past = TAPS - 1 - tap
    total = tl.zeros((ROWS, COLS), tl.float32)
    for block in range(BLOCKS):
        row = first + block * ROWS + tl.arange(0, ROWS)[:, None]
        inside = (row < n) & (row % T >= past) & (c < C)
        h = tl.load(x + (row - past) * C + c, mask=inside, other=0.0).to(tl.float32)
        total += h * tl.load(dy + row * C + c, mask=inside, other=0.0).to(tl.float32)
    partial = dweight + (tl.program_id(2) * C + c) * TAPS + tap
    tl.store(partial, tl.sum(total, axis=0, keep_dims=True), mask=c < C)


def _filtered(x: Tensor, weight: Tensor, backward: bool) -> Tensor:
    batch, seq_len, channels = x.shape
    cols = min(128, triton.next_power_of_2(channels))
    rows = TILE // cols
    grid = (triton.cdiv(seq_len, rows), triton.cdiv(channels, cols), batch)
    y, taps = torch.empty_like(x), weight.shape[1]
    _convolve[grid](x, weight, y, seq_len, channels, TAPS=taps, BACKWARD=backward, ROWS=rows, COLS=cols)
    return y


class Convolve(torch.autograd.Function):
    """y_t = sum_s w_s x_(t + s - k + 1) of x [B, T, C] and w [C, k], with zeros before the sequence."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        ctx.save_for_backward(x, weight)
        return _filtered(x, weight, backward=False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        batch, seq_len, channels = x.shape
        n, taps, dy = batch * seq_len, weight.shape[1], dy.contiguous()
        cols = min(128, triton.next_power_of_2(channels))
        rows = TILE // cols
        blocks = triton.next_power_of_2(triton.cdiv(triton.cdiv(n, rows), PROGRAMS // 8))
        splits = triton.cdiv(n, rows * blocks)
        dweight = torch.empty(splits, channels, taps, dtype=torch.float32, device=x.device)
        grid = (taps, triton.cdiv(channels, cols), splits)
        _convolve_weight[grid](x, dy, dweight, n, seq_len, channels, TAPS=taps, BLOCKS=blocks, ROWS=rows, COLS=cols)
        return _filtered(dy, weight, backward=True), dweight.sum(0).to(weight.dtype)


# ---- gates


@triton.jit
def _nonlinear(g, KIND: tl.constexpr):
    """sigma(g) and its derivative; the names are those of `star.liv.functional.activate`."""
    if KIND == "relu":
        return tl.maximum(g, 0.0), tl.where(g > 0, 1.0, 0.0)
    elif KIND == "swish":
        s = tl.sigmoid(g)
        return g * s, s * (1 + g * (1 - s))
    elif KIND == "gelu" or KIND == "normal_cdf":
        s = tl.sigmoid(1.5957691216057308 * (g + 0.044715 * g * g * g))
        slope = s * (1 - s) * 1.5957691216057308 * (1 + 0.134145 * g * g)
        if KIND == "gelu":
            return g * s, s + g * slope
        else:
            return s, slope
    else:
        return g, tl.full(g.shape, 1.0, tl.float32)


@triton.jit
def _gate(gate, value, y, n, KIND: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(gate + i, mask=i < n, other=0.0).to(tl.float32)
    v = tl.load(value + i, mask=i < n, other=0.0).to(tl.float32)
    sigma, _ = _nonlinear(g, KIND)
    tl.store(y + i, (sigma * v).to(y.dtype.element_ty), mask=i < n)


@triton.jit
def _gate_backward(gate, value, dy, dgate, dvalue, n, KIND: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(gate + i, mask=i < n, other=0.0).to(tl.float32)
    v = tl.load(value + i, mask=i < n, other=0.0).to(tl.float32)
    d = tl.load(dy + i, mask=i < n, other=0.0).to(tl.float32)
    sigma, slope = _nonlinear(g, KIND)
    tl.store(dgate + i, (d * v * slope).to(dgate.dtype.element_ty), mask=i < n)
    tl.store(dvalue + i, (d * sigma).to(dvalue.dtype.element_ty), mask=i < n)


class Gated(torch.autograd.Function):
    """sigma(gate) * value, of one shape."""

    @staticmethod
    def forward(ctx, gate: Tensor, value: Tensor, nonlinearity: str) -> Tensor:
        gate, value = gate.contiguous(), value.contiguous()
        y, n = torch.empty_like(value), value.numel()
        _gate[(triton.cdiv(n, TILE),)](gate, value, y, n, KIND=nonlinearity, BLOCK=TILE)
        ctx.save_for_backward(gate, value)
        ctx.nonlinearity = nonlinearity
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, value = ctx.saved_tensors
        dgate, dvalue, n = torch.empty_like(gate), torch.empty_like(value), value.numel()
        arguments = (gate, value, dy.contiguous(), dgate, dvalue, n)
        _gate_backward[(triton.cdiv(n, TILE),)](*arguments, KIND=ctx.nonlinearity, BLOCK=TILE)
        return dgate, dvalue, None


# ---- RoPE


@triton.jit
def _rotate(h, cos, sin, y, n, T, H, d, sb, st, sh, sign, ROWS: tl.constexpr, COLS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]  # (sequence, token, head)
    col = tl.arange(0, COLS)[None, :]
    half = d // 2
    inside = (row < n) & (col < half)
    t = row // H % T
    source = h + row // (T * H) * sb + t * st + row % H * sh + col
    a = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(source + half, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(cos + t * d + col, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + t * d + half + col, mask=inside, other=0.0).to(tl.float32) * sign
    place = y + row * d + col
    tl.store(place, (a * c - b * s).to(y.dtype.element_ty), mask=inside)
    tl.store(place + half, (b * c + a * s).to(y.dtype.element_ty), mask=inside)


def _rotated(h: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    h = h if h.stride(-1) == 1 else h.contiguous()
    batch, seq_len, heads, width = h.shape
    y, n = torch.empty(h.shape, dtype=h.dtype, device=h.device), batch * seq_len * heads
    rows, cols = _tile(width // 2)
    strides = h.stride()[:3]
    _rotate[(triton.cdiv(n, rows),)](h, cos, sin, y, n, seq_len, heads, width, *strides, sign, ROWS=rows, COLS=cols)
    return y


class Rotate(torch.autograd.Function):
    """`star.liv.attention.apply_rope` of h [B, T, H, d] by cos, signed sin [T, 1, d]. The backward rotates back."""

    @staticmethod
    def forward(ctx, h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(h, cos, sin, 1.0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(dy, cos, sin, -1.0), None, None


# ---- cross-entropy


@triton.jit
def _softmax(logits, targets, share, losses, V: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK)
    place = logits + row * V
    target = tl.load(targets + row)
    # Each lane keeps the largest logit that it has seen and a sum relative to it: one pass. Lanes beyond V keep -1e30,
    # whose share of the sum is 0.
    top = tl.full((BLOCK,), -1e30, tl.float32)
    size = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, V, BLOCK):
        z = tl.load(place + start + col, mask=start + col < V, other=-1e30).to(tl.float32)
        higher = tl.maximum(top, z)
        size = size * tl.exp(top - higher) + tl.exp(z - higher)
        top = higher
    largest = tl.max(top, axis=0)
    size_all = tl.sum(size * tl.exp(top - largest), axis=0)
    whole = largest + tl.log(size_all)
    chosen = tl.load(place + tl.maximum(target, 0)).to(tl.float32)
    tl.store(losses + row, tl.where(target < 0, 0.0, whole - chosen))
    if GRADIENT:
        weight = tl.load(share + row)
        for start in range(0, V, BLOCK):
            inside = start + col < V
            z = tl.load(place + start + col, mask=inside, other=0.0).to(tl.float32)
            p = tl.exp(z - whole) - tl.where(start + col == target, 1.0, 0.0)
            tl.store(place + start + col, (p * weight).to(logits.dtype.element_ty), mask=inside)


def _softmax_rows(logits: Tensor, targets: Tensor, share: Tensor | None) -> Tensor:
    n, vocab_size = logits.shape
    losses = torch.empty(n, dtype=torch.float32, device=logits.device)
    block = min(TILE, triton.next_power_of_2(vocab_size))
    gradient = share is not None
    given = losses if share is None else share
    _softmax[(n,)](logits, targets, given, losses, V=vocab_size, GRADIENT=gradient, BLOCK=block, num_warps=8)
    return losses


def softmax_gradient(logits: Tensor, targets: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """`star.model.cross_entropy.softmax_gradient`: overwrites the logits [n, V] by their gradient."""
    return torch.dot(_softmax_rows(logits, targets.contiguous(), share.contiguous()), share), logits


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Loss of every row of logits [n, V], float32 [n]; 0 where the target is negative. It has no gradient."""
    return _softmax_rows(logits, targets.contiguous(), None)


KERNELS: dict[str, Callable] = {
    "rms_norm": RMSNorm.apply,
    "residual_rms_norm": ResidualRMSNorm.apply,
    "convolve": Convolve.apply,
    "gated": Gated.apply,
    "rotate": Rotate.apply,
    "softmax_gradient": softmax_gradient,
    "token_losses": token_losses,
}


def try_all(device: torch.device) -> None:
    """Run every kernel, forward and backward. Raises whatever Triton raises if it cannot compile or start one."""
    with torch.enable_grad():
        x = torch.ones(2, 8, 16, dtype=torch.bfloat16, device=device, requires_grad=True)
        weight, table = torch.ones(16, device=device), torch.ones(8, 1, 16, device=device)
        passed, y = KERNELS["residual_rms_norm"](KERNELS["rms_norm"](x, weight, 1e-5), weight, 1e-5)
        y = KERNELS["gated"](KERNELS["convolve"](y, weight[:, None].repeat(1, 4)), passed, "swish")
        y = KERNELS["rotate"](y.unflatten(-1, (1, 16)), table, table)
        y.sum().backward()
    logits, targets = y.detach().reshape(16, 16), torch.zeros(16, dtype=torch.int64, device=device)
    KERNELS["token_losses"](logits, targets)
    KERNELS["softmax_gradient"](logits, targets, weight)
