"""An exported model is the model: same bits without STAR, and nothing but data when STAR reads it back."""

import ast
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import star
from star.data.tokenizer import make_tokenizer
from star.errors import RunFailed, UserError
from star.export import export_model, load, load_weights, save_weights
from star.export.folder import linked_source
from star.export.readable import has_template
from star.export.source import link
from star.genome import POOL, Gene, Genome, Space, load_genome

SHARED = Genome(
    tuple(
        Gene(*g)
        for g in (
            (1, 1, 2, 1, 2),
            (9,),
            (1, 1, 2, 1, 2),
            (5, 0, 0, 2, 2),
            (5, 2, 2, 2, 2),
            (5, 2, 2),
            (8,),
            (12,),
            (7, 0, 0, 3, 3),
            (7, 0, 0, 3, 3),
        )
    ),
    d_model=64,
    head_dim=16,
)
EVERY_CLASS = Genome(tuple(Gene(c) for c in range(1, len(POOL) + 1)), d_model=192, head_dim=8)
READABLE = Genome(tuple(g for g in EVERY_CLASS.backbone if has_template(POOL[g[0] - 1].config(192, 8, 1e4))), 192, 8)
# Learned positions, LayerNorm, biases and a head of its own.
LAYOUT = replace(load_genome("gpt-2", d_model=64, depth=4, head_dim=16), embedding=2)

# The output of a new interpreter in which only these packages, and what torch itself needs, can be imported.
FRESH = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[3].split(","):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Nothing())
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from model import load
model = load()
tokens = torch.arange(70)[None] * 7 % int(sys.argv[4])
logits, state = model(tokens)
more, _ = model(tokens[:, :3], state)
torch.save([logits, more], sys.argv[2])
"""
REFUSED = "star,einops,jinja2,transformers,tokenizers,datasets,scipy,pymoo,typer,rich,platformdirs,matplotlib,pebble"


def built(genome: Genome, vocab_size: int = 256) -> star.LanguageModel:
    model = star.build(genome, vocab_size, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.full_like(parameter, 1e-3))  # not what a fresh build would give
    return model


def logits_of(model) -> list[torch.Tensor]:
    tokens = torch.arange(70)[None] * 7 % model.vocab_size
    logits, state = model(tokens)
    return [logits, model(tokens[:, :3], state)[0]]


@pytest.fixture
def exported(tmp_path) -> Path:
    return export_model(
        built(SHARED), SHARED, tmp_path / "model", source={"run": "runs/a", "id": SHARED.id}, metrics={"loss": 1.5}
    )


def fresh_logits(folder: Path, tmp_path: Path, refused: str = REFUSED) -> list[torch.Tensor]:
    script, out = tmp_path / "fresh.py", tmp_path / "logits.pt"
    script.write_text(FRESH)
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    result = subprocess.run(
        [sys.executable, "-I", str(script), str(folder), str(out), refused, str(vocab_size)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return torch.load(out)


@pytest.mark.parametrize("genome", [SHARED, READABLE, LAYOUT], ids=["shared", "every class", "layout"])
def test_fresh_interpreter_with_torch_and_safetensors_alone_gives_the_same_logits(genome, tmp_path):
    model = built(genome, vocab_size=300)
    folder = export_model(model, genome, tmp_path / "model")
    for ours, theirs, loaded in zip(logits_of(model), fresh_logits(folder, tmp_path), logits_of(load(folder))):
        assert torch.equal(ours, loaded)
        assert float((ours - theirs).detach().abs().max() / ours.detach().abs().max()) < 2e-5


def test_operators_without_a_template_are_linked_from_the_library(tmp_path):
    """Every family can be exported in this form, which gives the same bits."""
    model = built(EVERY_CLASS)
    folder = export_model(model, EVERY_CLASS, tmp_path / "model")
    assert "readable page yet for KDA, MLA, MLA-NoPE" in (folder / "model.py").read_text()
    refused = REFUSED.replace("einops,", "")
    for ours, theirs, loaded in zip(logits_of(model), fresh_logits(folder, tmp_path, refused), logits_of(load(folder))):
        assert torch.equal(ours, loaded) and torch.equal(ours, theirs)


def test_random_genomes_load_to_the_same_bits(tmp_path):
    space = Space(8, (32,), 8, norms=(1, 2, 3), residuals=(1, 2))
    for n, x in enumerate(space.sample(np.random.default_rng(0), 12)):
        genome = space.decode(x)
        model = built(genome, vocab_size=50)
        again = load(export_model(model, genome, tmp_path / str(n)))
        assert again.genome == genome
        assert all(torch.equal(a, b) for a, b in zip(logits_of(model), logits_of(again)))


def test_untied_embeddings_and_half_precision_survive(tmp_path):
    model = star.build(SHARED, 64, tie_embeddings=False).to(torch.bfloat16)
    again = load(export_model(model, SHARED, tmp_path / "model"))
    assert not again.tie_embeddings and {p.dtype for p in again.parameters()} == {torch.bfloat16}
    assert torch.equal(logits_of(model)[0], logits_of(again)[0])


def test_the_exported_file_generates_text(exported, tmp_path):
    command = [sys.executable, "-I", str(exported / "model.py"), "--prompt", "def ", "--tokens", "30", "--seed", "3"]
    first, second = (subprocess.run(command, cwd=tmp_path, capture_output=True) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith(b"def ") and len(first.stdout) > 20 and first.stdout == second.stdout


def test_linked_source_holds_what_is_used_and_no_more():
    genome = star.load_genome("1-9", d_model=32, head_dim=16)
    text = linked_source(built(genome), genome)
    names = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    assert {"Attention", "MemorylessConfig", "LanguageModel", "Plan", "apply_rope", "load", "main"} <= names
    assert not names & {"Recurrence", "Convolution", "Family", "GroupSpec", "UserError", "configure", "resolve"}
    assert not re.search(r"^\s*(from|import) star\b", text, re.MULTILINE)
    assert "FAMILY" not in text and "RoFormer" in text  # docstrings come along
    assert len(text) < len(linked_source(built(EVERY_CLASS), EVERY_CLASS)) / 1.5


def test_shared_tensors_are_stored_once(exported):
    model = load(exported)
    stored = load_file(exported / "model.safetensors")
    assert len(stored) == len(list(model.parameters())) < len(model.state_dict())
    assert sum(t.numel() for t in stored.values()) == star.costs(SHARED).parameters
    assert model.blocks[2].liv.q is model.blocks[0].liv.q


def test_weights_with_repeated_names_of_shared_tensors_are_read_too(tmp_path):
    model = built(SHARED)
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, tmp_path / "all.safetensors")
    other = star.build(SHARED, seed=2)
    load_weights(other, tmp_path / "all.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))


def test_config_says_what_the_model_is(exported):
    config = json.loads((exported / "config.json").read_text())
    assert config["genome_id"] == SHARED.id and config["tokenizer"] == "bytes" and config["vocab_size"] == 256
    assert config["source"] == {"run": "runs/a", "id": SHARED.id} and config["metrics"] == {"loss": 1.5}
    assert config["star"] == star.__version__


def test_an_export_is_whole_or_absent(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("star.export.folder.model_source", full)
    with pytest.raises(RunFailed, match=r"disk .* is full"):
        export_model(built(SHARED), SHARED, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_leaves_the_old_export(exported, monkeypatch):
    def broken(*_):
        raise RuntimeError("killed")

    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    monkeypatch.setattr("star.export.folder.model_source", broken)
    with pytest.raises(RuntimeError):
        export_model(built(SHARED), SHARED, exported, overwrite=True)
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before
    assert [path.name for path in exported.parent.iterdir()] == ["model"]


def test_folders_with_other_files_are_left_alone(exported, tmp_path):
    model = built(SHARED)
    with pytest.raises(UserError, match="holds an exported model already"):
        export_model(model, SHARED, exported)
    export_model(model, SHARED, exported, overwrite=True)
    (exported / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds other files"):
            export_model(model, SHARED, exported, overwrite=overwrite)
    with pytest.raises(UserError, match="holds other files"):
        export_model(model, SHARED, exported / "notes.txt")
    with pytest.raises(UserError, match="cannot be written"):
        export_model(model, SHARED, exported / "notes.txt" / "below")


# What `load` refuses. Every message names the file.


def change_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def truncate(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def link_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(folder.parent / "elsewhere.safetensors")


def pipe(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def damage_tokenizer(folder: Path) -> None:
    change_config(folder, tokenizer="mine")
    (folder / "tokenizer.json").write_text("{}")


FAULTS = {
    "no such folder": (shutil.rmtree, "there is no such folder"),
    "no config": (lambda f: (f / "config.json").unlink(), "is not an exported model"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors: the file is missing"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json: cannot be read as JSON"),
    "config is binary": (
        lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"),
        r"config\.json: cannot be read as JSON",
    ),
    "config is deep": (
        lambda f: (f / "config.json").write_text("[" * 500_000),
        r"config\.json: cannot be read as JSON",
    ),
    "config is foreign": (
        lambda f: (f / "config.json").write_text('{"model_type": "llama"}'),
        "is not an exported STAR model",
    ),
    "config is huge": (lambda f: (f / "config.json").write_text(" " * 3_000_000), "too large"),
    "another version": (lambda f: change_config(f, version=9), "version 9 is not supported"),
    "vocabulary is text": (
        lambda f: change_config(f, vocab_size="256"),
        "'vocab_size' is '256'; it must be an integer",
    ),
    "vocabulary is huge": (lambda f: change_config(f, vocab_size=10**12), "'vocab_size' is 1000000000000"),
    "vocabulary of others": (lambda f: change_config(f, vocab_size=255), r"tensor embedding\.weight has shape"),
    "tokenizer is a number": (lambda f: change_config(f, tokenizer=5), "'tokenizer' is"),
    "tokenizer missing": (lambda f: change_config(f, tokenizer="../../x"), r"tokenizer\.json: the file is missing"),
    "tokenizer damaged": (damage_tokenizer, "is no tokenizer.json of the library tokenizers"),
    "genome is text": (lambda f: change_config(f, genome="1-9"), r"config\.json: genome"),
    "genome of others": (
        lambda f: change_config(f, genome=star.genome.to_json(EVERY_CLASS)),
        "weights belong to another architecture",
    ),
    "genome does not fit": (
        lambda f: change_config(f, genome=star.genome.to_json(SHARED) | {"d_model": 60}),
        r"config\.json: genome",
    ),
    "genome is huge": (
        lambda f: change_config(f, genome=star.genome.to_json(SHARED) | {"d_model": 65_536}),
        "has shape",
    ),
    "weights truncated": (truncate, r"model\.safetensors: is missing, damaged"),
    "weights are text": (
        lambda f: (f / "model.safetensors").write_text("hello"),
        r"model\.safetensors: is missing, damaged",
    ),
    "weights changed": (flip_a_bit, "has changed since the export"),
    "tensor missing": (
        lambda f: change_tensors(f, lambda t: t.pop("final_norm.weight")),
        "final_norm.weight is missing",
    ),
    "tensor too many": (
        lambda f: change_tensors(f, lambda t: t.update(x=torch.ones(1))),
        "tensor x is not part of the genome",
    ),
    "tensor misshapen": (
        lambda f: change_tensors(f, lambda t: t.update(**{"final_norm.weight": torch.ones(3)})),
        r"final_norm\.weight has shape \[3\]",
    ),
    "tensor of integers": (
        lambda f: change_tensors(f, lambda t: t.update(**{"final_norm.weight": torch.ones(64, dtype=torch.int64)})),
        "all must have the same dtype",
    ),
    "link out of the folder": (link_out, "must be a regular file inside"),
    "pipe": (pipe, "must be a regular file inside"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_load_refuses(fault, exported):
    spoil, message = FAULTS[fault]
    spoil(exported)
    with pytest.raises(UserError, match=message) as error:
        load(exported)
    assert str(exported) in str(error.value) and "\n" not in str(error.value)


def test_load_never_executes_the_exported_file(exported):
    (exported / "model.py").write_text("raise SystemExit('executed')")
    load(exported)


def test_weights_of_another_genome_are_refused(tmp_path):
    save_weights(built(EVERY_CLASS), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="another architecture"):
        load_weights(star.build(SHARED), tmp_path / "w.safetensors")


# Linking source.


def run_linked(sources: dict[str, str], *roots: tuple[str, str]) -> dict:
    names: dict = {}
    exec("from __future__ import annotations\n" + link(roots, sources), names)
    return names


def test_equal_names_in_two_modules_stay_apart():
    sources = {
        "star.a": "SIZE = 1  # a\n\n\ndef step(x, SIZE=SIZE):\n    return x + SIZE\n\n\nclass Mixer:\n    step = "
        "5\n\n    def run(self, x):\n        return step(x) + self.step\n",
        "star.b": "from star.a import Mixer as Other\n\nSIZE = 10\n\n\ndef step(x):\n    SIZES = [SIZE for _ in "
        "range(2)]\n    return x + SIZES[0]\n\n\nclass Mixer:\n    def run(self, x):\n        return "
        "Other().run(step(x))\n",
    }
    names = run_linked(sources, ("star.b", "Mixer"))
    assert names["BMixer"]().run(0) == 10 + 1 + 5
    assert names["A_SIZE"] == 1 and names["B_SIZE"] == 10 and "SIZE" not in names


def test_names_are_followed_through_modules_that_pass_them_on():
    sources = {
        "star.a": "def f():\n    return 3\n",
        "star.p": "from star.a import f\n",
        "star.b": "from star.p import f as g\n\n\ndef h():\n    return g()\n",
    }
    assert run_linked(sources, ("star.b", "h"))["h"]() == 3


def test_source_that_cannot_be_linked_is_refused():
    with pytest.raises(RunFailed, match=r"star\.a, line 2"):
        link([("star.a", "x")], {"star.a": "x = 1\nfor i in range(3):\n    x += i\n"})
    with pytest.raises(RunFailed, match=r"star\.b is imported inside a function"):
        link([("star.a", "f")], {"star.a": "def f():\n    import star.b\n"})
    with pytest.raises(RunFailed, match=r"star\.a does not define y"):
        link([("star.a", "y")], {"star.a": "x = 1\n"})


def test_the_exported_file_takes_a_prompt_of_any_bytes_and_refuses_what_means_nothing(exported):
    def run(*options: bytes) -> subprocess.CompletedProcess:
        command = [sys.executable.encode(), b"-I", str(exported / "model.py").encode(), b"--tokens", b"3", *options]
        return subprocess.run(command, capture_output=True)

    result = run(b"--prompt", b"caf\xe9")
    assert result.returncode == 0 and result.stdout.startswith(b"caf\xe9")
    result = run(b"--top-k", b"0")
    assert result.returncode == 2 and b"top_k at least 1" in result.stderr and b"Traceback" not in result.stderr


def test_the_example_runs(exported):
    result = subprocess.run([sys.executable, "example.py"], cwd=exported, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("'def ") and "nats per token" in result.stdout


def test_the_model_card_says_what_is_known(tmp_path):
    model = built(SHARED)
    training = {"recipe": {"optimizer": "muon", "tokens": 1000}, "curve": []}
    source = {"corpus": "python", "fingerprint": "abc"}
    folder = export_model(
        model, SHARED, tmp_path / "a", source=source, metrics={"bpb": 2.0123456789}, training=training
    )
    card = (folder / "README.md").read_text()
    for words in (
        "`python`, fingerprint `abc`",
        "`optimizer` muon",
        "| bpb | 2.01235 |",
        "SA-1",
        "Apache-2.0",
        SHARED.id,
    ):
        assert words in card
    card = (export_model(model, SHARED, tmp_path / "b", trained=False, name="a|b\nc") / "README.md").read_text()
    assert "**not trained**" in card and "# abc" in card and "\nNone.\n" in card
    assert star.load_genome(folder / "genome.json") == SHARED


def test_exports_of_version_1_are_read(tmp_path):
    """Their weights have the names of the library."""
    model = built(SHARED)
    folder = export_model(model, SHARED, tmp_path / "model")
    save_weights(model, folder / "model.safetensors")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    change_config(folder, version=1, sha256=digest)
    assert all(torch.equal(a, b) for a, b in zip(logits_of(model), logits_of(load(folder))))


def test_a_tokenizer_that_has_changed_is_refused(tmp_path):
    model = built(SHARED, vocab_size=300)
    model.tokenizer = make_tokenizer("bpe:300").train([b"for i in range(10):\n" * 50])
    folder = export_model(model, SHARED, tmp_path / "model")
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<|endoftext|>", "<|im_end|>"))
    with pytest.raises(UserError, match=r"tokenizer\.json: has changed since the export"):
        load(folder)
