"""Text from a model: continuations of one or several prompts, piece by piece, each up to a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence

import torch

from star.data.tokenizer import ByteTokenizer, SubwordTokenizer
from star.errors import UserError
from star.model import LanguageModel


class Continuation:
    """What follows one prompt. Text is held back while it may be the beginning of a stop string."""

    def __init__(self, tokenizer: ByteTokenizer | SubwordTokenizer, prompt: Sequence[int], stops: Sequence[bytes]):
        self.tokenizer, self.stops, self.tokens = tokenizer, stops, list(prompt)
        self.start = self.given = len(self.text())  # bytes of the prompt; bytes that were handed out
        self.ended = False

    def add(self, token: int, last: bool) -> bytes:
        """The new text after one more token. last: whether no other follows, so that nothing is held back."""
        if self.ended:
            return b""
        self.tokens.append(token)
        text = self.text()
        found = [at for stop in self.stops if (at := text.find(stop, self.start)) >= 0]
        if found:
            self.ended, end = True, min(found)
        else:
            end = len(text) if last else len(text) - self._held_back(text)
        new, self.given = text[self.given : end], max(end, self.given)
        return new

    def text(self) -> bytes:
        """The prompt and all text so far; separators of documents are left out."""
        if isinstance(self.tokenizer, ByteTokenizer):
            return bytes(self.tokens).replace(b"\0", b"")
        return self.tokenizer.decode(self.tokens).encode(errors="surrogateescape")

    def _held_back(self, text: bytes) -> int:
        """Bytes at the end that later tokens may change or complete to a stop string."""
        if isinstance(self.tokenizer, ByteTokenizer):
            unfinished = len(text) - codecs.utf_8_decode(text, "replace", False)[1]
        else:  # a character in pieces is decoded as U+FFFD
            unfinished = len(text) - len(text.decode(errors="replace").rstrip("\ufffd").encode())
        longest = max((len(stop) - 1 for stop in self.stops), default=0)
        begun = (
            n
            for n in range(min(longest, len(text) - self.start), 0, -1)
            if any(s.startswith(text[-n:]) for s in self.stops)
        )
        return max(unfinished, next(begun, 0))


def continuations(
    model: LanguageModel,
    prompts: Sequence[str],
    n_tokens: int,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 0,
    stops: Sequence[str] = (),
) -> Iterator[list[bytes]]:
    """The new text of every prompt, token by token, until all have met a stop string or have `n_tokens`.

    Prompts of different lengths are one batch. An empty prompt starts a new document. Raises UserError for a model
    without its tokenizer, and for more tokens than it has positions.
    """
    tokenizer = model.tokenizer or ByteTokenizer()
    if model.vocab_size != tokenizer.vocab_size:
        raise UserError(
            f"this model has a vocabulary of {model.vocab_size}, but its tokenizer ({tokenizer.name}) has "
            f"{tokenizer.vocab_size} tokens; call its generate method with token ids"
        )
    rows = [tokenizer.encode(prompt).tolist() or [tokenizer.separator] for prompt in prompts]
    longest = max(map(len, rows))
    try:
        model.check_length(longest + n_tokens)
    except ValueError as error:
        raise UserError(f"{error}, such as --tokens {max(1, model.plan.positions - longest)}") from None
    tokens = torch.tensor([[tokenizer.separator] * (longest - len(row)) + row for row in rows])
    lengths = torch.tensor([len(row) for row in rows]) if len(rows) > 1 else None
    ends = [stop.encode(errors="surrogateescape") for stop in stops if stop]
    texts = [Continuation(tokenizer, row, ends) for row in rows]
    for step, new in enumerate(model.stream(tokens, n_tokens, temperature, top_k, seed, lengths), start=1):
        yield [text.add(token, step == n_tokens) for text, token in zip(texts, new[:, 0].tolist(), strict=True)]
        if all(text.ended for text in texts):
            return
