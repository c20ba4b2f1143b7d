"""Cross-entropy of next tokens without ever holding all logits.

    loss = mean_i ( log sum_v exp(w_v . x_i) - w_(t_i) . x_i )        i tokens, v the vocabulary, t_i targets

With a vocabulary of 50,000 the logits of a batch, their softmax and its gradient take most of the memory of training.
Here tokens pass the head a chunk at a time. The gradient of the mean follows from the logits,

    d loss / d logits_i = (softmax(logits_i) - onehot(t_i)) / n,

so it is computed together with the loss, for x and for the head, and the logits of the chunk are dropped at once: three
matrix products, as without chunks, and no second forward (the idea of Liger, arXiv 2410.10989, in plain torch).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from star.liv.backends import fused

IGNORED = -100  # a target that does not count, as in torch
# Measured on a CPU (one thread, widths 128 to 384): below 2**21 logits the plain form is 2 to 17 % faster, above it the
# chunked form is up to 1.25 times as fast. Chunks of 256 to 1,024 tokens are equally fast, of 64 slower.
CPU_LOGITS, CPU_CHUNK = 2**21, 512
# On a GPU the chunked form is the faster one with a one-pass kernel for the softmax and its gradient: it writes logits
# once and overwrites them once. Its chunk is as large as the memory allows. Without the kernel it has 0.98, 0.73 and
# 0.81 of the speed of the plain form on an H100 (vocabularies of 256, 8,192 and 50,304), and only saves memory.
GPU_SHARE, GPU_BYTES = 1 / 4, 16  # of the memory; bytes for each logit: in bfloat16 and float32, softmax, two gradients
FUSED_BYTES = 4  # the same with the kernel


def cross_entropy(
    x: Tensor, head: Tensor, targets: Tensor, reduction: str = "mean", chunk: int | None = None
) -> Tensor:
    """Loss in nats, a scalar or [N] with reduction "none"; the softmax is in float32 or wider.

    Args: x [N, D]; head [V, D], cast to the dtype of x, while its gradient is summed in its own dtype; targets int64
        [N], where -100 does not count (loss 0 with "none"); chunk: tokens whose logits are held at once, by default all
        where that is faster.
    """
    learns = torch.is_grad_enabled() and (x.requires_grad or head.requires_grad)
    in_one_pass = fused("softmax_gradient", x) is not None and (reduction == "mean" or not learns)
    chunk = chunk or tokens_at_once(x, head, in_one_pass)
    if chunk == 0:
        return plain_cross_entropy(x, head.to(x.dtype), targets, reduction)
    if learns and reduction == "mean":
        return ChunkedCrossEntropy.apply(x, head, targets, chunk)[0]
    head = head.to(x.dtype)
    parts = zip(x.split(chunk), targets.split(chunk), strict=True)
    loss = torch.cat([token_losses(part, head, target, learns) for part, target in parts])
    return loss if reduction == "none" else loss.sum() / (targets != IGNORED).sum()


def tokens_at_once(x: Tensor, head: Tensor, in_one_pass: bool = False) -> int:
    """How many tokens of x [N, D] pass head [V, D] at once; 0 for all, in the plain form.

    in_one_pass: whether a kernel computes the softmax and its gradient.
    """
    vocab_size, logits = len(head), len(x) * len(head)
    if x.device.type == "cpu":
        return 0 if logits < CPU_LOGITS else CPU_CHUNK
    memory = GPU_SHARE * torch.cuda.get_device_properties(x.device).total_memory
    room = int(memory / (FUSED_BYTES if in_one_pass else GPU_BYTES))
    if logits <= room:
        return len(x) if in_one_pass else 0
    return max(1, room // vocab_size)


def plain_cross_entropy(x: Tensor, head: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """The same with all logits at once, head [V, D] in the dtype of x."""
    return plain_losses(F.linear(x, head), targets, reduction)


def plain_losses(logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """Cross-entropy from logits [N, V], in float32 or wider."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, targets, reduction=reduction, ignore_index=IGNORED)


def token_losses(x: Tensor, head: Tensor, targets: Tensor, learns: bool) -> Tensor:
    """Losses [N]. Their gradient depends on the weight of each token, so the backward computes the logits again."""
    if learns:
        return checkpoint(plain_cross_entropy, x, head, targets, "none", use_reentrant=False)
    logits = F.linear(x, head)
    kernel = fused("token_losses", logits)
    return plain_losses(logits, targets, "none") if kernel is None else kernel(logits, targets)


class ChunkedCrossEntropy(torch.autograd.Function):
    """The mean loss with its gradients, computed forward: x [N, D], head [V, D], targets [N] -> loss, d loss/dx, d
    loss/d head.
    """

    @staticmethod
    def forward(x: Tensor, head: Tensor, targets: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
        weight = head.to(x.dtype)
        counts = targets != IGNORED
        # [N], the weight of each token in the mean.
        share = counts.to(torch.promote_types(x.dtype, torch.float32)) / counts.sum()
        total: Any = 0.0
        dx, dhead = [], None
        for part, target, s in zip(x.split(chunk), targets.split(chunk), share.split(chunk), strict=True):
            loss, dlogits = softmax_gradient(torch.mm(part, weight.T), target, s)
            total = total + loss
            dx.append(torch.mm(dlogits, weight))
            product = torch.mm(dlogits.T, part).to(head.dtype)
            dhead = product if dhead is None else dhead.add_(product)
        assert dhead is not None
        return total, torch.cat(dx), dhead

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor, Tensor, int], output: tuple[Tensor, Tensor, Tensor]) -> None:
        _, dx, dhead = output
        ctx.mark_non_differentiable(dx, dhead)
        ctx.save_for_backward(dx, dhead)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dloss: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        dx, dhead = ctx.saved_tensors
        return dloss.to(dx.dtype) * dx, dloss.to(dhead.dtype) * dhead, None, None


def softmax_gradient(logits: Tensor, targets: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted loss of one chunk, a scalar, and its gradient by the logits [n, V] in their dtype.

    share [n]: the weight of each token, 0 where the target is -100. May overwrite the logits.
    """
    kernel = fused("softmax_gradient", logits)
    if kernel is not None:
        return kernel(logits, targets, share)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    index, share = targets.clamp_min(0)[:, None], share[:, None]
    p = logits.to(dtype)
    p = p.sub_(p.amax(-1, keepdim=True))
    chosen = p.gather(1, index)
    p = p.exp_()
    size = p.sum(-1, keepdim=True)
    loss = ((size.log() - chosen) * share).sum()
    p = p.mul_(share / size).scatter_add_(1, index, -share)
    return loss, p.to(logits.dtype)
