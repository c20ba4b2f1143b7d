"""The SQLite file. It is created in one transaction, has one writer, and records each batch of events in one more."""

import errno
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from star.errors import RunFailed, UserError
from star.store import schema

NAME = "run.sqlite"
OURS = {NAME, NAME + "-wal", NAME + "-shm", NAME + "-journal", "run.lock", "candidates", "refined", "progress"}


@dataclass(frozen=True)
class Event:
    """One thing that happened. time: Unix seconds, for display only (clocks jump; order is `seq`)."""

    seq: int
    time: float
    kind: str
    data: dict


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
            try:
                new = _is_empty(self.connection)
                if not new:
                    check(self.connection, self.path)
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
        rows = [(now, kind, to_text(data)) for kind, data in events]
        if not rows:
            return
        with plain_errors(self.path), self._transaction():
            if self._last_seq() != self.last_seq:
                raise UserError(
                    f"{self.path} was written by another process: let only one at a time evolve a run, then run the "
                    "command again"
                )
            self.connection.executemany("INSERT INTO event (time, kind, data) VALUES (?, ?, ?)", rows)
        self.last_seq += len(rows)

    def set_meta(self, key: str, value: object) -> None:
        """Replace one fact about the run."""
        with plain_errors(self.path), self._transaction():
            self.connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, to_text(value)))

    def meta(self) -> dict:
        """Facts about the run by name."""
        with plain_errors(self.path):
            return _meta(self.connection)

    def events(self, curves: bool = False) -> list[Event]:
        """All events, in order."""
        with plain_errors(self.path):
            return _events(self.connection, curves=curves)

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
            for statement in schema.TABLES.split(";"):
                self.connection.execute(statement)
            self.connection.executemany("INSERT INTO meta VALUES (?, ?)", [(k, to_text(v)) for k, v in meta.items()])
            self.connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
            self.connection.execute(f"PRAGMA user_version = {schema.VERSION}")

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
        return _meta(connection)


def read_events(run: Path, after: int = 0, curves: bool = False) -> list[Event]:
    """Events after number `after`, in order. curves: include learning curves, which are most of the record."""
    with _reader(run) as connection:
        return _events(connection, after, curves)


def read_curves(run: Path, id: str) -> list[dict]:
    """Data of the "curve" events of one candidate, oldest first."""
    with _reader(run) as connection:
        rows = connection.execute(
            "SELECT data FROM event WHERE kind = 'curve' AND json_extract(data, '$.id') = ? ORDER BY seq", (id,)
        )
        return [json.loads(data) for (data,) in rows]


@contextmanager
def _reader(run: Path) -> Iterator[sqlite3.Connection]:
    path = run / NAME
    if not run.is_dir():
        raise UserError(f"there is no run at {run}: star evolve {run} starts one")
    if not path.exists():
        raise UserError(f"{run} is not a run (it has no {NAME}): star evolve {run} starts one")
    with plain_errors(path), closing(_connect_read_only(path)) as connection:
        check(connection, path)
        yield connection


def _connect_read_only(path: Path) -> sqlite3.Connection:
    uri = path.absolute().as_uri()
    connection = sqlite3.connect(f"{uri}?mode=ro", uri=True, timeout=30)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.OperationalError:  # a directory without write access: nobody can be writing the run either
        connection.close()
        connection = sqlite3.connect(f"{uri}?immutable=1", uri=True)
    return connection


def check(connection: sqlite3.Connection, path: Path) -> None:
    """Raises UserError unless this is a run's database that this version of the code can read."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != schema.APPLICATION_ID:
        raise UserError(f"{path} is an SQLite file of another program: move it away or use another run directory")
    if version != schema.VERSION:
        formats = f"has format {version} and this version of star reads format {schema.VERSION}"
        raise UserError(f"{path} {formats}: use the version of star that wrote it")


@contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """Turn the errors of SQLite and of the disk into a UserError or RunFailed with one sentence."""
    try:
        yield
    except sqlite3.Error as error:
        match getattr(error, "sqlite_errorcode", 0) & 0xFF:
            case sqlite3.SQLITE_FULL:
                raise RunFailed(disk_full(path)) from error
            case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
                hint = "restore a copy or use another directory"
                raise UserError(f"{path} is damaged or no SQLite file ({error}): {hint}") from error
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
                raise UserError(f"{path} cannot be opened or written ({error}): check its permissions") from error
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                raise UserError(f"{path} is locked by another program ({error}): close it and try again") from error
            case sqlite3.SQLITE_IOERR:
                hint = "check its disk; every finished candidate is kept"
                raise RunFailed(f"{path} could not be read or written ({error}): {hint}") from error
        raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise RunFailed(disk_full(path)) from error
        raise


def disk_full(path: Path) -> str:
    """The error message for a full disk."""
    hint = "free some space and run the same command again; every finished candidate is kept"
    return f"The disk that holds {path} is full: {hint}"


def to_text(data: object) -> str:
    """JSON text of an event's data. Raises ValueError for NaN and infinity."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


def _is_empty(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0


def _meta(connection: sqlite3.Connection) -> dict:
    return {key: json.loads(value) for key, value in connection.execute("SELECT key, value FROM meta")}


def _events(connection: sqlite3.Connection, after: int = 0, curves: bool = False) -> list[Event]:
    where = "" if curves else "AND kind != 'curve'"
    rows = connection.execute(f"SELECT seq, time, kind, data FROM event WHERE seq > ? {where} ORDER BY seq", (after,))
    return [Event(seq, when, kind, json.loads(data)) for seq, when, kind, data in rows]
