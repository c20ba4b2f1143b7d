"""A function of tensors as one program: called on a CPU; on a GPU captured once as a CUDA graph and then replayed.

    step = Program(function, device)      # function() -> a tuple of tensors
    (loss,) = step()

The host starts the kernels of a small model one by one, far more slowly than a GPU runs them. A replayed graph starts
all kernels of a training step at once: 2 to 14 times the tokens per second on an H100 at widths 64 to 256, without a
compiler, after a capture of 0.1 to 0.6 s. The price is a rule for the function: everything that changes from call to
call is a tensor that it reads and writes in place (the number of the batch, the learning rate), and it never waits for
the device (no `.item()`). The same function runs on a CPU, where the tests check the rule by recording its operations.

The few lines that differ between devices are in this file.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator
from typing import TypeVar

import torch
from torch import Tensor

from star.errors import is_out_of_memory

# Calls before the capture. They tune kernels, fill caches and allocate the state of the optimizer.
WARMUP = 3

Replay = Callable[[], object]
T = TypeVar("T")


class Program:
    """A function without arguments that returns a tuple of tensors; the next call may overwrite them.

    Where the device can capture, the function is captured after `warmup` calls, unless `captures` is False. If the
    capture fails (memory runs out, or the driver cannot), the function is called as it is, for good.
    """

    def __init__(
        self,
        function: Callable[[], tuple[Tensor, ...]],
        device: torch.device,
        captures: bool = True,
        warmup: int = WARMUP,
    ):
        self.function, self.warmup = function, warmup
        self.capture = CAPTURES.get(device.type) if captures else None
        self.replay: Replay | None = None
        self.result: tuple[Tensor, ...] = ()
        self.calls = 0

    def __call__(self) -> tuple[Tensor, ...]:
        self.calls += 1
        if self.replay is None and self.capture is not None and self.calls > self.warmup:
            try:
                self.replay, self.result = self.capture(self.function)
            except (MemoryError, RuntimeError) as error:
                self.capture = None  # an error that is not of the capture occurs again in the call below
                if not is_out_of_memory(error):
                    warnings.warn(f"no CUDA graph, so training is several times slower: {error}", stacklevel=2)
        if self.replay is None:
            return self.function()
        self.replay()
        return self.result


def cuda_graph(function: Callable[[], tuple[Tensor, ...]]) -> tuple[Replay, tuple[Tensor, ...]]:
    """Capture `function` on the current stream. Returns the replay and the tensors that it overwrites.

    cuBLAS keeps one workspace for each stream. It is dropped before and after, so that each graph has one of its own in
    its own memory: with a common one, freeing a graph breaks the others of its stream (pytorch#193402, #192061).
    """
    graph = torch.cuda.CUDAGraph()
    torch._C._cuda_clearCublasWorkspaces()
    # thread_local: what other threads of this process do meanwhile does not end the capture.
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
        result = function()
    torch._C._cuda_clearCublasWorkspaces()
    return graph.replay, result


CAPTURES: dict[str, Callable[[Callable[[], tuple[Tensor, ...]]], tuple[Replay, tuple[Tensor, ...]]]] = {
    "cuda": cuda_graph
}


def on_own_stream(steps: Generator[None, None, T], device: torch.device) -> Generator[None, None, T]:
    """The same steps; on CUDA all on a stream of their own: others run beside it, and graphs can be captured on it."""
    if device.type != "cuda":
        return (yield from steps)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    while True:
        with torch.cuda.stream(stream):
            try:
                next(steps)
            except StopIteration as end:
                torch.cuda.current_stream(device).synchronize()
                return end.value
        try:
            yield
        except GeneratorExit:
            with torch.cuda.stream(stream):
                steps.close()
            raise
