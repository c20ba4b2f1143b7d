"""RMSNorm on a CPU against its formula: x / sqrt(mean(x^2) + eps) * w."""

import pytest
import torch

from star.liv.functional import rms_norm

EPS = 1e-5


def reference(x, weight):
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight


def example(shape, weight_shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for s in (shape, weight_shape)
    ]


@pytest.mark.parametrize(
    "shape, weight_shape", [((2, 7, 12), (12,)), ((5, 12), (12,)), ((2, 7, 3, 4), (4,)), ((2, 7, 3, 4), (3, 4))]
)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_value_and_gradients_are_those_of_the_formula(shape, weight_shape, dtype, tolerance):
    x, weight = example(shape, weight_shape)
    y, dy = reference(x, weight), torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = [y, *torch.autograd.grad(y, (x, weight), dy)]
    a, b = (t.detach().to(dtype).requires_grad_() for t in (x, weight))
    y = rms_norm(a, b, EPS)
    for mine, theirs in zip([y, *torch.autograd.grad(y, (a, b), dy.to(dtype))], expected, strict=True):
        assert mine.dtype == dtype and (mine.double() - theirs).norm() <= tolerance * theirs.norm()


def test_gradients_by_finite_differences_also_of_a_gradient_that_is_not_contiguous():
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, EPS).transpose(0, 1).cos(), example((3, 5, 4), (4,)))
