"""Attention: what its parts do in other precisions."""

import torch

from star.liv.attention import apply_rope, rope_table


def test_rope_in_bfloat16_rotates_by_halves():
    h = torch.randn(2, 33, 3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = apply_rope(h, *rope_table(5, 33, 16, 1e4, h.device, torch.float64))
    low = h.to(torch.bfloat16).requires_grad_()
    rotated = apply_rope(low, *rope_table(5, 33, 16, 1e4, h.device, torch.bfloat16))
    assert rotated.dtype == torch.bfloat16
    assert (rotated.double() - exact).norm() / exact.norm() < 5e-3
    rotated.double().square().sum().backward()  # a rotation keeps the norm
    assert (low.grad.double() - 2 * low.double()).norm() / (2 * low.double()).norm() < 8e-3
