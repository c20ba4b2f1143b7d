"""Text to token ids and back. Bytes need no vocabulary file, no training and no network."""

from collections.abc import Sequence

import numpy as np


class ByteTokenizer:
    """One token per UTF-8 byte: ids 0-255. Byte 0, which text does not contain, separates documents."""

    name = "bytes"
    vocab_size = 256
    dtype = np.dtype(np.uint8)
    separator = 0

    def encode(self, text: str | bytes) -> np.ndarray:
        """Token ids, uint8 [n]. Bytes are used unchanged, whatever their encoding."""
        data = text.encode("utf-8", errors="surrogateescape") if isinstance(text, str) else text
        return np.frombuffer(data, dtype=self.dtype)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of token ids [n]; bytes that are not UTF-8 become U+FFFD."""
        return bytes(np.asarray(tokens, dtype=self.dtype)).decode("utf-8", errors="replace")
