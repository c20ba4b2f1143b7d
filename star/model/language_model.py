"""A language model from a plan: embedding, one block per LIV, final norm, head.

    tokens [B, T]  ->  x [B, T, D]  ->  block: x + gain * norm(LIV(norm(x)))  ...  ->  norm  ->  logits [B, T, V]

`model(tokens)` returns logits and a state that continues exactly; `model.loss` is the training entry and computes no
state. Master weights stay in their own dtype; activations take `compute_dtype` (bfloat16 on a GPU), without autocast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.genome.plan import BlockConfig, Layer, Plan
from star.liv.base import LIV, Features, State, Weight, check_state, normal
from star.liv.functional import rms_norm
from star.model.cross_entropy import cross_entropy

NORM_EPS = 1e-5
BASE_WIDTH = 64  # where logits start at a standard deviation of 1


@dataclass
class ModelState:
    """What decoding remembers: one dict of tensors per layer, the tokens seen, the tokens that the caches have room
    for.
    """

    layers: list[State]
    length: int
    capacity: int

    @property
    def nbytes(self) -> int:
        """Bytes of all state tensors."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer.values())


class Block(nn.Module):
    """One LIV with its norm and residual: x + gain * norm_out(LIV(norm_in(x)))."""

    norm_in: Tensor
    norm_out: Tensor
    gain: Tensor
    liv: LIV

    def __init__(self, config: BlockConfig, liv: LIV):
        super().__init__()
        for name, weight in config.weights().items():
            self.register_parameter(name, nn.Parameter(torch.ones(weight.shape)))
        self.has_norm_in, self.has_norm_out, self.has_gain = (
            hasattr(self, name) for name in ("norm_in", "norm_out", "gain")
        )
        self.liv = liv

    def forward(
        self, x: Tensor, state: State | None, given: Features, offset: int
    ) -> tuple[Tensor, State | None, Features]:
        """x [B, T, D]; also returns the features of the LIV, for LIVs that share them."""
        h = rms_norm(x, self.norm_in, NORM_EPS) if self.has_norm_in else x
        h, state, features = self.liv.share(h, state, given, offset)
        if self.has_norm_out:
            h = rms_norm(h, self.norm_out, NORM_EPS)
        if self.has_gain:
            h = h * self.gain.to(h.dtype)
        return x + h, state, features


class LanguageModel(nn.Module):
    """Args: plan; vocab_size: rows of the embedding; tie_embeddings: the head is the embedding, transposed."""

    genome: Any = None  # set by `star.build`
    blocks: Any  # nn.ModuleList of `Block`, whose elements torch does not type

    def __init__(self, plan: Plan, vocab_size: int, tie_embeddings: bool = True):
        super().__init__()
        self.plan, self.vocab_size, self.tie_embeddings = plan, vocab_size, tie_embeddings
        self.compute_dtype: torch.dtype | None = None  # None: the dtype of the weights
        self.embedding = nn.Parameter(torch.empty(vocab_size, plan.d_model))
        self.blocks = nn.ModuleList()
        for layer in plan.layers:
            self.blocks.append(Block(plan.block, layer.config.build(layer.given, self._tied(layer))))
        self.final_norm = nn.Parameter(torch.ones(plan.d_model))
        if not tie_embeddings:
            self.head = nn.Parameter(torch.empty(vocab_size, plan.d_model))

    def _tied(self, layer: Layer) -> dict[str, nn.Parameter]:
        """The parameters of earlier layers that this one uses as its own."""
        return {
            name: getattr(self.blocks[layer.weights_from[weight.group]].liv, name)
            for name, weight in layer.config.own_weights(layer.given).items()
            if weight.group in layer.weights_from
        }

    def forward(self, tokens: Tensor, state: ModelState | None = None) -> tuple[Tensor, ModelState]:
        """tokens int64 [B, T] -> logits [B, T, V] and the state after them; the state passed in is used up.

        Without a state one is made that grows as it is continued. The state carries no gradient.
        """
        self._check_tokens(tokens)
        batch, seq_len = tokens.shape
        if state is None:
            state = self.init_state(batch, seq_len)
        self._make_room(state, batch, seq_len)
        x, layers = self.hidden(tokens, state)
        return self.logits(x), ModelState(layers, state.length + seq_len, state.capacity)

    def loss(self, tokens: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Cross-entropy in nats of targets int64 [B, T]: a scalar, or [B, T] with reduction "none". No state.

        Where there are many logits they are made a chunk of tokens at a time (see `star/model/cross_entropy.py`).
        """
        x, _ = self.hidden(tokens, None)
        x = rms_norm(x, self.final_norm, NORM_EPS).flatten(0, 1)
        loss = cross_entropy(x, self.head_weight, targets.flatten(), reduction)
        return loss.view(targets.shape) if reduction == "none" else loss

    def hidden(self, tokens: Tensor, state: ModelState | None) -> tuple[Tensor, list[State]]:
        """tokens [B, T] -> the last residual stream [B, T, D], and the states of all layers."""
        self._check_tokens(tokens)
        x = F.embedding(tokens, self.embedding)
        x = x if self.compute_dtype is None else x.to(self.compute_dtype)
        bank: dict[int, Features] = {}
        states = []
        for layer, block in zip(self.plan.layers, self.blocks):
            given = {} if layer.provider is None else bank[layer.provider]
            before = None if state is None else state.layers[layer.index]
            x, after, features = block(x, before, given, 0 if state is None else state.length)
            states.append(after)
            if layer.provides:
                bank[layer.index] = features
        return x, states

    def logits(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, V]."""
        return F.linear(rms_norm(x, self.final_norm, NORM_EPS), self.head_weight.to(x.dtype))

    @property
    def head_weight(self) -> nn.Parameter:
        """[V, D]: what reads the residual stream out."""
        return self.embedding if self.tie_embeddings else self.head

    def init_state(
        self, batch: int, max_len: int, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> ModelState:
        """An empty state with room for `max_len` tokens (it grows when they run out)."""
        dtype = dtype or self.compute_dtype or self.embedding.dtype
        device = device or self.embedding.device
        layers = [block.liv.init_state(batch, max_len, dtype, device) for block in self.blocks]
        return ModelState(layers, 0, max_len)

    def _check_tokens(self, tokens: Tensor) -> None:
        if tokens.dim() != 2 or tokens.is_floating_point():
            raise ValueError(
                f"tokens are {tokens.dtype} of shape {list(tokens.shape)}; give integer ids of shape [batch, tokens]"
            )
        if tokens.device != self.embedding.device:
            raise ValueError(
                f"tokens are on {tokens.device} and the model on {self.embedding.device}; move one to the other"
            )

    def _check_state(self, state: ModelState, batch: int) -> None:
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
        state.capacity = max(state.length + seq_len, 2 * state.capacity)
        for layer, tensors in zip(self.plan.layers, state.layers):
            for name, entry in layer.state().items():
                if entry.cap is not None:
                    dim = entry.column_dim + 1
                    room = entry.columns(state.capacity) - tensors[name].shape[dim]
                    padding = [0, 0] * (tensors[name].dim() - 1 - dim) + [0, room]
                    tensors[name] = F.pad(tensors[name], padding)

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Start all weights from one seed. Output maps shrink with depth, so that the residual stream keeps its size.

        Embedding and head start the same at any width, and the final norm scales the logits by 1 / width: a wider model
        then starts, and learns, like a narrow one (muP, arXiv 2203.03466; the multipliers are weights, so that an
        exported model has none).
        """
        generator = torch.Generator().manual_seed(seed)
        for parameter in [self.embedding] + ([] if self.tie_embeddings else [self.head]):
            normal(BASE_WIDTH**-0.5)(parameter, generator)
        self.final_norm.fill_(BASE_WIDTH / self.plan.d_model)
        for block in self.blocks:
            block.liv.reset_parameters(generator)
            block.liv.out.mul_(len(self.blocks) ** -0.5)

    def parameter_groups(self) -> list[dict]:
        """Every parameter once, by how it should be trained.

        kind: "embedding", "head", "hidden" (dense matrices of LIVs) or "vector" (norms, filters, gates, biases);
        layer: index of the LIV or None, of n_layers; width: of the model; names, params; fan_in of the matrices;
        scale, where it is not one: the size at which the parameters start, and in proportion to which they should move.
        """
        groups: list[dict] = [
            {"kind": "embedding", "layer": None, "names": ["embedding"], "params": [self.embedding], "fan_in": 1}
        ]
        if not self.tie_embeddings:
            groups.append(
                {"kind": "head", "layer": None, "names": ["head"], "params": [self.head], "fan_in": self.plan.d_model}
            )
        scale = BASE_WIDTH / self.plan.d_model
        groups.append(
            {
                "kind": "vector",
                "layer": None,
                "names": ["final_norm"],
                "params": [self.final_norm],
                "fan_in": 1,
                "scale": scale,
            }
        )
        for layer, block in zip(self.plan.layers, self.blocks):
            by_fan_in: dict[int, dict] = {}
            own: dict[str, Weight] = layer.weights()
            for name, weight in own.items():
                kind = "hidden" if weight.kind == "matrix" else "vector"
                key = weight.shape[-1] if kind == "hidden" else 0
                group = by_fan_in.setdefault(
                    key, {"kind": kind, "layer": layer.index, "names": [], "params": [], "fan_in": key or 1}
                )
                group["names"].append(f"blocks.{layer.index}.liv.{name}")
                group["params"].append(getattr(block.liv, name))
            for name in self.plan.block.weights():
                group = by_fan_in.setdefault(
                    0, {"kind": "vector", "layer": layer.index, "names": [], "params": [], "fan_in": 1}
                )
                group["names"].append(f"blocks.{layer.index}.{name}")
                group["params"].append(getattr(block, name))
            groups += by_fan_in.values()
        return [group | {"width": self.plan.d_model, "n_layers": len(self.blocks)} for group in groups]

    @torch.no_grad()
    def generate(
        self, tokens: Tensor, n_tokens: int, temperature: float = 1.0, top_k: int | None = None, seed: int = 0
    ) -> Tensor:
        """Continue tokens [B, T] by `n_tokens`, one at a time with the decode state. Temperature 0 is greedy."""
        generator = torch.Generator(device=tokens.device).manual_seed(seed)
        state = self.init_state(tokens.shape[0], tokens.shape[1] + n_tokens)
        logits, state = self(tokens, state)
        for step in range(n_tokens):
            scores = logits[:, -1].float()
            if top_k is not None and top_k < self.vocab_size:
                scores = scores.masked_fill(scores < scores.topk(top_k).values[:, -1:], -math.inf)
            if temperature == 0:
                new = scores.argmax(-1, keepdim=True)
            else:
                new = torch.multinomial(torch.softmax(scores / temperature, -1), 1, generator=generator)
            tokens = torch.cat([tokens, new], dim=1)
            if step < n_tokens - 1:
                logits, state = self(new, state)
        return tokens
