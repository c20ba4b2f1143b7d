"""Exact costs of one plan, without building it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from star.genome import Genome, Plan, load_genome, resolve

NUMBER_BYTES = 2  # of the paper's cache: 2 bytes per number, whatever its role
RECURRENT_BYTES = 4  # what a recurrent state really takes


@dataclass(frozen=True)
class Costs:
    """Costs of one architecture; of a population, arrays of them.

    parameters: all, embedding and norms included. backbone_parameters: LIVs only, shared weights once (the paper's
    size). cache_bytes: the paper's convention, 2 bytes per number at `seq_len` tokens, shared tensors once.
    cache_bytes_exact: what the decode state allocates, bf16 with float32 recurrent states. train_flops_per_token,
    decode_flops_per_token: 2 per multiply-add; training is 3 forwards; decoding after `seq_len` tokens.
    """

    parameters: int
    backbone_parameters: int
    cache_bytes: int
    cache_bytes_exact: int
    train_flops_per_token: float
    decode_flops_per_token: float


def costs(
    genome: Genome | str | Plan, vocab_size: int = 256, seq_len: int = 4096, tie_embeddings: bool = True
) -> Costs:
    """Costs of a genome (or a plan) at a vocabulary and a context length."""
    if not isinstance(genome, Plan):
        genome = resolve(genome if isinstance(genome, Genome) else load_genome(genome))
    plan = genome
    embedding = vocab_size * plan.d_model * (1 if tie_embeddings else 2)
    block = sum(math.prod(w.shape) for w in plan.block.weights().values())
    backbone = plan.backbone_parameters
    entries = [entry for layer in plan.layers for entry in layer.state().values()]
    channel = sum(layer.config.channel_flops(layer.given) for layer in plan.layers)
    head = 2 * vocab_size * plan.d_model
    forward = channel + head + sum(layer.config.mixing_flops(seq_len) for layer in plan.layers)
    return Costs(
        parameters=backbone + len(plan.layers) * block + plan.d_model + embedding,
        backbone_parameters=backbone,
        cache_bytes=NUMBER_BYTES * sum(e.numbers(seq_len) for e in entries),
        cache_bytes_exact=sum(
            e.numbers(seq_len) * (RECURRENT_BYTES if e.role == "recurrent" else NUMBER_BYTES) for e in entries
        ),
        train_flops_per_token=3 * forward,
        decode_flops_per_token=channel + head + sum(layer.config.decode_mixing_flops(seq_len) for layer in plan.layers),
    )
