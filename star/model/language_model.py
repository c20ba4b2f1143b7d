"""A language model from a plan: embedding, one block per LIV, final norm, head.

    tokens [B, T]  ->  x [B, T, D]  ->  block: x + gain * norm(LIV(norm(x)))  ...  ->  norm  ->  logits [B, T, V]

Learned positions, if the genome has them, are added to x.

`model(tokens)` returns logits and a state, from which later tokens continue exactly. `model.loss` is for training and
keeps no state. Weights stay in their own dtype; activations have `compute_dtype` (bfloat16 on a GPU), without autocast.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node

from star.genome.plan import BlockConfig, Layer, Plan
from star.liv.base import LIV, Features, State, Weight, check_state, normal
from star.liv.functional import norm, residual_norm
from star.model.cross_entropy import cross_entropy

NORM_EPS = 1e-5
BASE_WIDTH = 64  # the width at which initial logits have a standard deviation of 1


def pytree(cls: type) -> type:
    """A class decorator: torch.export and others may take the state apart and put it together again."""
    register_pytree_node(
        cls,
        lambda state: ([state.layers, state.length, state.capacity, state.padding], None),
        lambda parts, _: cls(*parts),
        serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
    )
    return cls


@pytree
@dataclass
class ModelState:
    """The decode state: everything that later tokens depend on. To continue it more than once, continue copies."""

    layers: list[State]  # for each layer its tensors by name
    length: int  # tokens seen
    capacity: int  # tokens that the caches have room for
    padding: Tensor | None = None  # int64 [B], tokens of padding before each sequence; None for none
    used: bool = False  # whether it was continued: its tensors then belong to later tokens

    def copy(self) -> ModelState:
        """A state with tensors of its own, for beam search or a prefix that several continuations have in common."""
        if self.used:
            raise ValueError("this state was continued already; copy it before that")
        layers = [{name: tensor.clone() for name, tensor in layer.items()} for layer in self.layers]
        return ModelState(layers, self.length, self.capacity, self.padding)

    @property
    def nbytes(self) -> int:
        """Bytes of all state tensors."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer.values())


class Block(nn.Module):
    """One LIV with its norm and residual: x + gain * norm_out(LIV(norm_in(x)))."""

    norm_in: nn.Parameter | None
    norm_in_bias: nn.Parameter | None
    norm_out: nn.Parameter | None
    norm_out_bias: nn.Parameter | None
    gain: nn.Parameter | None
    liv: LIV

    def __init__(self, config: BlockConfig, liv: LIV):
        super().__init__()
        add_weights(
            self,
            config.weights(liv.config.reads_input(liv.given)),
            ("norm_in", "norm_in_bias", "norm_out", "norm_out_bias", "gain"),
        )
        self.liv = liv

    def forward(
        self, x: Tensor, state: State | None, given: Features, offset: int
    ) -> tuple[Tensor, State | None, Features]:
        """x [B, T, D] -> the new residual stream [B, T, D], the new state, and the features, which others may share."""
        h = x
        if self.norm_in is not None:
            x, h = residual_norm(x, self.norm_in, self.norm_in_bias, NORM_EPS)
        if "padding" in given:  # nothing is read of a token of padding, and attention leaves its key out
            h = h * (torch.arange(offset, offset + x.shape[1], device=x.device) >= given["padding"][:, None])[..., None]
        h, state, features = self.liv.share(h, state, given, offset)
        if self.norm_out is not None:
            h = norm(h, self.norm_out, self.norm_out_bias, NORM_EPS)
        if self.gain is not None:
            h = h * self.gain.to(h.dtype)
        return x + h, state, features


def add_weights(module: nn.Module, weights: Mapping[str, Weight], names: Iterable[str]) -> None:
    """Gives a module these parameters at their initial values, which must be constants; other `names` become None."""
    for name in names:
        module.register_parameter(name, None)
    for name, weight in weights.items():
        module.register_parameter(name, nn.Parameter(torch.empty(weight.shape)))
        with torch.no_grad():
            weight.init(getattr(module, name), torch.Generator())


class CastTogether(torch.autograd.Function):
    """Tensors in another dtype, and their gradients in the dtypes of the tensors."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        return cast_together(tensors, [dtype] * len(tensors))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *cast_together(gradients, ctx.dtypes)


def cast_together(tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> tuple[Tensor, ...]:
    """Every tensor in its dtype, by few kernels."""
    sources = [tensor.contiguous() for tensor in tensors]
    copies = [torch.empty(t.shape, dtype=dtype, device=t.device) for t, dtype in zip(sources, dtypes, strict=True)]
    torch._foreach_copy_(copies, sources)
    return tuple(copies)


class LanguageModel(nn.Module):
    """A language model. vocab_size: rows of the embedding; tie_embeddings: embedding and head are one matrix.

    tie_embeddings is None for what the plan says.
    """

    genome: Any = None  # set by `star.build`
    tokenizer: Any = None  # of the text that it was trained on, see `star.data.tokenizer`; None: bytes
    final_norm: nn.Parameter
    final_norm_bias: nn.Parameter | None
    positions: nn.Parameter | None
    blocks: Any  # nn.ModuleList of `Block`, whose elements torch does not type

    def __init__(self, plan: Plan, vocab_size: int, tie_embeddings: bool | None = None):
        super().__init__()
        self.plan, self.vocab_size = plan, vocab_size
        self.tie_embeddings = plan.tied if tie_embeddings is None else tie_embeddings
        self.compute_dtype: torch.dtype | None = None  # None: the dtype of the weights
        self.embedding = nn.Parameter(torch.empty(vocab_size, plan.d_model))
        rows = torch.empty(plan.positions, plan.d_model)
        self.register_parameter("positions", nn.Parameter(rows) if plan.positions else None)
        self.blocks = nn.ModuleList()
        for layer in plan.layers:
            self.blocks.append(Block(plan.block, layer.config.build(layer.given, self._tied(layer))))
        add_weights(self, plan.block.norm_weights("final_norm"), ("final_norm", "final_norm_bias"))
        if not self.tie_embeddings:
            self.head = nn.Parameter(torch.empty(vocab_size, plan.d_model))

    def _tied(self, layer: Layer) -> dict[str, nn.Parameter]:
        """The parameters of earlier layers that this one uses as its own."""
        return {
            name: getattr(self.blocks[layer.weights_from[weight.group]].liv, name)
            for name, weight in layer.config.own_weights(layer.given).items()
            if weight.group in layer.weights_from
        }

    def forward(
        self, tokens: Tensor, state: ModelState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, ModelState]:
        """tokens int64 [B, T] -> logits [B, T, V] and the state after them, which takes over the tensors of the last.

        Without a state, a new one is made; caches grow as needed. The state carries no gradient. lengths int64 [B]: of
        sequences that begin here and are padded on the left, with any token; each gives what it gives alone, and the
        state remembers the padding. Raises ValueError for tokens, lengths or a state that do not fit the model, and for
        a state that was continued before.
        """
        self._check_tokens(tokens)
        batch, seq_len = tokens.shape
        if state is None:
            state = self.init_state(batch, seq_len)
        self._make_room(state, batch, seq_len)
        if lengths is not None:
            state.padding = self._padding(lengths, tokens, state)
        x, layers = self.hidden(tokens, state)
        state.used = True
        return self.logits(x), ModelState(layers, state.length + seq_len, state.capacity, state.padding)

    def loss(self, tokens: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Cross-entropy in nats of targets int64 [B, T]: a scalar, or [B, T] with reduction "none".

        Many logits are computed a chunk of tokens at a time (see `star.model.cross_entropy`).
        """
        dtype = self.compute_dtype
        if dtype is None or dtype == self.embedding.dtype or torch.compiler.is_compiling():
            casts: contextlib.AbstractContextManager = contextlib.nullcontext()
        else:
            casts = self.copies(dtype)
        with casts:
            x, _ = self.hidden(tokens, None)
        x = norm(x, self.final_norm, self.final_norm_bias, NORM_EPS).flatten(0, 1)
        loss = cross_entropy(x, self.head_weight, targets.flatten().long(), reduction)
        return loss.view(targets.shape) if reduction == "none" else loss

    @contextlib.contextmanager
    def copies(self, dtype: torch.dtype) -> Iterator[None]:
        """Cast the matrices of all LIVs at once, for one pass over the blocks.

        One kernel instead of one for each matrix, and another one for all gradients. A block whose forward has been
        replaced (compiled, or recomputed in the backward) casts by itself.
        """
        livs = [block.liv for block in self.blocks if "forward" not in vars(block)]
        found = {id(weight): weight for liv in livs for _, weight in liv.matrices() if weight.dtype != dtype}
        copy = dict(zip(found, CastTogether.apply(dtype, *found.values()))) if found else {}
        try:
            for liv in livs:
                liv.copies = {name: copy[id(weight)] for name, weight in liv.matrices() if id(weight) in copy}
            yield
        finally:
            for liv in livs:
                liv.copies = {}

    def hidden(self, tokens: Tensor, state: ModelState | None) -> tuple[Tensor, list[State]]:
        """tokens [B, T] -> the residual stream after the last block [B, T, D], and the states of all layers."""
        self._check_tokens(tokens)
        offset, padding = (0, None) if state is None else (state.length, state.padding)
        x = F.embedding(tokens if tokens.dtype in (torch.int64, torch.int32) else tokens.long(), self.embedding)
        if self.positions is not None:
            x = x + self.positions_of(offset, tokens.shape[1], padding)
        x = x if self.compute_dtype is None else x.to(self.compute_dtype)
        bank: dict[int, Features] = {}
        states = []
        for layer, block in zip(self.plan.layers, self.blocks):
            given = {} if layer.provider is None else bank[layer.provider]
            given = given if padding is None else {**given, "padding": padding}
            before = None if state is None else state.layers[layer.index]
            x, after, features = block(x, before, given, offset)
            states.append(after)
            if layer.provides:
                bank[layer.index] = features
        return x, states

    def check_length(self, n_tokens: int) -> None:
        """Raises ValueError for a sequence with more tokens than there are learned positions."""
        if 0 < self.plan.positions < n_tokens:
            raise ValueError(
                f"this model has {self.plan.positions} learned positions and the sequence {n_tokens} tokens; give fewer"
            )

    def positions_of(self, offset: int, seq_len: int, padding: Tensor | None = None) -> Tensor:
        """The learned positions [T, D] of `seq_len` tokens after `offset` others, or [B, T, D] after padding [B].

        Raises ValueError beyond the last.
        """
        assert self.positions is not None
        self.check_length(offset + seq_len)
        if padding is None:
            return self.positions[offset : offset + seq_len]
        places = torch.arange(offset, offset + seq_len, device=padding.device) - padding[:, None]
        return self.positions[places.clamp_min(0)]

    def logits(self, x: Tensor) -> Tensor:
        """Final norm and head: [B, T, D] -> [B, T, V]."""
        x = norm(x, self.final_norm, self.final_norm_bias, NORM_EPS)
        return F.linear(x, self.head_weight.to(x.dtype))

    @property
    def head_weight(self) -> nn.Parameter:
        """The weights of the head [V, D]."""
        return self.embedding if self.tie_embeddings else self.head

    def init_state(
        self, batch: int, max_len: int, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> ModelState:
        """An empty state with room for `max_len` tokens; it grows when more are needed."""
        dtype = dtype or self.compute_dtype or self.embedding.dtype
        device = device or self.embedding.device
        layers = [block.liv.init_state(batch, max_len, dtype, device) for block in self.blocks]
        state = ModelState(layers, 0, max_len)
        if "torch._dynamo" in sys.modules and not torch.compiler.is_compiling():
            for layer, tensors in zip(self.plan.layers, layers):
                for name, entry in layer.state().items():
                    if entry.cap is not None:  # one graph before and after it grows
                        torch._dynamo.maybe_mark_dynamic(tensors[name], entry.column_dim + 1)
        return state

    def _check_tokens(self, tokens: Tensor) -> None:
        if tokens.dim() != 2 or tokens.is_floating_point():
            raise ValueError(
                f"tokens are {tokens.dtype} of shape {list(tokens.shape)}; give integer ids of shape [batch, tokens]"
            )
        if tokens.device != self.embedding.device:
            raise ValueError(
                f"tokens are on {tokens.device} and the model on {self.embedding.device}; move one to the other"
            )

    def _padding(self, lengths: Tensor, tokens: Tensor, state: ModelState) -> Tensor:
        """Tokens of padding before each sequence, int64 [B]."""
        batch, seq_len = tokens.shape
        if state.length:
            raise ValueError("lengths are given with the first tokens of a sequence; this state has seen some already")
        if lengths.shape != (batch,) or lengths.is_floating_point() or lengths.min() < 1 or lengths.max() > seq_len:
            raise ValueError(
                f"lengths are {lengths.tolist()}; give {batch} integers from 1 to {seq_len}, one a sequence"
            )
        return seq_len - lengths.to(tokens.device, torch.int64)

    def _check_state(self, state: ModelState, batch: int) -> None:
        if state.used:
            raise ValueError("this state was continued already; to continue it twice, continue a state.copy() of it")
        if len(state.layers) != len(self.blocks):
            raise ValueError(
                f"the state has {len(state.layers)} layers and the model {len(self.blocks)}; use a state that this "
                "model made"
            )
        dtype = self.compute_dtype or self.embedding.dtype
        for layer, tensors in zip(self.plan.layers, state.layers):
            check_state(tensors, layer.state(), batch, 0, dtype, self.embedding.device, f"layer {layer.index}")

    def _make_room(self, state: ModelState, batch: int, seq_len: int) -> None:
        self._check_state(state, batch)
        if state.length + seq_len <= state.capacity:
            return
        needed = state.length + seq_len
        if not torch.compiler.is_compiling():
            needed = state.capacity = max(needed, 2 * state.capacity)
        # Compiled, it gets room for just these tokens and grows at every call, in one graph for all of them.
        for layer, tensors in zip(self.plan.layers, state.layers):
            for name, entry in layer.state().items():
                if entry.cap is not None:
                    dim = entry.column_dim + 1
                    room = entry.columns(needed) - tensors[name].shape[dim]
                    padding = [0, 0] * (tensors[name].dim() - 1 - dim) + [0, room]
                    tensors[name] = F.pad(tensors[name], padding)

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Initialises all weights from one seed. Output maps shrink with depth, so the residual stream keeps its size.

        Embedding and head start the same at any width, and the final norm scales the logits by 1 / width. A wider model
        then starts and learns like a narrow one (muP, arXiv 2203.03466; its multipliers are part of the weights here).
        """
        generator = torch.Generator().manual_seed(seed)
        for parameter in (self.embedding, None if self.tie_embeddings else self.head, self.positions):
            if parameter is not None:
                normal(BASE_WIDTH**-0.5)(parameter, generator)
        self.final_norm.fill_(BASE_WIDTH / self.plan.d_model)
        for block in self.blocks:
            block.liv.reset_parameters(generator)
            block.liv.out.mul_(len(self.blocks) ** -0.5)

    def parameter_groups(self) -> list[dict]:
        """Every parameter once, grouped by how it should be trained.

        kind: "embedding", "head", "hidden" (dense matrices of LIVs) or "vector" (norms, filters, gates, biases);
        layer: index of the LIV, or None; n_layers; width of the model; names; params; fan_in of matrices, else 1;
        scale, where it is not 1: the initial size of the parameters, in proportion to which their steps should be.
        """
        groups: dict[tuple, dict] = {}

        def add(kind: str, layer: int | None, name: str, parameter: Tensor, fan_in: int = 1, **more: float) -> None:
            new: dict[str, Any] = {"kind": kind, "layer": layer, "names": [], "params": [], "fan_in": fan_in}
            group = groups.setdefault((kind, layer, fan_in), new | more)
            group["names"].append(name)
            group["params"].append(parameter)

        add("embedding", None, "embedding", self.embedding)
        if not self.tie_embeddings:
            add("head", None, "head", self.head, self.plan.d_model)
        if self.positions is not None:
            add("embedding", None, "positions", self.positions)
        for name in self.plan.block.norm_weights("final_norm"):
            add("vector", None, name, getattr(self, name), scale=BASE_WIDTH / self.plan.d_model)
        for layer, block in zip(self.plan.layers, self.blocks):
            for name, weight in layer.weights().items():
                kind, fan_in = ("hidden", weight.shape[-1]) if weight.kind == "matrix" else ("vector", 1)
                add(kind, layer.index, f"blocks.{layer.index}.liv.{name}", getattr(block.liv, name), fan_in)
            for name in self.plan.block.weights(layer.reads_input):
                add("vector", layer.index, f"blocks.{layer.index}.{name}", getattr(block, name))
        return [group | {"width": self.plan.d_model, "n_layers": len(self.blocks)} for group in groups.values()]

    def generate(
        self,
        tokens: Tensor,
        n_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """tokens [B, T] followed by `n_tokens` generated ones, [B, T + n_tokens]. Temperature 0 is greedy.

        lengths [B]: of prompts that are padded on the left.
        Raises ValueError for an empty prompt, a negative temperature or number of tokens, and a top_k below 1.
        """
        return torch.cat([tokens.long(), *self.stream(tokens, n_tokens, temperature, top_k, seed, lengths)], dim=1)

    def stream(
        self,
        tokens: Tensor,
        n_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
        lengths: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """The tokens [B, 1] of `generate`, each as soon as it is there. Same arguments and errors."""
        self._check_tokens(tokens)
        if tokens.shape[1] == 0:
            raise ValueError("the prompt is empty; give at least one token")
        if n_tokens < 0 or not 0 <= temperature < math.inf or (top_k is not None and top_k < 1):
            raise ValueError(
                f"n_tokens is {n_tokens}, temperature {temperature} and top_k {top_k}; n_tokens and temperature must "
                "be at least 0 and finite, and top_k at least 1 or None"
            )
        self.check_length(tokens.shape[1] + n_tokens)
        generator = torch.Generator(device=tokens.device).manual_seed(seed)
        state = self.init_state(tokens.shape[0], tokens.shape[1] + n_tokens)
        new = tokens.long()
        for step in range(n_tokens):
            with torch.no_grad():
                logits, state = self(new, state, lengths if step == 0 else None)
                new = self._choose(logits[:, -1].float(), temperature, top_k, generator)
            yield new

    def _choose(self, scores: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> Tensor:
        """A token [B, 1] by its logits [B, V]."""
        if top_k is not None and top_k < self.vocab_size:
            scores = scores.masked_fill(scores < scores.topk(top_k).values[:, -1:], -math.inf)
        if temperature == 0:
            return scores.argmax(-1, keepdim=True)
        scores = scores - scores.amax(-1, keepdim=True)  # a low temperature then overflows to -inf alone
        return torch.multinomial(torch.softmax(scores / max(temperature, 1e-30), -1), 1, generator=generator)
