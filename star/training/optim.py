"""The optimizer of a recipe for a model.

The model says which of its parameters are hidden matrices, embedding, head and vectors; the recipe says
what that means for learning rate and decay. Another optimizer is one function here.
"""

import torch
from torch import nn

from star.training.recipe import Recipe


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW with one group per kind of parameter. Each group's "peak" is its learning rate at schedule factor 1."""
    peaks = {
        "hidden": recipe.learning_rate,
        "embedding": recipe.learning_rate * recipe.embedding_multiplier,
        "head": recipe.learning_rate * recipe.head_multiplier,
        "vector": recipe.learning_rate * recipe.vector_multiplier,
    }
    params: dict[str, list[nn.Parameter]] = {kind: [] for kind in peaks}
    for group in model.parameter_groups():
        params[group["kind"]] += group["params"]
    covered = {id(param) for group in params.values() for param in group}
    forgotten = [name for name, param in model.named_parameters() if id(param) not in covered]
    if forgotten:
        raise ValueError(f"parameters in none of the model's groups: {', '.join(forgotten)}")
    groups = [
        {"kind": kind, "params": params[kind], "peak": peak, "lr": peak, "weight_decay": 0.0 if kind == "vector" else recipe.weight_decay}
        for kind, peak in peaks.items()
        if params[kind]
    ]
    return torch.optim.AdamW(groups, betas=recipe.betas, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
