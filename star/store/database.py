"""The SQLite file. It is created in one transaction, has one writer, and records each batch of events in one more.

Every row has a checksum. A reader takes what can still be read of a damaged file, and warns of what cannot; a writer
refuses the file.
"""

import errno
import functools
import json
import math
import sqlite3
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from star.errors import Damaged, RunFailed, UserError
from star.store import schema

NAME = "run.sqlite"
AS_TEXT = functools.partial(str, encoding="utf-8", errors="replace")  # what is no text any more fails its checksum
LEAST_ROW = 20  # bytes of an event in the file, at least
OURS = {NAME, NAME + "-wal", NAME + "-shm", NAME + "-journal", "run.lock", "candidates", "refined", "progress"}


@dataclass(frozen=True)
class Event:
    """One thing that happened. time: Unix seconds, for display only (clocks jump; order is `seq`)."""

    seq: int
    time: float
    kind: str
    data: dict


class Unreadable(UserError):
    """The file is damaged or is no run."""


class Store:
    """The writer of a run's database. Hold the run's lock while you have one."""

    def __init__(self, run: Path, meta: dict | None = None, journal: str = "wal"):
        """Open the database, or create it with `meta` in one transaction.

        journal: "wal", or "delete" if the directory is on a network file system.
        Raises UserError if the file is damaged or is not a run, RunFailed if the disk is full.
        """
        self.path = run / NAME
        with plain_errors(self.path):
            # isolation_level=None: transactions are ours, by BEGIN and COMMIT
            self.connection = sqlite3.connect(self.path, isolation_level=None, timeout=30)
            self.connection.text_factory = AS_TEXT
            try:
                new = _is_empty(self.connection)
                if not new:
                    check(self.connection, self.path, (schema.VERSION,))
                self.connection.execute(f"PRAGMA journal_mode = {journal}")
                self.connection.execute("PRAGMA synchronous = FULL")  # an acknowledged event survives a power cut
                if new:
                    self._create(meta or {})
                self.last_seq = self._last_seq()
            except BaseException:
                self.connection.close()
                raise

    def record(self, events: Iterable[tuple[str, dict]]) -> None:
        """Append events (kind, data) in one transaction: on return all are on the disk; on an error, none.

        Raises UserError if another process has written events since this store was opened.
        """
        now = time.time()
        found = [(kind, to_text(data)) for kind, data in events]
        numbered = enumerate(found, start=self.last_seq + 1)
        rows = [(seq, now, kind, schema.checksum(seq, now, kind, data), data) for seq, (kind, data) in numbered]
        if not rows:
            return
        with plain_errors(self.path), self._transaction():
            if self._last_seq() != self.last_seq:
                raise UserError(
                    f"{self.path} was written by another process: let only one at a time evolve a run, then run the "
                    "command again"
                )
            self.connection.executemany("INSERT INTO event VALUES (?, ?, ?, ?, ?)", rows)
        self.last_seq += len(rows)

    def set_meta(self, key: str, value: object) -> None:
        """Replace one fact about the run."""
        with plain_errors(self.path), self._transaction():
            self.connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", _meta_row(key, value))

    def meta(self) -> dict:
        """Facts about the run by name."""
        with plain_errors(self.path):
            return _meta(self.connection, self.path)

    def events(self) -> list[Event]:
        """All events, in order, but for learning curves. Raises UserError if one of them is damaged."""
        with plain_errors(self.path):
            found, damage = _events(self.connection, self.path)
        if damage:
            hint = f"restore a copy of it to continue; star front {self.path.parent} shows what is left"
            raise UserError(f"{self.path} is damaged: {damage}; {hint}")
        return found

    def close(self) -> None:
        """Close. Unless a reader is active, this leaves one plain file, which needs no write access to be read."""
        with suppress(sqlite3.Error):
            self.connection.execute("PRAGMA busy_timeout = 0")
            self.connection.execute("PRAGMA journal_mode = delete")
        self.connection.close()

    def _last_seq(self) -> int:
        return self.connection.execute("SELECT coalesce(max(seq), 0) FROM event").fetchone()[0]

    def _create(self, meta: dict) -> None:
        with self._transaction():
            schema.create(self.connection)
            rows = [_meta_row(*item) for item in meta.items()]
            self.connection.executemany("INSERT INTO meta VALUES (?, ?, ?)", rows)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise


def exists(run: Path) -> bool:
    """Whether there is a run in this directory. Raises UserError if it is a file or contains only foreign files."""
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file: give a directory for the run")
    path = run / NAME
    if path.exists():
        with plain_errors(path), closing(_connect_read_only(path)) as connection:
            return not _is_empty(connection)  # empty: its process was killed before its first transaction
    foreign = sorted(p.name for p in run.iterdir() if p.name not in OURS) if run.is_dir() else []
    if foreign:
        raise UserError(f"{run} holds no run but other files ({foreign[0]}, ...): give a new or empty directory")
    return False


def read_meta(run: Path) -> dict:
    """The facts that the run was started with, also while it is running. Raises UserError if there is no run."""
    with _reader(run) as connection:
        return _meta(connection, run / NAME)


def read_events(run: Path, after: int = 0) -> list[Event]:
    """Events after number `after`, in order, but for learning curves, which are most of the record.

    Warns (`star.errors.Damaged`) of events that cannot be read.
    """
    with _reader(run) as connection:
        found, damage = _events(connection, run / NAME, after)
    if damage:
        text = f"{run / NAME} is damaged: {damage}; the rest is shown, restore a copy of the file if there is one"
        warnings.warn(text, Damaged, stacklevel=2)
    return found


def read_curves(run: Path, id: str | None = None) -> list[dict]:
    """Data of the "curve" events of one candidate, or of all, that can be read, oldest first."""
    about = "%" if id is None else "%" + to_text({"id": id})[1:-1] + "%"
    with _reader(run) as connection:
        found = []
        rows = connection.execute(f"{_rows(connection)} AND kind = 'curve' AND data LIKE ? ORDER BY seq", (0, about))
        with suppress(sqlite3.DatabaseError):  # further ones cannot be read
            found = [event for row in rows if (event := _event(*row)) is not None]
        return [event.data for event in found]


@contextmanager
def _reader(run: Path) -> Iterator[sqlite3.Connection]:
    path = run / NAME
    if not run.is_dir():
        raise UserError(f"there is no run at {run}: star evolve {run} starts one")
    if not path.exists():
        raise UserError(f"{run} is not a run (it has no {NAME}): star evolve {run} starts one")
    with plain_errors(path), closing(_open(path)) as connection:
        yield connection


def _open(path: Path) -> sqlite3.Connection:
    connection = None
    try:
        with plain_errors(path):
            connection = _connect_read_only(path)
            check(connection, path)
        return connection
    except Unreadable as error:
        if connection is not None:
            connection.close()
        connection = _with_new_first_page(path)
        if connection is None:
            raise
        text = f"{error}; its first page is damaged, but not all others: what can be read of them is shown"
        warnings.warn(text, Damaged, stacklevel=2)
        return connection


def _with_new_first_page(path: Path) -> sqlite3.Connection | None:
    """A copy in memory with the first page (header, definitions) of a new run. None if that does not make it a run."""
    connection = sqlite3.connect(":memory:")
    connection.text_factory = AS_TEXT
    try:
        schema.create(connection)
        first = bytearray(connection.serialize())[: connection.execute("PRAGMA page_size").fetchone()[0]]
        rest = path.read_bytes()[len(first) :]
        first[28:32] = (1 + len(rest) // len(first)).to_bytes(4, "big")  # the number of pages
        connection.deserialize(bytes(first) + rest)
        if "config" in _meta(connection, path):
            return connection
    except (OSError, sqlite3.DatabaseError):
        pass
    connection.close()
    return None


def _connect_read_only(path: Path) -> sqlite3.Connection:
    uri = path.absolute().as_uri()
    connection = sqlite3.connect(f"{uri}?mode=ro", uri=True, timeout=30)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.OperationalError:  # a directory without write access: nobody can be writing the run either
        connection.close()
        connection = sqlite3.connect(f"{uri}?immutable=1", uri=True)
    connection.text_factory = AS_TEXT
    return connection


def check(connection: sqlite3.Connection, path: Path, formats: Sequence[int] = schema.READABLE) -> None:
    """Raises UserError unless this is a run's database in one of these formats."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != schema.APPLICATION_ID:
        raise Unreadable(f"{path} is an SQLite file of another program: move it away or use another run directory")
    if version not in formats:
        mismatch = f"has format {version} and this version of star reads format {schema.VERSION}"
        raise UserError(f"{path} {mismatch}: use the version of star that wrote it")
    if version == schema.VERSION and not schema.expected_schema() <= schema.schema_of(connection):
        raise Unreadable(_damaged(path, "the definitions of its tables have changed"))


@contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """Turn the errors of SQLite and of the disk into a UserError or RunFailed with one sentence."""
    try:
        yield
    except sqlite3.Error as error:
        match getattr(error, "sqlite_errorcode", 0) & 0xFF:
            case sqlite3.SQLITE_FULL:
                raise RunFailed(disk_full(path)) from error
            case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_ERROR | sqlite3.SQLITE_FORMAT:
                raise Unreadable(_damaged(path, str(error))) from error
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
                raise UserError(f"{path} cannot be opened or written ({error}): check its permissions") from error
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                raise UserError(f"{path} is locked by another program ({error}): close it and try again") from error
            case sqlite3.SQLITE_IOERR:
                hint = "check its disk; every finished candidate is kept"
                raise RunFailed(f"{path} could not be read or written ({error}): {hint}") from error
        raise
    except UnicodeDecodeError as error:  # the message of SQLite quotes what it could not read
        text = bytes(error.object).decode(errors="replace")
        raise Unreadable(_damaged(path, text)) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise RunFailed(disk_full(path)) from error
        raise


def _damaged(path: Path, what: str) -> str:
    """The error message for a file of which nothing can be used. SQLite may quote any bytes of it."""
    why = "".join(letter if letter.isprintable() else "?" for letter in what)
    return f"{path} is damaged or no SQLite file ({why}): restore a copy or use another directory"


def disk_full(path: Path) -> str:
    """The error message for a full disk."""
    hint = "free some space and run the same command again; every finished candidate is kept"
    return f"The disk that holds {path} is full: {hint}"


def to_text(data: object) -> str:
    """JSON text of an event's data. Raises ValueError for NaN and infinity."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


def _is_empty(connection: sqlite3.Connection) -> bool:
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    return pages <= 1 and connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0


def _meta_row(key: str, value: object) -> tuple[str, str, int]:
    text = to_text(value)
    return key, text, schema.checksum(key, text)


class _Meta(dict):
    """Facts about a run; one that is missing is damage."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def __missing__(self, key: str) -> NoReturn:
        raise Unreadable(_damaged(self.path, f"its table meta lacks {key!r}"))


def _meta(connection: sqlite3.Connection, path: Path) -> dict:
    checksum, found = "checksum" if _format(connection) > 1 else "NULL", _Meta(path)
    for key, value, expected in connection.execute(f"SELECT key, value, {checksum} FROM meta"):
        if expected in (None, schema.checksum(key, value)) and (content := _parsed(value)) is not None:
            found[key] = content
    return found


def _format(connection: sqlite3.Connection) -> int:
    return connection.execute("PRAGMA user_version").fetchone()[0]


def _rows(connection: sqlite3.Connection, curves: bool = True) -> str:
    """The query of all columns of events after a number."""
    data = "data" if curves else "CASE kind WHEN 'curve' THEN NULL ELSE data END"
    checksum = "checksum" if _format(connection) > 1 else "NULL"
    return f"SELECT seq, time, kind, {checksum}, {data} FROM event WHERE seq > ?"


def _event(seq: int, when: float, kind: str, checksum: int | None, data: str) -> Event | None:
    """The event of a row; None if it is damaged."""
    if checksum is not None and checksum != schema.checksum(seq, when, kind, data):
        return None
    content = _parsed(data)
    return Event(seq, when, kind, content) if isinstance(content, dict) else None


def _parsed(text: str) -> Any:
    """The JSON value; None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, TypeError):
        return None


def _events(connection: sqlite3.Connection, path: Path, after: int = 0) -> tuple[list[Event], str]:
    """Events that can be read, but for curves, in order; and what cannot be read, in words."""
    last, begin = _last(connection), after
    query = f"{_rows(connection, curves=False)} ORDER BY seq"
    found: dict[int, Event | None] = {}  # None: a curve
    torn = False  # whether what follows the last event that was found is unknown
    while not torn:
        try:
            for row in connection.execute(query, (begin,)):
                curve = row[2] == "curve" and row[4] is None and after < row[0] <= last
                event = None if row[4] is None else _event(*row)
                if curve or event is not None:
                    found[row[0]] = event
                    begin = max(begin, row[0])  # rows of a damaged page need not rise
            break
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_CORRUPT:
                raise
            begin += 1  # a page is damaged; the events on others may not be
            torn = begin >= last
    events = [event for _, event in sorted(found.items()) if event is not None]
    last = max([last, *(event.seq for event in events)])
    lost = [seq for seq in range(after + 1, last + 1) if seq not in found]
    if (lost or torn) and not events and not after:
        raise Unreadable(_damaged(path, "none of its events can be read"))
    if torn and not lost:
        return events, f"what follows its event {last} cannot be read"
    return events, f"{len(lost)} of its {last} events cannot be read (number {_ranges(lost)})" if lost else ""


def _last(connection: sqlite3.Connection) -> int:
    """The number of the last event that was recorded, from two places, of which one may be damaged."""
    size = math.prod(connection.execute(f"PRAGMA page_{name}").fetchone()[0] for name in ("count", "size"))
    found = [0]
    for query in ("SELECT seq FROM sqlite_sequence WHERE name = 'event'", "SELECT max(seq) FROM event"):
        with suppress(sqlite3.DatabaseError):
            found += [row[0] for row in connection.execute(query) if isinstance(row[0], int)]
    return max(number for number in found if number <= size / LEAST_ROW)


def _ranges(numbers: Sequence[int]) -> str:
    """ "3, 7 to 9" for 3, 7, 8, 9; the first few."""
    ends: list[list[int]] = []
    for number in numbers:
        if ends and ends[-1][1] == number - 1:
            ends[-1][1] = number
        else:
            ends.append([number, number])
    texts = [str(a) if a == b else f"{a} to {b}" for a, b in ends]
    return ", ".join(texts[:5]) + (", ..." if len(texts) > 5 else "")
