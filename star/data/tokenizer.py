"""Text to token ids and back: bytes, or the subwords of a Hugging Face tokenizer.

    make_tokenizer("bytes")             # needs no vocabulary file, no training and no network
    make_tokenizer("bpe:4096")          # byte-level BPE, to be trained on the training text of a corpus
    make_tokenizer("tokenizer.json")    # a file of the library tokenizers, or a folder with one
    make_tokenizer("Qwen/Qwen3-0.6B")   # of the hub, with network access

Losses are per token, so models with different tokenizers are compared by bits per byte (`Corpus.bits_per_byte`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from star.errors import UserError

# Names of the token that separates documents, in the order of preference.
SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
FEWEST, MOST = 257, 1_000_000  # tokens of a BPE vocabulary: the bytes and the separator; more is a mistake
TOKENIZER_FILE = "tokenizer.json"  # in a run, a corpus and an export whose tokens are not bytes
PIECE = 1 << 20  # bytes that are encoded at a time, up to the next end of line


class Tokenizer(Protocol):
    """What a corpus, a model and a generator need to know."""

    name: str
    vocab_size: int
    separator: int  # the token between documents, with which generation starts too
    dtype: np.dtype  # of token ids on disk

    def encode(self, text: str | bytes) -> np.ndarray:
        """Token ids [n] of one document. Raises nothing for bytes that are no UTF-8."""

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of token ids [n]; bytes that are not UTF-8 become U+FFFD."""


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


class SubwordTokenizer:
    """A tokenizer of the library `tokenizers`, from the text of its tokenizer.json. Raises UserError."""

    def __init__(self, json_text: str, name: str):
        from tokenizers import Tokenizer as HuggingFace

        try:
            self.tokenizer = HuggingFace.from_str(json_text)
        except Exception as error:  # the library raises Exception itself
            raise UserError(f"{name}: is no tokenizer.json of the library tokenizers ({error})") from None
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True  # the name of a special token in a text is text
        self.json_text, self.name = json_text, name
        self.vocab_size: int = self.tokenizer.get_vocab_size()
        found = [self.tokenizer.token_to_id(token) for token in SEPARATORS]
        known = [id for id in found if id is not None]
        if not known:
            raise UserError(f"{name}: has no token to separate documents; add one of {', '.join(SEPARATORS)}")
        self.separator: int = known[0]
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.int32)

    def encode(self, text: str | bytes) -> np.ndarray:
        """Token ids [n]; bytes that are not UTF-8 become U+FFFD first."""
        text = text.decode("utf-8", errors="replace") if isinstance(text, bytes) else text
        return np.asarray(self.tokenizer.encode(text, add_special_tokens=False).ids, dtype=self.dtype)

    def encode_all(self, texts: Sequence[bytes]) -> Iterator[np.ndarray]:
        """`encode` of each, on all cores."""
        decoded = [text.decode("utf-8", errors="replace") for text in texts]
        for encoding in self.tokenizer.encode_batch_fast(decoded, add_special_tokens=False):
            yield np.asarray(encoding.ids, dtype=self.dtype)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of token ids [n], without separators."""
        return self.tokenizer.decode([int(t) for t in tokens if t != self.separator], skip_special_tokens=False)


class Bpe:
    """A byte-level BPE that is still to be trained. size: tokens of the vocabulary, fewer if the text has no more."""

    def __init__(self, size: int):
        self.size, self.name = size, f"bpe:{size}"

    def train(self, texts: Iterable[bytes]) -> SubwordTokenizer:
        """The tokenizer for these texts. The same texts give the same one."""
        from tokenizers import Tokenizer as HuggingFace
        from tokenizers import decoders, models, pre_tokenizers, trainers

        tokenizer = HuggingFace(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.size,
            special_tokens=[SEPARATORS[0]],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator((text.decode("utf-8", errors="replace") for text in texts), trainer)
        return SubwordTokenizer(tokenizer.to_str(), self.name)


def make_tokenizer(spec: str) -> ByteTokenizer | SubwordTokenizer | Bpe:
    """The tokenizer that `spec` names, see the module. Raises UserError."""
    if spec == "bytes":
        return ByteTokenizer()
    kind, _, number = spec.partition(":")
    if kind == "bpe":
        size = int(number) if number.isascii() and number.isdecimal() else 0
        if not FEWEST <= size <= MOST:
            raise UserError(f"the tokenizer {spec!r} must be bpe:N with N from {FEWEST} to {MOST:,}, such as bpe:4096")
        return Bpe(size)
    path = Path(spec).expanduser()
    path = path / TOKENIZER_FILE if path.is_dir() else path
    return read_tokenizer(path, spec) if path.exists() else SubwordTokenizer(_from_hub(spec), spec)


def read_tokenizer(path: Path, name: str) -> SubwordTokenizer:
    """The tokenizer in a file. name: what it is called. Raises UserError naming the file."""
    try:
        tokenizer = SubwordTokenizer(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    tokenizer.name = name
    return tokenizer


def token_word(corpus: Mapping) -> str:
    """What a loss is per: "byte" or "token". corpus: facts of a run."""
    return "byte" if corpus.get("tokenizer", "bytes") == "bytes" else "token"


def identity(tokenizer: ByteTokenizer | SubwordTokenizer | Bpe) -> str:
    """Equal for tokenizers that give a text the same tokens."""
    if isinstance(tokenizer, SubwordTokenizer):
        return hashlib.sha256(tokenizer.json_text.encode()).hexdigest()
    return tokenizer.name


def _from_hub(spec: str) -> str:
    from tokenizers import Tokenizer as HuggingFace

    try:
        return HuggingFace.from_pretrained(spec).to_str()
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"no tokenizer {spec!r}: give bytes, bpe:N, a tokenizer.json, or the name of one on the hub ({reason:.200})"
        ) from None


def pieces(text: bytes) -> Iterator[bytes]:
    """A document in parts of about a MiB that end with a line, because a tokenizer takes a whole text into memory."""
    start = 0
    while start < len(text):
        end = text.find(b"\n", start + PIECE)
        end = len(text) if end < 0 else end + 1
        yield text[start:end]
        start = end
