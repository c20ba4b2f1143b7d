"""Training batches by index, and the fixed validation sample.

Batch number `step` is a function of (tokens, batch_size, seq_len, seed, step) alone, so that training that
stopped continues with the batches it would have seen.
"""

import numpy as np
import torch


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


def validation_blocks(tokens: np.ndarray, seq_len: int, n_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A fixed sample of about `n_tokens`: inputs and targets int64 [n, T], blocks without overlap spread evenly over the text.

    It depends on no seed, so that every candidate of a search is judged on the same text.
    """
    available = (len(tokens) - 1) // seq_len
    n = max(2, min(available, n_tokens // seq_len))
    starts = np.arange(n) * available // n * seq_len
    return _windows(np.asarray(tokens), starts, np.arange(seq_len + 1))


def _windows(tokens: np.ndarray, starts: np.ndarray, window: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    windows = tokens[starts[:, None] + window]  # [B, T + 1]
    return torch.from_numpy(windows[:, :-1].astype(np.int64)), torch.from_numpy(windows[:, 1:].astype(np.int64))
