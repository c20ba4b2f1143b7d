"""Bits of run.sqlite that have flipped: what can be read is read, and the rest is one sentence, never a traceback."""

import contextlib
import random
import sqlite3
import warnings
from pathlib import Path

import pytest
from fakes import TABULAR, config, run
from typer.testing import CliRunner

from star.cli import app
from star.engine import InProcess
from star.errors import Damaged, UserError
from star.refine.coordinator import refine
from star.refine.settings import RefineSettings
from star.run import Run
from star.search.repeats import rescore
from star.store import Store, read_events, read_meta
from star.store.database import NAME, _events, read_curves

TRIES = 200


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> bytes:
    """The record of a run with everything in it: rungs, a baseline, fresh seeds and a refinement."""
    path = tmp_path_factory.mktemp("sound")
    run(path, config(search__baselines=("transformer++",), search__rungs=(0.5,)))
    rescore(path, 2, engine=InProcess(TABULAR))
    refine(path, RefineSettings((Run(path).best().id,), budget=16), engine=InProcess(TABULAR))
    return (path / NAME).read_bytes()


def damaged(path: Path, content: bytes, places=()) -> Path:
    """A run directory with this record, one bit of each byte in `places` flipped."""
    path.mkdir(exist_ok=True)
    changed = bytearray(content)
    for place in places:
        changed[place] ^= 4
    (path / NAME).write_bytes(changed)
    return path


@pytest.mark.parametrize("seed", range(TRIES))
def test_random_bits(tmp_path, sound, seed):
    rng = random.Random(seed)
    changed = bytearray(sound)
    for _ in range(rng.choice([1, 3, 10, 40, 400]) if seed % 2 else rng.randint(1, 400)):
        place = rng.randrange(8 * len(changed))
        changed[place // 8] ^= 1 << place % 8
    path = damaged(tmp_path, changed)
    result = CliRunner().invoke(app, ["front", str(path)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    said = result.stderr.splitlines()
    assert all(line.startswith("star: ") and str(path) in line for line in said)
    if result.exit_code:
        assert result.exit_code == 2 and said
        return
    with warnings.catch_warnings(action="ignore"):
        left = read_events(path)
    whole = read_events(damaged(tmp_path / "sound", sound))
    assert all(event in whole for event in left) and (said or left == whole), "what is lost is said"


def test_reading_ends_where_the_rows_of_a_damaged_page_do_not_rise(tmp_path, sound):
    """A damaged page gave an earlier row again before its error, and reading began there again, for ever."""
    path = damaged(tmp_path, sound) / NAME

    class Damage:
        """A connection whose rows after the third begin with the second, and then fail."""

        reads = 0

        def __init__(self, connection):
            self.connection = connection

        def execute(self, query, arguments=()):
            rows = self.connection.execute(query, arguments)
            return self.broken(rows.fetchall(), arguments[0]) if "ORDER BY seq" in query else rows

        def broken(self, rows, begin):
            self.reads += 1
            assert self.reads < 3 * len(rows) + 1000
            if begin == 0:
                self.first = rows
            yield from rows[:3] if begin < 3 else self.first[1:2]
            error = sqlite3.DatabaseError("database disk image is malformed")
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error

    with contextlib.closing(sqlite3.connect(path)) as connection:
        events, damage = _events(Damage(connection), path)
    assert [event.seq for event in events] == [1, 2, 3] and "cannot be read" in damage


def test_one_bit_of_any_event_costs_that_event_alone(tmp_path, sound):
    whole = read_events(damaged(tmp_path / "sound", sound))
    for event in whole[:: len(whole) // 20]:
        place = sound.index(f'"id":"{event.data["id"]}"'.encode()) if "id" in event.data else 0
        if not place:
            continue
        path = damaged(tmp_path / "run", sound, [place + 8])
        with pytest.warns(Damaged, match=rf"{path / NAME} is damaged: 1 of its {whole[-1].seq} events cannot be read"):
            left = read_events(path)
        assert len(left) == len(whole) - 1 and all(row in whole for row in left)
        with pytest.raises(UserError, match=r"cannot be read \(number \d+\); restore a copy of it to continue"):
            with contextlib.closing(Store(path)) as store:
                store.events()


def test_a_damaged_page_costs_its_events_alone(tmp_path, sound):
    whole = read_events(damaged(tmp_path / "sound", sound))
    size, lost = 4096, []
    for page in range(4, len(sound) // size - 1, 3):
        path = damaged(tmp_path / "run", sound[: page * size] + bytes(size) + sound[(page + 1) * size :])
        with warnings.catch_warnings(action="ignore"):
            left = read_events(path)
        assert all(row in whole for row in left)
        lost.append(len(whole) - len(left))
    assert max(lost) < 0.2 * len(whole)


def test_a_damaged_first_page_costs_nothing(tmp_path, sound):
    whole = read_events(damaged(tmp_path / "sound", sound))
    for first in (bytes(4096), random.Random(0).randbytes(4096), sound[:100] + bytes(3996)):
        path = damaged(tmp_path / "run", first + sound[4096:])
        with pytest.warns(Damaged, match="its first page is damaged"):
            assert read_events(path) == whole
        with pytest.raises(UserError, match=f"{path / NAME} is (damaged|an SQLite file of another program)"):
            Store(path)


def test_damaged_facts_about_the_run(tmp_path, sound):
    path = damaged(tmp_path, sound, [sound.index(b'"mutation_probability":') + 24])
    with pytest.raises(UserError, match=r"is damaged or no SQLite file \(its table meta lacks 'config'\): restore"):
        Run(path)


def test_a_damaged_learning_curve_is_left_out(tmp_path):
    store = Store(tmp_path, {"config": {}})
    store.record([("curve", {"id": "ab", "attempt": k, "points": [{"bpb": 2.5 + k}]}) for k in range(3)])
    store.record([("finish", {"id": "ab"})])
    store.close()
    content = (tmp_path / NAME).read_bytes()
    damaged(tmp_path, content, [content.index(b"3.5")])
    assert [data["attempt"] for data in read_curves(tmp_path, "ab")] == [0, 2]
    with warnings.catch_warnings(action="error"):
        assert [event.kind for event in read_events(tmp_path)] == ["finish"] and read_meta(tmp_path) == {"config": {}}
