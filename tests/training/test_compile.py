"""Every row of the pool under `torch.compile`: one graph without a break, the eager numbers, and no recompilation.

All rows are captured and differentiated ahead of time ("aot_eager": inductor without its code generation). Only a few
rows are compiled to code, because that is slow.
"""

import pytest
import torch

from star.errors import UserError
from star.genome.classes import POOL
from star.liv import FAMILIES

SEQ_LEN = 70  # several chunks of every recurrence
COMPILED_TO_CODE = ("GMemless", "GConv-1", "SA-1", "LinAttn")


def smallest(operator) -> torch.nn.Module:
    """The operator at the smallest width that suits it."""
    for d_model in (8, 12, 16, 32):
        try:
            liv = FAMILIES[operator.family].configure(operator, d_model, 4, 10_000.0).build()
        except UserError:
            continue
        liv.reset_parameters(torch.Generator().manual_seed(0))
        return liv
    raise AssertionError(f"{operator} fits no width")


def outputs(call, liv, seed: int) -> list[torch.Tensor]:
    """y, and the gradients of the input and of every weight."""
    x = torch.randn(1, SEQ_LEN, liv.config.d_model, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    y, _ = call(x)
    return [y, *torch.autograd.grad(y.sin().sum(), (x, *liv.parameters()))]


def agree(compiled: list[torch.Tensor], eager: list[torch.Tensor]) -> bool:
    return all((a - b).abs().max() <= 1e-4 * b.abs().max() for a, b in zip(compiled, eager, strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
@pytest.mark.parametrize(
    "name, backend", [*((c.name, "aot_eager") for c in POOL), *((name, "inductor") for name in COMPILED_TO_CODE)]
)
def test_a_compiled_operator_agrees_with_eager_and_is_compiled_once(name, backend):
    liv = smallest(next(c.operator for c in POOL if c.name == name))
    torch._dynamo.reset()
    compiled = torch.compile(liv, fullgraph=True, dynamic=False, backend=backend)  # fullgraph: a break is an error
    first = outputs(compiled, liv, seed=1)
    assert agree(first, outputs(liv, liv, seed=1))
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert agree(outputs(compiled, liv, seed=2), outputs(liv, liv, seed=2))
