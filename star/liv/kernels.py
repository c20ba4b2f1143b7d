"""The kernels of fla (flash-linear-attention) for recurrences, used where they agree with our own forms.

fla is optional, and is only imported on one of `DEVICES`, for an operator, dtype and head width that `star doctor` has
checked on this machine (`star.liv.kernel_check`): a check takes up to a minute, because it tunes the kernels. Its
verdicts are kept on disk for this machine and these versions. Without a verdict, or where fla raises an error or
differs from our form, our form is used, and `explain()` says why. With some compiler versions its kernels do raise
errors, or have given wrong gradients.

Our own form is also used for a few tokens, and under `torch.compile`, which fuses it, while fla's kernels would break
the graph. Set `kernels.DEVICES = ()` to use it always, as function transforms (`torch.func`) on a GPU require.
"""

from __future__ import annotations

import importlib
import json
import os
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs
import torch
from torch import Tensor

from star.liv.backends import CHOOSERS, LOADERS

DEVICES: tuple[str, ...] = ("cuda",)
# Our name -> module and function of fla-core. All take q, k, v [B, T, H, .] and the keywords in `load_kernel`.
KERNELS = {
    "scalar": ("fla.ops.simple_gla", "chunk_simple_gla"),
    "vector": ("fla.ops.gla", "chunk_gla"),
    "delta": ("fla.ops.delta_rule", "chunk_delta_rule"),
    "gated delta": ("fla.ops.gated_delta_rule", "chunk_gated_delta_rule"),
    "channel delta": ("fla.ops.kda", "chunk_kda"),
}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class Case(NamedTuple):
    """What a verdict is about: a kernel, the dtype of its keys and values, their widths."""

    kernel: str
    dtype: str
    state_size: int
    width: int

    def __str__(self) -> str:
        return f"{self.kernel} recurrence, {self.dtype}, state {self.state_size} x {self.width}"


class Choice(NamedTuple):
    """form: fla's kernel with the arguments of ours, or None for ours; why: the reason."""

    form: Callable | None
    why: str


CHOICES: dict[Case, Choice] = {}  # what this process has needed so far


def choose(name: str, b: Tensor, v: Tensor) -> Callable | None:
    """fla's form for a recurrence with b [B, T, H, N] and v [B, T, H, P], or None for ours."""
    if v.device.type not in DEVICES or v.dtype not in DTYPES:
        return None
    case = Case(name, str(v.dtype).removeprefix("torch."), b.shape[-1], v.shape[-1])
    if case not in CHOICES:
        CHOICES[case] = known(case, v.device)
    return CHOICES[case].form


CHOOSERS.append(choose)


def one_pass_kernels() -> dict[str, Callable]:
    """The kernels of `star.liv.triton_kernels`; none, with a warning, where Triton cannot run."""
    try:
        from star.liv.triton_kernels import KERNELS as found
        from star.liv.triton_kernels import try_all

        try_all(torch.device("cuda"))
    except Exception as error:  # whatever a compiler may raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(f"no one-pass kernels, so training is slower: Triton does not run here ({reason})", stacklevel=2)
        return {}
    return found


LOADERS["cuda"] = one_pass_kernels


def explain() -> list[str]:
    """One sentence for every choice made so far."""
    return [
        f"{case}: {'fla' if choice.form else 'our own form'}, {choice.why}" for case, choice in sorted(CHOICES.items())
    ]


def known(case: Case, device: torch.device) -> Choice:
    """The choice by the verdict on disk."""
    verdict = read_verdicts(device).get(str(case))
    if verdict is None:
        return Choice(None, "because fla has not been checked here for it; star doctor does that")
    if not verdict["agrees"]:
        return Choice(None, f"because {verdict['why']}")
    try:
        return Choice(load_kernel(case.kernel), f"because {verdict['why']}")
    except ImportError as error:
        return Choice(None, f"because fla cannot be imported: {error}")


def verdict_file(device: torch.device) -> Path:
    """Where verdicts of this machine's device and versions are kept."""
    try:
        version = metadata.version("fla-core")
    except metadata.PackageNotFoundError:
        version = "none"
    card = torch.cuda.get_device_name(device).replace(" ", "-") if device.type == "cuda" else "cpu"
    cache = Path(os.environ.get("STAR_CACHE") or platformdirs.user_cache_dir("star")).expanduser()
    return cache / "kernels" / f"fla-{version}-torch-{torch.__version__}-{card}.json"


def read_verdicts(device: torch.device) -> dict[str, dict]:
    """{str(case): {"agrees", "why"}}; empty if there are none, or the file is damaged."""
    try:
        return json.loads(verdict_file(device).read_text())
    except (OSError, ValueError):
        return {}


def load_kernel(name: str) -> Callable:
    """fla's kernel with the arguments of our parallel forms: c, b, v, g, beta (delta rule), memory, keep_memory."""
    os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")  # else every process tunes the kernels again
    module, function = KERNELS[name]
    kernel = getattr(importlib.import_module(module), function)
    keywords = ("q", "k", "v", "g", *(["beta"] if "delta" in name else []), "initial_state", "output_final_state")

    def form(*inputs: Any) -> tuple[Tensor, Tensor | None]:
        given = {name: x for name, x in zip(keywords, (*inputs, True)) if name != "g" or x is not None}
        for keyword in "qk":  # fla takes one key per head, ours may be shared by several
            given[keyword] = given[keyword].repeat_interleave(given["v"].shape[2] // given[keyword].shape[2], dim=2)
        return kernel(**given, scale=1.0)

    return form
