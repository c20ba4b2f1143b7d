"""fla replaces our own recurrences only if it agrees, and is optional.

These tests put a fake package fla on the path, whose kernels are our own forms, spoiled in a stated way.
"""

import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from star.genome.classes import POOL
from star.liv import backends, kernels
from star.liv.kernel_check import check, needed, probe
from star.liv.kernels import Case

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
ROWS = {
    "Rec-1": "scalar",
    "LinAttn": "scalar",
    "Mamba-2": "scalar",
    "GLA": "vector",
    "DeltaNet": "delta",
    "GatedDelta": "gated delta",
    "KDA": "channel delta",
}
TOKENS = 100
FAKE = """
import os, time
import torch
from star.liv.kernel_check import OURS

class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, dy):
        return 1.1 * dy

def {function}(q, k, v, g=None, beta=None, scale=None, initial_state=None, output_final_state=False):
    assert scale == 1.0 and q.shape[2] == k.shape[2] == v.shape[2]
    with open(os.environ["FAKE_FLA"] + "/calls", "a") as file:
        file.write("{name};")
    delta = () if beta is None else (beta,)
    y, state = OURS["{name}"](q, k, v, g, *delta, initial_state, output_final_state)
    spoil = open(os.environ["FAKE_FLA"] + "/spoil").read()
    if spoil == "raises":
        raise RuntimeError("backward is not supported\\nwith this compiler")
    if spoil == "dies":
        os._exit(5)
    if spoil == "hangs":
        time.sleep(100)
    change = {{"differs": lambda y: 1.1 * y, "gradient": WrongGradient.apply, "nan": lambda y: y * torch.nan}}
    return change.get(spoil, lambda y: y)(y), state
"""


@pytest.fixture
def fla(tmp_path, monkeypatch):
    """The folder of the fake: write a way to be wrong into `spoil`; `calls` has the name of every kernel called."""
    for name, (module, function) in kernels.KERNELS.items():
        path = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FAKE.format(function=function, name=name))
    (tmp_path / "spoil").write_text("no")
    (tmp_path / "calls").write_text("")
    monkeypatch.setenv("FAKE_FLA", str(tmp_path))
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.syspath_prepend(tmp_path)
    for module in [m for m in sys.modules if m.split(".")[0] == "fla"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(kernels, "DEVICES", ("cpu",))
    monkeypatch.setattr(kernels, "CHOICES", {})
    yield tmp_path
    for module in [m for m in sys.modules if m.split(".")[0] == "fla"]:
        del sys.modules[module]


def calls(fla: Path) -> list[str]:
    return (fla / "calls").read_text().split(";")[:-1]


def operator(row: str) -> torch.nn.Module:
    liv = next(c for c in POOL if c.name == row).config(32, 16, 1e4).build()
    liv.reset_parameters(torch.Generator().manual_seed(0))
    return liv


def x(dtype=torch.float32) -> torch.Tensor:
    return torch.randn(2, TOKENS, 32, generator=torch.Generator().manual_seed(1)).to(dtype)


def agreed(row: str) -> torch.nn.Module:
    """An operator whose case has a good verdict on disk."""
    liv = operator(row)
    path = kernels.verdict_file(CPU)
    path.parent.mkdir(parents=True, exist_ok=True)
    verdict = {"agrees": True, "why": "fla differs from it by 1e-03"}
    path.write_text(json.dumps({str(case): verdict for case in needed([liv], 32, torch.float32)}))
    return liv


@pytest.mark.parametrize("row, name", ROWS.items())
def test_what_has_a_good_verdict_is_used_without_another_check(row, name, fla):
    liv = agreed(row)
    with torch.no_grad():
        y, state = liv(x(), liv.init_state(2, TOKENS))
        assert calls(fla) == [name]
        liv(x())
        assert calls(fla) == [name] * 2
        kernels.DEVICES = ()
        ours, our_state = liv(x(), liv.init_state(2, TOKENS))
    assert torch.allclose(y, ours, atol=1e-5) and torch.allclose(state["memory"], our_state["memory"], atol=1e-5)
    assert len(calls(fla)) == 2
    (why,) = kernels.explain()
    assert why.startswith(f"{name} recurrence, float32, state ") and "fla, because fla differs from it by " in why


def test_nothing_is_checked_where_models_are_trained(fla):
    operator("GLA")(x())
    assert calls(fla) == [] and "fla" not in sys.modules
    assert "our own form, because fla has not been checked here for it; star doctor does that" in kernels.explain()[0]


def test_a_damaged_file_of_verdicts_is_none(fla):
    agreed("GLA")
    kernels.verdict_file(CPU).write_text("{")
    operator("GLA")(x())
    assert calls(fla) == [] and "has not been checked" in kernels.explain()[0]


def test_a_check_keeps_its_verdicts(fla):
    cases = needed([operator(row) for row in ROWS], 32, torch.float32)
    assert {case.kernel for case in cases} == set(kernels.KERNELS) and not kernels.CHOICES
    verdicts = check(cases, CPU)
    assert set(verdicts) == cases and all(verdict["agrees"] for verdict in verdicts.values())
    before = len(calls(fla))
    assert before == len(cases) and check(cases, CPU) == verdicts and len(calls(fla)) == before
    operator("GatedDelta")(x())
    assert calls(fla)[before:] == ["gated delta"]


SPOILED = {
    "differs": "fla differs from it by ",
    "gradient": "fla differs from it by ",
    "nan": "fla differs from it by inf",
    "raises": "fla raises RuntimeError: backward is not supported with this compiler",
}


@pytest.mark.parametrize("spoil, why", SPOILED.items())
def test_what_does_not_agree_is_not_used_and_says_why(spoil, why, fla):
    (fla / "spoil").write_text(spoil)
    verdict = probe(Case("gated delta", "float32", 8, 16), CPU)
    assert not verdict["agrees"] and why in verdict["why"] and "\n" not in verdict["why"]
    kernels.verdict_file(CPU).parent.mkdir(parents=True)
    liv = operator("GatedDelta")
    bad = {str(case): verdict for case in needed([liv], 32, torch.float32)}
    kernels.verdict_file(CPU).write_text(json.dumps(bad))
    before = len(calls(fla))
    liv(x())
    assert len(calls(fla)) == before and f"our own form, because {why}" in kernels.explain()[0]


def test_a_kernel_that_kills_its_process_is_not_used_and_the_others_are_checked(fla):
    (fla / "spoil").write_text("dies")
    cases = {Case("delta", "float32", 8, 16), Case("scalar", "float32", 8, 16)}
    verdicts = check(cases, CPU)
    assert {v["why"] for v in verdicts.values()} == {"fla ended its process with code 5"} and set(verdicts) == cases


def test_a_check_ends_at_its_limit(fla):
    (fla / "spoil").write_text("hangs")
    started = time.monotonic()
    assert check({Case("delta", "float32", 8, 16)}, CPU, seconds=6) == {}
    assert time.monotonic() - started < 20


def test_without_fla_the_verdict_says_so(fla):
    for path in fla.glob("fla/**/*.py"):
        path.unlink()
    (fla / "fla" / "__init__.py").write_text("")
    assert "fla raises ModuleNotFoundError" in probe(Case("vector", "float32", 8, 16), CPU)["why"]


def test_every_dtype_and_head_width_is_a_case_and_float64_is_ours(fla):
    for dtype in (torch.float32, torch.bfloat16):
        operator("Rec-1")(x(dtype))
    operator("Rec-1").to(torch.float64)(x(torch.float64))
    operator("Rec-2")(x())
    assert [case[1:] for case in kernels.CHOICES] == [("float32", 16, 16), ("bfloat16", 16, 16), ("float32", 2, 16)]


def test_other_devices_short_pieces_and_compilers_take_our_own_form(fla):
    liv = agreed("DeltaNet")
    liv(x()[:, :10])
    torch._dynamo.reset()
    torch.compile(liv, fullgraph=True, backend="eager")(x())
    kernels.DEVICES = ("cuda",)
    liv(x())
    assert calls(fla) == [] and kernels.explain() == []


def test_without_triton_the_plain_forms_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "star.liv.triton_kernels", raising=False)
    with pytest.warns(UserWarning, match="no one-pass kernels, so training is slower: Triton does not run here"):
        assert kernels.one_pass_kernels() == {}


def test_kernels_are_for_their_device_and_dtypes_and_not_for_compilers(monkeypatch):
    monkeypatch.setattr(backends, "LOADED", {})
    monkeypatch.setattr(backends, "LOADERS", {"cpu": lambda: {"gated": "kernel"}})
    assert backends.fused("gated", torch.ones(1)) == "kernel" and backends.fused("rotate", torch.ones(1)) is None
    assert backends.fused("gated", torch.ones(1, dtype=torch.float64)) is None
    assert backends.fused("gated", torch.ones(0)) is None
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    assert backends.fused("gated", torch.ones(1)) is None
