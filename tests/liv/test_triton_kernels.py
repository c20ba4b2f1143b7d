"""The one-pass kernels against the plain forms: on a GPU, or in Triton's interpreter (TRITON_INTERPRET=1) on a CPU."""

import os

import pytest
import torch
import torch.nn.functional as F

from star.liv import backends
from star.liv.attention import apply_rope, rope_table
from star.liv.functional import gated, residual_norm, rms_norm, short_convolution
from star.model.cross_entropy import ChunkedCrossEntropy, plain_cross_entropy, plain_losses, token_losses

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from star.liv.triton_kernels import KERNELS  # noqa: E402

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


@pytest.fixture(autouse=True, params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request, monkeypatch):
    monkeypatch.setattr(backends, "LOADED", {"cpu": {}, DEVICE.type: KERNELS})
    return request.param


def same(function, inputs, dtype):
    """Compare the output and all gradients with those of the plain form in float64 on the same, rounded numbers."""
    inputs = [x.to(DEVICE, dtype) if x.is_floating_point() else x.to(DEVICE) for x in inputs]
    given = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    exact = [x.cpu().double() if x.is_floating_point() else x.cpu() for x in inputs]
    exact = [x.requires_grad_(x.is_floating_point()) for x in exact]
    y, expected = function(*given), function(*exact)
    assert y.dtype == (dtype if y.dim() else torch.float32) and expected.dtype == torch.float64
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    (y * weights.to(DEVICE)).sum().backward()
    (expected * weights.double()).sum().backward()
    for ours, theirs in [(y, expected), *((a.grad, b.grad) for a, b in zip(given, exact) if a.grad is not None)]:
        difference = (ours.detach().cpu().double() - theirs.detach()).norm() / theirs.detach().norm()
        assert difference < TOLERANCE[dtype], difference


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 5, 64), (2, 37, 4, 16), (1, 3, 1365), (700, 24)])
def test_rms_norm(shape, dtype):
    same(lambda x, w: rms_norm(x, w, 1e-5), [randn(*shape), 1 + randn(shape[-1], seed=1)], dtype)


def test_norm_of_a_residual_stream(dtype):
    def block(x, w):
        x, h = residual_norm(x, w, None, 1e-5)
        return x + h * h

    same(block, [randn(3, 50, 48), 1 + randn(48, seed=1)], dtype)


@pytest.mark.parametrize("shape, taps", [((2, 70, 96), 4), ((1, 5, 200), 3), ((3, 130, 16), 7), ((2, 3, 8), 4)])
def test_convolution(shape, taps, dtype):
    same(lambda x, w: short_convolution(x, w)[0], [randn(*shape), randn(shape[-1], taps, seed=1)], dtype)


@pytest.mark.parametrize("nonlinearity", ["none", "relu", "swish", "gelu", "normal_cdf"])
def test_gate(nonlinearity, dtype):
    same(lambda g, v: gated(g, v, nonlinearity), [randn(3, 17, 130), randn(3, 17, 130, seed=1)], dtype)


def test_value_that_gates_itself(dtype):
    same(lambda v: gated(v, v, "relu"), [randn(2, 9, 40)], dtype)


@pytest.mark.parametrize("width", [2, 16, 64, 24])
@pytest.mark.parametrize("strided", [False, True])
def test_rope(width, strided, dtype):
    def rotate(h):
        table = rope_table(5, 33, width, 10_000.0, h.device, h.dtype)
        return apply_rope(h.transpose(1, 2) if strided else h, *table)

    same(rotate, [randn(2, 3, 33, width) if strided else randn(2, 33, 3, width)], dtype)


@pytest.mark.parametrize("vocab_size, chunk", [(50, 64), (5000, 7)])
def test_cross_entropy(vocab_size, chunk, dtype):
    targets = torch.randint(vocab_size, (20,), generator=torch.Generator().manual_seed(2))
    targets[3] = -100

    def loss(x, head, targets):
        if x.dtype == torch.float64:
            return plain_cross_entropy(x, head, targets)
        return ChunkedCrossEntropy.apply(x, head, targets, chunk)[0]

    same(loss, [randn(20, 32), randn(vocab_size, 32, seed=1), targets], dtype)


def test_losses_of_tokens(dtype):
    x, head = randn(20, 32).to(DEVICE, dtype), randn(300, 32, seed=1).to(DEVICE, dtype)
    targets = torch.randint(300, (20,), device=DEVICE)
    targets[4] = -100
    with torch.no_grad():
        losses = token_losses(x, head, targets, learns=False)
        expected = plain_losses(F.linear(x, head).double(), targets, "none")  # of the same rounded logits
    assert losses[4] == 0
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
