"""The tables of a run.

    meta      key, JSON value: configuration, search space, corpus, versions; checksum
    event     seq (1, 2, ...), time (Unix seconds), kind, checksum, JSON data; append-only. Kinds and data: see
              `star.store.record`
    genome    view: one row per proposal: id, generation, origin, name, parents, operators, genes
    attempt   view: one row per finished attempt: id, number, status, reason, seconds, worker
    metric    view: one row per measured number: id, attempt, name, value, tokens (the fidelity)

All facts are in `event`; the views are computed from it, so they cannot disagree. The checksum of a row is the CRC-32
of its other columns: what a disk or a copy has changed is not taken for what was recorded. Format 1 has none.
"""

import sqlite3
import zlib
from contextlib import closing

APPLICATION_ID = 0x53544152  # "STAR": distinguishes runs from other SQLite files
VERSION = 2
READABLE = (1, VERSION)

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE event (seq INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, kind TEXT NOT NULL,
                    checksum INTEGER NOT NULL, data TEXT NOT NULL);

CREATE VIEW genome AS
  SELECT json_extract(p.value, '$.id') AS id, json_extract(event.data, '$.generation') AS generation,
         json_extract(p.value, '$.origin') AS origin, json_extract(p.value, '$.name') AS name,
         json_extract(p.value, '$.parents') AS parents, json_extract(p.value, '$.operators') AS operators,
         json_extract(p.value, '$.costs') AS costs, json_extract(p.value, '$.genome') AS genome
  FROM event, json_each(event.data, '$.proposals') AS p WHERE event.kind = 'ask';

CREATE VIEW attempt AS
  SELECT json_extract(data, '$.id') AS id, json_extract(data, '$.attempt') AS number,
         json_extract(data, '$.status') AS status, json_extract(data, '$.reason') AS reason,
         json_extract(data, '$.seconds') AS seconds, json_extract(data, '$.worker') AS worker,
         json_extract(data, '$.final') AS final, time AS finished
  FROM event WHERE kind = 'finish';

CREATE VIEW metric AS
  SELECT json_extract(data, '$.id') AS id, json_extract(data, '$.attempt') AS attempt, m.key AS name, m.value AS value,
         json_extract(data, '$.metrics.tokens') AS tokens
  FROM event, json_each(event.data, '$.metrics') AS m WHERE event.kind = 'finish';
"""


def checksum(*columns: object) -> int:
    """Of the other columns of a row, in their order."""
    return zlib.crc32("\n".join(map(repr, columns)).encode())


def schema_of(connection: sqlite3.Connection) -> set[tuple]:
    """Type, name and definition of all that a database holds."""
    return set(connection.execute("SELECT type, name, sql FROM sqlite_master"))


def create(connection: sqlite3.Connection) -> None:
    """Tables and views, within a transaction of the caller."""
    for statement in TABLES.split(";"):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")


def expected_schema() -> set[tuple]:
    """What a run's database holds at least."""
    with closing(sqlite3.connect(":memory:")) as connection:
        create(connection)
        return schema_of(connection)
