"""Faster or smaller blocks: compiled once for all candidates, or recomputed in the backward.

    compile_blocks(model)         # one compilation for each block variant of a whole search, not for each architecture
    checkpoint_blocks(model)      # the backward keeps only the residual stream and recomputes each block

A search trains many architectures made of few kinds of blocks. Compiling a whole model takes tens of seconds. Here each
variant (operator, sizes, norms, features taken and provided) is compiled once per process, when it first occurs, with
its weights as inputs. Inductor's files are cached on disk for the next process. On a CPU, compiling one variant takes
10 to 60 s and gains less than a factor of 2; there it is only useful for tests.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from star.genome.plan import Layer
from star.model.language_model import Block, LanguageModel

# Compilations of one variant, for other batch shapes and dtypes. Above torch's limit of 8 it would run uncompiled.
RECOMPILE_LIMIT = 512
VARIANTS: dict[tuple, Callable] = {}  # every variant that this process has compiled


def compile_blocks(model: LanguageModel, backend: str | Callable = "inductor") -> LanguageModel:
    """Compile the training forward of the blocks of `model`, in place; evaluation and decoding do not change.

    A block is compiled when it is first used with gradients, for that shape and dtype. Idempotent. backend: of
    `torch.compile`.
    """
    _prepare_compiler()
    for layer, block in zip(model.plan.layers, model.blocks, strict=True):
        key = (*_kind(model, layer), backend if isinstance(backend, str) else id(backend))
        if key not in VARIANTS:
            with torch.device("meta"):  # the code of the variant, without weights
                prototype = Block(model.plan.block, layer.config.build(layer.given))
            variant = _variant(prototype, layer.provides, len(VARIANTS))
            VARIANTS[key] = torch.compile(variant, dynamic=False, backend=backend)
        block.forward = partial(_compiled_forward, block, VARIANTS[key])
    return model


def kinds(model: LanguageModel) -> set[tuple]:
    """The kinds of block of a model, each of which is compiled once."""
    return {_kind(model, layer) for layer in model.plan.layers}


def _kind(model: LanguageModel, layer: Layer) -> tuple:
    return layer.config, layer.given, layer.provides, model.plan.block


def checkpoint_blocks(model: LanguageModel) -> LanguageModel:
    """Recompute the blocks of `model` in the backward, in place: less memory, about a third more compute.

    Only the input of each block is kept; the gradients are bit-identical. It may be called after `compile_blocks`, not
    before. Idempotent.
    """
    for block in model.blocks:
        if getattr(block.forward, "func", None) is not _checkpointed_forward:
            block.forward = partial(_checkpointed_forward, block.forward)
    return model


def _compiled_forward(block: Block, compiled: Callable, x: Tensor, state: Any, given: dict, offset: int) -> tuple:
    if state is not None or not torch.is_grad_enabled():
        return Block.forward(block, x, state, given, offset)
    given = given | block.liv.tables(x)
    y, features = compiled(dict(block.named_parameters()), x, {name: given[name] for name in sorted(given)})
    return y, None, features


def _checkpointed_forward(forward: Callable, x: Tensor, state: Any, given: dict, offset: int) -> tuple:
    if state is not None or not torch.is_grad_enabled():
        return forward(x, state, given, offset)
    return checkpoint(forward, x, state, given, offset, use_reentrant=False, preserve_rng_state=False)


def _variant(prototype: Block, provides: bool, number: int) -> Callable:
    """The training forward of one kind of block as a function of its weights; features only if others use them."""

    def block(weights: dict[str, Tensor], x: Tensor, given: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        y, _, features = functional_call(prototype, weights, (x, None, given, 0))
        return y, features if provides else {}

    # torch stores compiled code by code object: with its own, a variant does not check the guards of all others.
    block.__code__ = block.__code__.replace(co_name=f"block_{number}")
    return block


def _prepare_compiler() -> None:
    """Set limits that a search does not reach, and a cache on disk."""
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, RECOMPILE_LIMIT)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 16 * RECOMPILE_LIMIT)
    cache = Path(os.environ.get("STAR_CACHE") or platformdirs.user_cache_dir("star")).expanduser() / "compiled"
    # Compiled code depends on the version of torch and the kind of GPU.
    device = torch.cuda.get_device_name().replace(" ", "-") if torch.cuda.is_available() else "cpu"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / f"torch-{torch.__version__}-{device}"))
    os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")
