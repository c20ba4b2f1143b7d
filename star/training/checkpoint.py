"""A training run on disk: weights, optimizer state and learning curve in one safetensors file.

The file contains only tensors and JSON, so loading one from elsewhere never runs code. It is written completely or not
at all.
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from star.errors import UserError
from star.store.files import write_atomically
from star.training.optim import Optimizers


class CheckpointError(UserError):
    """A checkpoint exists but cannot be used: it is of another run, beyond the requested stop, or damaged."""


def save_checkpoint(path: Path, model: nn.Module, optimizer: Optimizers, identity: dict, progress: dict) -> None:
    """Write a checkpoint. Raises UserError if that fails.

    identity: facts that must be equal for a run to resume; progress: JSON-able, returned by `load_checkpoint`.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items() if name not in _aliases(model)}
    for index, (_, state) in enumerate(optimizer.states()):
        tensors |= {f"optimizer.{index}.{key}": tensor for key, tensor in state.items()}
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    metadata = {"identity": json.dumps(identity), "progress": json.dumps(progress)}
    try:
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))
    except (OSError, SafetensorError) as error:
        raise UserError(f"Cannot write the checkpoint {path}: {error}; make room or choose another place.") from error


def load_checkpoint(path: Path, model: nn.Module, optimizer: Optimizers, identity: dict) -> dict:
    """Load the saved state into `model` and `optimizer`; returns the saved progress. Raises CheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = {key: json.loads(text) for key, text in (file.metadata() or {}).items()}
            if different := _differences(facts["identity"], identity):
                raise CheckpointError(
                    f"The checkpoint {path} is of another run: {'; '.join(different)}; remove it to start again."
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        weights = _below("model.", tensors)
        model.load_state_dict(weights | {name: weights[owner] for name, owner in _aliases(model).items()})
        for index, (param, state) in enumerate(optimizer.states()):
            saved = _below(f"optimizer.{index}.", tensors)
            state.update({key: tensor.to(param.device) for key, tensor in saved.items()})
        return facts["progress"]
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"The checkpoint {path} cannot be read ({str(error).splitlines()[0]}); remove it to start again."
        ) from error


def saved_step(path: Path) -> int:
    """The optimizer step of a checkpoint. Raises CheckpointError if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["progress"])["step"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"The checkpoint {path} cannot be read ({error}); remove it to start again.") from error


def _differences(found: dict, wanted: dict, what: str = "its ") -> list[str]:
    """One phrase for every fact that differs, settings inside it by name."""
    phrases = []
    for key, value in wanted.items():
        if isinstance(value, dict) and isinstance(found.get(key), dict):
            phrases += _differences(found[key], value, f"{what}{key}.")
        elif found.get(key) != value:
            phrases.append(f"{what}{key} is {found.get(key)!r}, not {value!r}")
    return phrases


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, named without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _aliases(model: nn.Module) -> dict[str, str]:
    """{name of a tensor that LIVs share: its first name}. Only the first name is saved."""
    owners: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {name: owners[id(tensor)] for name, tensor in state.items() if owners.setdefault(id(tensor), name) != name}
