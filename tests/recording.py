"""A stand-in for a CUDA graph on a CPU: records the operations of a function once, and runs just these again.

As under a CUDA graph, the capture changes no tensor that existed before, a replay runs no Python of the function, and
waiting for the device during the capture is an error. So whatever a function keeps in Python numbers between two calls,
instead of in tensors, shows as a wrong replay.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique_dim", "_unique2"}


def tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


class Recorder(TorchDispatchMode):
    """The tape of operations, and the old contents of everything that was there before and has been written to."""

    def __init__(self):
        super().__init__()
        self.tape: list[tuple] = []
        self.own: set[int] = set()  # storages made while recording
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operation._schema.name.removeprefix("aten::") in WAITS:
            raise RuntimeError(f"{operation} waits for the device during a capture")
        written = [
            tensor
            for argument, value in self._arguments(operation, args, kwargs)
            if argument.alias_info is not None and argument.alias_info.is_write
            for tensor in tensors(value)
        ]
        for tensor in written:
            storage = tensor.untyped_storage()
            if place(tensor) not in self.own and place(tensor) not in self.before:
                self.before[place(tensor)] = storage, storage.clone()
        result = operation(*args, **kwargs)
        inputs = {place(tensor) for tensor in tensors((args, kwargs))}
        fresh = [tensor for tensor in tensors(result) if place(tensor) not in inputs]
        self.own |= {place(tensor) for tensor in fresh}
        self.tape.append((operation, args, kwargs, result, bool(fresh), bool(written)))
        return result

    @staticmethod
    def _arguments(operation, args, kwargs):
        names = operation._schema.arguments
        return [*zip(names, args, strict=False), *((a, kwargs[a.name]) for a in names if a.name in kwargs)]

    def replay(self) -> None:
        with torch.no_grad():
            for operation, args, kwargs, result, fresh, written in self.tape:
                if fresh:
                    again = operation(*args, **kwargs)
                    for old, new in zip(tensors(result), tensors(again), strict=True):
                        old.copy_(new)
                elif written:
                    operation(*args, **kwargs)


def record(function):
    """As `star.training.program.cuda_graph`: returns the replay and the tensors that it overwrites."""
    recorder = Recorder()
    with recorder:
        result = function()
    for storage, old in recorder.before.values():
        storage.copy_(old)
    return recorder.replay, result
