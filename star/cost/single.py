"""Exact costs of one plan, without building it."""

from __future__ import annotations

from dataclasses import dataclass

from star.genome import Genome, Plan, load_genome, resolve

NUMBER_BYTES = 2  # the paper counts 2 bytes for every cached number
RECURRENT_BYTES = 4  # the true size of a recurrent state


@dataclass(frozen=True)
class Costs:
    """Costs of one architecture, or arrays of them for a population. FLOPs are 2 per multiply-add."""

    parameters: int  # all, with embedding and norms
    backbone_parameters: int  # of LIVs only, shared weights once (the paper's size)
    cache_bytes: int  # after `seq_len` tokens, shared tensors once, at 2 bytes per number (the paper's convention)
    cache_bytes_exact: int  # what the decode state allocates: bfloat16, recurrent states in float32
    train_flops_per_token: float  # three forward passes
    decode_flops_per_token: float  # of one token after `seq_len` others


def costs(
    genome: Genome | str | Plan, vocab_size: int = 256, seq_len: int = 4096, tie_embeddings: bool | None = None
) -> Costs:
    """Costs of a genome (or a plan) at a vocabulary and a context length.

    tie_embeddings: whether the head is the embedding; None for what the genome says.
    """
    if not isinstance(genome, Plan):
        genome = resolve(genome if isinstance(genome, Genome) else load_genome(genome))
    plan = genome
    entries = [entry for layer in plan.layers for entry in layer.state().values()]
    channel = sum(layer.config.channel_flops(layer.given) for layer in plan.layers)
    head = 2 * vocab_size * plan.d_model
    forward = channel + head + sum(layer.config.mixing_flops(seq_len) for layer in plan.layers)
    return Costs(
        parameters=plan.parameters(vocab_size, tie_embeddings),
        backbone_parameters=plan.backbone_parameters,
        cache_bytes=NUMBER_BYTES * sum(e.numbers(seq_len) for e in entries),
        cache_bytes_exact=sum(
            e.numbers(seq_len) * (RECURRENT_BYTES if e.role == "recurrent" else NUMBER_BYTES) for e in entries
        ),
        train_flops_per_token=3 * forward,
        decode_flops_per_token=channel + head + sum(layer.config.decode_mixing_flops(seq_len) for layer in plan.layers),
    )
