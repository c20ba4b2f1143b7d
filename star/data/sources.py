"""Where documents come from: the standard library, files and folders, Hugging Face datasets.

A source has a name, an identity that changes when its content may have changed, and an iterator over documents. The
identity is cheap (paths, sizes and modification times, never the content), because every worker computes it when it
starts. A new kind of source is one function here and one line in `find_source`.
"""

import logging
import os
import sysconfig
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from star.errors import UserError

# Left out of "stdlib": tests, which many systems do not install, and generated tables, which are so similar to each
# other that they would make the validation text easier than real text.
STDLIB_SKIPPED = set("site-packages dist-packages test tests idle_test __pycache__ encodings pydoc_data".split())
HF_FILE_KINDS = ("json", "parquet", "csv", "text")
HUB_TIMEOUT = 5.0  # seconds to wait for the hub's first answer


@dataclass(frozen=True)
class Source:
    """Documents with a name and an identity."""

    name: str  # what reports show
    identity: tuple  # JSON-able; equal identities mean equal content
    documents: Callable[[], Iterator[bytes]]


def find_source(spec: str | Path) -> Source:
    """The source that `spec` names: "stdlib", "hf:NAME[:CONFIG]", or the path of a text file or a folder."""
    spec = str(spec)
    if spec == "stdlib":
        return _stdlib()
    if spec.startswith("hf:"):
        return _hugging_face(spec)
    return _files(spec)


def _stdlib() -> Source:
    """The .py sources of the running Python's standard library, in the order of their paths."""
    root = Path(sysconfig.get_paths()["stdlib"])
    sources = (path for path in _walk(root, STDLIB_SKIPPED) if path.suffix == ".py")
    paths = [path for path in sources if not path.name.startswith("_sysconfigdata")]
    if not paths:
        raise UserError(
            f"The standard library in {root} has no .py sources to train on; give a text file or folder with --data."
        )
    return Source("stdlib", ("stdlib", *_stat(paths)), lambda: map(_read, paths))


def _files(spec: str) -> Source:
    """One text file, or every text file under a folder (hidden files and files that hold a zero byte are skipped)."""
    path = Path(spec).expanduser()
    if path.is_file():
        return Source(path.name, ("file", *_stat([path])), lambda: iter([_read(path)]))
    if not path.is_dir():
        raise UserError(
            f'No corpus at "{spec}": give "stdlib", the path of a text file or folder, or hf:NAME[:CONFIG].'
        )
    paths = list(_walk(path))

    def documents() -> Iterator[bytes]:
        return (text for text in map(_read, paths) if 0 not in text[:8192])

    return Source(path.resolve().name, ("folder", *_stat(paths)), documents)


def _hugging_face(spec: str) -> Source:
    """Rows of the "train" split; the text of each row is a document. They are streamed: only the tokens are stored.

    NAME is a dataset of the hub, a folder that `datasets` understands, or one of json, parquet, csv and text
    with a local file, folder or glob pattern as CONFIG ("hf:json:data/*.jsonl").
    """
    name, _, config = spec.removeprefix("hf:").partition(":")
    if not name:
        raise UserError(f'"{spec}" names no dataset: write hf:NAME or hf:NAME:CONFIG, for example hf:json:data.jsonl.')
    if name in HF_FILE_KINDS:
        files = _match(spec, config)
        options: dict[str, Any] = {"data_files": [str(path) for path in files]}
        if name == "text":
            options["sample_by"] = "document"  # a single line is too short
    else:
        files = list(_walk(Path(name))) if Path(name).is_dir() else []
        options = {"name": config or None}

    def documents() -> Iterator[bytes]:
        if not files:
            _reach_hub(spec, name)
        return _rows(spec, name, options)

    return Source(spec, ("hf", name, config, *_stat(files)), documents)


def _rows(spec: str, name: str, options: dict) -> Iterator[bytes]:
    import datasets  # slow to import, and most corpora are plain files

    log = logging.getLogger("datasets")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it also logs the errors that are raised below
    try:
        rows = datasets.load_dataset(name, **options, split="train", streaming=True)
        column = None
        for row in rows:
            column = column or _text_column(spec, row)
            yield (row[column] or "").encode("utf-8", errors="surrogatepass")
    except UserError:
        raise
    except Exception as error:  # `datasets` raises many kinds; each one is about the user's data
        raise UserError(f'`datasets` cannot read "{spec}": {_first_line(error)}') from error
    finally:
        log.setLevel(level)


def _reach_hub(spec: str, name: str) -> None:
    """Ask the hub once for the dataset. Without a network this fails at once, instead of after minutes of retries."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=HUB_TIMEOUT)
    except (HfHubHTTPError, HFValidationError) as error:
        raise UserError(
            f'The Hugging Face hub does not provide "{name}" ({_first_line(error)}); check the name in "{spec}".'
        ) from error
    except Exception as error:  # every network library has its own exception for "no network"
        raise UserError(
            f'"{spec}" needs the Hugging Face hub, which cannot be reached; use local files '
            "(hf:json:PATH) or --data stdlib."
        ) from error


def _text_column(spec: str, row: dict) -> str:
    strings = [column for column, value in row.items() if isinstance(value, str)]
    for column in ("text", "content", *strings):
        if column in strings:
            return column
    raise UserError(f'"{spec}" has no column of text; its first row has the columns {", ".join(row) or "(none)"}.')


def _match(spec: str, pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        paths = list(_walk(path))
    elif path.is_file():
        paths = [path]
    else:
        paths = sorted(match for match in path.parent.glob(path.name or "*") if match.is_file())
    if not pattern or not paths:
        raise UserError(
            f'"{spec}" matches no file: write hf:json:PATH with the path of a file, a folder or a pattern like '
            "data/*.jsonl."
        )
    return paths


def _walk(root: Path, skipped: Container[str] = ()) -> Iterator[Path]:
    """Regular files under `root`, sorted by name within each folder, without hidden names and `skipped` folders."""
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"Cannot list the folder {root}: {error.strerror}.") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in skipped:
                yield from _walk(Path(entry.path), skipped)
        elif entry.is_file():
            yield Path(entry.path)


def _stat(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    try:
        return [(os.path.realpath(path), (stat := os.stat(path)).st_size, stat.st_mtime_ns) for path in paths]
    except OSError as error:
        raise UserError(f"Cannot read {error.filename}: {error.strerror}.") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        hint = "make it readable or leave it out of the corpus"
        raise UserError(f"Cannot read {path}: {error.strerror}; {hint}.") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
