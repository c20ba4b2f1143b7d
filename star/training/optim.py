"""The optimizer of a recipe for a model: the optimizer and the learning rate of each parameter.

The model groups its parameters into hidden matrices, embedding, head and vectors, and says to which LIV they belong.
The recipe has the learning rate and decay of each kind, for a model as wide as `recipe.base_width`:

    hidden matrices, AdamW    lr x base/width, decay x width/base  steps have the same effect on activations at any
                                                                   width (muP, Table 8 of arXiv 2203.03466)
    hidden matrices, Muon     lr                                   the step itself is scaled (`star.training.muon`)
    embedding, head, vectors  lr x its multiplier x its scale      scale: size of the initial values, relative to one
"""

from collections.abc import Iterator

import torch
from torch import nn

from star.model import LanguageModel
from star.training.muon import Muon
from star.training.recipe import Recipe
from star.training.trainable import Trainable


class Optimizers:
    """AdamW and, if the recipe asks for it, Muon, as one optimizer.

    Each group has its `peak` learning rate, at schedule factor 1, and its `decay`. The learning rates of all groups are
    one tensor, so that a captured step reads the present ones.
    """

    def __init__(self, parts: list[torch.optim.Optimizer]):
        self.parts = parts
        self.device = self.param_groups[0]["params"][0].device
        self._make_rates()

    @property
    def param_groups(self) -> list[dict]:
        """Groups of all optimizers."""
        return [group for part in self.parts for group in part.param_groups]

    def states(self) -> Iterator[tuple[nn.Parameter, dict[str, torch.Tensor]]]:
        """Every parameter with its state, in an order that depends only on the model and the recipe."""
        for part in self.parts:
            for group in part.param_groups:
                for param in group["params"]:
                    yield param, part.state[param]

    def set(self, factor: float | torch.Tensor, batch: float = 1.0) -> None:
        """Set learning rates and decays for the next step.

        factor: of the schedule, a number or a tensor []; batch: size of this step's batch relative to the recipe's. The
        averages keep their half-lives in tokens, beta^batch (arXiv 2507.07101), and weights decay equally per token.
        The learning rate grows with the square root of the batch, but not above the tuned one.
        """
        coupling = min(1.0, batch**0.5)
        self.rates.copy_(self.peaks * factor * coupling)
        for group in self.param_groups:
            if batch == group["batch"]:
                continue
            group["batch"] = batch
            group["weight_decay"] = group["decay"] * batch / coupling
            if "betas" in group:
                group["betas"] = tuple(beta**batch for beta in group["per_step"])
            else:
                group["momentum"] = group["per_step"] ** batch

    def add(self, params: list[nn.Parameter], rate: float) -> None:
        """Add parameters that are not the model's, trained by AdamW without decay."""
        adamw = self.parts[0]
        group = {"params": params, "lr": rate, "peak": rate, "weight_decay": 0.0, "decay": 0.0}
        group |= {"kind": "other", "muon": False, "batch": 1.0, "per_step": adamw.defaults["betas"]}
        adamw.add_param_group(group)
        self._make_rates()

    def _make_rates(self) -> None:
        groups = self.param_groups
        self.peaks = torch.tensor([group["peak"] for group in groups], dtype=torch.float64, device=self.device)
        # The fused AdamW of CUDA reads float32, that of the CPU any dtype.
        self.rates = self.peaks.float() if self.device.type == "cuda" else self.peaks.clone()
        for group, rate in zip(groups, self.rates.unbind(), strict=True):
            group["lr"] = rate

    def step(self) -> None:
        """One step of all optimizers."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for part in self.parts:
            part.zero_grad()


def build_optimizer(model: LanguageModel | Trainable, recipe: Recipe) -> Optimizers:
    """The optimizer of `recipe` for `model`. Raises ValueError if a parameter is in none of the model's groups."""
    multipliers = {
        "embedding": recipe.embedding_multiplier,
        "head": recipe.head_multiplier,
        "vector": recipe.vector_multiplier,
    }
    groups: dict[tuple, dict] = {}
    for given in model.parameter_groups():
        kind = given["kind"]
        rate = recipe.learning_rate * given.get("scale", 1.0) * multipliers.get(kind, 1.0)
        rate *= layer_factor(recipe.layer_decay, given["layer"], given.get("n_layers", 1))
        decay = 0.0 if kind == "vector" else recipe.weight_decay
        muon = kind == "hidden" and recipe.optimizer == "muon"
        if kind == "hidden" and not muon and recipe.base_width:
            narrow = recipe.base_width / given.get("width", recipe.base_width)
            rate, decay = rate * narrow, decay / narrow
        new = {"kind": kind, "muon": muon, "params": [], "peak": rate, "lr": rate, "weight_decay": decay}
        new |= {"decay": decay, "batch": 1.0, "per_step": recipe.momentum if muon else recipe.betas}
        groups.setdefault((kind, rate), new)["params"] += given["params"]
    covered = {id(param) for group in groups.values() for param in group["params"]}
    forgotten = [name for name, param in model.named_parameters() if id(param) not in covered]
    if forgotten:
        raise ValueError(f"parameters in none of the model's groups: {', '.join(forgotten)}")
    hidden = [group for group in groups.values() if group["muon"]]
    rest = [group for group in groups.values() if not group["muon"]]
    parts: list[torch.optim.Optimizer] = []
    if rest:
        cuda = rest[0]["params"][0].is_cuda
        parts.append(torch.optim.AdamW(rest, betas=recipe.betas, fused=True, capturable=cuda))
    if hidden:
        parts.append(Muon(hidden, momentum=recipe.momentum, base_width=recipe.base_width or 64))
    return Optimizers(parts)


def layer_factor(gamma: float, layer: int | None, n_layers: int) -> float:
    """gamma^(l / L) for LIV l = 1 ... L (`layer` counts from zero); 1 for parameters outside the LIVs."""
    return 1.0 if layer is None else gamma ** ((layer + 1) / n_layers)
