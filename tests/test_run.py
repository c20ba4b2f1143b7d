"""A run from outside: killed at any moment it goes on to the same end, and says plainly what it cannot do."""

import functools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes import config, history, run

from star.config import RunConfig, load_config
from star.errors import RunFailed, UserError
from star.run import Run, config_for
from star.search import evolve
from star.store import Store, read_events, write_json

HERE = Path(__file__).parent


def outcome(path) -> tuple:
    """All that a search is worth: its asks, tells and states, and its front."""
    return history(path), [(c.id, c.genome, c.objectives) for c in Run(path).front()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    run(path, config(search__baselines=("transformer++",)))
    return outcome(path)


def child(function) -> int:
    """Runs `function` in a forked process that ends with it; returns its id."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return pid


# Killed and resumed.


def test_sigkill_at_random_moments(tmp_path, undisturbed):
    rng, path = random.Random(0), tmp_path / "run"
    settings = config(search__baselines=("transformer++",))
    statuses = []
    for kill in range(15):
        pid = child(lambda: run(path, settings, "fakes:slow", slots=rng.choice([1, 3])))
        time.sleep(rng.uniform(0, 0.15))
        os.kill(pid, signal.SIGKILL)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        if kill % 3 == 2 and path.exists():
            shutil.move(path, tmp_path / "moved")  # a run directory may be moved between sessions
            shutil.move(tmp_path / "moved", path)
    run(path, settings)
    assert statuses.count(-signal.SIGKILL) >= 10 and outcome(path) == undisturbed


def test_sigkill_around_every_transaction(tmp_path, undisturbed, monkeypatch):
    """Each session dies just before or just after a commit, one commit later than the session before."""
    path, kills = tmp_path / "run", 0
    settings = config(search__baselines=("transformer++",))
    record, rng = Store.record, random.Random(1)

    def session(commits: int, after: bool):
        def dying(self, events):
            nonlocal commits
            commits -= 1
            if commits < 0 and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            record(self, events)
            if commits < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        Store.record = dying
        run(path, settings)

    while True:
        pid = child(functools.partial(session, rng.randint(1, 5), kills % 2 == 0))
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
            break
        kills += 1
        assert kills < 500
    assert kills >= 20 and outcome(path) == undisturbed


def test_sigkill_of_workers_and_coordinator_of_a_pool(tmp_path, undisturbed):
    """The same with real worker processes and signals from outside."""
    path = tmp_path / "run"
    script = tmp_path / "session.py"
    script.write_text(
        "from pathlib import Path\n"
        "from fakes import config\n"
        "from star.engine import ProcessPool\n"
        "from star.search import evolve\n"
        "if __name__ == '__main__':\n"
        f"    pool = ProcessPool('fakes:slow', 2, Path({str(path)!r}) / 'progress')\n"
        f"    evolve({str(path)!r}, config(search__baselines=('transformer++',)), engine=pool)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    coordinator = subprocess.Popen([sys.executable, str(script)], env=environment)
    wait_for(lambda: finished(path) >= 4)
    os.kill(children_of(coordinator.pid)[0], signal.SIGKILL)
    wait_for(lambda: finished(path) >= 12)
    coordinator.kill()
    coordinator.wait()
    run(path, config(search__baselines=("transformer++",)))
    assert outcome(path) == undisturbed


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def finished(path) -> int:
    try:
        return sum(event.kind == "finish" for event in read_events(path))
    except UserError:
        return 0


def children_of(pid: int) -> list[int]:
    """Worker processes that have started on their own program (not the fork, nor the resource tracker)."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for number in task.read_text().split():
                if b"spawn_main" in Path(f"/proc/{number}/cmdline").read_bytes():
                    found.append(int(number))
        except OSError:
            continue
    return found


def test_a_result_written_after_the_coordinator_died_counts(tmp_path):
    settings, path = config(), tmp_path / "run"
    started = []

    def die(event):
        if event["kind"] == "candidate_start" and event["generation"] == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(child(lambda: run(path, settings, callbacks=[die])), 0)
    last = [event.data for event in read_events(path) if event.kind == "start"][-1]
    result = {"status": "ok", "metrics": {"bpb": 1.25, "tokens": 10}, "curve": [{"step": 1, "val_loss": 1.25}]}
    write_json(path / "candidates" / last["id"] / "result.json", last | result)
    run(path, settings, callbacks=[lambda e: e["kind"] == "candidate_start" and started.append(e["id"])])
    assert last["id"] not in started
    assert Run(path).candidate(last["id"]).objectives["bpb"] == 1.25
    assert Run(path).curve(last["id"]) == [{"step": 1, "val_loss": 1.25}]
    assert not (path / "candidates" / last["id"] / "result.json").exists()


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(tmp_path, undisturbed):
    path, settings = tmp_path / "run", config(search__baselines=("transformer++",))
    before, events = signal.getsignal(signal.SIGINT), []  # ignored, where the tests run in the background

    def interrupt(event):
        events.append(event)
        if event["kind"] == "candidate_end" and event["done"] == 20:
            os.kill(os.getpid(), signal.SIGINT)

    ending = run(path, settings, callbacks=[interrupt])
    assert ending.status == "interrupted"
    assert ending.text == f"Stopped after 20 of 49 candidates; star evolve {path} resumes."
    assert events[-1]["kind"] == "run_end" and events[-1]["status"] == "interrupted"
    assert signal.getsignal(signal.SIGINT) is before
    assert run(path, settings).status == "finished"
    assert outcome(path) == undisturbed


def test_a_finished_run_can_be_run_again_or_longer(tmp_path, undisturbed):
    path = tmp_path / "run"
    run(path, config(search__baselines=("transformer++",), search__generations=3))
    assert len(Run(path).candidates()) == 25 and Run(path).status()["finished"]
    longer = config(search__baselines=("transformer++",), engine__workers=2)
    assert run(path, longer).status == "finished"
    assert outcome(path) == undisturbed, "as if it had been planned so"
    assert run(path, longer).text == "All 49 candidates are done." and Run(path).config == longer


# Refused.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"training__tokens": 1000}, "training.tokens was 65536 and is now 1000"),
        ({"space__slots": 4, "search__population": 4, "search__tournament": 3, "seed": 2}, "and 1 more"),
    ],
)
def test_another_configuration(tmp_path, changes, message):
    run(tmp_path / "run", config(search__generations=1))
    with pytest.raises(UserError, match="was started with another configuration") as error:
        run(tmp_path / "run", config(**changes))
    assert message in str(error.value) and "star evolve" in str(error.value)


def test_another_version(tmp_path, monkeypatch):
    run(tmp_path / "run", config(search__generations=1))
    monkeypatch.setattr("star.__version__", "99.0")
    with pytest.raises(UserError, match=r"was made by star .* and this is 99\.0"):
        run(tmp_path / "run", config(search__generations=1))
    assert Run(tmp_path / "run").front(), "reading is allowed"


def test_two_coordinators(tmp_path):
    path = tmp_path / "run"
    settings = config()

    def second(event):
        if event["kind"] == "generation_end" and event["generation"] == 0:
            with pytest.raises(UserError, match="is being evolved by process"):
                run(path, settings)
            assert Run(path).status()["active"] and Run(path).front(), "but anyone may read"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(path, settings, callbacks=[second])
    assert not Run(path).status()["active"]
    assert run(path, settings).status == "finished"


def test_a_full_disk(tmp_path, undisturbed, monkeypatch):
    path, settings = tmp_path / "run", config(search__baselines=("transformer++",))
    opened = Store.__init__

    def small(self, *args, **kwargs):
        opened(self, *args, **kwargs)
        self.connection.execute("PRAGMA max_page_count = 12")

    monkeypatch.setattr(Store, "__init__", small)
    with pytest.raises(RunFailed, match="is full: free some space and run the same command again"):
        run(path, settings)
    monkeypatch.setattr(Store, "__init__", opened)
    kept = len(Run(path).hypervolume()) or Run(path).status()["done"]
    assert run(path, settings).status == "finished"
    assert kept and outcome(path) == undisturbed


def test_a_disk_that_is_full_for_a_worker_keeps_its_candidate(tmp_path):
    path, settings = tmp_path / "run", config()
    with pytest.raises(RunFailed, match="is full"):
        run(path, settings, "jobs:full")
    assert Run(path).status()["done"] == 0
    assert run(path, settings).status == "finished"


# Read.


def test_everything_a_run_tells(tmp_path):
    settings = config(search__baselines=("transformer++", "striped-mamba"))
    events = []
    run(tmp_path / "run", settings, callbacks=[events.append])
    found = Run(str(tmp_path / "run"))
    assert found.config == settings and found.space.n_slots == 6
    assert [c.name for c in found.candidates("baseline")] == ["transformer++", "striped-mamba"]
    searched = [c for c in found.candidates() if c.origin != "baseline"]
    assert [c.generation for c in searched] == [g for g in range(6) for _ in range(8)]
    assert sorted(c.order for c in found.candidates()) == list(range(50))
    known = {c.id for c in searched}
    assert all(set(c.parents) <= known and c.parents for c in found.candidates("offspring"))
    assert {o for c in searched for o in c.operators} == {"crossover", "mutation", "link"}
    front = found.front()
    assert [c.objectives["bpb"] for c in front] == sorted(c.objectives["bpb"] for c in front)
    assert not {c.id for c in front} & {c.id for c in found.candidates("baseline")}
    assert found.knee().id in {c.id for c in front} and found.candidate(front[0].id[:6]) == front[0]
    assert set(found.reference) == {"bpb", "parameters", "cache"}
    volumes = found.hypervolume()
    assert len(volumes) == 48 and volumes[-1]["hypervolume"] > volumes[7]["hypervolume"] > 0
    status = found.status()
    assert (status["done"], status["total"], status["pending"], status["failed"]) == (50, 50, 0, 0)
    assert status["finished"] and status["generation"] == 5 and json.dumps(status)
    with pytest.raises(UserError, match="no candidate with an id"):
        found.candidate("nonsense")
    kinds = [event["kind"] for event in events]
    assert kinds[0] == "run_start" and kinds[-1] == "run_end"
    assert kinds.count("candidate_start") == kinds.count("candidate_end") == 50 and kinds.count("generation_end") == 6
    last = [event for event in events if event["kind"] == "generation_end"][-1]
    assert set(last["front"]) == {c.id for c in front} and last["hypervolume"] == volumes[-1]["hypervolume"]
    assert math.isclose(last["eta_seconds"], 0) or last["done"] < last["total"]


def test_a_run_that_has_not_finished_anything(tmp_path):
    path = tmp_path / "run"
    os.waitpid(child(lambda: run(path, config(), callbacks=[lambda e: os.kill(os.getpid(), signal.SIGKILL)])), 0)
    found = Run(path)
    assert found.front() == [] and found.hypervolume() == [] and found.reference is None
    assert {c.status for c in found.candidates()} == {"pending"} and found.status()["eta_seconds"] is None
    with pytest.raises(UserError, match="has no finished candidate yet"):
        found.knee()
    with pytest.raises(UserError, match="there is no run"):
        Run(tmp_path / "elsewhere")


def test_the_configuration_of_a_command(tmp_path):
    path = tmp_path / "run"
    assert config_for(path) == load_config("laptop")
    run(path, config(search__generations=1))
    assert config_for(path) == config(search__generations=1), "no options: the run's own"
    assert config_for(path, overrides={"engine.workers": 2}).evaluation == "tabular"
    assert config_for(path, "smoke") == load_config("smoke")
    assert isinstance(config_for(path), RunConfig)


# The real thing, small.


def test_training_for_real(tmp_path):
    """Two generations of tiny models on a tiny text, in worker processes; weights of front members only."""
    text = tmp_path / "text"
    text.mkdir()
    for i in range(40):
        (text / f"{i}.txt").write_text("".join(f"line {i * j % 97} of document {i}\n" for j in range(60)))
    settings = load_config(
        "smoke",
        overrides={
            "data.corpus": str(text),
            "space.slots": 2,
            "space.classes": (1, 7, 9),
            "search.generations": 2,
            "training.tokens": 1024,
            "training.eval_tokens": 512,
        },
    )
    events = []
    assert evolve(tmp_path / "run", settings, callbacks=[events.append]).status == "finished"
    found = Run(tmp_path / "run")
    assert [c.status for c in found.candidates()] == ["ok"] * 9
    front = {c.id for c in found.front()}
    assert {c.id for c in found.candidates() if found.weights(c.id)} == front - {
        c.id for c in found.candidates("baseline")
    }
    for c in found.candidates():
        assert c.metrics["tokens"] == 1024 and 0 < c.objectives["bpb"] < 6 and c.metrics["bpb_se"] > 0
        assert found.curve(c.id)[-1]["val_loss"] * found.bits_per_nat == pytest.approx(c.objectives["bpb"])
    assert events[0]["baselines"]["unigram"] > events[0]["baselines"]["bigram"] > 0
    assert not list((tmp_path / "run").glob("candidates/*/result.json")) and not list(
        (tmp_path / "run").glob("progress/*")
    )
    (text / "0.txt").write_text("the text has changed\n" * 50)
    with pytest.raises(UserError, match="is not the one that"):
        evolve(tmp_path / "run", settings)
