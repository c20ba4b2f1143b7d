"""Engines: every way in which a job can end affects only that job, and is returned as a plain outcome."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jobs import ENDINGS, drive, is_alive, wait_for

from star.engine import InProcess, ProcessPool
from star.engine.processes import make_workers, start_workers
from star.errors import UserError

FUNCTION = "jobs:job"


@pytest.fixture
def pool(tmp_path):
    engine = ProcessPool(FUNCTION, 2, tmp_path / "progress", timeout=3.0, environments=[{"SLOT": "a"}, {"SLOT": "b"}])
    yield engine
    engine.close()


def test_in_process_endings():
    outcomes = drive(InProcess(FUNCTION), {do: {"do": do} for do in ENDINGS})
    assert {do: outcome.status for do, outcome in outcomes.items()} == ENDINGS


@pytest.mark.parametrize(
    ("error", "message"), [(errno.ENOSPC, "is full: free some space"), (errno.EROFS, r"cannot be written \(Read-only")]
)
def test_shared_memory_without_room_for_the_locks_of_workers(pool, monkeypatch, error, message):
    def locks(*args):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("multiprocessing.synchronize._multiprocessing.SemLock", locks)
    with pytest.raises(UserError, match=f"^/dev/shm, where worker processes keep their locks, {message}"):
        pool.submit("a", {"do": "ok"})
    monkeypatch.undo()
    assert drive(pool, {"b": {"do": "ok"}})["b"].status == "ok"


def test_workers_that_start_before_there_is_a_job(tmp_path):
    workers = make_workers(1, [{"SLOT": "early"}])
    start_workers(FUNCTION, workers)
    pool = ProcessPool(FUNCTION, 1, tmp_path / "progress", started=workers)
    result = drive(pool, {"a": {"do": "ok"}})["a"].result
    assert result["slot"] == "early" and result["warm"] == [result["pid"]]
    pool.close()
    assert not is_alive(result["pid"])


def test_pool_endings(pool):
    """Jobs that fail in every way run among good jobs, which are not affected."""
    kinds = [*ENDINGS, "die", "hang"]
    bad = {f"{i}": {"do": do} for i, do in enumerate(kinds)}
    good = {f"good{i}": {"do": "ok", "number": i} for i in range(6)}
    outcomes = drive(pool, dict(sorted((bad | good).items(), key=lambda item: item[0][-1])))
    statuses = {do: outcomes[str(i)].status for i, do in enumerate(kinds)}
    assert statuses == ENDINGS | {"die": "lost", "hang": "timeout"}
    for i in range(6):
        assert outcomes[f"good{i}"].status == "ok" and outcomes[f"good{i}"].result["number"] == i
    failed = outcomes[str(kinds.index("raise"))]
    assert failed.reason == "ValueError: first line" and "second line" in failed.traceback
    assert "signal 9" in outcomes[str(kinds.index("die"))].reason
    assert outcomes["good0"].worker in ("worker 0", "worker 1")


def test_workers_are_reused_until_an_error_and_keep_their_slot(pool):
    first = drive(pool, {f"{i}": {"do": "ok"} for i in range(8)})
    by_worker = {o.worker: o.result["pid"] for o in first.values()}
    assert {o.result["pid"] for o in first.values()} == set(by_worker.values())
    assert {o.worker: o.result["slot"] for o in first.values()}.items() <= {"worker 0": "a", "worker 1": "b"}.items()
    pool.submit("bad", {"do": "raise"})
    (bad,) = pool.poll(5.0)
    after = drive(pool, {f"{i}": {"do": "ok"} for i in range(8)})
    again = {o.worker: (o.result["pid"], o.result["slot"]) for o in after.values()}
    assert again[bad.worker][0] != by_worker[bad.worker]
    assert again[bad.worker][1] == {"worker 0": "a", "worker 1": "b"}[bad.worker]


def test_progress_reaches_the_coordinator(pool):
    seen = []
    pool.on_progress = lambda id, progress: seen.append((id, progress["step"]))
    drive(pool, {"a": {"do": "progress"}})
    assert 2 <= len(seen) <= 20 and {id for id, _ in seen} == {"a"}, "at most about twice a second"
    assert [step for _, step in seen] == sorted(step for _, step in seen)


def test_in_process_progress_and_cancel():
    engine = InProcess(FUNCTION)
    engine.on_progress = lambda id, progress: progress["step"] > 3 and engine.cancel(id)
    engine.submit("a", {"do": "progress"})
    start = time.monotonic()
    assert engine.poll(10) == [] and time.monotonic() - start < 1
    engine.submit("b", {"do": "ok"})
    assert [o.job_id for o in engine.poll(1)] == ["b"]


def test_cancelled_jobs_have_no_outcome_and_free_their_slot(pool):
    pool.submit("a", {"do": "hang"})
    pool.submit("b", {"do": "sleep", "seconds": 0.5})
    time.sleep(0.3)
    pool.cancel("a")
    outcomes = pool.poll(5.0)
    assert [o.job_id for o in outcomes] == ["b"]
    assert set(drive(pool, {"c": {"do": "ok"}, "d": {"do": "ok"}})) == {"c", "d"}


@pytest.fixture
def shared(tmp_path):
    """One worker that runs up to three jobs in turn, as many as each job allows."""
    engine = ProcessPool("jobs:in_turns", 1, tmp_path / "progress", 20.0, company=lambda job: job["company"], most=3)
    yield engine
    engine.close()


def turns(tmp_path, company: int = 3, **ways: str) -> dict[str, dict]:
    """Jobs by name, each with the way in which it ends."""
    common = {"path": str(tmp_path / "turns"), "company": company}
    return {name: common | {"name": name, "do": do} for name, do in ways.items()}


def test_jobs_in_one_worker_take_turns(shared, tmp_path):
    assert shared.slots == 3
    outcomes = drive(shared, turns(tmp_path, a="ok", b="ok", c="ok"))
    assert (tmp_path / "turns").read_text() == "a0 b0 c0 a1 b1 c1 a2 b2 c2 "
    assert {o.result["name"]: o.result["side_by_side"] for o in outcomes.values()} == {"a": 3, "b": 3, "c": 3}
    assert len({o.result["pid"] for o in outcomes.values()}) == 1


def test_each_job_decides_how_many_may_share_its_worker(shared, tmp_path):
    jobs = turns(tmp_path, a="ok", b="ok") | turns(tmp_path, company=1, c="ok")
    outcomes = drive(shared, jobs)
    assert [outcomes[name].result["side_by_side"] for name in "abc"] == [2, 2, 1]


def test_an_error_of_one_job_leaves_the_others(shared, tmp_path):
    outcomes = drive(shared, turns(tmp_path, a="ok", b="raise", c="ok"))
    assert {name: o.status for name, o in outcomes.items()} == {"a": "ok", "b": "failed", "c": "ok"}
    assert outcomes["b"].reason == "ValueError: no"


def test_when_a_worker_dies_all_its_jobs_are_lost(shared, tmp_path):
    outcomes = drive(shared, turns(tmp_path, a="ok", b="die", c="ok"))
    assert {o.status for o in outcomes.values()} == {"lost"}
    assert all("signal 9" in o.reason for o in outcomes.values())
    alone = drive(shared, turns(tmp_path, company=1, a="ok", c="ok"))
    assert all(o.status == "ok" and o.result["side_by_side"] == 1 for o in alone.values())


def test_a_cancelled_job_does_not_cost_the_others(shared, tmp_path):
    for name, job in turns(tmp_path, a="slow", b="slow", c="slow").items():
        shared.submit(name, job)
    assert shared.poll(0.1) == []
    wait_for((tmp_path / "turns").exists)
    shared.cancel("b")
    ended = []
    while len(ended) < 2:
        ended += shared.poll(10.0)
    assert {o.job_id: o.status for o in ended} == {"a": "ok", "c": "ok"}


def test_busy_workers_exit_when_their_coordinator_dies(tmp_path):
    pid_file = tmp_path / "pid"
    code = (
        "from star.engine import ProcessPool\n"
        "if __name__ == '__main__':\n"
        f"    engine = ProcessPool('{FUNCTION}', 1, {str(tmp_path / 'progress')!r})\n"
        f"    engine.submit('a', {{'do': 'write pid', 'path': {str(pid_file)!r}}})\n"
        "    engine.poll(100)\n"
    )
    script = tmp_path / "coordinator.py"
    script.write_text(code)
    here = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parent), str(here)])}
    coordinator = subprocess.Popen([sys.executable, str(script)], env=environment)
    wait_for(lambda: pid_file.exists() and pid_file.read_text())
    worker = int(pid_file.read_text())
    coordinator.send_signal(signal.SIGKILL)
    coordinator.wait()
    wait_for(lambda: not is_alive(worker), seconds=5)
