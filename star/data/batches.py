"""Training batches by index, and the fixed validation sample.

Batch number `step` depends only on (tokens, batch_size, seq_len, seed, step), so a resumed training sees the same
batches as one that never stopped. `DeviceBatches` gathers the same batches on a device.
"""

import warnings

import numpy as np
import torch


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
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.sequences(step * self.batch_size, self.batch_size)

    def sequences(self, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, int64 [count, T], of `count` sequences from number `first`: for changing batch sizes."""
        return _windows(self.tokens, self.starts(first, count), self._window)

    def starts(self, first: int, count: int) -> np.ndarray:
        """Where `count` sequences from number `first` start in the text, int64 [count]."""
        parts, last = [np.empty(0, np.int64)], first + count
        while first < last:
            epoch, position = divmod(first, self.n_blocks)
            if epoch != self._epoch:
                rng = np.random.default_rng([self.seed, epoch])
                offset = rng.integers(self.seq_len)
                self._epoch, self._order = epoch, offset + self.seq_len * rng.permutation(self.n_blocks)
            parts.append(self._order[position : position + last - first])
            first += len(parts[-1])
        return np.concatenate(parts)


class DeviceBatches:
    """Sequences of `batches`, gathered on a device by their number, which is a tensor there.

        gathered = DeviceBatches(batches, count, device)
        gathered.load(first)                             # by the host, once for the next `count` sequences
        inputs, targets = gathered(number, rows)         # by the device: `rows` sequences from first + number

    The text is copied to a GPU; on a CPU it stays where it is, in the file.
    """

    def __init__(self, batches: Batches, count: int, device: torch.device):
        self.batches = batches
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the file cannot be written to, and nobody does
            text = torch.from_numpy(batches.tokens)
        self.mask = 0xFFFF if text.dtype == torch.uint16 else -1  # torch cannot gather uint16, but int16
        self.text = (text.view(torch.int16) if text.dtype == torch.uint16 else text).to(device)
        self.starts = torch.zeros(count, dtype=torch.int64, device=device)
        self.rows = torch.arange(batches.batch_size, device=device)
        self.window = torch.arange(batches.seq_len + 1, device=device)

    def load(self, first: int) -> None:
        """Make the sequences from number `first` available."""
        self.starts.copy_(torch.from_numpy(self.batches.starts(first, len(self.starts))))

    def __call__(self, number: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, int64 [rows, T]. number: int64 [], counted from `first`; rows: at most a batch."""
        starts = self.starts.index_select(0, number + self.rows[:rows])
        windows = self.text.take(starts[:, None] + self.window).to(torch.int64) & self.mask  # [rows, T + 1]
        return windows[:, :-1], windows[:, 1:]


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
