"""Small functions that several families use. Some have a backward of their own, because autograd's is slow on a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from star.liv.backends import fused


def activate(x: Tensor, nonlinearity: str) -> Tensor:
    """A nonlinearity by name: none, relu, swish, gelu or normal_cdf (x times it is gelu)."""
    return {
        "none": lambda h: h,
        "relu": F.relu,
        "swish": F.silu,
        "gelu": lambda h: F.gelu(h, approximate="tanh"),
        "normal_cdf": lambda h: torch.sigmoid((8 / math.pi) ** 0.5 * (h + 0.044715 * h**3)),
    }[nonlinearity](x)


def gated(gate: Tensor, value: Tensor, nonlinearity: str) -> Tensor:
    """`activate` of the gate, times the value of the same shape."""
    kernel = fused("gated", value)
    return activate(gate, nonlinearity) * value if kernel is None else kernel(gate, value, nonlinearity)


def kept(tensor: Tensor) -> Tensor:
    """A copy for a decode state: it owns its memory, where a view would keep the activations of the whole prompt."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def short_convolution(x: Tensor, weight: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Causal depthwise convolution by shift and add, for filters of a few taps.

    Args: x [B, T, C]; weight [C, k], its last tap on the present token; past [B, k - 1, C], the inputs before x.
    Returns: y [B, T, C] and the last k - 1 inputs [B, k - 1, C].
    """
    before = weight.shape[1] - 1
    kernel = fused("convolve", x) if past is None and x.shape[1] >= before else None
    if kernel is not None:
        return kernel(x, weight), x[:, x.shape[1] - before :].detach()
    x = F.pad(x, (0, 0, before, 0)) if past is None else torch.cat([past.to(x.dtype), x], dim=1)
    return ShortConvolution.apply(x, weight), x[:, x.shape[1] - before :].detach()


class ShortConvolution(torch.autograd.Function):
    """y_t = sum_s w_s x_(t + s) of x [B, T + k - 1, C] and w [C, k].

    Autograd's own backward makes a padded copy of x for every tap; this one is three to six times faster on a CPU.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        taps = weight.movedim(-1, 0).contiguous()  # [k, C]
        seq_len = x.shape[-2] - len(taps) + 1
        y = x[..., :seq_len, :] * taps[0]
        for tap in range(1, len(taps)):
            y.addcmul_(x[..., tap : tap + seq_len, :], taps[tap])
        return y

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        length, seq_len = weight.shape[-1], dy.shape[-2]
        dx = dw = None
        if ctx.needs_input_grad[0]:
            # The transposed filter, by shift and add from the other end.
            dx = ShortConvolution.apply(F.pad(dy, (0, 0, length - 1, length - 1)), weight.flip(-1))
        if ctx.needs_input_grad[1]:
            dw = torch.stack([(x[..., tap : tap + seq_len, :] * dy).sum((-3, -2)) for tap in range(length)], dim=-1)
        return dx, dw


def token_by_token(
    step: Callable[..., tuple[Tensor, Tensor]], inputs: Sequence[Tensor | None], memory: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A recurrence with a matrix state as a loop over tokens: the definition that its parallel form is tested against.

    Args: step: one token, (*inputs with T = 1, memory) -> (y, memory); inputs: c, b [B, T, ., N], v [B, T, H, P], then
        gates [B, T, ...] or None; memory [B, H, N, P], the state before, or None for zeros.
    Returns: y [B, T, H, P] and the state after.
    """
    _, b, v = inputs[:3]
    assert b is not None and v is not None
    if memory is None:
        dtype = torch.promote_types(v.dtype, torch.float32)
        memory = v.new_zeros(v.shape[0], v.shape[2], b.shape[-1], v.shape[-1], dtype=dtype)
    out = []
    for t in range(v.shape[1]):
        y, memory = step(*(x if x is None else x[:, t : t + 1] for x in inputs), memory)
        out.append(y)
    return torch.cat(out, dim=1) if out else v, memory


def padded(x: Tensor, seq_len: int) -> Tensor:
    """[B, T, ...] -> [B, seq_len, ...] with zeros at the end."""
    missing = seq_len - x.shape[1]
    if not torch.compiler.is_compiling() and missing == 0:
        return x
    return F.pad(x, [0, 0] * (x.dim() - 2) + [0, missing])


def chunk_of(largest: int, seq_len: int) -> int:
    """Tokens of a chunk. A compiler gets the largest, so that its program holds for any length."""
    return largest if torch.compiler.is_compiling() else min(largest, seq_len)


def chunks_in(seq_len: int, chunk: int) -> int:
    """Number of chunks. An exported program has at least two: it would not run for one if it was made for more."""
    n_chunks = -(-seq_len // chunk)
    return torch.sym_max(n_chunks, 2) if torch.compiler.is_exporting() else n_chunks


def loops_over(n_chunks: int, operator: str) -> None:
    """Raises NotImplementedError in an export with dynamic length, for an operator with a loop over chunks."""
    if torch.compiler.is_exporting() and isinstance(n_chunks, torch.SymInt):
        raise NotImplementedError(
            f"{operator} has a loop over chunks of tokens, so it can only be exported for a fixed number of tokens"
        )


def in_chunks(x: Tensor, n_chunks: int, chunk: int) -> Tensor:
    """[B, T, H, C] -> [B, H, n, Q, C], padded with zeros: a token with b = v = 0 and g = 0 leaves the state alone."""
    return rearrange(padded(x, n_chunks * chunk), "b (n q) h c -> b h n q c", n=n_chunks).contiguous()


def from_chunks(y: Tensor, seq_len: int) -> Tensor:
    """The inverse of `in_chunks`, without the padding: [B, H, n, Q, C] -> [B, T, H, C]."""
    return rearrange(y, "b h n q c -> b (n q) h c")[:, :seq_len]


def carried(log_decay: Tensor, added: Tensor, start: Tensor | None) -> Tensor:
    """States between chunks: S_0 = start, S_(i+1) = exp(g_i) S_i + added_i.

    Args: log_decay g [B, H, n, N or 1, 1], <= 0; added [B, H, n, N, P]; start [B, H, N, P], or None for zeros.
    Returns: S [B, H, n + 1, N, P].
    """
    start = torch.zeros_like(added[:, :, 0]) if start is None else start
    if added.device.type == "cpu" and not torch.compiler.is_compiling():
        return CarriedStates.apply(log_decay.exp(), added, start)
    return carried_by_matrix(log_decay, added, start)


class CarriedStates(torch.autograd.Function):
    """`carried` chunk after chunk, forward and backward: on a CPU half the time of `carried_by_matrix`."""

    @staticmethod
    def forward(decay: Tensor, added: Tensor, start: Tensor) -> Tensor:
        states = [start]
        for i in range(added.shape[2]):
            states.append(torch.addcmul(added[:, :, i], decay[:, :, i], states[-1]))
        return torch.stack(states, dim=2)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx, d_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decay, states = ctx.saved_tensors
        total = [d_states[:, :, -1]]
        for i in range(states.shape[2] - 2, -1, -1):
            total.append(torch.addcmul(d_states[:, :, i], decay[:, :, i], total[-1]))
        sums = torch.stack(total[::-1], dim=2)  # of start, then of everything added
        return (sums[:, :, 1:] * states[:, :, :-1]).sum_to_size(decay.shape), sums[:, :, 1:], sums[:, :, 0]


def carried_by_matrix(log_decay: Tensor, added: Tensor, start: Tensor) -> Tensor:
    """`carried` without a loop, for GPUs and compilers: one triangular matrix of decays gives all states."""
    n = added.shape[2]
    g = log_decay.squeeze(-1).transpose(2, 3)  # [B, H, N or 1, n]
    reached = F.pad(g.cumsum(-1), (1, 0))  # log decay from the start to before chunk i
    # What is left of chunk j's contribution before chunk i, [B, H, N or 1, n + 1, n].
    between = (reached[..., :, None] + no_future(n + 1, g)[:, 1:] - reached[..., None, 1:]).exp()
    states = between @ (added.transpose(2, 3) if g.shape[2] > 1 else added.flatten(3)[:, :, None])
    states = states.transpose(2, 3) if g.shape[2] > 1 else states[:, :, 0].unflatten(-1, added.shape[3:])
    return states + reached.transpose(2, 3).exp()[..., None] * start[:, :, None]


def no_future(size: int, like: Tensor) -> Tensor:
    """[size, size]: 0 where row >= column, else -inf. It is added before exp, so the backward has no inf * 0."""
    return torch.full((size, size), -math.inf, dtype=like.dtype, device=like.device).triu(1)


def norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm (arXiv 1607.06450) of the last dimension if there is a bias, else `rms_norm`."""
    if bias is None:
        return rms_norm(x, weight, eps)
    return F.layer_norm(x, weight.shape, weight.to(x.dtype), bias.to(x.dtype), eps)


def residual_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """x itself and its `norm`, for a residual stream: a kernel then adds both gradients of x in one pass."""
    kernel = fused("residual_rms_norm", x) if bias is None else None
    return (x, norm(x, weight, bias, eps)) if kernel is None else kernel(x, weight, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension (arXiv 1910.07467), the mean square in float32 or wider.

    `weight` has the shape of the last dimension, or of the last two.
    """
    kernel = fused("rms_norm", x) if weight.dim() == 1 else None
    if kernel is not None:
        return kernel(x, weight, eps)
    weight = weight.to(x.dtype)
    if x.device.type == "cpu":
        return RMSNorm.apply(x, weight, eps)[0]
    if weight.dim() > 1:
        return F.rms_norm(x, x.shape[-1:], None, eps) * weight
    return F.rms_norm(x, x.shape[-1:], weight, eps)


class RMSNorm(torch.autograd.Function):
    """`F.rms_norm` for CPUs, where torch runs a chain of nine operations. It keeps x and one number per token.

    The backward calls the fused backward of LayerNorm with mean zero. LayerNorm also subtracts the mean of dy * w; we
    add it back. A whole training step is 1 to 3 % faster than with a backward in single operations.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(x.dtype, torch.float32)
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
        inverse = (size.square() / x.shape[-1] + eps).rsqrt()
        if x.dtype == dtype:
            return (x * weight).mul_(inverse), inverse
        return (x * inverse).to(x.dtype) * weight, inverse

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs[:2], output[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        if weight.dim() == 1 and x.dtype == inverse.dtype:
            zero = torch.zeros_like(inverse)
            dx, dweight, _ = torch.ops.aten.native_layer_norm_backward(
                dy.contiguous(), x, weight.shape, zero, inverse, weight, None, [True, True, False]
            )
            return dx.add_((dy @ weight)[..., None] * inverse, alpha=1 / len(weight)), dweight, None
        normed = (x * inverse).to(x.dtype)
        product = dy * normed
        along = product @ weight if weight.dim() == 1 else (product * weight).sum(-1)
        dx = torch.addcmul(dy * weight, normed, along[..., None] / weight.shape[-1], value=-1) * inverse
        return dx.to(dy.dtype), product.sum_to_size(weight.shape), None
