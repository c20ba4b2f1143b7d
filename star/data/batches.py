"""Training batches by index, and the fixed validation sample.

Batch number `step` depends only on (tokens, batch_size, seq_len, seed, step), so a resumed training sees the same
batches as one that never stopped. `Prefetcher` prepares batches ahead while a GPU trains.
"""

import contextlib
import copy
import queue
import threading
from typing import Protocol

import numpy as np
import torch

AHEAD = 3  # batches prepared ahead while a GPU trains


class BatchSource(Protocol):
    """Anything that returns the inputs and targets of a step, such as `Batches`."""

    def __getitem__(self, step: int, /) -> tuple[torch.Tensor, torch.Tensor]: ...


class Batches:
    """`batches[step]` -> inputs int64 [B, T], targets int64 [B, T] (the inputs' next tokens).

    Each epoch cuts the text into blocks of `seq_len` tokens at a random offset and visits every block once, in random
    order. An epoch has `n_blocks` sequences; a batch may reach into the next epoch.
    """

    def __init__(self, tokens: np.ndarray, batch_size: int, seq_len: int, seed: int):
        if len(tokens) < 2 * seq_len + 1:
            raise ValueError(f"{len(tokens)} tokens are too few for sequences of {seq_len} with a random offset")
        self.tokens = np.asarray(tokens)  # a view: a plain array slices faster than np.memmap
        self.batch_size, self.seq_len, self.seed = batch_size, seq_len, seed
        self.n_blocks = len(tokens) // seq_len - 1  # so that an offset below seq_len always fits
        self._window = np.arange(seq_len + 1)
        self._epoch, self._starts = -1, np.empty(0, np.int64)

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.sequences(step * self.batch_size, self.batch_size)

    def sequences(self, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, int64 [count, T], of `count` sequences from number `first`: for changing batch sizes."""
        starts = [self._start(index) for index in range(first, first + count)]
        return _windows(self.tokens, np.array(starts), self._window)

    def _start(self, index: int) -> int:
        epoch, position = divmod(index, self.n_blocks)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            offset = rng.integers(self.seq_len)
            self._epoch, self._starts = epoch, offset + self.seq_len * rng.permutation(self.n_blocks)
        return self._starts[position]


class Prefetcher:
    """`prefetcher[step]` is `batches[step]` on `device`; a thread prepares the next steps ahead.

        with Prefetcher(batches, first_step, device) as prefetched:
            inputs, targets = prefetched[step]

    Asking for any step but the next one restarts the thread there. An error in the thread is raised here, at the step
    that it belongs to. On CUDA, batches are in pinned memory and copied asynchronously.

    ahead: batches prepared in advance. 0 means no thread, the default on a CPU: there a batch takes 0.01 ms (8 x 128
        tokens, measured) of a step of 100 ms, and a thread would only compete for the core.
    """

    def __init__(self, batches: BatchSource, first: int, device: torch.device | str, ahead: int | None = None):
        self.batches, self.device = batches, torch.device(device)
        self.ahead = (0 if self.device.type == "cpu" else AHEAD) if ahead is None else ahead
        self._thread: threading.Thread | None = None
        self._next = first
        if self.ahead:
            self._start()

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = self._take(step) if self.ahead else self.batches[step]
        return inputs.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)

    def _take(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if step != self._next or self._thread is None:
            self.close()
            self._next = step
            self._start()
        prepared = self._queue.get()
        if isinstance(prepared, BaseException):
            self.close()
            raise prepared
        self._next += 1
        return prepared

    def _start(self) -> None:
        self._queue: queue.Queue = queue.Queue(self.ahead)
        self._stop = threading.Event()
        # A copy, because `Batches` remembers the epoch it is in and others may read it at another step.
        work = (copy.copy(self.batches), self._next, self.device.type == "cuda", self._queue, self._stop)
        self._thread = threading.Thread(target=_prepare, args=work, name="prefetch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and drop its batches. Asking for another batch starts it again."""
        if self._thread is None:
            return
        self._stop.set()
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()  # the thread may be waiting for room
        self._thread.join()
        self._thread = None

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_thread", None) is not None:
            self._stop.set()


def _prepare(batches: BatchSource, step: int, pinned: bool, prepared: queue.Queue, stop: threading.Event) -> None:
    """The thread. It holds no reference to its `Prefetcher`, which can then be garbage-collected."""
    while not stop.is_set():
        try:
            batch = batches[step]
            result: tuple | BaseException = tuple(part.pin_memory() for part in batch) if pinned else batch
        except BaseException as error:  # raised again where this batch is asked for
            result = error
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                prepared.put(result, timeout=0.1)
                break
        if isinstance(result, BaseException):
            return
        step += 1


def validation_blocks(tokens: np.ndarray, seq_len: int, n_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets, int64 [n, T]: about `n_tokens` tokens in disjoint blocks spread evenly over the text.

    The sample depends on no seed, so every candidate of a search is evaluated on the same text.
    """
    available = (len(tokens) - 1) // seq_len
    n = max(2, min(available, n_tokens // seq_len))
    starts = np.arange(n) * available // n * seq_len
    return _windows(np.asarray(tokens), starts, np.arange(seq_len + 1))


def _windows(tokens: np.ndarray, starts: np.ndarray, window: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    windows = tokens[starts[:, None] + window]  # [B, T + 1]
    return torch.from_numpy(windows[:, :-1].astype(np.int64)), torch.from_numpy(windows[:, 1:].astype(np.int64))
