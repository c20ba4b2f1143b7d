"""Training batches by index, and the fixed validation sample.

Sequences are joined (blocks of the whole text, which run on from one document into the next) or, where a separator is
given, separate: every sequence lies in one document. A document is cut into as few sequences as cover it, which overlap
a little instead of reaching beyond its end; of one that is shorter than a sequence, the targets behind its end do not
count. As models are causal, nothing then depends on another document, whatever the operator.

Batch number `step` depends only on (tokens, batch_size, seq_len, seed, step), so a resumed training sees the same
batches as one that never stopped. `DeviceBatches` gathers the same batches on a device.
"""

import warnings

import numpy as np
import torch

from star.errors import UserError

IGNORED = -100  # as in star.model.cross_entropy


class Batches:
    """`batches[step]` -> inputs int64 [B, T], targets int64 [B, T] (the inputs' next tokens).

    Each epoch cuts the text into blocks of `seq_len` tokens at a random offset and visits every block once, in random
    order. An epoch has `n_blocks` sequences; a batch may reach into the next epoch. separator: the token that ends a
    document, if sequences are to be separate; then the blocks are the same in every epoch.
    """

    def __init__(self, tokens: np.ndarray, batch_size: int, seq_len: int, seed: int, separator: int | None = None):
        if len(tokens) < 2 * seq_len + 1:
            raise ValueError(f"{len(tokens)} tokens are too few for sequences of {seq_len} with a random offset")
        self.tokens = np.asarray(tokens)  # a view: a plain array slices faster than np.memmap
        self.batch_size, self.seq_len, self.seed = batch_size, seq_len, seed
        self.separator = separator
        self.inside = None if separator is None else document_starts(self.tokens, seq_len, separator)
        # So that an offset below seq_len always fits
        self.n_blocks = len(tokens) // seq_len - 1 if self.inside is None else len(self.inside)
        self._window = np.arange(seq_len + 1)
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.sequences(step * self.batch_size, self.batch_size)

    def sequences(self, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, int64 [count, T], of `count` sequences from number `first`: for changing batch sizes."""
        return _windows(self.tokens, self.starts(first, count), self._window, self.separator)

    def starts(self, first: int, count: int) -> np.ndarray:
        """Where `count` sequences from number `first` start in the text, int64 [count]."""
        parts, last = [np.empty(0, np.int64)], first + count
        while first < last:
            epoch, position = divmod(first, self.n_blocks)
            if epoch != self._epoch:
                rng = np.random.default_rng([self.seed, epoch])
                offset, order = rng.integers(self.seq_len), rng.permutation(self.n_blocks)
                self._order = offset + self.seq_len * order if self.inside is None else self.inside[order]
                self._epoch = epoch
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
        return _shifted(windows, self.batches.separator)


def validation_blocks(
    tokens: np.ndarray, seq_len: int, n_tokens: int, separator: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets, int64 [n, T]: about `n_tokens` tokens in disjoint blocks spread evenly over the text.

    The sample depends on no seed, so every candidate of a search is evaluated on the same text. separator: as of
    `Batches`.
    """
    inside = None if separator is None else document_starts(np.asarray(tokens), seq_len, separator)
    available = (len(tokens) - 1) // seq_len if inside is None else len(inside)
    n = max(2, min(available, n_tokens // seq_len))
    chosen = np.arange(n) * available // n
    starts = chosen * seq_len if inside is None else inside[chosen]
    return _windows(np.asarray(tokens), starts, np.arange(seq_len + 1), separator)


def document_starts(tokens: np.ndarray, seq_len: int, separator: int) -> np.ndarray:
    """Where the sequences of separate documents start, int64 [n], in the order of the text.

    tokens [N]; each document ends with the separator, the last one perhaps without. Every token but the first of a
    document is a target of at least one sequence. Raises UserError if there are fewer than two sequences.
    """
    ends = np.flatnonzero(tokens == separator) + 1
    if not len(ends) or ends[-1] < len(tokens):
        ends = np.append(ends, len(tokens))
    begins = np.concatenate([[0], ends[:-1]])
    targets = ends - begins - 1
    begins, targets = begins[targets > 0], targets[targets > 0]
    counts = -(-targets // seq_len)  # sequences of each document
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    room, gaps = np.repeat(targets - seq_len, counts), np.repeat(np.maximum(counts - 1, 1), counts)
    starts = np.repeat(begins, counts) - (-number * room) // gaps  # at most seq_len apart, the last one at the end
    starts = starts[starts + seq_len < len(tokens)]  # a short document at the very end of the text has no room
    if len(starts) < 2:
        raise UserError(
            f"training.documents is separate and the text has {len(starts)} sequences of {seq_len} tokens within one "
            "document; give more text, a smaller training.seq_len, or training.documents=joined"
        )
    return starts


def _windows(
    tokens: np.ndarray, starts: np.ndarray, window: np.ndarray, separator: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    return _shifted(torch.from_numpy(tokens[starts[:, None] + window].astype(np.int64)), separator)


def _shifted(windows: torch.Tensor, separator: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets [B, T] of windows [B, T + 1]; targets behind a separator do not count."""
    inputs, targets = windows[:, :-1], windows[:, 1:]
    if separator is None:
        return inputs, targets
    return inputs, targets.masked_fill((inputs == separator).cumsum(1) > 0, IGNORED)
