"""Weights of a model as a safetensors file, which is checked against the model before it is loaded."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from star.errors import UserError
from star.export.readable import exported_name
from star.model import LanguageModel

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
READABLE = exported_name("embedding")  # in a file whose names are those of a readable model.py


def save_weights(model: LanguageModel, path: Path, readable: bool = False) -> None:
    """Write all parameters; a shared one is stored once, under the name of its owner.

    readable: under the names of `star.export.readable`, with which `load_weights` reads them too.
    """
    names = exported_name if readable else str
    tensors = {names(name): p.detach().cpu().contiguous() for name, p in model.named_parameters()}
    # Not save_file, because its files are readable only by the user who wrote them.
    path.write_bytes(save(tensors, metadata={"format": "pt"}))


def check_weights(path: Path, model: LanguageModel) -> torch.dtype:
    """The dtype of the weights in a file. Reads only the header.

    Raises UserError unless the file is complete and has exactly the tensors of `model` (meta device allowed).
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_slice(name) for name in file.keys()}
            shapes = {name: part.get_shape() for name, part in found.items()}
            dtypes = {name: part.get_dtype() for name, part in found.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: is missing, damaged or not a safetensors file ({error}); export the model again"
        ) from None
    names = exported_name if READABLE in shapes else str
    expected = {names(name): list(p.shape) for name, p in model.named_parameters()}
    # Other names of shared tensors, which a file may repeat.
    shared = {names(name) for name in model.state_dict()} - set(expected)
    shared |= {name for name in shapes if name.endswith(".norm_in")}  # 0.3.0 had one for LIVs that read no input
    if fault := _mismatch(expected, shapes, shared):
        raise UserError(f"{path}: {fault}; the weights belong to another architecture, so export the model again")
    kinds = sorted(set(dtypes.values()))
    if len(kinds) != 1 or kinds[0] not in DTYPES:
        found_kinds = ", ".join(kinds) or "no dtype"
        raise UserError(f"{path}: its tensors have {found_kinds}; all must have the same dtype of {', '.join(DTYPES)}")
    return DTYPES[kinds[0]]


def _mismatch(expected: dict[str, list[int]], found: dict[str, list[int]], shared: set[str]) -> str | None:
    """The first tensor that is missing, misshapen or unknown, in words."""
    for name, shape in expected.items():
        if name not in found:
            return f"tensor {name} is missing"
        if found[name] != shape:
            return f"tensor {name} has shape {found[name]}, but the genome needs {shape}"
    for name in found:
        if name not in expected and name not in shared:
            return f"tensor {name} is not part of the genome"
    return None


def load_weights(model: LanguageModel, path: Path) -> None:
    """Load the weights of a file into `model`, in the file's dtype. Raises UserError as `check_weights` does."""
    model.to(check_weights(path, model))
    with safe_open(path, framework="pt") as file, torch.no_grad():
        names = exported_name if READABLE in file.keys() else str
        for name, parameter in model.named_parameters():
            parameter.copy_(file.get_tensor(names(name)))
