"""A corpus: three memory-mapped token files, cached per machine.

    cache / KEY / train.bin, validation.bin, test.bin, corpus.json, and tokenizer.json if tokens are not bytes

KEY hashes the source's identity (paths, sizes, modification times) and the tokenizer's, so opening a known corpus reads
no text. A cache entry is written to a temporary folder, flushed to disk and then renamed. It is therefore either
complete or absent, even if processes are killed or several build it at once. A damaged entry is built again.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import platformdirs

from star.data.baselines import ngram_losses
from star.data.sources import Source, find_source
from star.data.split import PARTS, TextFile, split
from star.data.tokenizer import (
    TOKENIZER_FILE,
    Bpe,
    ByteTokenizer,
    SubwordTokenizer,
    identity,
    make_tokenizer,
    pieces,
)
from star.errors import UserError

FORMAT = 4  # increased whenever the same source would produce different files
SMALLEST = 64  # bytes of text, enough for every part to have some
BATCH = 1 << 24  # bytes that are encoded at a time
STALE = 24 * 3600  # seconds after which an unfinished entry is abandoned


@dataclass(frozen=True)
class Corpus:
    """A text as token ids on disk, split into training, validation and test text by document."""

    name: str
    fingerprint: str  # hash of the tokens of all parts; equal fingerprints mean equal data
    train: np.ndarray  # memory-mapped token ids [n]
    validation: np.ndarray  # memory-mapped token ids [m]; shares no document with train; decides
    test: np.ndarray  # memory-mapped token ids [k]; shares no document with the others; decides nothing
    tokenizer: ByteTokenizer | SubwordTokenizer
    losses: dict[str, float]
    bytes_per_token: float = 1.0  # of the validation text
    test_bytes_per_token: float = 1.0
    notes: tuple[str, ...] = ()  # on what was chosen or left out when the text was read

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.tokenizer.vocab_size

    def bits_per_byte(self, loss: float, part: str = "validation") -> float:
        """A loss in nats per token as bits per byte of text, which is comparable between tokenizers.

        part: of the text that the loss was measured on, "validation" or "test".
        """
        return loss / math.log(2) / (self.test_bytes_per_token if part == "test" else self.bytes_per_token)

    def baselines(self) -> dict[str, float]:
        """Validation losses, in nats per token, of the "unigram" and "bigram" counts of the training text."""
        return dict(self.losses)

    def check_context(self, seq_len: int) -> None:
        """Raise UserError unless every part holds at least two sequences of `seq_len` tokens with their targets."""
        need = 2 * seq_len + 1
        for part in PARTS:
            have = len(getattr(self, part))
            if have < need:
                raise UserError(
                    f'The corpus "{self.name}" is too small for a context of {seq_len} tokens: its {part} part has '
                    f"{have} tokens and needs {need}; give more text or a shorter context."
                )


def open_corpus(
    spec: str | Path,
    cache_dir: str | Path | None = None,
    on_progress: Callable[[dict], None] | None = None,
    tokenizer: str = "bytes",
) -> Corpus:
    """Open the corpus that `spec` names; build it first if it is new or has changed.

    spec: "python" (sources of the standard library and of packages that are always installed), "stdlib" (of the
        library alone), the path of a text file or folder, or "hf:NAME[:CONFIG]" (see `star.data.sources`).
    cache_dir: default $STAR_CACHE, or else the user's cache folder.
    on_progress: called with {"documents", "bytes"} about twice a second while a corpus is built.
    tokenizer: see `star.data.tokenizer`. A BPE is trained on the training text only.

    Raises UserError for a corpus that is missing, unreadable or empty, and for a cache that cannot be written.
    """
    made = make_tokenizer(tokenizer)
    source = find_source(spec)
    key = _hash(json.dumps([FORMAT, identity(made), *source.identity]).encode())
    root = cache_dir or os.environ.get("STAR_CACHE") or platformdirs.user_cache_dir("star")
    cache = Path(root).expanduser() / "corpora"
    entry = cache / key
    corpus = _open(entry, source.name, made)
    if corpus is None:
        try:
            _build(entry, source, made, on_progress)
        except OSError as error:
            raise UserError(
                f"Cannot write the corpus cache in {cache}: {error.strerror}; make room there or set STAR_CACHE to "
                "another folder."
            ) from error
        corpus = _open(entry, source.name, made)
        if corpus is None:
            raise UserError(f"The corpus cache in {cache} loses files; set STAR_CACHE to another folder.")
    return corpus


AnyTokenizer = ByteTokenizer | SubwordTokenizer | Bpe


def _open(entry: Path, name: str, made: AnyTokenizer) -> Corpus | None:
    """The corpus in `entry`; None if the entry is missing or incomplete."""
    try:
        facts = json.loads((entry / "corpus.json").read_text())
        tokenizer: ByteTokenizer | SubwordTokenizer
        if isinstance(made, Bpe):
            tokenizer = SubwordTokenizer((entry / TOKENIZER_FILE).read_text(encoding="utf-8"), made.name)
        else:
            tokenizer = made
        found = {part: np.memmap(entry / f"{part}.bin", tokenizer.dtype, mode="r") for part in PARTS}
        if {part: len(tokens) for part, tokens in found.items()} != facts["tokens"]:
            return None
        return Corpus(
            name=name,
            fingerprint=facts["fingerprint"],
            **found,
            tokenizer=tokenizer,
            losses=facts["losses"],
            bytes_per_token=facts["bytes_per_token"],
            test_bytes_per_token=facts["test_bytes_per_token"],
            notes=tuple(facts["notes"]),
        )
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None


def _build(entry: Path, source: Source, made: AnyTokenizer, on_progress: Callable[[dict], None] | None) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(entry.parent)
    work = Path(tempfile.mkdtemp(prefix=".building-", dir=entry.parent))
    try:
        with open(work / "text", "w+b") as file:
            text = TextFile(file, separator=ByteTokenizer.separator)
            reported = time.monotonic()
            for document in source.documents():
                text.append(document)
                if on_progress and time.monotonic() - reported > 0.5:
                    reported = time.monotonic()
                    on_progress({"documents": len(text.lengths), "bytes": text.size})
            if not text.lengths:
                raise UserError(f'The corpus "{source.name}" holds no text; give a file or folder with text in it.')
            if text.size < SMALLEST:
                raise UserError(
                    f'The corpus "{source.name}" has only {text.size} bytes, too few to train on; give more text.'
                )
            parts = split(text)
            tokenizer = made.train(_documents(text, parts["train"])) if isinstance(made, Bpe) else made
            for part in PARTS:
                with open(work / f"{part}.bin", "wb") as out:
                    if isinstance(tokenizer, ByteTokenizer):
                        for start, stop in parts[part]:
                            text.copy(start, stop, out)
                    else:
                        _encode(text, parts[part], tokenizer, out)
                    _flush(out)
        (work / "text").unlink()
        if isinstance(tokenizer, SubwordTokenizer):
            with open(work / TOKENIZER_FILE, "w", encoding="utf-8") as out:
                out.write(tokenizer.json_text)
                _flush(out)
        if not all((work / f"{part}.bin").stat().st_size for part in PARTS):
            raise UserError(f'The corpus "{source.name}" has too little text for the tokenizer {made.name}; give more.')
        train, validation, test = (np.memmap(work / f"{part}.bin", tokenizer.dtype, mode="r") for part in PARTS)
        facts = {
            "source": source.name,
            "fingerprint": _hash(train, validation, test),
            "tokens": {"train": len(train), "validation": len(validation), "test": len(test)},
            "bytes_per_token": sum(stop - start for start, stop in parts["validation"]) / len(validation),
            "test_bytes_per_token": sum(stop - start for start, stop in parts["test"]) / len(test),
            "losses": ngram_losses(train, validation, tokenizer.vocab_size),
            "notes": source.notes,
        }
        with open(work / "corpus.json", "w") as out:
            json.dump(facts, out, indent=1)
            _flush(out)
        _move(work, entry, made)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _documents(text: TextFile, ranges: list[tuple[int, int]]) -> Iterator[bytes]:
    """The documents in these ranges of the text, without separators, large ones in pieces."""
    for start, stop in ranges:
        text.file.seek(start)
        yield from pieces(text.file.read(stop - start).removesuffix(text.separator))


def _encode(text: TextFile, ranges: list[tuple[int, int]], tokenizer: SubwordTokenizer, out: BinaryIO) -> None:
    """Write the tokens of these ranges of the text, a separator after each document that ends there."""
    batch, size = list[tuple[bytes, bool]](), 0

    def write() -> None:
        ids = tokenizer.encode_all([piece for piece, _ in batch])
        for tokens, (_, ends) in zip(ids, batch, strict=True):
            out.write(tokens.tobytes())
            if ends:
                out.write(np.asarray([tokenizer.separator], dtype=tokenizer.dtype).tobytes())
        batch.clear()

    for start, stop in ranges:
        text.file.seek(start)
        document = text.file.read(stop - start)
        whole = document.removesuffix(text.separator)
        found = list(pieces(whole)) or [b""]
        for number, piece in enumerate(found, 1):
            batch.append((piece, number == len(found) and len(whole) < len(document)))
            size += len(piece)
            if size >= BATCH:
                write()
                size = 0
    write()


def _move(work: Path, entry: Path, made: AnyTokenizer) -> None:
    """Move a finished entry to its place. If another process has made one meanwhile, that one stays."""
    if entry.exists() and _open(entry, "", made) is None:
        with contextlib.suppress(OSError):
            os.rename(entry, work / "damaged")
    try:
        os.rename(work, entry)
    except OSError:
        if _open(entry, "", made) is None:
            raise
    shutil.rmtree(entry / "damaged", ignore_errors=True)
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(entry.parent, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)


def _remove_stale(cache: Path) -> None:
    for folder in cache.glob(".building-*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > STALE:
                shutil.rmtree(folder)


def _flush(file) -> None:
    file.flush()
    os.fsync(file.fileno())


def _hash(*parts) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:32]
