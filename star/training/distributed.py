"""Several processes train one model, each on its share of every batch: `torchrun --nproc-per-node N -m star train ...`.

PyTorch's DistributedDataParallel averages the gradients; every process takes the same steps and has the same weights.
Without `torchrun` there is one process, and the functions here do nothing.
"""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from star.errors import UserError
from star.training.trainable import Trainable

PATIENCE = datetime.timedelta(minutes=10)  # with a process that does not answer


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that `torchrun` has started, for the duration of the context."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
        dist.barrier()  # a process that leaves early would break the last messages of the others
    finally:
        dist.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """The device of this process: each has its own GPU. Raises UserError if there are more processes than GPUs."""
    if device.type != "cuda" or device.index is not None or "LOCAL_RANK" not in os.environ:
        return device
    local = int(os.environ["LOCAL_RANK"])
    if local >= torch.cuda.device_count():
        counts = f"There are {torch.cuda.device_count()} GPUs and at least {local + 1} processes"
        raise UserError(f"{counts}; start as many processes as there are GPUs.")
    return torch.device("cuda", local)


def rank() -> int:
    """Number of this process, from 0; only the first one prints and writes files."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that train the model."""
    return dist.get_world_size() if dist.is_initialized() else 1


class Loss(nn.Module):
    """`model.loss` as the forward of a module, as DistributedDataParallel needs it."""

    def __init__(self, model: Trainable):
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.model.loss(inputs, targets)


def shared_loss(model: Trainable, device: torch.device) -> DistributedDataParallel:
    """A callable: the loss of this process's share. Its backward averages the gradients over all processes."""
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(Loss(model), device_ids=devices, broadcast_buffers=False)


def local_gradients(loss: Callable) -> contextlib.AbstractContextManager:
    """A context in which the backward of a `shared_loss` does not average gradients."""
    return loss.no_sync() if isinstance(loss, DistributedDataParallel) else contextlib.nullcontext()


def average(tensors: Sequence[Tensor]) -> None:
    """Average each tensor over all processes, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= world_size()


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process, so that all of them stop at the same step."""
    if world_size() == 1:
        return flag
    tensor = torch.tensor(float(flag), device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return bool(tensor.item())
