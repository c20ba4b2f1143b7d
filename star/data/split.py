"""Split documents into training and validation text that never share a document.

Documents with equal content (ignoring surrounding white space) have equal hashes, so a file present twice counts once
and cannot be on both sides. In the order of their hashes, which is random but the same on every machine, documents go
to validation as long as it stays within a tenth of all bytes.

If there are few documents and validation has less than a twentieth, the smallest remaining document joins it, provided
that validation then has at most half. If that fails too, as with a single file, only the longest document is cut: its
last part is the validation text, and everything else is training text.
"""

import hashlib
from array import array
from typing import BinaryIO

import numpy as np

SHARE = 0.1  # of all bytes, used for validation


class TextFile:
    """Documents one after another in an open binary file, each followed by the separator."""

    def __init__(self, file: BinaryIO, separator: int):
        self.file = file
        self.separator = bytes([separator])
        self.size = 0
        self.hashes = array("Q")
        self.lengths = array("Q")  # bytes with the separator

    def append(self, document: bytes) -> None:
        """Add a document, unless it is only white space."""
        content = document.strip()
        if content:
            self.hashes.append(int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little"))
            self.lengths.append(self.file.write(document) + self.file.write(self.separator))
            self.size += self.lengths[-1]

    def copy(self, start: int, stop: int, out: BinaryIO) -> None:
        """Copy bytes [start, stop) to the open file `out`."""
        self.file.seek(start)
        while start < stop:
            block = self.file.read(min(stop - start, 1 << 24))
            out.write(block)
            start += len(block)


def split(text: TextFile) -> dict[str, list[tuple[int, int]]]:
    """Byte ranges [start, stop) of `text` for "train" and for "validation", each in the order of the text."""
    lengths = np.frombuffer(text.lengths, dtype=np.uint64).astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    hashes = np.frombuffer(text.hashes, dtype=np.uint64)
    _, unique = np.unique(hashes, return_index=True)  # the first document of each hash, in the order of the hashes
    total = int(lengths[unique].sum())

    validation: list[int] = []
    size = 0
    for index in unique:
        if size + lengths[index] <= SHARE * total:
            validation.append(index)
            size += lengths[index]
    if size < SHARE / 2 * total:
        smallest = min(set(unique) - set(validation), key=lambda index: (lengths[index], index))
        if size + lengths[smallest] <= total / 2:
            validation.append(smallest)
            size += lengths[smallest]

    ranges = {index: (int(starts[index]), int(starts[index] + lengths[index])) for index in sorted(unique)}
    if size < SHARE / 2 * total:
        longest = max(unique, key=lambda index: (lengths[index], -index))
        start, stop = ranges[longest]
        cut = stop - max(1, min(int(SHARE * total), (stop - start) // 2))
        return {"train": [*(ranges | {longest: (start, cut)}).values()], "validation": [(cut, stop)]}
    chosen = set(validation)
    return {
        "train": [ranges[index] for index in ranges if index not in chosen],
        "validation": [ranges[index] for index in ranges if index in chosen],
    }
