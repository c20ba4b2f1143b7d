"""Subword tokenizers: trained on the training text alone, cached with it, and comparable by bits per byte."""

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from star.cli import app
from star.data import ByteTokenizer, open_corpus, tokenizer
from star.data.baselines import ngram_losses
from star.data.tokenizer import Bpe, SubwordTokenizer, make_tokenizer, pieces
from star.errors import UserError
from star.export import load
from star.run import Run


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder of forty documents, each with words that no other has."""
    folder, rng = tmp_path_factory.mktemp("text"), np.random.default_rng(0)
    common = ["the", "model", "of", "attention", "recurrence", "state", "token", "über"]
    for i in range(40):
        words = [str(rng.choice(common)) for _ in range(300)] + [f"only{i}"] * 5
        (folder / f"{i:02}.txt").write_text(" ".join(str(word) for word in rng.permutation(words)), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("STAR_CACHE", str(tmp_path_factory.getbasetemp() / "tokenizer-cache"))


def test_bpe_is_trained_on_the_training_text_alone(texts):
    corpus, plain = open_corpus(texts, tokenizer="bpe:400"), open_corpus(texts)
    words = corpus.tokenizer.tokenizer.get_vocab()
    only = {f"only{i}" for i in range(40)}
    training = {word for word in only if f" {word}".encode() in bytes(plain.train)}
    validation = only - training
    assert len(validation) >= 2
    merged = {word for word in only if "Ġ" + word in words}
    assert not merged & validation
    assert 260 < corpus.vocab_size <= 400 and corpus.train.dtype == np.uint16


def test_tokens_are_the_documents_with_a_separator_after_each(texts):
    corpus, plain = open_corpus(texts, tokenizer="bpe:400"), open_corpus(texts)
    for side in ("train", "validation"):
        tokens, expected = getattr(corpus, side), bytes(getattr(plain, side))
        ends = np.flatnonzero(tokens == corpus.tokenizer.separator)
        assert len(ends) == expected.count(b"\0") and ends[-1] == len(tokens) - 1
        starts = [0, *(ends[:-1] + 1)]
        decoded = [corpus.tokenizer.decode(tokens[a:b]).encode() for a, b in zip(starts, ends)]
        assert decoded == expected.split(b"\0")[:-1]
    assert corpus.bytes_per_token == len(plain.validation) / len(corpus.validation)


def test_the_same_text_gives_the_same_tokens_and_is_read_once(texts, tmp_path, monkeypatch):
    first = open_corpus(texts, tokenizer="bpe:300")
    again = open_corpus(texts, tmp_path, tokenizer="bpe:300")
    assert first.fingerprint == again.fingerprint and first.tokenizer.json_text == again.tokenizer.json_text
    monkeypatch.setattr(Bpe, "train", lambda *_: pytest.fail("it was trained already"))
    assert open_corpus(texts, tokenizer="bpe:300").fingerprint == first.fingerprint
    file = tmp_path / "mine.json"
    file.write_text(first.tokenizer.json_text, encoding="utf-8")
    other = open_corpus(texts, tokenizer=str(file))  # the file itself, and its folder under the usual name
    (tmp_path / "folder").mkdir()
    shutil.copy(file, tmp_path / "folder" / "tokenizer.json")
    assert other.fingerprint == first.fingerprint == open_corpus(texts, tokenizer=str(tmp_path / "folder")).fingerprint


def test_bits_per_byte_do_not_depend_on_the_tokenizer(texts):
    """A model that gives every document the same probability, whatever its tokens are."""
    nats = 100.0
    for name in ("bytes", "bpe:300", "bpe:400"):
        corpus = open_corpus(texts, tokenizer=name)
        for part in ("validation", "test"):
            bytes_of_text = len(getattr(open_corpus(texts), part))
            loss = nats / len(getattr(corpus, part))
            assert math.isclose(corpus.bits_per_byte(loss, part), nats / math.log(2) / bytes_of_text)


def test_names_of_special_tokens_in_a_text_are_text_and_bytes_survive(texts):
    found = open_corpus(texts, tokenizer="bpe:300").tokenizer
    for text in ("a <|endoftext|> b", "naïve\n\tüber 模型", "x" * 1000, ""):
        ids = found.encode(text)
        assert found.separator not in ids and found.decode(ids) == text
    assert found.decode(found.encode(b"a\xff b")) == "a\ufffd b"


def test_long_documents_are_encoded_in_pieces(monkeypatch):
    monkeypatch.setattr(tokenizer, "PIECE", 10)
    text = b"".join(b"line %d\n" % i for i in range(20)) + b"end"
    found = list(pieces(text))
    assert b"".join(found) == text and len(found) > 5 and all(piece.endswith(b"\n") for piece in found[:-1])
    assert list(pieces(b"")) == [] and list(pieces(b"a" * 50)) == [b"a" * 50]


@pytest.mark.parametrize("tokens", [5000, 1, 2])
def test_pairs_of_large_vocabularies_are_counted_as_those_of_small_ones(tokens, monkeypatch):
    rng = np.random.default_rng(0)
    train, validation = (rng.zipf(1.5, size=n).clip(max=49).astype(np.uint8) for n in (tokens, 700))
    monkeypatch.setattr("star.data.baselines.BLOCK", 64)
    dense = ngram_losses(train, validation, 50)
    monkeypatch.setattr("star.data.baselines.DENSE", 0)
    assert ngram_losses(train, validation, 50) == pytest.approx(dense, rel=1e-12)


def test_bad_tokenizers_are_one_sentence(tmp_path):
    (tmp_path / "broken.json").write_text("{}")
    bare = json.dumps({"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}})
    (tmp_path / "bare.json").write_text(bare)
    for spec, message in {
        "bpe:": "must be bpe:N with N from 257",
        "bpe:256": "such as bpe:4096",
        "bpe:٣٠٠": "must be bpe:N",
        str(tmp_path / "broken.json"): "is no tokenizer.json of the library tokenizers",
        str(tmp_path / "bare.json"): "has no token to separate documents",
        str(tmp_path / "missing.json"): "no tokenizer '.*missing.json': give bytes, bpe:N",
    }.items():
        with pytest.raises(UserError, match=message) as error:
            make_tokenizer(spec)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="too small for a context of 128 tokens"):
        (tmp_path / "small.txt").write_text("word " * 200)
        open_corpus(tmp_path / "small.txt", tokenizer="bpe:300").check_context(128)


def test_a_run_its_exports_and_its_texts_have_the_tokenizer(texts, tmp_path):
    def star_(*arguments) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    run = tmp_path / "run"
    options = ["--set", "search.population=2", "--set", "search.generations=1", "--set", "search.baselines="]
    options += ["--set", "training.tokens=1024", "--set", "training.eval_tokens=512", "--engine", "inprocess"]
    said = star_("evolve", run, "--preset", "smoke", "--data", texts, "--tokenizer", "bpe:300", *options)
    assert "token unigram" in said and "bits/byte" in said
    found = Run(run)
    best = found.best()
    assert isinstance(found.tokenizer, SubwordTokenizer) and found.objectives[0].unit == "bits/byte"
    ratio = found.corpus["bytes_per_token"]
    assert best.metrics["bpb"] == pytest.approx(best.metrics["val_loss"] / math.log(2) / ratio) and ratio > 1.5
    assert "tokenizer_json" not in found.corpus
    texts_of = [
        star_("generate", place, "--prompt", "the über", "--tokens", 8, "--temperature", 0)
        for place in (f"{run}:best", run / "exported" / best.id)
    ]
    exported = run / "exported" / best.id
    model = load(exported)
    assert model.tokenizer.json_text == found.tokenizer.json_text and model.vocab_size == model.tokenizer.vocab_size
    command = [sys.executable, exported / "model.py", "--prompt", "the über", "--tokens", "8", "--temperature", "0"]
    alone = subprocess.run(command, capture_output=True, cwd=tmp_path, check=True).stdout.decode()
    assert alone.strip() == texts_of[0].strip() == texts_of[1].strip()
    assert len(alone) > len("the über")
    star_("evolve", run)  # a finished run resumes: text and tokenizer are those of its start
    (run / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer.json: is missing"):
        Run(run).tokenizer  # noqa: B018


def test_bytes_stay_as_they_were(texts):
    corpus = open_corpus(texts)
    assert isinstance(corpus.tokenizer, ByteTokenizer) and corpus.bytes_per_token == 1.0
    assert corpus.bits_per_byte(math.log(2)) == 1.0
