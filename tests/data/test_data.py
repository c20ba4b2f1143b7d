"""Corpora: no document leaks, the cache survives kills and damage, and every user error is one sentence."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from star.data import Batches, ByteTokenizer, DeviceBatches, open_corpus, validation_blocks
from star.data.baselines import ngram_losses
from star.data.hugging_face import documents
from star.data.sources import decoded, find_source
from star.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "corpora"


def write_documents(folder: Path, n: int, seed: int = 0) -> list[bytes]:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    documents = [
        f"document {i}: ".encode() + bytes(rng.integers(97, 123, size=rng.integers(50, 400), dtype=np.uint8))
        for i in range(n)
    ]
    for i, document in enumerate(documents):
        (folder / f"{i:04}.txt").write_bytes(document)
    return documents


def documents_of(tokens) -> list[bytes]:
    return [document for document in bytes(tokens).split(b"\0") if document]


def parts_of(corpus):
    return corpus.train, corpus.validation, corpus.test


def whole_of(corpus) -> bytes:
    return b"".join(map(bytes, parts_of(corpus)))


def in_process(code: str, **environment) -> subprocess.Popen:
    command = [sys.executable, "-c", code]
    return subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


# ---- the split


def texts():
    """Bytes of files that are read as they are."""
    replaced = st.binary(min_size=1, max_size=300).map(lambda b: b.replace(b"\0", b"x"))
    return replaced.filter(lambda b: decoded(b) == b)


@settings(max_examples=60, deadline=None)
@given(st.lists(texts(), min_size=1, max_size=40))
def test_no_document_is_in_two_parts_and_none_is_lost(tmp_path_factory, documents):
    folder = tmp_path_factory.mktemp("documents")
    for i, document in enumerate(documents):
        (folder / f"{i:03}").write_bytes(document)
    different = {document.strip() for document in documents} - {b""}
    try:
        corpus = open_corpus(folder, cache_dir=folder / ".cache")
    except UserError:
        assert sum(len(document) + 1 for document in documents if document.strip()) < 64
        return
    sides = parts_of(corpus)
    assert all(map(len, sides))
    assert max(len(corpus.validation), len(corpus.test)) <= len(corpus.train) + 1
    found = [[d.strip() for d in documents_of(side)] for side in sides]
    together = [document for part in found for document in part]
    cut = [side for side, part in zip(sides, found, strict=True) if set(part) - different][1:]  # the first is its head
    if cut:  # the end of one document is the whole of a part, or of two
        assert all(len(documents_of(side)) <= 1 for side in cut)
        tail = b"".join(map(bytes, cut)).removesuffix(b"\0")
        assert any((head + tail).strip() in different for head in documents_of(corpus.train))
    else:
        assert set(together) == different and len(together) == len(different)


def test_many_documents_give_validation_a_tenth_whatever_their_order_and_names(tmp_path):
    documents = write_documents(tmp_path / "a", 300)
    corpus = open_corpus(tmp_path / "a")
    for part in (corpus.validation, corpus.test):
        assert 0.08 < len(part) / sum(map(len, parts_of(corpus))) <= 0.1

    (tmp_path / "b" / "deeper").mkdir(parents=True)
    for i, document in enumerate(reversed(documents)):
        (tmp_path / "b" / ("deeper" if i % 2 else ".") / f"{i}.md").write_bytes(document)
        (tmp_path / "b" / f"{i}.copy").write_bytes(b"\n" + document + b"\n\n")  # the same document once more
    renamed = open_corpus(tmp_path / "b")
    for one, other in zip(parts_of(renamed)[1:], parts_of(corpus)[1:], strict=True):
        assert {d.strip() for d in documents_of(one)} == set(documents_of(other))
    assert len(documents_of(renamed.train)) == len(documents_of(corpus.train))


def test_one_file_is_cut_into_three_blocks_without_overlap(tmp_path):
    text = "".join(f"line {i}\n" for i in range(2000)).encode()
    (tmp_path / "book.txt").write_bytes(text)
    corpus = open_corpus(tmp_path / "book.txt")
    assert whole_of(corpus) == text + b"\0"
    assert len(corpus.validation) == len(corpus.test) == pytest.approx(len(text) / 10, abs=2)
    assert corpus.name == "book.txt"


def test_a_small_file_beside_a_large_one_is_not_the_whole_validation_side(tmp_path):
    (tmp_path / "README").write_bytes(b"a short note on this folder\n")
    (tmp_path / "book").write_bytes(bytes(range(1, 256)) * 100)
    corpus = open_corpus(tmp_path)
    assert len(corpus.validation) == len(corpus.test) == pytest.approx(2550, abs=20)
    assert b"short note" in bytes(corpus.train)


# ---- Python sources


def test_python_is_the_standard_library_and_the_packages_that_are_always_installed():
    source, library = find_source("python"), find_source("stdlib")
    found = list(source.documents())
    assert set(library.documents()) < set(found) and sum(map(len, found)) > 80_000_000
    for name in ("einops.layers.torch", "pymoo.algorithms.moo.nsga2", "torch.optim.adamw"):
        assert Path(find_spec(name).origin).read_bytes() in found
    for name in ("torch.version", "numpy.version"):
        assert Path(find_spec(name).origin).read_bytes() not in found, "made when the package was built"
    assert max(map(len, set(found) - set(library.documents()))) <= 2**18


def test_stdlib_is_source_text_of_this_python_only():
    corpus = open_corpus("stdlib")
    assert len(corpus.train) > 3_000_000 and len(corpus.validation) > 300_000
    text = whole_of(corpus)
    import argparse
    import json.decoder

    for module in (argparse, json.decoder):
        assert Path(module.__file__).read_bytes() in text
    assert Path(torch.__file__).read_bytes() not in text  # site-packages
    baselines = corpus.baselines()
    assert 2.0 < baselines["bigram"] < baselines["unigram"] - 0.4 < 3.1


def test_opening_a_known_corpus_is_fast():
    first = open_corpus("stdlib")
    started = time.perf_counter()
    again = open_corpus("stdlib")
    assert time.perf_counter() - started < 0.3
    assert again.fingerprint == first.fingerprint
    assert isinstance(again.train, np.memmap) and not again.train.flags.writeable


# ---- the cache


def test_cache_follows_the_files(tmp_path):
    write_documents(tmp_path / "text", 30)
    first = open_corpus(tmp_path / "text")
    assert open_corpus(tmp_path / "text").fingerprint == first.fingerprint
    (tmp_path / "text" / "0003.txt").write_bytes(b"a new text, of another length")
    changed = open_corpus(tmp_path / "text")
    assert changed.fingerprint != first.fingerprint
    assert b"a new text" in whole_of(changed)
    (tmp_path / "text").rename(tmp_path / "moved")
    assert open_corpus(tmp_path / "moved").fingerprint == changed.fingerprint  # same content, same fingerprint


@pytest.mark.parametrize("damage", ["truncate", "remove", "garbage"])
def test_a_damaged_entry_is_built_again(tmp_path, cache, damage):
    write_documents(tmp_path / "text", 30)
    first = open_corpus(tmp_path / "text")
    wanted, fingerprint = bytes(first.train), first.fingerprint
    del first
    (entry,) = cache.iterdir()
    if damage == "truncate":
        os.truncate(entry / "train.bin", 10)
    elif damage == "remove":
        (entry / "validation.bin").unlink()
    else:
        (entry / "corpus.json").write_text("{not json")
    again = open_corpus(tmp_path / "text")
    assert again.fingerprint == fingerprint and bytes(again.train) == wanted
    assert [path.name for path in cache.iterdir()] == [entry.name]


def test_processes_that_build_at_once_agree(tmp_path, cache):
    write_documents(tmp_path / "text", 2000)
    path = str(tmp_path / "text")
    code = f"from star.data import open_corpus; c = open_corpus({path!r}); print(c.fingerprint, len(c.train))"
    processes = [in_process(code) for _ in range(4)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    assert len(set(outputs)) == 1
    assert len(list(cache.iterdir())) == 1  # nothing half-made is left


def test_sigkill_while_building_leaves_no_broken_corpus(tmp_path, cache):
    write_documents(tmp_path / "text", 200)
    # A corpus whose documents arrive slowly, so that the process is killed while it writes.
    code = f"""
import time
from star.data import sources, open_corpus
read = sources._read
def slowly(path):
    print("read", flush=True)
    time.sleep(0.005)
    return read(path)
sources._read = slowly
open_corpus({str(tmp_path / "text")!r})
"""
    process = in_process(code)
    for _ in range(20):
        assert process.stdout.readline() == "read\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    (work,) = cache.iterdir()
    assert work.name.startswith(".building-")
    corpus = open_corpus(tmp_path / "text")
    assert len(documents_of(whole_of(corpus))) == 200

    os.utime(work, (0, 0))  # a day later, the next build tidies up
    write_documents(tmp_path / "more", 20)
    open_corpus(tmp_path / "more")
    assert not work.exists()


def test_a_disk_without_room_is_one_sentence(tmp_path, cache):
    write_documents(tmp_path / "text", 200)
    code = f"""
import resource
from star.data import open_corpus
from star.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    open_corpus({str(tmp_path / "text")!r})
except UserError as error:
    print(error)
"""
    output, _ = in_process(code).communicate(timeout=60)
    assert output.startswith(f"Cannot write the corpus cache in {cache}: ") and "STAR_CACHE" in output
    assert output.count("\n") == 1
    assert list(cache.iterdir()) == []
    assert len(open_corpus(tmp_path / "text").train) > 10_000


def test_a_cache_that_cannot_be_made_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"not a folder")
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="Cannot write the corpus cache"):
        open_corpus("stdlib")


# ---- Hugging Face


def rows(n: int) -> list[dict]:
    return [{"id": i, "text": f"row {i} " + "word " * (i % 7 + 5)} for i in range(n)]


@pytest.mark.parametrize("kind", ["json", "parquet", "csv", "text"])
def test_local_files_through_datasets(tmp_path, kind):
    path = tmp_path / f"data.{kind}"
    if kind == "json":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(100)))
    elif kind == "parquet":
        datasets.Dataset.from_list(rows(100)).to_parquet(path)
    elif kind == "csv":
        datasets.Dataset.from_list(rows(100)).to_csv(path)
    else:
        path.write_text("\n\n".join(row["text"] for row in rows(100)))
    corpus = open_corpus(f"hf:{kind}:{path}")
    documents = documents_of(whole_of(corpus))
    if kind == "text":  # a file is one document, so it was cut
        assert b"".join(documents) == path.read_bytes()
    else:
        assert {d.decode() for d in documents} == {row["text"] for row in rows(100)}


def test_a_pattern_and_a_folder_of_dataset_files(tmp_path):
    (tmp_path / "data").mkdir()
    for part in range(3):
        (tmp_path / "data" / f"part{part}.jsonl").write_text(
            "".join(json.dumps({"content": f"{part} {i} some text"}) + "\n" for i in range(20))
        )
    by_pattern = open_corpus(f"hf:json:{tmp_path}/data/part*.jsonl")
    assert len(documents_of(whole_of(by_pattern))) == 60
    assert open_corpus(f"hf:json:{tmp_path}/data").fingerprint == by_pattern.fingerprint
    (tmp_path / "data" / "part1.jsonl").write_text(json.dumps({"content": "now one row"}) + "\n")
    assert open_corpus(f"hf:{tmp_path}/data").fingerprint != by_pattern.fingerprint


def test_hub_name_without_network_is_one_sentence_at_once():
    code = """
import time
import huggingface_hub
from star.data import open_corpus
from star.errors import UserError
started = time.monotonic()
try:
    open_corpus("hf:someone/some-text:en")
except UserError as error:
    print(error)
    print(time.monotonic() - started)
"""
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    sentence, seconds = in_process(code, **offline).communicate(timeout=60)[0].splitlines()
    assert sentence.startswith('"hf:someone/some-text:en" needs the Hugging Face hub, which cannot be reached')
    assert float(seconds) < 10


@pytest.mark.parametrize(
    "write, spec, message",
    [
        (
            lambda p: p.write_text('{"id": 1, "n": 2}\n'),
            "hf:json:{}",
            r"has no column of text; its columns are id \(int\), n \(int\)",
        ),
        (lambda p: p.write_text("{{{"), "hf:json:{}", "cannot read"),
        (lambda p: None, "hf:json:{}", "matches no file"),
        (lambda p: None, "hf:", "names no dataset"),
    ],
)
def test_bad_datasets_are_one_sentence(tmp_path, write, spec, message, caplog):
    write(tmp_path / "data.jsonl")
    with pytest.raises(UserError, match=message) as error:
        open_corpus(spec.format(tmp_path / "data.jsonl"))
    assert "\n" not in str(error.value) and not caplog.records


WORDS = "some words of text to train on "


def json_rows(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"hf:json:{path}"


def all_text(corpus) -> set[str]:
    return {document.decode() for document in documents_of(whole_of(corpus))}


@pytest.mark.parametrize("name", ["text", "Text", "CONTENT"])
def test_the_schema_decides_and_rows_without_text_are_counted(tmp_path, name):
    rows = [{"id": "abc", name: None}, {"id": "d", name: ""}, *({"id": "e", name: f"{WORDS}{i}"} for i in range(9))]
    corpus = open_corpus(json_rows(tmp_path / "data.jsonl", *rows))
    assert all_text(corpus) == {f"{WORDS}{i}" for i in range(9)}
    assert corpus.notes == (f"the text is the column {name}", "2 rows without text were skipped")


QUESTIONS = [{"question": f"what is {i}, and why?", "answer": f"a number of {i} things"} for i in range(9)]
CHAT = [{"prompt_id": "a", "messages": [{"role": "user", "content": f"hello {i}"}]} for i in range(9)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (QUESTIONS, r"columns are question \(text\), answer \(text\): write .*@question or .*@question\+answer"),
        (CHAT, r"columns are prompt_id \(text\), messages \(messages\): write .*@prompt_id or .*@prompt_id\+messages"),
        ([{"id": "a", "text": ["one", "two"]}] * 9, r"columns are id \(text\), text \(list\)"),
        ([{"instruction": "do", "output": "done"}] * 9, r"columns are instruction \(text\), output \(text\)"),
        ([{"version": "1", "data": [{"a": "b"}]}] * 9, r"columns are version \(text\), data \(list\)"),
    ],
    ids=["two", "chat", "list", "instruction", "nested"],
)
def test_a_column_is_never_guessed(tmp_path, rows, message):
    with pytest.raises(UserError, match=f"does not say which column is the text; its {message}"):
        open_corpus(json_rows(tmp_path / "data.jsonl", *rows))


@pytest.mark.parametrize("column", ["text", "Content"])
def test_a_known_column_counts_even_if_its_first_rows_are_empty(tmp_path, column):
    rows = [{"id": "a", column: None}] * 1200 + [{"id": "b", column: f"{WORDS}{i}"} for i in range(9)]
    spec = json_rows(tmp_path / "data.jsonl", *rows)
    for corpus in (open_corpus(spec), open_corpus(f"{spec}@{column}")):
        assert all_text(corpus) == {f"{WORDS}{i}" for i in range(9)}
        assert corpus.notes[-1] == "1,200 rows without text were skipped"


@pytest.mark.parametrize("columns", [("Text", "text"), ("Text", "content"), ("content", "text")])
def test_an_exact_name_is_taken_before_one_in_another_case(columns):
    row = {column: f"{WORDS}of {column}" for column in columns}
    assert list(documents("hf:json:rows", [row], [], [])) == [row[columns[1]].encode()]


def test_a_later_row_that_holds_no_text_is_named():
    rows = [{"text": WORDS}] * 1200 + [{"text": 5}]
    with pytest.raises(UserError, match=r"column 'text' is not text in row 1,201 \(int\); mend that row"):
        list(documents("hf:json:rows", rows, [], []))


def test_chats_that_are_empty_are_skipped_and_those_that_are_no_text_are_refused():
    notes: list[str] = []
    chats = [{"messages": []}, {"messages": [{"role": "user", "content": WORDS}]}]
    assert list(documents("hf:json:rows", chats, ["messages"], notes)) == [f"user: {WORDS}".encode()]
    assert notes[-1] == "1 row without text was skipped"
    parts = [{"messages": [{"role": "user", "content": [{"type": "text", "text": WORDS}]}]}]
    with pytest.raises(UserError, match="column 'messages' is no text; its columns are messages"):
        list(documents("hf:json:rows", parts, ["messages"], []))


def test_columns_that_the_user_names(tmp_path):
    spec = json_rows(tmp_path / "data.jsonl", *QUESTIONS)
    assert all_text(open_corpus(f"{spec}@answer")) == {row["answer"] for row in QUESTIONS}
    both = open_corpus(f"{spec}@question+answer")
    assert all_text(both) == {f"{row['question']}\n\n{row['answer']}" for row in QUESTIONS}
    assert both.notes == ("the text is the column question + answer",)
    chat = open_corpus(json_rows(tmp_path / "chat.jsonl", *CHAT) + "@messages")
    assert all_text(chat) == {f"user: hello {i}" for i in range(9)}
    for column, message in (("ask", "there is no column 'ask'"), ("", "names no dataset")):
        with pytest.raises(UserError, match=message):
            open_corpus(f"{spec}@{column}")
    numbers = json_rows(tmp_path / "numbers.jsonl", *({"n": 1, "text": WORDS} for _ in range(9)))
    with pytest.raises(UserError, match="column 'n' is no text"):
        open_corpus(f"{numbers}@n")


def test_a_file_whose_name_has_an_at_sign(tmp_path):
    corpus = open_corpus(json_rows(tmp_path / "data@home", *({"text": f"{WORDS}{i}"} for i in range(9))))
    assert len(all_text(corpus)) == 9


def test_a_stream_ends_at_its_limit():
    notes: list[str] = []
    rows = ({"text": WORDS} for _ in range(10**6))
    read = list(documents("hf:someone/text", rows, [], notes, limit=1000))
    assert 900 < sum(map(len, read)) <= 1000 and "only the first" in notes[-1]


# ---- files that are not plain UTF-8


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_a_byte_order_mark_says_the_encoding(tmp_path, encoding):
    (tmp_path / "text.txt").write_bytes((WORDS * 9 + "äöü").encode(encoding))
    corpus = open_corpus(tmp_path / "text.txt")
    assert whole_of(corpus).rstrip(b"\0").decode() == WORDS * 9 + "äöü"


PNG = bytes([0x89]) + b"PNG\r\n" + bytes(range(32)) * 20


@pytest.mark.parametrize("content", [gzip.compress(WORDS.encode() * 99), PNG], ids=["gzip", "png"])
def test_a_file_that_is_no_text_is_refused_alone_and_skipped_and_named_in_a_folder(tmp_path, content):
    folder = tmp_path / "texts"
    documents = write_documents(folder, 20)
    (folder / "picture").write_bytes(content)
    with pytest.raises(UserError, match="picture is not text; give a text file"):
        open_corpus(folder / "picture")
    corpus = open_corpus(folder)
    assert corpus.notes == ("1 file that is not text was skipped: picture",)
    assert all_text(corpus) == {document.decode() for document in documents}


@pytest.mark.parametrize("mark", [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh91AY&SY"], ids=["gzip", "zstd", "bzip2"])
def test_a_compressed_file_is_known_by_its_first_bytes(mark):
    """Even one without a zero byte, which a small zstd file need not have."""
    assert decoded(mark + WORDS.encode()) is None and decoded(b"." + mark + WORDS.encode()) is not None


def test_links_to_folders_are_followed_once(tmp_path):
    documents = write_documents(tmp_path / "elsewhere", 20)
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "itself").symlink_to(folder)
    assert all_text(open_corpus(folder)) == {document.decode() for document in documents}


def test_links_that_lead_nowhere_or_back_are_no_harm(tmp_path):
    folder = tmp_path / "texts"
    documents = write_documents(folder, 20)
    (folder / "loop").symlink_to("loop")
    (folder / "gone").symlink_to("nowhere")
    for i in range(30):  # followed along every path, these would take for ever
        (folder / f"d{i}").mkdir()
        for j in range(30):
            (folder / f"d{i}" / f"to{j}").symlink_to(folder / f"d{j}")
    assert all_text(open_corpus(folder)) == {document.decode() for document in documents}


def test_text_that_begins_like_a_compressed_file(tmp_path):
    (tmp_path / "text.txt").write_text("BZh is how bzip2 files begin, " * 9)
    assert b"bzip2" in bytes(open_corpus(tmp_path / "text.txt").train)


# ---- bad input


@pytest.mark.parametrize(
    "write, message",
    [
        (lambda p: None, "No corpus at"),
        (lambda p: p.write_bytes(b""), "holds no text"),
        (lambda p: p.write_bytes(b" \n\n"), "holds no text"),
        (lambda p: p.write_bytes(b"tiny"), "has only 5 bytes"),
        (lambda p: p.mkdir(), "holds no text"),
        (lambda p: os.mkfifo(p), "No corpus at"),  # must not wait for a writer
    ],
    ids=["missing", "empty", "blank", "tiny", "empty folder", "pipe"],
)
def test_bad_corpora_are_one_sentence(tmp_path, write, message):
    write(tmp_path / "text")
    with pytest.raises(UserError, match=message) as error:
        open_corpus(tmp_path / "text")
    assert "text" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a file that even root cannot read")
def test_an_unreadable_file_is_named():
    with pytest.raises(UserError, match="Cannot read /proc/self/mem: Input/output error"):
        open_corpus("/proc/self/mem")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path):
    (tmp_path / "secret.txt").write_text("secret " * 100)
    (tmp_path / "secret.txt").chmod(0)
    with pytest.raises(UserError, match=r"secret\.txt: Permission denied"):
        open_corpus(tmp_path)


def test_bytes_that_are_not_utf8_and_binary_files(tmp_path):
    latin = "äöü ".encode("latin-1") * 100
    (tmp_path / "latin.txt").write_bytes(latin)
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0" * 50)
    (tmp_path / ".hidden").write_bytes(b"hidden" * 50)
    corpus = open_corpus(tmp_path)
    assert whole_of(corpus) == latin + b"\0"


def test_context_longer_than_the_corpus(tmp_path):
    (tmp_path / "text").write_bytes(b"a text of no great length, " * 40)  # 1080 bytes, 108 of them for validation
    corpus = open_corpus(tmp_path / "text")
    corpus.check_context(50)
    expected = "too small for a context of 128 tokens: its validation part has 108 tokens and needs 257"
    with pytest.raises(UserError, match=expected):
        corpus.check_context(128)


# ---- batches


def test_an_epoch_sees_every_block_once_and_batches_are_random_access():
    tokens = np.arange(1, 1001).astype(np.uint16)
    batches = Batches(tokens, batch_size=3, seq_len=10, seed=5)
    n = batches.n_blocks
    for epoch in range(3):
        inputs, targets = batches.sequences(epoch * n, n)
        starts = inputs[:, 0].tolist()
        assert len(set(starts)) == n and len({start % 10 for start in starts}) == 1
        assert torch.equal(inputs[:, 1:], targets[:, :-1]) and torch.equal(targets, inputs + 1)
    forwards = [batches[step] for step in range(100)]
    for step in (57, 3, 99):
        again = Batches(tokens, 3, 10, 5)[step]
        assert all(torch.equal(a, b) for a, b in zip(again, forwards[step], strict=True))
    assert forwards[0][0].dtype == torch.int64 and forwards[0][0].shape == (3, 10)
    assert not torch.equal(Batches(tokens, 3, 10, 6)[0][0], forwards[0][0])
    first, second = batches.sequences(0, 3), batches.sequences(3, 3)  # a batch that grows sees the same sequences
    assert torch.equal(batches.sequences(0, 6)[0], torch.cat([first[0], second[0]]))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_batches_gathered_on_a_device_are_the_same(dtype):
    tokens = np.random.default_rng(0).integers(0, min(np.iinfo(dtype).max, 60_000), 700).astype(dtype)
    tokens.flags.writeable = False  # as a corpus is
    plain = Batches(tokens, batch_size=4, seq_len=16, seed=1)  # an epoch is 10.5 batches
    gathered = DeviceBatches(Batches(tokens, 4, 16, 1), 24, torch.device("cpu"))
    for first in (0, 24, 24 * 7, 3):
        gathered.load(first)
        for number, rows in ((0, 4), (4, 4), (20, 4), (6, 2), (23, 1)):
            expected = plain.sequences(first + number, rows)
            assert all(map(torch.equal, gathered(torch.tensor(number), rows), expected))


@settings(max_examples=50, deadline=None)
@given(n=st.integers(3, 400), seq_len=st.integers(1, 40), step=st.integers(0, 1000))
def test_batches_stay_inside_the_text(n, seq_len, step):
    if n < 2 * seq_len + 1:
        with pytest.raises(ValueError):
            Batches(np.arange(n), 2, seq_len, 0)
        return
    inputs, targets = Batches(np.arange(n), 2, seq_len, 0)[step]
    assert inputs.min() >= 0 and targets.max() < n and inputs.shape == (2, seq_len)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(100, 2000), seq_len=st.integers(1, 40), n_tokens=st.integers(1, 3000))
def test_validation_blocks_do_not_overlap(n, seq_len, n_tokens):
    inputs, targets = validation_blocks(np.arange(n), seq_len, n_tokens)
    assert len(inputs) >= 2 and len(inputs) * seq_len <= max(n_tokens, 2 * seq_len)
    seen = inputs.flatten()
    assert len(seen.unique()) == len(seen) and targets.max() < n
    assert torch.equal(targets, inputs + 1)


# ---- tokenizer and baselines


@given(st.binary(max_size=200))
def test_bytes_round_trip(data):
    tokenizer = ByteTokenizer()
    assert bytes(tokenizer.encode(data)) == data
    assert tokenizer.decode(tokenizer.encode(data)) == data.decode("utf-8", errors="replace")


def test_text_round_trips():
    assert ByteTokenizer().decode(ByteTokenizer().encode("Größe: 5 µm\n")) == "Größe: 5 µm\n"


def test_ngram_losses_against_a_slow_count():
    rng = np.random.default_rng(0)
    train, validation = rng.integers(0, 5, 500).astype(np.uint8), rng.integers(0, 7, 100).astype(np.uint8)
    seen = train[1:].tolist()
    unigram = [(seen.count(token) + 1) / (len(seen) + 7) for token in range(7)]
    pairs = list(zip(train.tolist(), seen, strict=False))
    total_u = total_b = 0.0
    for first, second in zip(validation[:-1].tolist(), validation[1:].tolist(), strict=True):
        after = sum(a == first for a, _ in pairs)
        total_u -= np.log(unigram[second])
        total_b -= np.log((pairs.count((first, second)) + unigram[second]) / (after + 1))
    losses = ngram_losses(train, validation, 7)
    assert losses["unigram"] == pytest.approx(total_u / 99)
    assert losses["bigram"] == pytest.approx(total_b / 99)


def test_counting_in_blocks_changes_nothing(monkeypatch):
    tokens = np.random.default_rng(0).integers(0, 9, 1000).astype(np.uint8)
    whole = ngram_losses(tokens, tokens, 9)
    monkeypatch.setattr("star.data.baselines.BLOCK", 64)
    assert ngram_losses(tokens, tokens, 9) == whole


def test_a_uniform_language_costs_its_entropy():
    tokens = np.random.default_rng(0).integers(0, 4, 200_000).astype(np.uint8)
    losses = ngram_losses(tokens[:180_000], tokens[180_000:], 256)
    assert losses == {"unigram": pytest.approx(np.log(4), abs=0.01), "bigram": pytest.approx(np.log(4), abs=0.01)}
