"""Train and validation never share a document.

Documents are told apart by a hash of their content (surrounding white space aside), so that a file present
twice counts once and cannot be on both sides. In the order of those hashes, which is random but the same
everywhere, documents go to validation as long as it stays within a tenth of all bytes.

Where that leaves validation with less than a twentieth, because there are few documents, the smallest
document joins it if validation then has at most half. Where that fails too, as with a single file, the
longest document alone is cut: its last part is the validation text, all the rest is trained on, and the
two are contiguous blocks without overlap.
"""

import hashlib
from array import array

import numpy as np

SHARE = 0.1  # of all bytes, for validation


class TextFile:
    """Documents one after another in an open binary file, each followed by the separator."""

    def __init__(self, file, separator: int):
        self.file = file
        self.separator = bytes([separator])
        self.size = 0
        self.hashes = array("Q")
        self.lengths = array("Q")  # bytes with the separator

    def append(self, document: bytes) -> None:
        """Add a document; one of nothing but white space is no document."""
        content = document.strip()
        if content:
            self.hashes.append(int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little"))
            self.lengths.append(self.file.write(document) + self.file.write(self.separator))
            self.size += self.lengths[-1]

    def copy(self, start: int, stop: int, out) -> None:
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
    _, unique = np.unique(
        np.frombuffer(text.hashes, dtype=np.uint64), return_index=True
    )  # first of each, in hash order
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
        cut = stop - min(int(SHARE * total), (stop - start) // 2)
        return {
            "train": [(start, cut) if index == longest else ranges[index] for index in ranges],
            "validation": [(cut, stop)],
        }
    chosen = set(validation)
    return {
        "train": [ranges[index] for index in ranges if index not in chosen],
        "validation": [ranges[index] for index in ranges if index in chosen],
    }
