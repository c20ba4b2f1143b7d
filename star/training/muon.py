"""Muon, for the hidden matrices of a model: steps along the orthogonal part of the momentum (Jordan et al., 2024).

    M <- mu M + (1 - mu) G                      momentum
    U = (1 - mu) G + mu M                       Nesterov
    O = U (U^T U)^(-1/2)                        all singular values to one, by five Newton-Schulz steps
    W <- (1 - lr wd) W - lr c sqrt(max(1, out / in)) O

A step has the same effect on activations at any width (spectral scaling, arXiv 2310.17813), so a `lr` tuned on narrow
models is right for wide ones. With c = 0.2 sqrt(base_width), the entries of a step of a square matrix of that width are
as large as AdamW's (0.2 was measured in arXiv 2502.16982), so both optimizers share one `learning_rate`.

A small model has many small matrices; matrices of equal shape are stacked and orthogonalised in one batched product.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)  # coefficients of one Newton-Schulz step; singular values end between 0.7 and 1.2
N_STEPS = 5
RMS = 0.2  # root mean square of an AdamW step, in units of its learning rate


def orthogonal_part(matrices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Approximately U V^T of matrices U S V^T, [n, out, in].

    dtype: of the computation; None: bfloat16 on CUDA, the dtype of the matrices elsewhere.
    """
    a, b, c = QUINTIC
    dtype = dtype or (torch.bfloat16 if matrices.is_cuda else matrices.dtype)
    wide = matrices.shape[-2] <= matrices.shape[-1]
    X = (matrices if wide else matrices.mT).to(dtype)
    X = X / X.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(N_STEPS):
        A = X @ X.mT
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)  # b A + c A A
        X = torch.baddbmm(X, B, X, beta=a)  # a X + B X
    return (X if wide else X.mT).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """The optimizer. Groups may differ in lr, weight_decay and momentum; all parameters must be matrices.

    base_width: the width at which steps of a square matrix are as large as AdamW's, see the module.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        base_width: int = 64,
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.scale = RMS * base_width**0.5
        for group in self.param_groups:
            for param in group["params"]:
                if param.dim() != 2:
                    raise ValueError(f"Muon trains only matrices, and a parameter has shape {list(param.shape)}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # closures are not supported
        """Take one step with the present gradients."""
        by_shape: dict[tuple, list[tuple[Tensor, Tensor, dict]]] = defaultdict(list)
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if not params:
                continue
            for param in params:
                if "momentum" not in self.state[param]:
                    self.state[param]["momentum"] = torch.zeros_like(param)
                by_shape[param.shape, param.device].append((param, param.grad, group))
            momenta, gradients = [self.state[param]["momentum"] for param in params], [param.grad for param in params]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            if group["weight_decay"]:
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for (shape, _), members in by_shape.items():
            nesterov = [grad.lerp(self.state[param]["momentum"], group["momentum"]) for param, grad, group in members]
            directions = orthogonal_part(torch.stack(nesterov)).unbind()
            factor = self.scale * max(1.0, shape[0] / shape[1]) ** 0.5
            steps = [
                direction * (group["lr"] * factor) for direction, (_, _, group) in zip(directions, members, strict=True)
            ]
            torch._foreach_sub_([param for param, _, _ in members], steps)
