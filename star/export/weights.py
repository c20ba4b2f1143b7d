"""Weights of a model as a safetensors file: every tensor once, checked before a byte of it becomes a tensor."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from star.errors import UserError
from star.model import LanguageModel

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def save_weights(model: LanguageModel, path: Path) -> None:
    """Write all parameters, each that several LIVs share under the name of its owner."""
    tensors = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}
    path.write_bytes(
        save(tensors, metadata={"format": "pt"})
    )  # not save_file: it makes files that only their owner may read


def check_weights(path: Path, model: LanguageModel) -> torch.dtype:
    """The one dtype of the weights in a file. Reads its header alone.

    Raises UserError unless the file is whole and has exactly the tensors of `model` (which may be on the meta device).
    """
    expected = {name: list(p.shape) for name, p in model.named_parameters()}
    shared = set(model.state_dict()) - set(expected)  # further names of shared tensors: a file may repeat them
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_slice(name) for name in file.keys()}
            shapes = {name: part.get_shape() for name, part in found.items()}
            dtypes = {name: part.get_dtype() for name, part in found.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: is missing, damaged or no safetensors file ({error}); export the model again"
        ) from None
    for name in expected:
        if name not in shapes:
            raise UserError(f"{path}: tensor {name} is missing; these are the weights of another architecture")
        if shapes[name] != expected[name]:
            raise UserError(
                f"{path}: tensor {name} has shape {shapes[name]} and the genome says {expected[name]}; these are "
                "the weights of another architecture"
            )
    for name in shapes:
        if name not in expected and name not in shared:
            raise UserError(
                f"{path}: tensor {name} is not part of the genome; these are the weights of another architecture"
            )
    kinds = sorted(set(dtypes.values()))
    if len(kinds) != 1 or kinds[0] not in DTYPES:
        raise UserError(
            f"{path}: its tensors are of {', '.join(kinds) or 'no type'}; all must be of one type among "
            f"{', '.join(DTYPES)}"
        )
    return DTYPES[kinds[0]]


def load_weights(model: LanguageModel, path: Path) -> None:
    """Give `model` the weights of a file, in the file's dtype. Raises UserError as `check_weights` does."""
    model.to(check_weights(path, model))
    with safe_open(path, framework="pt") as file, torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(file.get_tensor(name))
