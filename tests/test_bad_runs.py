"""Settings that conflict, files that are damaged, clocks and machines that misbehave: a sentence, and nothing lost."""

import contextlib
import itertools
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import types
import warnings
from pathlib import Path

import pytest
from fakes import config, run
from kills import child, everything, session

from star.engine import InProcess, ProcessPool
from star.errors import RunFailed, UserError
from star.run import Run
from star.search import evolve
from star.search.workers import make_engine
from star.store import Store, read_events
from star.store.database import NAME

SMALL = {"search__population": 4, "search__generations": 4}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    run(path, config(**SMALL))
    return everything(path)


def killed(path: Path, k: int = 70) -> None:
    """A run whose coordinator died in the middle of it, its log of transactions still beside it."""
    path.parent.mkdir(exist_ok=True)
    assert child(session, path, config(**SMALL), 2, k) == -signal.SIGKILL


# Workers.


def slots_of(settings, tmp_path) -> tuple[int, list[str]]:
    said: list[str] = []
    engine = make_engine(settings, "jobs:job", tmp_path / "run", lambda text: said.append(text))
    engine.close()
    return engine.slots, said


def test_more_workers_than_a_generation_keeps_busy(tmp_path):
    small = {"engine__kind": "pool", "search__population": 4}
    slots, said = slots_of(config(**small, engine__workers=6), tmp_path)
    assert slots == 4 and said == ["engine.workers is 6, but a generation has 4 candidates: 4 are trained at a time."]
    assert slots_of(config(**small, engine__workers=6, search__offspring=6), tmp_path) == (6, [])
    assert slots_of(config(**small, engine__workers=6, search__asynchronous=True), tmp_path) == (6, []), (
        "no generation to wait for"
    )
    slots, said = slots_of(config(**small, engine__workers=4, search__offspring=2), tmp_path)
    assert slots == 4 and said == [
        "4 candidates can be trained at a time, but a generation after the first has 2: raise search.offspring or use "
        "--async."
    ]
    events = []
    evolve(tmp_path / "run", config(**small, engine__workers=5, search__generations=1), callbacks=[events.append])
    assert "engine.workers is 5" in next(event["text"] for event in events if event["kind"] == "message")


def test_workers_share_gpus_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[make_engine.__module__], "visible_gpus", lambda: ["0", "1", "5"])
    properties = types.SimpleNamespace(multi_processor_count=100)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: properties)
    settings = config(engine__kind="pool", evaluation="training", engine__workers_per_gpu=2, engine__side_by_side=1)
    engine = make_engine(settings, "jobs:job", tmp_path)
    assert [worker.environment["CUDA_VISIBLE_DEVICES"] for worker in engine._workers] == ["0", "1", "5"] * 2
    engine.close()
    engine = make_engine(settings.replace({"training.device": "cpu"}), "jobs:job", tmp_path)
    assert all("CUDA_VISIBLE_DEVICES" not in worker.environment for worker in engine._workers)
    engine.close()


def test_a_first_generation_of_failures_in_worker_processes(tmp_path):
    pool = ProcessPool("jobs:hopeless", 2, tmp_path / "run" / "progress")
    try:
        with pytest.raises(RunFailed) as error:
            evolve(tmp_path / "run", config(**SMALL), engine=pool)
    finally:
        pool.close()
    text = str(error.value)
    assert (
        "All 4 candidates of the first generation failed; 4 of them: failed (RuntimeError: no candidate can work here)"
        in text
    )
    assert "in hopeless" in text and "Fix the cause" in text
    assert {event.data["generation"] for event in read_events(tmp_path / "run") if event.kind == "ask"} == {None, 0}


# Files.


@pytest.mark.parametrize("damage", ["text", "foreign", "other format", "torn"])
def test_what_cannot_be_used_is_refused_and_left_as_it_is(tmp_path, damage):
    path = tmp_path / "run"
    run(path, config(**SMALL))
    database = path / NAME
    match damage:
        case "text":
            database.write_text("a thesis\n" * 1000)
        case "torn":
            database.write_bytes(database.read_bytes()[:5000])
        case "foreign":
            database.unlink()
            with contextlib.closing(sqlite3.connect(database)) as connection:
                connection.execute("CREATE TABLE songs (title)")
        case "other format":
            with contextlib.closing(sqlite3.connect(database)) as connection:
                connection.execute("PRAGMA user_version = 99")
    before = database.read_bytes()
    with pytest.raises(UserError, match=r"damaged|another program|has format 99") as error:
        evolve(path, config(**SMALL))
    assert str(database) in str(error.value) and database.read_bytes() == before


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.71, 0.99])
def test_a_torn_log_of_transactions(tmp_path, undisturbed, kept):
    """What a power cut may leave on a disk that lies about fsync: whole transactions count, the torn one does not."""
    path = tmp_path / "killed" / "run"
    killed(path)
    log = path / f"{NAME}-wal"
    before = len(read_events(path))
    os.truncate(log, int(kept * log.stat().st_size))
    (path / f"{NAME}-shm").unlink()
    with contextlib.suppress(UserError):
        assert len(read_events(path)) < before
    assert run(path, config(**SMALL)).status == "finished"
    assert everything(path) == undisturbed


def test_a_run_that_was_moved_and_copied_in_the_middle(tmp_path, undisturbed):
    path = tmp_path / "killed" / "run"
    killed(path)
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / "moved")
    copies = [shutil.copytree(moved, tmp_path / "elsewhere" / name) for name in ("a", "b")]
    for each in (moved, *copies):
        assert run(each, config(**SMALL)).status == "finished"
        assert everything(each) == undisturbed
        assert str(tmp_path).encode() not in (each / NAME).read_bytes(), "no path is recorded"


@pytest.mark.parametrize("closed", ["run", NAME])
def test_a_run_that_cannot_be_written(undisturbed, closed):
    """By a person without the rights to its directory, or to its database; root, whom nothing stops, becomes nobody."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        run(path, config(**SMALL))
        os.chmod(folder, 0o755)
        os.chmod(path, 0o555 if closed == "run" else 0o777)
        os.chmod(path / NAME, 0o444)
        os.chmod(path / "run.lock", 0o444 if closed == "run" else 0o666)
        assert child(_as_nobody, path, closed) == 0
        os.chmod(path, 0o755)
        assert everything(path) == undisturbed


def _as_nobody(path: Path, closed: str) -> None:
    if os.geteuid() == 0:
        os.setuid(65534)
    with pytest.raises(UserError, match=rf"{closed} cannot be (opened or )?written .*permissions"):
        run(path, config(**SMALL | {"search__generations": 5}))
    assert len(Run(path).front()) > 0, "but it can be read"


def test_disk_use_is_bounded(tmp_path):
    """Weights of front members only, whenever new candidates begin; results only until they are in the record."""
    path, begun = tmp_path / "run", itertools.count()

    def look(event: dict) -> None:
        if event["kind"] == "candidate_start" and next(begun) % 3 == 0:
            kept = {file.parent.name for file in path.glob("candidates/*/weights.safetensors")}
            assert kept == {c.id for c in Run(path).front()} and not list(path.glob("candidates/*/result.json"))

    with warnings.catch_warnings(action="error"):  # a callback that fails warns
        evolve(path, config(search__generations=10), engine=InProcess("jobs:heavy", slots=2), callbacks=[look])
    assert next(begun) == 80
    weights = {file.parent.name for file in path.glob("candidates/*/weights.safetensors")}
    assert weights == {c.id for c in Run(path).front()} and len(weights) < 40
    assert sorted(p.name for p in path.iterdir()) == ["candidates", "run.lock", NAME]
    assert not list(path.glob("candidates/*/result.json"))


# Clocks and other coordinators.


def test_clocks_that_jump(tmp_path, undisturbed, monkeypatch):
    path, times = tmp_path / "run", itertools.cycle([2e9, 1e9, 0.0, -5.0, 1.7e9])
    monkeypatch.setattr("star.store.database.time.time", lambda: next(times))
    run(path, config(**SMALL | {"search__generations": 2}))
    run(path, config(**SMALL))
    events = read_events(path)
    assert [event.seq for event in events] == sorted(event.seq for event in events)
    assert [event.time for event in events] != sorted(event.time for event in events)
    assert everything(path) == undisturbed


def test_a_second_coordinator_that_the_lock_does_not_stop(tmp_path, undisturbed, monkeypatch):
    """As on two machines that share a file system without locks: the first notices at its next transaction."""
    path = tmp_path / "run"
    monkeypatch.setattr("star.store.lock._try", lambda file, kind: True)
    calls = itertools.count()

    def second(event: dict) -> None:
        if event["kind"] == "candidate_end" and next(calls) == 6:
            with contextlib.suppress(StopIteration):
                run(path, config(**SMALL), callbacks=[once])

    def once(event: dict) -> None:
        if event["kind"] == "candidate_end":
            os.kill(os.getpid(), signal.SIGINT)  # it stops after some candidates

    with pytest.raises(UserError, match="was written by another process: let only one at a time evolve a run"):
        run(path, config(**SMALL), callbacks=[second])
    assert run(path, config(**SMALL)).status == "finished"
    assert everything(path) == undisturbed


def test_a_disk_that_fails(tmp_path, undisturbed, monkeypatch):
    path, record, calls = tmp_path / "run", Store._last_seq, itertools.count()

    def failing(store):
        if next(calls) == 9:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
            raise error
        return record(store)

    monkeypatch.setattr(Store, "_last_seq", failing)
    with pytest.raises(RunFailed, match=r"could not be read or written \(disk I/O error\)"):
        run(path, config(**SMALL))
    assert run(path, config(**SMALL)).status == "finished" and everything(path) == undisturbed
