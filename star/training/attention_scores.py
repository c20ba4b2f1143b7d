"""How much the loss depends on the keys of each attention head, by distance, without storing dense attention matrices.

    S_ij = |A_ij| |dL/dA_ij|,   dL/dA_ij = dO_i . v_j        A = softmax(q k^T / sqrt(d)), O = A v, dO = dL/dO

S estimates, to first order, by how much the loss changes if query i no longer sees key j. (It is a Taylor score; its
signed sum over a head is the head importance of Michel et al., arXiv 1905.10650: sum_j A_ij dA_ij = dO_i . O_i.) A mask
of single pairs (i, j) would not carry over to other inputs, so S is summed by (head, distance i - j), in buckets whose
edges are the legal windows.

Shapes: B batch, H query heads (of all branches), G key/value heads, T queries, S visible keys, d head width.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor

from star.genome.edit import SPARSITY_GENES
from star.liv.attention import Attention, softmax_attention
from star.model import LanguageModel

WINDOWS = tuple(SPARSITY_GENES)  # windows that a search can draw
N_BUCKETS = len(WINDOWS) + 1  # bucket n: distances from WINDOWS[n - 1] to WINDOWS[n] - 1; the last is open
FULL = 2**62  # the window of all keys, as a number


@dataclass
class HeadLimits:
    """Attention whose heads have their own windows and gains; replaces `softmax_attention` in one LIV.

    windows: keys that each of the H heads sees, its own position included; None for all that the LIV sees. mixed [H]:
    the same as a tensor, None if all heads have the same window; groups: then the heads of each window, otherwise
    empty. gains [H]: factors of the heads' outputs, None if all are 1.
    """

    windows: list[int | None]
    mixed: Tensor | None
    groups: list[tuple[int | None, Tensor]]
    gains: Tensor | None

    @classmethod
    def make(cls, windows: list[int | None], gains: list[float], device: torch.device) -> HeadLimits:
        """Limits from windows and gains of the heads."""
        mixed, groups = None, []
        if len(set(windows)) > 1:
            mixed = torch.tensor([w or FULL for w in windows], device=device)
            for own in dict.fromkeys(windows):
                heads = [head for head, window in enumerate(windows) if window == own]
                groups.append((own, torch.tensor(heads, device=device)))
        factors = None if set(gains) == {1} else torch.tensor(gains, dtype=torch.float32, device=device)
        return cls(list(windows), mixed, groups, factors)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        """Arguments and result as in `softmax_attention`; `window` is the LIV's."""
        if self.mixed is None:
            y = softmax_attention(q, k, v, smaller(self.windows[0], window))
        elif torch.compiler.is_compiling():
            y = self.masked(q, k, v, window)
        else:
            y = self.by_window(q, k, v, window)
        return y if self.gains is None else y * self.gains[:, None, None].to(y.dtype)

    def masked(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        """All heads at once, with windows as values, so that a new window needs no recompilation."""
        assert self.mixed is not None
        limits = self.mixed if window is None else self.mixed.clamp(max=window)
        mask = head_mask(q.shape[2], k.shape[2], limits)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])

    def by_window(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        """The heads of one window after the heads of another, as fast as LIVs of these windows: without a mask."""
        repeat = q.shape[1] // k.shape[1]
        parts = [
            softmax_attention(q[:, h], k[:, h // repeat], v[:, h // repeat], smaller(own, window))
            for own, h in self.groups
        ]
        return torch.cat(parts, 1)[:, torch.cat([heads for _, heads in self.groups]).argsort()]


def smaller(first: int | None, second: int | None) -> int | None:
    """The smaller of two windows; None stands for all keys."""
    return min((w for w in (first, second) if w is not None), default=None)


def larger(windows: Iterable[int | None]) -> int | None:
    """The largest of several windows; None if one of them is None, which stands for all keys, or if there are none."""
    numbers = [FULL if window is None else window for window in windows]
    return None if FULL in numbers else max(numbers, default=None)


def head_mask(seq_len: int, visible: int, windows: Tensor) -> Tensor:
    """[H, T, S] boolean: the last T of S positions see `windows` [H] keys, their own included."""
    query = torch.arange(visible - seq_len, visible, device=windows.device)[:, None]
    distance = query - torch.arange(visible, device=windows.device)  # [T, S]
    return (distance >= 0) & (distance < windows[:, None, None])


@torch.no_grad()
def scores(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, windows: Tensor | None = None, block: int = 128) -> Tensor:
    """Sum of S over batch, queries and the keys of each distance bucket: float64 [H, N_BUCKETS].

    Args: q [B, H, T, d]; k, v [B, G, S, d]; grad [B, H, T, d]: dL/dO; windows [H]: keys that each head sees. `block`
    queries are scored at a time, in memory O(B H S block).
    """
    n_heads, seq_len, width = q.shape[1:]
    past = k.shape[2] - seq_len
    reach = FULL if windows is None else int(windows.max())
    wide = torch.promote_types(q.dtype, torch.float32)
    edges = torch.tensor(WINDOWS, device=q.device)
    result = torch.zeros(n_heads, N_BUCKETS, dtype=torch.float64, device=q.device)
    for start in range(0, seq_len, block):
        stop = min(start + block, seq_len)
        first, last = max(0, past + start + 1 - reach), past + stop  # keys that any query of the block sees
        keys, values = (spread(t[:, :, first:last].to(wide), n_heads) for t in (k, v))  # [B, H, s, d]
        query = torch.arange(past + start, past + stop, device=q.device)[:, None]
        distance = query - torch.arange(first, last, device=q.device)  # [b, s]
        hidden = distance < 0 if windows is None else (distance < 0) | (distance >= windows[:, None, None])
        logits = q[:, :, start:stop].to(wide) @ keys.transpose(-1, -2) * width**-0.5  # [B, H, b, s]
        weight = logits.masked_fill_(hidden, -torch.inf).softmax(-1)
        score = weight.mul_(grad[:, :, start:stop].to(wide) @ values.transpose(-1, -2)).abs_().sum(0)  # [H, b, s]
        bucket = torch.bucketize(distance, edges, right=True)
        for n in range(1 + int((edges <= past + stop).sum())):
            result[:, n] += (score * (bucket == n)).sum((1, 2))
    return result


def spread(t: Tensor, n_heads: int) -> Tensor:
    """Keys or values for every query head: [B, G, S, d] -> [B, H, S, d]."""
    return repeat(t, "b g s d -> b (g n) s d", n=n_heads // t.shape[1])


def sample_scores(model: LanguageModel, inputs: Tensor, targets: Tensor) -> dict[int, Tensor]:
    """`scores` of every attention LIV of a language model on one batch, int64 [B, T]: {layer: [H, N_BUCKETS]}.

    Heads see the keys in their windows. Gradients are with respect to the outputs after the gains, so a head that is
    being dropped keeps its full score. This runs its own forward and part of a backward; it does not change weights,
    `.grad` or random number generators.
    """
    with recorded(model) as records, torch.enable_grad(), eager():
        loss = model.loss(inputs, targets)
        # Read before the backward, in which recomputed activations are recorded again
        kept = {layer: record.kept for layer, record in records.items()}
        grads = torch.autograd.grad(loss, [y for *_, y in kept.values()])
    result = {}
    for (layer, (q, k, v, _)), grad in zip(kept.items(), grads, strict=True):
        result[layer] = scores(q, k, v, grad, records[layer].windows(q.shape[1], q.device))
    return result


class Record:
    """Attention of a LIV, with its limits, that keeps its arguments q, k, v and its result."""

    kept: tuple[Tensor, Tensor, Tensor, Tensor]

    def __init__(self, liv: Attention):
        assert liv.attend is None or isinstance(liv.attend, HeadLimits)
        self.limits = liv.attend
        self.window = liv.config.window

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        y = (self.limits or softmax_attention)(q, k, v, window)
        self.kept = q.detach(), k.detach(), v.detach(), y
        return y

    def windows(self, n_heads: int, device: torch.device) -> Tensor | None:
        """Window of every head; None for all keys."""
        windows = [smaller(w, self.window) for w in (self.limits.windows if self.limits else [None] * n_heads)]
        return None if not any(windows) else torch.tensor([w or FULL for w in windows], device=device)


@contextlib.contextmanager
def recorded(model: LanguageModel) -> Iterator[dict[int, Record]]:
    """A context in which the attention of `model` records what `scores` needs: {layer: record}."""
    livs = attention_livs(model)
    records = {layer: Record(liv) for layer, liv in livs.items()}
    try:
        for layer, liv in livs.items():
            liv.attend = records[layer]
        yield records
    finally:
        for layer, liv in livs.items():
            liv.attend = records[layer].limits


def attention_livs(model: LanguageModel) -> dict[int, Attention]:
    """{layer: attention LIV} of a language model, without those that have sinks."""
    livs = {index: block.liv for index, block in enumerate(model.blocks) if isinstance(block.liv, Attention)}
    return {index: liv for index, liv in livs.items() if not liv.config.sink}


def eager() -> contextlib.AbstractContextManager:
    """A context in which compiled layers run uncompiled, so that the recording is not compiled into them."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()
