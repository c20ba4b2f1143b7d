"""Several processes that train one model, each on its share of every batch (`torchrun --nproc-per-node N -m star train
...`).

The gradients are averaged by PyTorch's DistributedDataParallel; every process takes the same steps and holds the same
weights. Without `torchrun` there is one process, and nothing here does anything.
"""

import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from star.errors import UserError

PATIENCE = datetime.timedelta(minutes=10)  # for a process that does not answer


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that `torchrun` has started, for as long as the context lasts."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
        dist.barrier()  # who leaves first would break the others' last messages
    finally:
        dist.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """The device of this process: each has a GPU of its own."""
    if device.type != "cuda" or device.index is not None or "LOCAL_RANK" not in os.environ:
        return device
    local = int(os.environ["LOCAL_RANK"])
    if local >= torch.cuda.device_count():
        raise UserError(
            f"There are {torch.cuda.device_count()} GPUs and at least {local + 1} processes; start as many "
            "processes as there are GPUs."
        )
    return torch.device("cuda", local)


def rank() -> int:
    """Number of this process, from 0; the first one speaks and writes."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that train the model."""
    return dist.get_world_size() if dist.is_initialized() else 1


class Loss(nn.Module):
    """`model.loss` as a module's forward, which DistributedDataParallel watches."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.model.loss(inputs, targets)


def shared_loss(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """A callable that gives the loss of this process's share; its backward averages the gradients of all, unless under
    `no_sync`.
    """
    return DistributedDataParallel(
        Loss(model), device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False
    )


def average(tensors: Sequence[Tensor]) -> None:
    """In place, over all processes."""
    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= world_size()


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process: so that all of them stop at the same step."""
    if world_size() == 1:
        return flag
    tensor = torch.tensor(float(flag), device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return bool(tensor.item())
