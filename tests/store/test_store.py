"""The record of a run: durable, one writer, many readers, and a plain message for everything wrong with a file."""

import json
import os
import shutil
import signal
import sqlite3
import time

import pytest

from star.errors import RunFailed, UserError
from star.store import CandidateFiles, Record, RunLock, Store, read_events, read_meta, write_json
from star.store.database import NAME, exists, read_curves
from star.store.files import write_atomically
from star.store.lock import is_held


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def store(run):
    run.mkdir()
    store = Store(run, {"config": {"seed": 1}})
    yield store
    store.close()


def test_events_are_read_in_order_and_bit_identical(run, store):
    numbers = [0.1 + 0.2, 1e-300, 2**53 + 1, -0.0]
    store.record([("one", {"numbers": numbers}), ("two", {})])
    store.record([("three", {})])
    store.record([])
    events = read_events(run)
    assert [event.kind for event in events] == ["one", "two", "three"]
    assert repr(events[0].data["numbers"]) == repr(numbers)
    assert read_events(run, after=events[1].seq) == events[2:]
    assert read_meta(run) == store.meta() == {"config": {"seed": 1}}


def test_a_batch_of_events_is_recorded_completely_or_not_at_all(run, store):
    with pytest.raises(ValueError):
        store.record([("good", {}), ("bad", {"bpb": float("nan")})])
    assert read_events(run) == []


def test_reopening_changes_nothing(run, store):
    store.record([("one", {})])
    store.close()
    again = Store(run, {"config": {"seed": 2}})
    assert again.meta() == {"config": {"seed": 1}} and len(again.events()) == 1
    again.close()
    assert sorted(path.name for path in run.iterdir()) == [NAME], "a closed run is one plain file"


def test_readers_see_each_transaction_of_an_active_writer(run, store):
    connection = sqlite3.connect(f"file:{run / NAME}?mode=ro", uri=True)
    for count in range(1, 5):
        store.record([("event", {"count": count})])
        assert len(read_events(run)) == count
        assert connection.execute("SELECT count(*) FROM event").fetchone()[0] == count
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM event")
    connection.close()


def test_acknowledged_events_survive_sigkill(run):
    run.mkdir()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        store = Store(run, {})
        for count in range(10**9):
            store.record([("event", {"count": count})])
            os.write(writer, b".")
    os.close(writer)
    time.sleep(0.3)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    acknowledged = len(os.read(reader, 10**6))
    counts = [event.data["count"] for event in read_events(run)]
    assert acknowledged > 10 and counts == list(range(len(counts)))
    assert acknowledged <= len(counts) <= acknowledged + 1


def test_a_run_is_created_completely_or_not_at_all(run):
    """A process killed before its first transaction leaves a file that is no run; the next process uses it."""
    run.mkdir()
    connection = sqlite3.connect(run / NAME)
    connection.execute("PRAGMA journal_mode = wal")
    connection.close()
    assert not exists(run)
    store = Store(run, {"a": 1})
    assert store.meta() == {"a": 1}
    store.close()


def test_a_run_can_be_moved_and_read_without_write_access(run, store, tmp_path):
    store.record([("one", {})])
    store.close()
    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(run, moved)
    (moved / NAME).chmod(0o400)
    moved.chmod(0o500)
    try:
        assert len(read_events(moved)) == 1
    finally:
        moved.chmod(0o700)


def test_views_show_what_the_events_say(run, store):
    proposal = {"id": "ab", "origin": "initial", "name": None, "genome": {}}
    proposal |= {"parents": [], "operators": [], "costs": {}}
    finish = {"id": "ab", "attempt": 0, "status": "ok", "reason": "", "seconds": 1.5, "worker": "w", "final": True}
    store.record([("ask", {"generation": 0, "proposals": [proposal]})])
    store.record([("finish", finish | {"metrics": {"val_loss": 2.5, "tokens": 100}})])

    def rows(view: str) -> list:
        return store.connection.execute(f"SELECT * FROM {view}").fetchall()

    assert rows("genome")[0][:3] == ("ab", 0, "initial")
    assert rows("attempt")[0][:3] == ("ab", 0, "ok")
    assert rows("metric") == [("ab", 0, "val_loss", 2.5, 100), ("ab", 0, "tokens", 100, 100)]


def test_curves_are_read_on_request_only(run, store):
    store.record([("curve", {"id": "ab", "attempt": 0, "points": [{"step": 1}]}), ("other", {})])
    assert [event.kind for event in read_events(run)] == ["other"]
    assert read_curves(run, "ab")[0]["points"] == [{"step": 1}] and read_curves(run, "cd") == []


# Errors: what can be wrong with a directory.


def test_no_run_there(run):
    with pytest.raises(UserError, match="there is no run"):
        read_meta(run)
    run.mkdir()
    with pytest.raises(UserError, match="is not a run"):
        read_meta(run)
    (run / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"other files \(thesis.tex"):
        exists(run)
    with pytest.raises(UserError, match="is a file"):
        exists(run / "thesis.tex")


@pytest.mark.parametrize("damage", ["text", "torn"])
def test_a_damaged_database(run, store, damage):
    store.record([("event", {"text": "x" * 100}) for _ in range(2000)])
    store.close()
    if damage == "text":
        damaged = b"not a database at all" * 100
    else:
        data = (run / NAME).read_bytes()
        damaged = data[:4096] + os.urandom(len(data) - 4096)
    (run / NAME).write_bytes(damaged)
    for attempt in (lambda: read_events(run), lambda: Store(run).events()):
        with pytest.raises(UserError, match="damaged or no SQLite file"):
            attempt()


def test_the_database_of_another_program(run):
    run.mkdir()
    connection = sqlite3.connect(run / NAME)
    connection.execute("CREATE TABLE songs (title)")
    connection.close()
    for attempt in (lambda: read_meta(run), lambda: Store(run)):
        with pytest.raises(UserError, match="another program"):
            attempt()


def test_a_run_of_another_format(run, store):
    store.connection.execute("PRAGMA user_version = 99")
    store.close()
    with pytest.raises(UserError, match="has format 99 and this version of star reads format 2"):
        read_meta(run)


def test_a_full_disk_loses_nothing(run, store):
    pages = store.connection.execute("PRAGMA page_count").fetchone()[0]
    store.connection.execute(f"PRAGMA max_page_count = {pages + 20}")
    kept = 0
    with pytest.raises(RunFailed, match="is full: free some space"):
        while True:
            store.record([("event", {"text": "x" * 3000})])
            kept += 1
    assert kept > 5 and len(read_events(run)) == kept
    store.connection.execute("PRAGMA max_page_count = 100000")
    store.record([("event", {})])
    assert len(read_events(run)) == kept + 1


# The lock.


def test_a_second_coordinator_is_refused(run):
    run.mkdir()
    lock = RunLock(run)
    assert is_held(run)
    with pytest.raises(UserError, match=f"being evolved by process {os.getpid()}"):
        RunLock(run, patience=0.1)
    lock.release()
    assert not is_held(run)
    RunLock(run).release()


def test_a_lock_dies_with_its_holder(run):
    run.mkdir()
    child = os.fork()
    if child == 0:
        lock = RunLock(run)
        time.sleep(60)
        lock.release()
    deadline = time.monotonic() + 5
    while not is_held(run) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (run / "run.lock").read_text() == f"process {child} on {os.uname().nodename}", "its text stays"
    RunLock(run, patience=0.1).release()


# Files of candidates.


def test_files_are_written_completely_or_not_at_all(tmp_path):
    path = tmp_path / "a" / "file"
    write_atomically(path, lambda temporary: temporary.write_text("first"))

    def fail(temporary):
        temporary.write_text("sec")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        write_atomically(path, fail)
    assert path.read_text() == "first" and [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_result_is_used_only_if_it_is_complete_and_of_this_attempt(tmp_path):
    files = CandidateFiles(tmp_path)
    path = files.directory("ab") / "result.json"
    assert files.result("ab", 0, 7) is None
    write_json(path, {"id": "ab", "attempt": 0, "seed": 7, "status": "ok"})
    assert files.result("ab", 0, 7)["status"] == "ok"
    assert files.result("ab", 1, 7) is None and files.result("ab", 0, 8) is None
    path.write_text(path.read_text()[:-5])
    assert files.result("ab", 0, 7) is None
    path.write_text("[]")
    assert files.result("ab", 0, 7) is None


def test_cleaning_keeps_what_is_wanted(tmp_path):
    files = CandidateFiles(tmp_path)
    for id in ("front", "dominated", "running"):
        write_json(files.directory(id) / "result.json", {})
        write_json(files.directory(id) / "weights.safetensors", {})
    files.clean(keep_weights={"front"}, untouched={"running"})
    left = sorted(str(path.relative_to(files.root)) for path in files.root.rglob("*.*"))
    assert left == ["front/weights.safetensors", "running/result.json", "running/weights.safetensors"]


# The state computed from events.


def test_the_record_computes_results_from_attempts():
    record = Record()
    proposal = {"id": "ab", "genome": {}, "origin": "initial", "parents": [], "operators": []}
    record.apply("ask", {"generation": 0, "proposals": [proposal]})
    record.apply("start", {"id": "ab"})
    assert record.started == {"ab"} and list(record.asked) == ["ab"]
    attempt = {"id": "ab", "seconds": 1.0}
    record.apply("finish", attempt | {"attempt": 0, "status": "failed", "final": False})
    record.apply("finish", attempt | {"attempt": 1, "status": "ok", "objectives": {"bpb": 1.0}, "final": True})
    record.apply("an event of a later version", {})
    assert record.tries == {"ab": ["failed"]} and record.results["ab"].status == "ok" and not record.started
    record.apply("tell", {"generation": 0, "told": [["ab", [1.0], [0.0]]]})
    assert not record.asked and record.told_generations == 1
    assert json.loads(json.dumps(record.results["ab"].objectives)) == {"bpb": 1.0}
