"""Where documents come from: Python sources, files and folders, Hugging Face datasets.

A source has a name, an identity that changes when its content may have changed, and an iterator over documents. The
identity is cheap (paths, sizes and modification times, never the content), because every worker computes it when it
starts. A new kind of source is one function here and one line in `find_source`.
"""

import codecs
import importlib.util
import os
import sysconfig
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from star.data import hugging_face
from star.errors import UserError

# Left out of "stdlib": tests, which many systems do not install, and generated tables, which are so similar to each
# other that they would make the validation text easier than real text.
STDLIB_SKIPPED = set("site-packages dist-packages test tests idle_test __pycache__ encodings pydoc_data".split())
# Packages whose sources are in "python" beside the standard library: what every installation of this project has.
PACKAGES = (
    "datasets einops huggingface_hub matplotlib networkx numpy pandas platformdirs pymoo rich scipy sympy torch typer"
).split()
GENERATED = {"version.py", "_version.py", "__config__.py"}  # made when a package is built, different for each build
LARGEST = 1 << 18  # bytes of a source file; larger ones are tables
MARKS = (  # byte order marks, the longer ones first
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)
COMPRESSED = (b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")  # gzip, xz, zstd, zip
BZIP2 = b"1AY&SY"  # after "BZh" and a digit


@dataclass(frozen=True)
class Source:
    """Documents with a name and an identity."""

    name: str  # what reports show
    identity: tuple  # JSON-able; equal identities mean equal content
    documents: Callable[[], Iterator[bytes]]
    notes: list[str] = field(default_factory=list)  # what the documents left out, once they have been read


def find_source(spec: str | Path) -> Source:
    """The source that `spec` names: "python", "stdlib", "hf:NAME[:CONFIG]", or the path of a text file or a folder."""
    spec = str(spec)
    if spec == "python":
        return Source("python", ("python", *_stat(paths := [*_stdlib(), *_packages()])), lambda: map(_read, paths))
    if spec == "stdlib":
        return Source("stdlib", ("stdlib", *_stat(paths := _stdlib())), lambda: map(_read, paths))
    if spec.startswith("hf:"):
        return _hugging_face(spec)
    return _files(spec)


def _stdlib() -> list[Path]:
    """The .py sources of the running Python's standard library, in the order of their paths."""
    root = Path(sysconfig.get_paths()["stdlib"])
    sources = (path for path in _walk(root, STDLIB_SKIPPED) if path.suffix == ".py")
    paths = [path for path in sources if not path.name.startswith("_sysconfigdata")]
    if not paths:
        raise UserError(
            f"The standard library in {root} has no .py sources to train on; give a text file or folder with --data."
        )
    return paths


def _packages() -> list[Path]:
    """The .py sources of `PACKAGES`, without tests: the same text on every machine with the same versions."""
    paths = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"The package {name} has no sources here; give a text file or folder with --data.")
        for root in spec.submodule_search_locations:
            sources = (path for path in _walk(Path(root), STDLIB_SKIPPED) if path.suffix == ".py")
            paths += [path for path in sources if path.name not in GENERATED and path.stat().st_size <= LARGEST]
    return paths


def _files(spec: str) -> Source:
    """One text file, or every text file under a folder. Hidden files are left out; files that are not text are skipped
    and named in the notes, but a single one is refused.
    """
    path = Path(spec).expanduser()
    if path.is_file():

        def document() -> Iterator[bytes]:
            text = decoded(_read(path))
            if text is None:
                raise UserError(f"{path} is not text; give a text file, unpacked, or a folder of text files.")
            yield text

        return Source(path.name, ("file", *_stat([path])), document)
    if not path.is_dir():
        raise UserError(
            f'No corpus at "{spec}": give "python", "stdlib", the path of a text file or folder, or hf:NAME[:CONFIG].'
        )
    paths = list(_walk(path))
    notes: list[str] = []

    def documents() -> Iterator[bytes]:
        skipped = []
        for file in paths:
            text = decoded(_read(file))
            if text is None:
                skipped.append(str(file.relative_to(path)))
            else:
                yield text
        if skipped:
            more = f" and {len(skipped) - 3:,} more" if len(skipped) > 3 else ""
            what = (
                "1 file that is not text was" if len(skipped) == 1 else f"{len(skipped):,} files that are not text were"
            )
            notes.append(f"{what} skipped: {', '.join(skipped[:3])}{more}")

    return Source(path.resolve().name, ("folder", *_stat(paths)), documents, notes)


def decoded(content: bytes) -> bytes | None:
    """The text of a file, from the encoding that its byte order mark says to UTF-8; None if it is not text."""
    for mark, encoding in MARKS:
        if content.startswith(mark):
            try:
                return content[len(mark) :].decode(encoding).encode()
            except UnicodeDecodeError:
                return None
    compressed = content.startswith(COMPRESSED) or (content.startswith(b"BZh") and content[4:].startswith(BZIP2))
    return None if compressed or 0 in content[:8192] else content


def _hugging_face(spec: str) -> Source:
    """Rows of a dataset: NAME is one of the hub, a folder that `datasets` understands, or one of json, parquet, csv and
    text with a local file, folder or glob pattern as CONFIG ("hf:json:data/*.jsonl"). See `star.data.hugging_face`.
    """
    name, config, columns = hugging_face.parse(spec)
    if name in hugging_face.FILE_KINDS:
        files = _match(spec, config)
    else:
        files = list(_walk(Path(name))) if Path(name).is_dir() else []
    notes: list[str] = []
    return Source(
        spec, ("hf", name, config, *columns, *_stat(files)), lambda: hugging_face.load(spec, files, notes), notes
    )


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


def _walk(root: Path, skipped: Container[str] = (), seen: set[str] | None = None) -> Iterator[Path]:
    """Regular files under `root`, sorted by name within each folder, without hidden names and `skipped` folders.

    Links to folders are followed, but each folder is read once. seen: the real paths of those that were.
    """
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"Cannot list the folder {root}: {error.strerror}.") from error
    seen = set() if seen is None else seen
    seen.add(os.path.realpath(root))
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = Path(entry.path)  # unlike the entry, it takes a link to itself for neither folder nor file
        if path.is_dir():
            if entry.name not in skipped and os.path.realpath(path) not in seen:
                yield from _walk(path, skipped, seen)
        elif path.is_file():
            yield path


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
