"""Generated text arrives in pieces, whole characters each, and ends before a stop string."""

import torch

import star
from star.data.tokenizer import ByteTokenizer, make_tokenizer
from star.export.continuation import Continuation, continuations
from star.genome import Gene, Genome


def pieces_of(text: bytes, stops: list[bytes]) -> list[bytes]:
    found = Continuation(ByteTokenizer(), list(b"stop here"), stops)  # the prompt is not searched
    return [found.add(byte, n == len(text) - 1) for n, byte in enumerate(text)]


def test_a_stop_string_never_shows_not_even_its_beginning():
    pieces = pieces_of(b"a st and stop now", [b"stop", b"now"])
    assert b"".join(pieces) == b"a st and " and pieces[:6] == [b"a", b" ", b"", b"", b"st ", b"a"]
    assert b"".join(pieces_of(b"ends in st", [b"stop"])) == b"ends in st"
    assert pieces_of(b"abc", []) == [b"a", b"b", b"c"]
    assert pieces_of("aé\n".encode(), []) == [b"a", b"", "é".encode(), b"\n"] and pieces_of(b"\xff", []) == [b"\xff"]


def test_a_character_in_several_tokens_arrives_whole():
    tokenizer = make_tokenizer("bpe:300").train([b"for i in range(10):\n" * 50])
    text = "é – 日本"
    tokens = tokenizer.encode(text).tolist()
    found = Continuation(tokenizer, tokenizer.encode("x"), [])
    pieces = [found.add(token, n == len(tokens) - 1) for n, token in enumerate(tokens)]
    assert b"".join(pieces).decode() == text and all("\ufffd" not in piece.decode() for piece in pieces)


def test_pieces_are_what_generate_gives_and_come_one_by_one():
    model = star.build(Genome((Gene(1), Gene(9)), d_model=32, head_dim=16), 256, seed=0).eval()
    steps = continuations(model, ["ab", "c"], 20, temperature=0.0)
    first = next(steps)
    assert len(first) == 2
    rest = list(steps)
    together = [b"".join(piece[row] for piece in [first, *rest]) for row in range(2)]
    for text, prompt in zip(together, (b"ab", b"c"), strict=True):
        expected = model.generate(torch.tensor([list(prompt)]), 20, temperature=0.0)[0, len(prompt) :]
        assert text == bytes(expected.tolist()).replace(b"\0", b"")
