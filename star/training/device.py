"""The device of a recipe, its precision and its peak memory."""

import contextlib
import sys

import torch

from star.errors import UserError


def resolve_device(name: str) -> torch.device:
    """The device that `name` stands for; "auto": CUDA if available, else the CPU. Raises UserError if there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f'There is no device "{name}"; use auto, cpu or cuda.') from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f'This machine has no device "{name}"; use auto or cpu.')
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of activations; "auto": bfloat16 on CUDA, float32 elsewhere."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def use_tensor_cores(device: torch.device, dtype: torch.dtype) -> None:
    """Let a GPU compute float32 matrix products in TF32 where activations are less exact than that anyway.

    The states of recurrences are in float32 whatever the activations are; without tensor cores their products take up
    to ten times as long. TF32 keeps 10 bits of the mantissa, bfloat16 keeps 7. Holds for the process.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = dtype != torch.float32


def capacity(device: torch.device) -> str:
    """ " of 80.0 GiB" for a GPU, to be put behind its name."""
    if device.type != "cuda":
        return ""
    return f" of {torch.cuda.get_device_properties(device).total_memory / 2**30:.1f} GiB"


def memory_of_others(device: torch.device) -> int:
    """Bytes of a GPU that other processes hold; 0 below 2 GiB, since this process has a context of its own."""
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    return others if others > 2 * 2**30 else 0


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement. On systems that cannot, the peak counts from the start of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # Linux: VmHWM := VmRSS


def peak_memory(device: torch.device) -> int:
    """Peak memory since the reset, in bytes. CUDA: of all tensors; CPU: of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
