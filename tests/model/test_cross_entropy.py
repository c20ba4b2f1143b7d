"""The chunked cross-entropy against torch's, in value, gradients and memory."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import star
from star.genome import Genome, parse_text
from star.model.cross_entropy import CPU_LOGITS, IGNORED, cross_entropy, tokens_at_once

N, D, V = 53, 12, 301
PLAIN = 10**9  # no chunk is as long


def example(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, head = (torch.randn(n, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for n in (N, V))
    return x, head, torch.randint(V, (N,), generator=generator)


def reference(x, head, targets, reduction):
    return F.cross_entropy(x @ head.T, targets, reduction=reduction)


@pytest.mark.parametrize("chunk", [1, 7, N - 1, N, PLAIN])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("ignored", [0, 9, N - 1])
def test_value_and_both_gradients_are_those_of_torch(chunk, reduction, ignored):
    x, head, targets = example()
    targets[:ignored] = IGNORED
    loss, expected = cross_entropy(x, head, targets, reduction, chunk), reference(x, head, targets, reduction)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    weights = (
        torch.linspace(-1, 2, N, dtype=torch.float64)
        if reduction == "none"
        else torch.tensor(0.37, dtype=torch.float64)
    )
    for mine, theirs in zip(
        *(torch.autograd.grad(value, (x, head), weights) for value in (loss, expected)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)
    with torch.no_grad():
        torch.testing.assert_close(cross_entropy(x, head, targets, reduction, chunk), expected, rtol=1e-12, atol=1e-12)


def test_gradient_by_finite_differences_and_only_where_it_is_asked_for():
    x, head, targets = example()
    x, targets = x[:5].detach().requires_grad_(), targets[:5] % 7
    assert torch.autograd.gradcheck(
        lambda a, b: cross_entropy(a, b, targets, "mean", 2), (x, head[:7].detach().requires_grad_())
    )
    loss = cross_entropy(x.detach(), head, targets, "mean", 2)
    assert loss.requires_grad and torch.autograd.grad(loss, head)[0].abs().max() > 0
    assert not cross_entropy(x.detach(), head.detach(), targets, "mean", 2).requires_grad


def test_logits_of_any_size_are_finite():
    x, head, targets = example()
    loss = cross_entropy(1e4 * x, head, targets, "mean", 7)
    gradients = torch.autograd.grad(loss, (x, head))
    assert loss.isfinite() and all(g.isfinite().all() for g in gradients)


def test_bfloat16_activations_have_a_float32_softmax_and_the_gradient_of_the_head_in_its_own_dtype():
    x, head, targets = example()
    exact = reference(x, head, targets, "mean")
    dx, dhead = torch.autograd.grad(exact, (x, head))
    a, b = x.detach().bfloat16().requires_grad_(), head.detach().float().requires_grad_()
    loss = cross_entropy(a, b, targets, "mean", 7)
    da, db = torch.autograd.grad(loss, (a, b))
    assert loss.dtype == torch.float32 and da.dtype == torch.bfloat16 and db.dtype == torch.float32
    assert abs(loss - exact) < 2e-2 * exact
    for mine, theirs in ((da, dx), (db, dhead)):
        assert (mine.double() - theirs).norm() < 2e-2 * theirs.norm()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_model_of_a_large_vocabulary_learns_as_if_all_logits_were_made(tied, reduction):
    vocab_size, shape = 4096, (2, 260)
    model = star.build(Genome(parse_text("1-9"), 16, 8), vocab_size, seed=0, tie_embeddings=tied).double()
    tokens, targets = torch.randint(vocab_size, (2, *shape), generator=torch.Generator().manual_seed(1))
    assert shape[0] * shape[1] > tokens_at_once(torch.empty(shape[0] * shape[1], 16), model.head_weight) > 0
    loss = model.loss(tokens, targets, reduction)
    logits, _ = model(tokens)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction).view(
        targets.shape if reduction == "none" else ()
    )
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    parameters = list(model.parameters())
    for mine, theirs in zip(*(torch.autograd.grad(value.sum(), parameters) for value in (loss, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-13)


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor made inside."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.numbers = max(self.numbers, *(t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor)), 0)
        return result


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_tensor_is_larger_than_the_logits_of_a_chunk_or_the_head(reduction):
    x, head, targets = example(torch.float32)
    for chunk, bound in ((D, V * D), (2 * D, 2 * V * D), (N, N * V)):
        with Largest() as largest:
            cross_entropy(x, head, targets, reduction, chunk).sum().backward()
        assert largest.numbers == bound


def test_few_logits_are_made_at_once_and_many_in_chunks():
    few, many = (torch.empty(n, D) for n in (CPU_LOGITS // 256 - 1, CPU_LOGITS // 256))
    assert tokens_at_once(few, torch.empty(256, D)) == 0 < tokens_at_once(many, torch.empty(256, D)) < len(many)


def test_on_a_gpu_logits_are_made_in_chunks_only_where_memory_asks_for_it(monkeypatch):
    card = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: card)
    x, head = torch.empty(32 * 1024, D, device="meta"), torch.empty(50_304, D, device="meta")  # no CPU
    assert tokens_at_once(x[:16_384], head) == 0
    assert tokens_at_once(x, head) * 50_304 * 16 == pytest.approx(20 * 2**30, rel=1e-3)
