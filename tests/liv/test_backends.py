"""fla replaces our own recurrences only if it agrees, and is optional. These tests use a fake fla on the CPU."""

import sys
import types

import pytest
import torch

from star.genome.classes import POOL
from star.liv import backends
from star.liv.delta import delta_parallel
from star.liv.ssd import ssd_parallel
from star.liv.vector_gate import vector_gate_parallel

FORMS = {"scalar": ssd_parallel, "vector": vector_gate_parallel, "delta": delta_parallel, "gated delta": delta_parallel}
ROWS = {
    "Rec-1": "scalar",
    "LinAttn": "scalar",
    "Mamba-2": "scalar",
    "GLA": "vector",
    "DeltaNet": "delta",
    "GatedDelta": "gated delta",
}
TOKENS = 100


@pytest.fixture
def fla(monkeypatch):
    """A fake of every kernel of fla that returns our numbers. Set `change` to falsify them; `calls` lists the calls."""
    fake = types.SimpleNamespace(calls=[], change=lambda y: y)

    def kernel(name):
        def call(q, k, v, g=None, beta=None, scale=None, initial_state=None, output_final_state=False):
            assert scale == 1.0 and q.shape[2] == k.shape[2] == v.shape[2]
            fake.calls.append(name)
            delta = () if beta is None else (beta,)
            y, state = FORMS[name](q, k, v, g, *delta, initial_state, output_final_state)
            return fake.change(y), state

        return call

    for name, (module, function) in backends.KERNELS.items():
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{function: kernel(name)}))
    monkeypatch.setattr(backends, "DEVICES", ("cpu",))
    monkeypatch.setattr(backends, "CHOICES", {})
    return fake


def operator(row: str, dtype=torch.float32) -> torch.nn.Module:
    liv = next(c for c in POOL if c.name == row).config(32, 16, 1e4).build()
    liv.reset_parameters(torch.Generator().manual_seed(0))
    return liv.to(dtype)


def x(dtype=torch.float32) -> torch.Tensor:
    return torch.randn(2, TOKENS, 32, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("row, name", ROWS.items())
def test_what_agrees_is_used_after_one_probe(row, name, fla):
    liv = operator(row)
    with torch.no_grad():
        y, state = liv(x(), liv.init_state(2, TOKENS))
        assert fla.calls == [name] * 2  # the probe and the call
        liv(x())
        assert fla.calls == [name] * 3
        backends.DEVICES = ()
        ours, our_state = liv(x(), liv.init_state(2, TOKENS))
    assert torch.allclose(y, ours, atol=1e-5) and torch.allclose(state["memory"], our_state["memory"], atol=1e-5)
    assert len(fla.calls) == 3
    (why,) = backends.explain()
    assert (
        why.startswith(f"{name} recurrence, float32 on cpu, state ")
        and "fla, which differs from our own form by " in why
    )


class WrongGradient(torch.autograd.Function):
    """The right output with 1.1 times the gradient, like a compiler bug."""

    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, dy):
        return 1.1 * dy


def refuse(y):
    raise RuntimeError("backward is not supported\nwith this compiler")


SPOILED = {
    "differs": (lambda y: 1.1 * y, "because fla differs from it by "),
    "differs in its gradient only": (WrongGradient.apply, "because fla differs from it by "),
    "is not a number": (lambda y: y * torch.nan, "because fla differs from it by inf"),
    "raises": (refuse, "because fla raises RuntimeError: backward is not supported with this compiler"),
}


@pytest.mark.parametrize("change, why", SPOILED.values(), ids=SPOILED)
def test_what_does_not_agree_is_not_used_and_says_why(change, why, fla):
    liv = operator("GatedDelta")
    expected, _ = liv(x()[:, : backends.MIN_TOKENS - 1])  # too short for fla
    fla.change = change
    y, _ = liv(x())
    assert fla.calls == ["gated delta"] and torch.allclose(y[:, : backends.MIN_TOKENS - 1], expected, atol=1e-6)
    liv(x())
    assert fla.calls == ["gated delta"]  # not asked again
    assert f"our own form, {why}" in backends.explain()[0] and "\n" not in backends.explain()[0]


def test_without_fla_our_own_form_is_used_and_says_why(fla, monkeypatch):
    for module, _ in backends.KERNELS.values():
        monkeypatch.setitem(sys.modules, module, None)  # not installed
    operator("GLA")(x())
    assert "our own form, because fla raises ModuleNotFoundError" in backends.explain()[0]


def test_every_dtype_and_head_width_is_probed_and_float64_is_ours(fla):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        operator("Rec-1")(x(dtype)) if dtype == torch.bfloat16 else operator("Rec-1", dtype)(x(dtype))
    operator("Rec-2")(x())
    assert [key[1:2] + key[3:] for key in backends.CHOICES] == [
        (torch.float32, 16, 16),
        (torch.bfloat16, 16, 16),
        (torch.float32, 2, 16),
    ]


def test_other_devices_short_pieces_and_compilers_take_our_own_form(fla):
    liv = operator("DeltaNet")
    liv(x()[:, :10])
    torch._dynamo.reset()
    torch.compile(liv, fullgraph=True, backend="eager")(x())
    backends.DEVICES = ("cuda",)
    liv(x())
    assert fla.calls == [] and backends.explain() == []
