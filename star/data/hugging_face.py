"""Documents from a dataset of the Hugging Face hub or from local files of its formats: hf:NAME[:CONFIG][@COLUMNS].

The columns decide what the text is, never the first row alone: a column named `text` or `content`, in any case, or the
only column. Otherwise the user names it: `@question`, `@question+answer` (joined by a blank line), or a column of chat
messages, which are written as "role: content" lines. Rows without text are skipped and counted.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from star.errors import UserError

KNOWN = ("text", "content")  # names of columns that hold the text, in any case
READABLE = ("text", "messages")  # kinds of columns
FILE_KINDS = ("json", "parquet", "csv", "text")
SAMPLE = 1000  # rows whose values say what a column holds, where a file does not
HUB_BYTES = 2**30  # of text that are read of a dataset of the hub
HUB_TIMEOUT = 5.0  # seconds to wait for the hub's first answer


def parse(spec: str) -> tuple[str, str, list[str]]:
    """Name, configuration and columns of hf:NAME[:CONFIG][@COLUMNS]. Raises UserError if it names no dataset."""
    rest, columns = spec.removeprefix("hf:"), list[str]()
    before, at, after = rest.rpartition("@")
    if at and not set(after) & set("./") and not Path(before.partition(":")[2] + at + after).exists():
        rest, columns = before, after.split("+")
    name, _, config = rest.partition(":")
    if not name or not all([*columns, name]):
        raise UserError(
            f'"{spec}" names no dataset: write hf:NAME, hf:NAME:CONFIG or hf:NAME@COLUMN, such as hf:json:data.jsonl.'
        )
    return name, config, columns


def load(spec: str, files: list[Path], notes: list[str]) -> Iterator[bytes]:
    """The text of every row of the "train" split. They are streamed: only the tokens are stored. files: if it is local;
    notes: gets a sentence on what was chosen, skipped or left out.
    """
    import datasets  # slow to import, and most corpora are plain files

    name, config, columns = parse(spec)
    options: dict[str, Any] = {"name": config or None}
    if name in FILE_KINDS:
        options = {"data_files": [str(path) for path in files]}
        if name == "text":
            options["sample_by"] = "document"  # a single line is too short
    if not files:
        _reach_hub(spec, name)
    log = logging.getLogger("datasets")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it also logs the errors that are raised below
    try:
        rows = datasets.load_dataset(name, **options, split="train", streaming=True)
        yield from documents(spec, rows, columns, notes, None if files else HUB_BYTES)
    except UserError:
        raise
    except Exception as error:  # `datasets` raises many kinds; each one is about the user's data
        raise UserError(f'`datasets` cannot read "{spec}": {first_line(error)}') from error
    finally:
        log.setLevel(level)


def documents(
    spec: str, rows: Iterable[dict], columns: list[str], notes: list[str], limit: int | None = None
) -> Iterator[bytes]:
    """The texts of rows, without those that have none. limit: bytes after which no more rows are read.

    Raises UserError if the columns are not clear, or if a later row holds no text in one of them.
    """
    rows = iter(rows)
    first = list(itertools.islice(rows, SAMPLE))
    kinds = kinds_of(first)
    columns = choose(spec, kinds, columns)
    notes.append(f"the text is the column {' + '.join(columns)}")
    skipped = size = 0
    for number, row in enumerate(itertools.chain(first, rows), 1):
        parts = [_text(spec, column, row.get(column), number) for column in columns]
        text = "\n\n".join(part for part in parts if part.strip()).encode("utf-8", errors="surrogatepass")
        if not text:
            skipped += 1
            continue
        size += len(text)
        if limit and size > limit:
            notes.append(f"only the first {limit / 2**30:.3g} GiB were read")
            break
        yield text
    if skipped:
        notes.append(
            "1 row without text was skipped" if skipped == 1 else f"{skipped:,} rows without text were skipped"
        )


def kinds_of(rows: list[dict]) -> dict[str, str]:
    """What each column holds: "text", "messages", "nothing", or the Python type of a value that is none of these."""
    kinds: dict[str, str] = {}
    for row in rows:
        for column, value in row.items():
            kind = _kind(value)
            if kind != "nothing" and kinds.setdefault(column, kind) != kind:
                kinds[column] = f"{kinds[column].split(' or ')[0]} or {kind}"
    return {column: kinds.get(column, "nothing") for column in dict.fromkeys(itertools.chain(*rows))}


def choose(spec: str, kinds: dict[str, str], columns: list[str]) -> list[str]:
    """The columns to read. Raises UserError, naming all columns, if they are not clear or hold no text."""
    listed = ", ".join(f"{column} ({kind})" for column, kind in kinds.items()) or "(none)"
    for column in columns:
        if kinds.get(column) not in (*READABLE, "nothing"):
            problem = f"there is no column {column!r}" if column not in kinds else f"column {column!r} is no text"
            raise UserError(f'"{spec}": {problem}; its columns are {listed}.')
    if columns:
        return columns
    texts = [column for column, kind in kinds.items() if kind == "text"]
    empty = [column for column, kind in kinds.items() if kind == "nothing"]  # in these rows; later ones may have text
    order = itertools.product((texts, empty), (False, True), KNOWN)  # an exact name before one in another case
    known = [c for group, folded, name in order for c in group if (c.lower() if folded else c) == name]
    if known:
        return known[:1]
    if len(texts) == len(kinds) == 1:
        return texts
    stem = spec.partition("@")[0]
    readable = [column for column, kind in kinds.items() if kind in READABLE]
    if not readable:
        raise UserError(f'"{spec}" has no column of text; its columns are {listed}.')
    hint = f"{stem}@{readable[0]}" + (f" or {stem}@{'+'.join(readable[:2])}" if len(readable) > 1 else "")
    raise UserError(f'"{spec}" does not say which column is the text; its columns are {listed}: write {hint}.')


def _kind(value: Any) -> str:
    if value is None or value == []:
        return "nothing"
    if isinstance(value, str):
        return "text"
    chat = isinstance(value, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content", 0), str | None)
        for m in value
    )
    return "messages" if chat else type(value).__name__


def _text(spec: str, column: str, value: Any, number: int) -> str:
    """The text of a value in row `number`. Chat messages are "role: content", with a blank line between two."""
    kind = _kind(value)
    if kind == "nothing":
        return ""
    if kind == "text":
        return value
    if kind == "messages":
        return "\n\n".join(f"{m['role']}: {m['content'] or ''}" for m in value)
    raise UserError(
        f'"{spec}": column {column!r} is not text in row {number:,} ({kind}); mend that row or leave it out.'
    )


def _reach_hub(spec: str, name: str) -> None:
    """Ask the hub once for the dataset. Without a network this fails at once, instead of after minutes of retries."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=HUB_TIMEOUT)
    except (HfHubHTTPError, HFValidationError) as error:
        raise UserError(
            f'The Hugging Face hub does not provide "{name}" ({first_line(error)}); check the name in "{spec}".'
        ) from error
    except Exception as error:  # every network library has its own exception for "no network"
        raise UserError(
            f'"{spec}" needs the Hugging Face hub, which cannot be reached; use local files '
            "(hf:json:PATH) or --data stdlib."
        ) from error


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
