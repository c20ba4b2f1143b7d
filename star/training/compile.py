"""Faster and smaller blocks: compiled once for all candidates, recomputed in the backward, or captured as one CUDA
graph.

    compile_blocks(model)         # one compilation for each block variant of a whole search, not for each architecture
    checkpoint_blocks(model)      # only the residual stream is kept for the backward; a block is computed again there
    CapturedBackward(model, ...)  # the smallest models: forward and backward without the time of launching kernels

A search trains many architectures made of few kinds of blocks. Compiling whole models costs tens of seconds for each;
here a variant (operator, sizes, norms, what it takes and gives) is compiled the first time that any architecture has
it, with its weights as inputs, and used by all others of the process. Inductor's files are kept in the user's cache for
the next process. On a CPU compiling one variant takes 10 to 60 s and gains less than a factor of 2: there these are for
tests.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from star.model.language_model import Block, LanguageModel

RECOMPILE_LIMIT = 512  # of one variant: batch shapes, dtypes. torch's own, 8, falls back to eager without a word
VARIANTS: dict[tuple, Callable] = {}  # every variant that this process has compiled


def compile_blocks(model: LanguageModel, backend: str | Callable = "inductor") -> LanguageModel:
    """Train the blocks of `model` compiled, in place; evaluation, decoding and the weights stay as they are.

    A block is compiled when it is first used with gradients, for that shape and dtype. Idempotent. backend: of
    `torch.compile`.
    """
    _prepare_compiler()
    for layer, block in zip(model.plan.layers, model.blocks, strict=True):
        key = (layer.config, layer.given, layer.provides, model.plan.block, _name(backend))
        if key not in VARIANTS:
            with torch.device("meta"):  # the code of the variant, without weights
                prototype = Block(model.plan.block, layer.config.build(layer.given))
            VARIANTS[key] = torch.compile(
                _variant(prototype, layer.provides, len(VARIANTS)), dynamic=False, backend=backend
            )
        block.forward = partial(_compiled_forward, block, VARIANTS[key])
    return model


def checkpoint_blocks(model: LanguageModel) -> LanguageModel:
    """Keep only what enters each block of `model` for the backward, in place: about a third more compute, the same
    gradients bit for bit.

    For models that do not fit otherwise. It may be called after `compile_blocks`, not before. Idempotent.
    """
    for block in model.blocks:
        if getattr(block.forward, "func", None) is not _checkpointed_forward:
            block.forward = partial(_checkpointed_forward, block.forward)
    return model


def _compiled_forward(block: Block, compiled: Callable, x: Tensor, state: Any, given: dict, offset: int) -> tuple:
    if state is not None or not torch.is_grad_enabled():
        return Block.forward(block, x, state, given, offset)
    y, features = compiled(dict(block.named_parameters()), x, {name: given[name] for name in sorted(given)})
    return y, None, features


def _checkpointed_forward(forward: Callable, x: Tensor, state: Any, given: dict, offset: int) -> tuple:
    if state is not None or not torch.is_grad_enabled():
        return forward(x, state, given, offset)
    return checkpoint(forward, x, state, given, offset, use_reentrant=False, preserve_rng_state=False)


def _variant(prototype: Block, provides: bool, number: int) -> Callable:
    """The training forward of one kind of block as a function of its weights. Features are returned where a later block
    takes them.
    """

    def block(weights: dict[str, Tensor], x: Tensor, given: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        y, _, features = functional_call(prototype, weights, (x, None, given, 0))
        return y, features if provides else {}

    # torch keeps compiled code by code object: one of its own for each variant, so that none searches through the
    # others' guards.
    block.__code__ = block.__code__.replace(co_name=f"block_{number}")
    return block


def _prepare_compiler() -> None:
    """Limits that a search does not reach, and a cache on disk that outlives the process."""
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, RECOMPILE_LIMIT)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 16 * RECOMPILE_LIMIT)
    # Compiled code is good for one torch and one kind of GPU.
    device = torch.cuda.get_device_name().replace(" ", "-") if torch.cuda.is_available() else "cpu"
    folder = (
        Path(os.environ.get("STAR_CACHE") or platformdirs.user_cache_dir("star")).expanduser()
        / "compiled"
        / f"torch-{torch.__version__}-{device}"
    )
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")


def _name(backend: str | Callable) -> Any:
    return backend if isinstance(backend, str) else id(backend)


class CapturedBackward:
    """Loss and gradients of one batch shape as one CUDA graph: for models whose kernels take less time than launching
    them.

        backward = CapturedBackward(model, batch_size, seq_len)
        loss = backward(inputs, targets)      # in place of model.loss(inputs, targets) and loss.backward()
        optimizer.step(); optimizer.zero_grad()

    CUDA only, written and not yet measured. Every call overwrites the gradients: with accumulation, add them up
    yourself. The tensor that it returns is overwritten by the next call.
    """

    WARMUP = 3

    def __init__(self, model: nn.Module, batch_size: int, seq_len: int):
        device = next(model.parameters()).device
        self.params = [param for param in model.parameters() if param.requires_grad]
        self.inputs, self.targets = (
            torch.zeros(batch_size, seq_len, dtype=torch.int64, device=device) for _ in range(2)
        )
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(self.WARMUP):  # compiles, tunes and fills caches outside the graph
                model.loss(self.inputs, self.targets).backward()
        torch.cuda.current_stream(device).wait_stream(side)
        for param in self.params:
            param.grad = None  # so that the captured backward writes gradients and does not add to them
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = model.loss(self.inputs, self.targets)
            self.loss.backward()
        self.loss = self.loss.detach()
        self.gradients = [param.grad for param in self.params]

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        self.inputs.copy_(inputs, non_blocking=True)
        self.targets.copy_(targets, non_blocking=True)
        self.graph.replay()
        for param, gradient in zip(self.params, self.gradients, strict=True):
            param.grad = gradient
        return self.loss
