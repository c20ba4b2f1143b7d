"""Split documents into training, validation and test text that never share a document.

Validation text decides in a search; test text decides nothing and is read for evidence alone.

Documents with equal content (ignoring surrounding white space) have equal hashes, so a file present twice counts once
and cannot be in two parts. In the order of their hashes, which is random but the same on every machine, documents go to
validation as long as it stays within a tenth of all bytes, and then to the test part in the same way.

If there are few documents and one of these parts has less than a twentieth, the smallest remaining document joins it,
provided that the part then has at most a third. If that fails too, as with a single file, the end of the longest
document is cut off for it.
"""

import hashlib
from array import array
from typing import BinaryIO

import numpy as np

PARTS = ("train", "validation", "test")
SHARE = 0.1  # of all bytes, for validation and for test text


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
    """Byte ranges [start, stop) of `text` for each of `PARTS`, in its order; a document that is cut comes last."""
    lengths = np.frombuffer(text.lengths, dtype=np.uint64).astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    hashes = np.frombuffer(text.hashes, dtype=np.uint64)
    _, unique = np.unique(hashes, return_index=True)  # the first document of each hash, in the order of the hashes
    total = int(lengths[unique].sum())

    training = dict.fromkeys(unique.tolist())  # documents that are in no other part, in the order of the hashes
    parts: dict[str, list[int]] = {}
    for part in PARTS[1:]:
        chosen, size = list[int](), 0
        for index in training:
            if size + lengths[index] <= SHARE * total:
                chosen.append(index)
                size += lengths[index]
        left = training.keys() - set(chosen)
        if size < SHARE / 2 * total and len(left) > 1:
            smallest = min(left, key=lambda index: (lengths[index], index))
            if size + lengths[smallest] <= total / 3:
                chosen.append(smallest)
                size += lengths[smallest]
        parts[part] = chosen if size >= SHARE / 2 * total else []
        for index in parts[part]:
            del training[index]

    ranges = {index: (int(starts[index]), int(starts[index] + lengths[index])) for index in sorted(unique)}
    found = {part: [ranges[index] for index in sorted(chosen)] for part, chosen in parts.items()}
    training = dict.fromkeys(sorted(training))
    longest = max(training, key=lambda index: (lengths[index], -index))
    start, stop = ranges[longest]
    size = max(1, min(int(SHARE * total), (stop - start) // 3))
    for part in reversed(PARTS[1:]):
        if not found[part]:
            ranges[longest], found[part] = (start, stop - size), [(stop - size, stop)]
            stop -= size
            del training[longest]  # last, as nothing separates what is left of it from a document behind it
            training[longest] = None
    return {"train": [ranges[index] for index in training], **found}
