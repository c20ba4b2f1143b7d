"""SIGKILL at every boundary of the coordinator, and of workers at any moment: nothing is lost, nothing changes.

A boundary is what the outside can see of the order of things: before, inside and after each transaction of the record,
around each hand-over to the engine and from it, around the removal of files. The hooks are put in place here, in a
forked child; the product has none.
"""

import contextlib
import os
import random
import signal
import tempfile
import threading
from collections import Counter
from pathlib import Path

import pytest
from fakes import config
from jobs import wait_for
from kills import Fuse, child, everything, session

from star.config import load_config
from star.engine import InProcess, ProcessPool
from star.errors import UserError
from star.search import evolve
from star.store import read_events

SMALL = {"search__population": 4, "search__generations": 4, "search__baselines": ("transformer++",)}
# Settings; slots (what a steady state finds depends on the order of arrival, which one slot fixes); every so manyth
# boundary
MODES = [
    pytest.param({}, 2, 1, id="generations"),
    pytest.param({"search__asynchronous": True, "search__generations": 3}, 1, 1, id="steady state"),
    pytest.param({"search__rungs": (0.25, 0.5)}, 2, 4, id="rungs"),
    pytest.param({"search__rungs": (0.5,), "search__asynchronous": True}, 1, 7, id="rungs in a steady state"),
]


@pytest.fixture
def fast(tmp_path):
    """A directory in memory, if there is one: a killed process needs no fsync, only a power cut does."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.fixture(scope="module", autouse=True)
def _imported(tmp_path_factory):
    """Whatever a run imports on its way is imported before the many forks, not in each of them."""
    evolve(tmp_path_factory.mktemp("imports") / "run", config(**SMALL), engine=InProcess("jobs:counted"))


def recorded(path: Path) -> set[tuple]:
    """(id, attempt, rung) of the assessments whose result is in the record."""
    try:
        events = read_events(path)
    except UserError:  # killed before there was a run
        return set()
    n_rungs = {e.data["id"]: 0 for e in events if e.kind == "start"}
    done = set()
    for e in events:
        if e.kind == "start":
            n_rungs[e.data["id"]] = e.data["rung"]
        elif e.kind in ("rung", "finish") and e.data.get("status") != "stopped":
            done.add((e.data["id"], e.data["attempt"], n_rungs[e.data["id"]]))
    return done


def assessed(path: Path) -> Counter:
    """How often each (id, attempt, rung) was assessed, recorded or not."""
    try:
        lines = (path.parent / "assessed").read_text().splitlines()
    except FileNotFoundError:
        return Counter()
    return Counter((id, int(attempt), int(rung)) for id, attempt, rung in map(str.split, lines))


def check_sane(path: Path) -> None:
    """Each candidate was proposed once by the search, settled once and told once."""
    events = read_events(path)
    asked = Counter(
        row["id"] for e in events if e.kind == "ask" and e.data["generation"] is not None for row in e.data["proposals"]
    )
    ended = Counter(e.data["id"] for e in events if e.kind == "finish" and e.data["final"])
    told = Counter(row[0] for e in events if e.kind == "tell" for row in e.data["told"])
    assert set(asked.values()) == set(ended.values()) == set(told.values()) == {1}
    assert set(told) == set(asked) <= set(ended)
    assert not list(path.glob("candidates/*/result.json"))


@pytest.mark.parametrize(("mode", "slots", "every"), MODES)
def test_the_coordinator_is_killed_at_every_boundary(fast, mode, slots, every):
    settings = config(**SMALL | mode)
    undisturbed = fast / "undisturbed" / "run"
    undisturbed.parent.mkdir()
    assert child(session, undisturbed, settings, slots) == 0
    expected = everything(undisturbed)
    n_boundaries = int((undisturbed.parent / "boundaries").read_text())
    assert n_boundaries >= 100 and set(assessed(undisturbed).values()) == {1}
    for k in range(0, n_boundaries, every):
        path = fast / f"{k}" / "run"
        path.parent.mkdir()
        assert child(session, path, settings, slots, k) == -signal.SIGKILL, k
        known = recorded(path)
        assert known <= set(assessed(path))
        assert child(session, path, settings, slots) == 0, k
        assert everything(path) == expected, k
        check_sane(path)
        twice = {job for job, count in assessed(path).items() if count > 1}
        assert set(assessed(path)) == set(assessed(undisturbed)) and max(assessed(path).values()) <= 2
        assert not twice & known and len(twice) <= slots, "only what was running is assessed again"


@pytest.mark.parametrize(("mode", "slots", "every"), MODES)
def test_one_run_killed_again_and_again(fast, mode, slots, every):
    """A new coordinator every few boundaries, also under the journal of network file systems, moved in between."""
    settings = config(**SMALL | mode)
    undisturbed, path = fast / "undisturbed" / "run", fast / "killed" / "run"
    for run in (undisturbed, path):
        run.parent.mkdir()
    assert child(session, undisturbed, settings, slots) == 0
    rng, kills = random.Random(0), 0
    while (
        code := child(
            session, path, settings.replace({"journal": rng.choice(["wal", "delete"])}), slots, rng.randint(6, 18)
        )
    ) != 0:
        assert code == -signal.SIGKILL
        kills += 1
        assert kills < 500
        if kills % 5 == 0 and path.exists():
            path = path.rename(path.parent / f"run{kills}")
    assert kills >= 20 and everything(path) == everything(undisturbed)
    check_sane(path)


def test_workers_are_killed_at_random_moments(tmp_path):
    """Busy ones, idle ones and ones that are only starting; a candidate that was running is attempted again."""
    settings = config(search__population=10, search__generations=7)
    (tmp_path / "pids").mkdir()
    evolve(tmp_path / "undisturbed", settings, engine=InProcess("jobs:counted"))
    rng, over, losses, kills = random.Random(0), threading.Event(), Counter(), 0
    pool = ProcessPool("jobs:lingering", 3, tmp_path / "run" / "progress")

    def note(event: dict) -> None:
        if event["kind"] == "candidate_end" and event["status"] == "lost":
            losses[event["id"]] += 1

    def killer() -> None:
        nonlocal kills
        while not over.wait(rng.uniform(0.02, 0.3)):
            running = [job_id for worker in pool._workers if (group := worker.group) for job_id in group.jobs]
            fragile = any(losses[job_id] >= 2 for job_id in running)  # a fourth loss would be final
            workers = workers_of(os.getpid())
            if workers and not fragile and kills < 40:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(workers), signal.SIGKILL)
                    kills += 1

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        ending = evolve(tmp_path / "run", settings, engine=pool, callbacks=[note])
    finally:
        over.set()
        thread.join()
        pool.close()
    assert ending.status == "finished" and kills >= 20
    lost = [
        event.data
        for event in read_events(tmp_path / "run")
        if event.kind == "finish" and event.data["status"] == "lost"
    ]
    assert len(lost) >= 5 and not any(data["final"] for data in lost)
    assert everything(tmp_path / "run") == everything(tmp_path / "undisturbed")
    check_sane(tmp_path / "run")
    wait_for(lambda: not workers_of(os.getpid()), seconds=10)


def workers_of(pid: int) -> list[int]:
    """Its child processes that were spawned, the resource tracker apart."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for number in task.read_text().split():
                with contextlib.suppress(OSError):
                    if b"spawn_main" in Path(f"/proc/{number}/cmdline").read_bytes():
                        found.append(int(number))
    return found


@pytest.mark.parametrize("rungs", [(), (0.5,)], ids=["to the end", "rungs"])
def test_real_training_killed_and_resumed(tmp_path, rungs):
    """The smoke preset, smaller still: killed in mid-training, around checkpoints, between weights and result, and
    before the record.
    """
    text = tmp_path / "text"
    text.mkdir()
    for i in range(40):
        (text / f"{i}.txt").write_text("".join(f"line {i * j % 97} of document {i}\n" for j in range(60)))
    small = {
        "data.corpus": str(text),
        "space.slots": 2,
        "space.classes": (1, 7, 9),
        "search.population": 3,
        "search.offspring": 3,
        "search.generations": 2,
    }
    small |= {"search.rungs": rungs}
    settings = load_config(
        "smoke", overrides=small | {"training.tokens": 1024, "training.eval_tokens": 512, "engine.kind": "inprocess"}
    )
    training = "star.assess.evaluations.training:assess"
    undisturbed, path = tmp_path / "undisturbed" / "run", tmp_path / "killed" / "run"
    for run in (undisturbed, path):
        run.parent.mkdir()
    assert child(session, undisturbed, settings, 1, float("inf"), training) == 0

    def killed_in(owner, name: str, times: int) -> None:
        """The rest of the run, killed at the so many-th call of a function within a candidate."""
        import importlib

        module, fuse = importlib.import_module(owner), Fuse(times)
        original = getattr(module, name)

        def wrapped(*args, **kwargs):
            fuse()
            return original(*args, **kwargs)

        setattr(module, name, wrapped)
        session(path, settings, 1, float("inf"), training)

    moments = [("star.training.trainer", "summary", 2), ("star.assess.evaluations.training", "write_atomically", 1)]
    moments += [("star.assess.evaluations.training", "write_json", 1), ("star.engine.inprocess", "Outcome", 1)]
    moments += (
        [("star.training.trainer", "save_checkpoint", 1), ("star.training.trainer", "load_checkpoint", 0)]
        if rungs
        else []
    )
    for moment in moments:
        assert child(killed_in, *moment) == -signal.SIGKILL, moment
    assert child(session, path, settings, 1, 20, training) == -signal.SIGKILL
    assert child(session, path, settings, 1, float("inf"), training) == 0
    assert everything(path) == everything(undisturbed)
    check_sane(path)
    weights = {p.parent.name: p.read_bytes() for p in path.glob("candidates/*/weights.safetensors")}
    assert weights == {p.parent.name: p.read_bytes() for p in undisturbed.glob("candidates/*/weights.safetensors")}
