"""Exported folders. They are written completely or not at all, and their code is never run when they are read."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

import star
from star.data.tokenizer import TOKENIZER_FILE, SubwordTokenizer, read_tokenizer
from star.errors import RunFailed, UserError
from star.export.architecture import NAME, architecture_source
from star.export.card import example_source, model_card
from star.export.hugging_face_checkpoint import stock_class, write_hugging_face
from star.export.readable import is_readable, readable_source, unreadable
from star.export.source import link
from star.export.weights import check_weights, load_weights, save_weights
from star.genome import Genome, from_json, resolve, to_json
from star.model import LanguageModel

HUGGING_FACE = ("generation_config.json", "tokenizer_config.json")  # besides, in a checkpoint for transformers
FORMAT, VERSION = "star-model", 2
VERSIONS = (1, 2)  # that can be read; 1 has the library's names of weights
FILES = ("config.json", "model.py", "model.safetensors", "genome.json", "README.md", "example.py")
TRAINING = "training.json"  # recipe and learning curve, if they were given
SIZE_LIMIT = 2_000_000  # bytes of config.json
MAX_VOCAB = 10_000_000


def export_model(
    model: LanguageModel,
    genome: Genome,
    folder: str | Path,
    *,
    name: str = "",
    trained: bool = True,
    source: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write `folder` with model.py, its weights, config.json, genome, model card and an example; returns the folder.

    name: shown to users. source: origin of the model, such as {"run": ..., "id": ...}. metrics: its scores. training:
    recipe and learning curve, for training.json. overwrite: replace an earlier export. Raises UserError if the folder
    holds other files or cannot be written, and RunFailed if the disk is full; an existing folder then stays unchanged.
    """
    genome = genome.canonical()
    facts = describe(model, genome, name, trained, source, metrics)
    with whole(Path(folder), overwrite) as work:
        save_weights(model, work / "model.safetensors", is_readable(model.plan))
        facts["sha256"] = _sha256(work / "model.safetensors")
        (work / "model.py").write_text(model_source(model, genome), encoding="utf-8")
        (work / "README.md").write_text(model_card(model, facts, training), encoding="utf-8")
        (work / "example.py").write_text(example_source(facts), encoding="utf-8")
        if isinstance(model.tokenizer, SubwordTokenizer):
            facts["separator"] = model.tokenizer.separator
            (work / TOKENIZER_FILE).write_text(model.tokenizer.json_text, encoding="utf-8")
            facts["tokenizer_sha256"] = _sha256(work / TOKENIZER_FILE)
        _write_json(work / "genome.json", to_json(genome))
        _write_json(work / "config.json", facts)
        if training is not None:
            _write_json(work / TRAINING, dict(training))
    return Path(folder)


def export_hugging_face(
    model: LanguageModel,
    genome: Genome,
    folder: str | Path,
    *,
    name: str = "",
    trained: bool = True,
    source: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> str:
    """Write `folder` as a checkpoint of a class of transformers; returns the class. Arguments as in `export_model`.

    Raises UserError as there, and if no class can express the genome or transformers is missing.
    """
    stock = stock_class(model)
    facts = describe(model, genome.canonical(), name, trained, source, metrics)
    with whole(Path(folder), overwrite) as work:
        write_hugging_face(model, work, stock)
        (work / "README.md").write_text(model_card(model, facts, training, stock), encoding="utf-8")
        _write_json(work / "genome.json", to_json(genome.canonical()))
    return stock


def describe(
    model: LanguageModel,
    genome: Genome,
    name: str,
    trained: bool,
    source: Mapping[str, Any] | None,
    metrics: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What config.json says of a model."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "star": star.__version__,
        "name": name,
        "genome_id": genome.id,
        "genome": to_json(genome),
        "vocab_size": model.vocab_size,
        "tie_embeddings": model.tie_embeddings,
        "tokenizer": model.tokenizer.name if isinstance(model.tokenizer, SubwordTokenizer) else "bytes",
        "trained": trained,
        "source": dict(source or {}),
        "metrics": {key: value for key, value in (metrics or {}).items() if _is_plain(value)},
    }


@contextlib.contextmanager
def whole(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A working folder that becomes `folder` when all is written, or vanishes. Raises UserError and RunFailed."""
    check_target(folder, overwrite)
    work = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    with _plain_errors(folder):
        try:
            work.mkdir(parents=True)
            yield work
            for file in work.iterdir():
                with open(file, "rb+") as written:
                    os.fsync(written.fileno())
            _move(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def model_source(model: LanguageModel, genome: Genome) -> str:
    """The source of model.py: from templates, or for operators from outside the package linked from the library."""
    subwords = isinstance(model.tokenizer, SubwordTokenizer)
    if is_readable(model.plan):
        return readable_source(model.plan, model.vocab_size, model.tie_embeddings, genome, subwords)
    return linked_source(model, genome)


def linked_source(model: LanguageModel, genome: Genome) -> str:
    """The source of model.py as a copy of the library's own definitions."""
    architecture = architecture_source(model.plan, model.vocab_size, model.tie_embeddings)
    roots = [(NAME, "PLAN"), ("star.export.standalone", "load"), ("star.export.standalone", "main")]
    body = link(roots, {NAME: architecture})
    tokens = "those of tokenizer.json" if isinstance(model.tokenizer, SubwordTokenizer) else "bytes"
    livs = f"{genome.depth} {'LIV' if genome.depth == 1 else 'LIVs'}"
    return f'''"""A language model with {livs} (linear input-varying operators), exported by STAR {star.__version__}.

It needs the packages that are imported below, but not STAR.

    from model import load
    model = load()                              # with the weights next to this file
    logits, state = model(tokens)               # int64 [B, T] -> [B, T, {model.vocab_size}]; tokens are {tokens}
    logits, state = model(next_tokens, state)   # continues from the state; continue a state.copy() to do so twice
    logits, state = model(tokens, lengths=n)    # int64 [B]: sequences of different lengths, padded on the left

    python model.py --prompt "def " --tokens 200

torch.ao.quantization.quantize_dynamic changes nothing here: it replaces nn.Linear, and this model has none. For smaller
weights use model.to(torch.bfloat16).

Genome {genome.id}: {genome.text}
The code is copied from the sources of STAR, without the definitions that this model does not need, because there is no
readable page yet for {", ".join(unreadable(model.plan)) or "its operators"}.
"""

from __future__ import annotations

{body}

if __name__ == "__main__":
    main()
'''


def load(folder: str | Path) -> LanguageModel:
    """The model of an exported folder, in evaluation mode. It is built from the genome; model.py is not executed.

    Raises UserError, naming file and fault, if the folder is not an export or is damaged.
    """
    folder = Path(folder)
    config = read_config(folder)
    try:
        plan = resolve(config["genome"])
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: genome: {error}") from None
    weights = _inside(folder, "model.safetensors")
    with torch.device("meta"):  # compares file and genome before memory is allocated for either
        check_weights(weights, LanguageModel(plan, config["vocab_size"], config["tie_embeddings"]))
    if _sha256(weights) != config["sha256"]:
        raise UserError(f"{weights}: has changed since the export (config.json has another SHA-256); export again")
    model = LanguageModel(plan, config["vocab_size"], config["tie_embeddings"])
    model.genome = config["genome"]
    if config["tokenizer"] != "bytes":
        path = _inside(folder, TOKENIZER_FILE)
        model.tokenizer = read_tokenizer(path, config["tokenizer"])
        if config.get("tokenizer_sha256", _sha256(path)) != _sha256(path):
            raise UserError(f"{path}: has changed since the export (config.json has another SHA-256); export again")
    load_weights(model, weights)
    return model.eval()


def read_config(folder: str | Path) -> dict[str, Any]:
    """The checked contents of config.json, with "genome" as a `Genome`. Raises UserError naming key and value."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; star export RUN:ID writes one")
    if not (folder / "config.json").exists():
        raise UserError(f"{folder}: is not an exported model (it has no config.json); star export RUN:ID writes one")
    path = _inside(folder, "config.json")
    try:
        size = path.stat().st_size
        if size > SIZE_LIMIT:
            raise UserError(f"{path}: {size:,} bytes is too large for a config.json; the limit is {SIZE_LIMIT:,}")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); export the model again") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise UserError(f'{path}: is not an exported STAR model; it must be a JSON object with "format": "{FORMAT}"')
    if config.get("version") not in VERSIONS:
        version = repr(config.get("version"))
        raise UserError(f"{path}: version {version} is not supported; this program reads versions 1 and {VERSION}")
    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        "vocab_size": (lambda v: type(v) is int and 2 <= v <= MAX_VOCAB, f"an integer from 2 to {MAX_VOCAB:,}"),
        "tie_embeddings": (lambda v: isinstance(v, bool), "true or false"),
        "tokenizer": (lambda v: isinstance(v, str) and bool(v), '"bytes", or a name, with a tokenizer.json'),
        "sha256": (lambda v: isinstance(v, str), "the SHA-256 of model.safetensors"),
        "source": (lambda v: isinstance(v, dict), "an object"),
        "metrics": (lambda v: isinstance(v, dict), "an object"),
    }
    for key, (valid, legal) in rules.items():
        if key not in config or not valid(config[key]):
            raise UserError(f"{path}: '{key}' is {config.get(key)!r:.60}; it must be {legal}")
    return config | {"genome": from_json(config.get("genome"), where=f"{path}: genome")}


def _inside(folder: Path, name: str) -> Path:
    """A regular file in the folder: not a link that leads out of it, a device or a pipe."""
    path = folder / name
    if not path.exists():
        raise UserError(f"{path}: the file is missing; export the model again")
    if path.resolve().parent != folder.resolve() or not path.is_file():
        raise UserError(f"{path}: must be a regular file inside {folder}; export the model again")
    return path


def check_target(folder: Path, overwrite: bool) -> None:
    """Raise UserError unless `folder` is new or empty, or holds an earlier export and `overwrite` is set."""
    if not folder.exists():
        return
    if not folder.is_dir() or not {path.name for path in folder.iterdir()} <= {
        *FILES,
        *HUGGING_FACE,
        TRAINING,
        TOKENIZER_FILE,
        "__pycache__",
    }:
        raise UserError(f"{folder}: holds other files; give a new or empty folder")
    if any(folder.iterdir()) and not overwrite:
        raise UserError(f"{folder}: holds an exported model already; give another folder, or --overwrite to replace it")


def _move(work: Path, folder: Path) -> None:
    """Move the finished folder to its place and delete the one it replaces."""
    old = work.with_suffix(".old")
    if folder.exists():
        os.rename(folder, old)
    try:
        os.rename(work, folder)
    except OSError:
        if old.exists():
            os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _plain_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        text = getattr(error, "strerror", None) or str(error)
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in text:
            raise RunFailed(f"the disk of {folder} is full: free some space and export again") from None
        raise UserError(f"{folder}: cannot be written ({text}); give another folder") from None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))
