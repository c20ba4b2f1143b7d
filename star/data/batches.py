"""Training batches by index, and the fixed validation sample.

Batch number `step` is a function of (tokens, batch_size, seq_len, seed, step) alone, so that training that
stopped continues with the batches it would have seen. `Prefetcher` prepares them ahead of a GPU that trains.
"""

import contextlib
import copy
import queue
import threading

import numpy as np
import torch

AHEAD = 3  # batches that are prepared while a GPU trains on another


class Batches:
    """`batches[step]` -> inputs int64 [B, T], targets int64 [B, T] (the inputs' next tokens).

    Each epoch cuts the text into blocks of `seq_len` at an offset of its own and visits every block once, in
    random order. An epoch has `n_blocks` sequences; a batch may reach into the next one.
    """

    def __init__(self, tokens: np.ndarray, batch_size: int, seq_len: int, seed: int):
        if len(tokens) < 2 * seq_len + 1:
            raise ValueError(f"{len(tokens)} tokens are too few for sequences of {seq_len} and a shifting start")
        self.tokens = np.asarray(tokens)  # a view: a plain array slices faster than np.memmap
        self.batch_size = batch_size
        self.seq_len = seq_len
        self.seed = seed
        self.n_blocks = len(tokens) // seq_len - 1  # so that an offset below seq_len always fits
        self._window = np.arange(seq_len + 1)
        self._epoch, self._starts = -1, np.empty(0, np.int64)

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.sequences(step * self.batch_size, self.batch_size)

    def sequences(self, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`count` sequences from number `first` on, as (inputs, targets): for batches whose size changes."""
        starts = [self._start(index) for index in range(first, first + count)]
        return _windows(self.tokens, np.array(starts), self._window)

    def _start(self, index: int) -> int:
        epoch, position = divmod(index, self.n_blocks)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            offset = rng.integers(self.seq_len)
            self._epoch, self._starts = epoch, offset + self.seq_len * rng.permutation(self.n_blocks)
        return self._starts[position]


def batches(tokens: np.ndarray, batch_size: int, seq_len: int, seed: int) -> Batches:
    """The training batches of `tokens`, by step; see `Batches`."""
    return Batches(tokens, batch_size, seq_len, seed)


class Prefetcher:
    """`prefetcher[step]` is `batches[step]` on `device`, prepared ahead by a thread while steps follow one another.

        with Prefetcher(batches, first_step, device) as prefetched:
            inputs, targets = prefetched[step]

    The same batches whatever the thread does: another step than the next starts it again from there. What goes wrong in
    the thread is raised here, at the step that it was for. On CUDA, batches lie in pinned memory and are copied without
    waiting. ahead: batches prepared in advance; 0: none and no thread, the default on a CPU, where making one takes
    0.01 ms (8 x 128 tokens, measured) of a step of 100 ms and a thread would only take its core.
    """

    def __init__(self, batches: Batches, first: int, device: torch.device | str, ahead: int | None = None):
        self.batches, self.device = batches, torch.device(device)
        self.ahead = (0 if self.device.type == "cpu" else AHEAD) if ahead is None else ahead
        self._thread: threading.Thread | None = None
        self._next = first
        if self.ahead:
            self._start()

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.ahead:
            inputs, targets = self.batches[step]
        else:
            if step != self._next or self._thread is None:
                self.close()
                self._next = step
                self._start()
            prepared = self._queue.get()
            if isinstance(prepared, BaseException):
                self.close()
                raise prepared
            self._next += 1
            inputs, targets = prepared
        return inputs.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)

    def _start(self) -> None:
        self._queue: queue.Queue = queue.Queue(self.ahead)
        self._stop = threading.Event()
        # A copy, so that the epoch that the thread is in is not the one of whoever else reads these batches.
        work = (copy.copy(self.batches), self._next, self.device.type == "cuda", self._queue, self._stop)
        self._thread = threading.Thread(target=_prepare, args=work, name="prefetch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread. Prepared batches are dropped; asking for one more starts again."""
        if self._thread is None:
            return
        self._stop.set()
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()  # make room for the batch that it may be waiting to add
        self._thread.join()
        self._thread = None

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_thread", None) is not None:
            self._stop.set()


def _prepare(batches: Batches, step: int, pinned: bool, prepared: queue.Queue, stop: threading.Event) -> None:
    """The thread: it knows nothing of its `Prefetcher`, which can be forgotten while this runs."""
    while not stop.is_set():
        try:
            batch = batches[step]
            result: tuple | BaseException = tuple(part.pin_memory() for part in batch) if pinned else batch
        except BaseException as error:  # whatever it is, it belongs to whoever asks for this batch
            result = error
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                prepared.put(result, timeout=0.1)
                break
        if isinstance(result, BaseException):
            return
        step += 1


def validation_blocks(tokens: np.ndarray, seq_len: int, n_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A fixed sample of about `n_tokens`: inputs and targets int64 [n, T], blocks without overlap spread evenly over
    the text.

    It depends on no seed, so that every candidate of a search is judged on the same text.
    """
    available = (len(tokens) - 1) // seq_len
    n = max(2, min(available, n_tokens // seq_len))
    starts = np.arange(n) * available // n * seq_len
    return _windows(np.asarray(tokens), starts, np.arange(seq_len + 1))


def _windows(tokens: np.ndarray, starts: np.ndarray, window: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    windows = tokens[starts[:, None] + window]  # [B, T + 1]
    return torch.from_numpy(windows[:, :-1].astype(np.int64)), torch.from_numpy(windows[:, 1:].astype(np.int64))
