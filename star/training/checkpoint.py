"""A training run on disk: weights, optimizer state and learning curve in one safetensors file.

Tensors and JSON only, so that a file from elsewhere is data, never code. Written beside its place, flushed
and renamed: there is a whole checkpoint or none.
"""

import contextlib
import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from star.errors import UserError
from star.training.optim import Optimizers


class CheckpointError(UserError):
    """A checkpoint is there but cannot be continued from: of another run, beyond the stop asked for, or damaged."""


def save_checkpoint(path: Path, model: nn.Module, optimizer: Optimizers, identity: dict, progress: dict) -> None:
    """identity: facts that must be equal for a run to resume; progress: JSON-able, returned by `load_checkpoint`."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items() if name not in _aliases(model)}
    for index, (_, state) in enumerate(optimizer.states()):
        for key, tensor in state.items():
            tensors[f"optimizer.{index}.{key}"] = tensor
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata={"identity": json.dumps(identity), "progress": json.dumps(progress)})
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"Cannot write the checkpoint {path}: {error}; make room there or choose another place."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def load_checkpoint(path: Path, model: nn.Module, optimizer: Optimizers, identity: dict) -> dict:
    """Put the saved state into `model` and `optimizer`; returns the saved progress. Raises CheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = {key: json.loads(text) for key, text in (file.metadata() or {}).items()}
            for key, wanted in identity.items():
                found = facts["identity"].get(key)
                if found != wanted:
                    raise CheckpointError(
                        f"The checkpoint {path} is of another run: its {key} is {found}, not {wanted}; remove it to "
                        "start again."
                    )
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            weights = {
                name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")
            }
            model.load_state_dict(weights | {name: weights[owner] for name, owner in _aliases(model).items()})
            for index, (param, state) in enumerate(optimizer.states()):
                prefix = f"optimizer.{index}."
                found = {
                    name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)
                }
                state.update({key: tensor.to(param.device) for key, tensor in found.items()})
            return facts["progress"]
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"The checkpoint {path} cannot be read ({str(error).splitlines()[0]}); remove it to start again."
        ) from error


def _aliases(model: nn.Module) -> dict[str, str]:
    """Names of tensors that LIVs share -> the first name of the same tensor, under which alone it is saved."""
    owners: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {name: owners[id(tensor)] for name, tensor in state.items() if owners.setdefault(id(tensor), name) != name}
