"""The optimizer of a recipe for a model: which step each parameter takes, and how large.

The model says which of its parameters are hidden matrices, embedding, head and vectors, and to which LIV they belong;
the recipe says what that means for learning rate and decay. Learning rates are those of a model as wide as
`recipe.base_width`:

    hidden matrices, AdamW    lr base/width, decay x width/base    steps that move activations alike at any width (muP,
                              Table 8
                                                                   of arXiv 2203.03466), and lr x decay as it was
    hidden matrices, Muon     lr                                   the step itself is scaled (`star.training.muon`)
    embedding, head, vectors  lr x their multiplier x their scale  `scale`: what the model starts them at, over one
"""

from collections.abc import Iterator

import torch
from torch import nn

from star.training.muon import Muon
from star.training.recipe import Recipe


class Optimizers:
    """AdamW, and Muon where the recipe asks for it, as one. Each group has its `peak` rate, at schedule factor 1, and
    `decay`.
    """

    def __init__(self, parts: list[torch.optim.Optimizer]):
        self.parts = parts

    @property
    def param_groups(self) -> list[dict]:
        """Groups of all optimizers."""
        return [group for part in self.parts for group in part.param_groups]

    def states(self) -> Iterator[tuple[nn.Parameter, dict[str, torch.Tensor]]]:
        """Every parameter with its state, always in the same order."""
        for part in self.parts:
            for group in part.param_groups:
                for param in group["params"]:
                    yield param, part.state[param]

    def set(self, factor: float, batch: float = 1.0) -> None:
        """Rates and averages of the next step. factor: of the schedule; batch: this step's over the one that the recipe
        is for.

        The averages keep their half-lives in tokens, beta^batch (arXiv 2507.07101), and weights decay alike per token.
        The rate grows with the root of the batch, up to the tuned one and not beyond it.
        """
        coupling = min(1.0, batch**0.5)
        for group in self.param_groups:
            group["lr"] = group["peak"] * factor * coupling
            if batch == group["batch"]:
                continue
            group["batch"] = batch
            group["weight_decay"] = group["decay"] * batch / coupling
            if "betas" in group:
                group["betas"] = tuple(beta**batch for beta in group["per_step"])
            else:
                group["momentum"] = group["per_step"] ** batch

    def add(self, params: list[nn.Parameter], rate: float) -> None:
        """Parameters beside the model's, trained by AdamW without decay."""
        adamw = self.parts[0]
        group = {"params": params, "lr": rate, "peak": rate, "weight_decay": 0.0, "decay": 0.0}
        adamw.add_param_group(
            group | {"kind": "other", "muon": False, "batch": 1.0, "per_step": adamw.defaults["betas"]}
        )

    def step(self) -> None:
        """One step of all optimizers."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for part in self.parts:
            part.zero_grad()


def build_optimizer(model: nn.Module, recipe: Recipe) -> Optimizers:
    """ValueError if the model's groups do not hold every parameter."""
    groups: dict[tuple, dict] = {}
    for given in model.parameter_groups():
        kind, rate = given["kind"], recipe.learning_rate * given.get("scale", 1.0)
        rate *= {
            "embedding": recipe.embedding_multiplier,
            "head": recipe.head_multiplier,
            "vector": recipe.vector_multiplier,
        }.get(kind, 1.0)
        rate *= layer_factor(recipe.layer_decay, given["layer"], given.get("n_layers", 1))
        decay = 0.0 if kind == "vector" else recipe.weight_decay
        muon = kind == "hidden" and recipe.optimizer == "muon"
        if kind == "hidden" and not muon and recipe.base_width:
            narrow = recipe.base_width / given.get("width", recipe.base_width)
            rate, decay = rate * narrow, decay / narrow
        group = groups.setdefault(
            (kind, rate),
            {"kind": kind, "muon": muon, "params": [], "peak": rate, "lr": rate, "weight_decay": decay, "decay": decay},
        )
        group["params"] += given["params"]
    covered = {id(param) for group in groups.values() for param in group["params"]}
    forgotten = [name for name, param in model.named_parameters() if id(param) not in covered]
    if forgotten:
        raise ValueError(f"parameters in none of the model's groups: {', '.join(forgotten)}")
    hidden = [group | {"batch": 1.0, "per_step": recipe.momentum} for group in groups.values() if group["muon"]]
    rest = [group | {"batch": 1.0, "per_step": recipe.betas} for group in groups.values() if not group["muon"]]
    parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, betas=recipe.betas, fused=True)] if rest else []
    if hidden:
        parts.append(Muon(hidden, momentum=recipe.momentum, base_width=recipe.base_width or 64))
    return Optimizers(parts)


def layer_factor(gamma: float, layer: int | None, n_layers: int) -> float:
    """gamma^(l / L) for LIV l = 1 ... L (`layer` counts from zero); 1 for what belongs to no LIV."""
    return 1.0 if layer is None else gamma ** ((layer + 1) / n_layers)
