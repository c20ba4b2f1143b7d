"""The Ray engine on a simulated cluster of two machines: the run is the same as in process, whichever process dies."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fakes import config, history, run
from jobs import ENDINGS, drive, is_alive, running, wait_for

pytest.importorskip("ray", reason="the extra `ray` is not installed: pip install 'star[ray]'")

from star.engine import Ray
from star.errors import RunFailed, UserError
from star.run import Run
from star.search import evolve
from star.store import read_events

HERE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cluster():
    """Address of a cluster of two machines with two CPU cores each (its processes on this machine)."""
    from ray.cluster_utils import Cluster

    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE.parent), str(HERE)]))  # machines must have what jobs import
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False, "object_store_memory": 10**8}
    )
    cluster.add_node(num_cpus=2, object_store_memory=10**8)
    yield cluster.address
    cluster.shutdown()
    patch.undo()


@pytest.fixture
def engine(cluster, tmp_path):
    engine = Ray("jobs:job", shared=tmp_path, address=cluster, timeout=3.0, environment={"SLOT": "here"})
    yield engine
    engine.close()


def test_endings(engine):
    """Jobs that fail in every way among good jobs, on as many workers as the two machines have cores."""
    assert engine.slots == 4
    kinds = [*ENDINGS, "die", "hang"]
    jobs = {do: {"do": do} for do in kinds} | {f"good{i}": {"do": "ok", "number": i} for i in range(4)}
    outcomes = drive(engine, jobs)
    assert {do: outcomes[do].status for do in kinds} == ENDINGS | {"die": "lost", "hang": "timeout"}
    good = [outcomes[f"good{i}"] for i in range(4)]
    assert [(o.status, o.result["number"], o.result["slot"]) for o in good] == [("ok", i, "here") for i in range(4)]
    assert len({o.result["pid"] for o in good}) == 4, "a fresh process for each job"
    assert "second line" in outcomes["raise"].traceback and outcomes["raise"].reason == "ValueError: first line"
    assert outcomes["hang"].seconds >= 3 > max(o.seconds for o in good), "busy time of the worker, without its start"
    assert "worker or machine died" in outcomes["die"].reason
    assert not list(engine.progress.path.glob("*.json"))


def test_progress_and_cancel(engine, tmp_path):
    seen = []
    engine.on_progress = lambda id, progress: seen.append((id, progress["step"]))
    engine.submit("a", {"do": "write pid", "path": str(tmp_path / "pid")})
    wait_for(lambda: engine.poll(0.1) == [] and (tmp_path / "pid").exists())
    engine.cancel("a")
    wait_for(lambda: not is_alive(int((tmp_path / "pid").read_text())))
    assert ("a", 1) in seen
    assert list(drive(engine, {"b": {"do": "ok"}})) == ["b"], "a cancelled job has no outcome"


def test_a_machine_that_does_not_see_the_run_directory(engine, tmp_path):
    job = {"do": "echo", "directory": str(tmp_path / "candidates" / "ab"), "corpus": "stdlib"}
    assert drive(engine, {"a": job})["a"].result == job, "here the directory is mounted"
    engine.marker.unlink()
    assert drive(engine, {"a": job})["a"].result == job | {"directory": None}


def test_an_evolution_with_killed_workers_is_the_same_evolution(cluster, tmp_path):
    settings = config(search__population=4, search__generations=3)
    run(tmp_path / "plain", settings)
    engine = Ray("jobs:lingering", shared=tmp_path / "ray", address=cluster)
    (tmp_path / "pids").mkdir()
    killed = []

    def kill(event):
        if event["kind"] == "candidate_end" and len(killed) < 2 and event["status"] == "ok":
            with contextlib.suppress(AssertionError):  # all others may have ended: then at the next event
                wait_for(lambda: [id for id in running(tmp_path / "pids") if id not in killed], seconds=2)
            for id, pid in running(tmp_path / "pids").items():
                if id not in killed:
                    killed.append(id)
                    os.kill(pid, signal.SIGKILL)
                    return

    try:
        assert evolve(tmp_path / "ray", settings, engine=engine, callbacks=[kill]).status == "finished"
    finally:
        engine.close()
    finished = [event.data for event in read_events(tmp_path / "ray") if event.kind == "finish"]
    lost = [data["id"] for data in finished if data["status"] == "lost"]
    assert sorted(lost) == sorted(killed) and len(killed) == 2
    assert history(tmp_path / "ray") == history(tmp_path / "plain")
    assert outcome(tmp_path / "ray") == outcome(tmp_path / "plain")


def outcome(path) -> list:
    return [(c.id, c.genome, c.objectives) for c in Run(path).front()]


def test_a_first_generation_of_failures(cluster, tmp_path):
    engine = Ray("jobs:hopeless", shared=tmp_path, address=cluster)
    try:
        message = r"All 2 candidates of the first generation failed(.|\n)*no candidate can work here"
        with pytest.raises(RunFailed, match=message):
            evolve(tmp_path / "run", config(search__population=2), engine=engine)
    finally:
        engine.close()


def test_nothing_runs_on_when_the_driver_dies(tmp_path):
    """The driver starts a local cluster, as `engine.kind = "ray"` does without an address."""
    script = tmp_path / "driver.py"
    script.write_text(
        "from star.engine import Ray\n"
        f"engine = Ray('jobs:job', 1, {str(tmp_path)!r})\n"
        f"engine.submit('a', {{'do': 'write pid', 'path': {str(tmp_path / 'pid')!r}}})\n"
        "while True: engine.poll(10)\n"
    )
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    driver = subprocess.Popen([sys.executable, str(script)], env=os.environ | {"PYTHONPATH": path, "RAY_ADDRESS": ""})
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), seconds=60)
    worker = int((tmp_path / "pid").read_text())
    assert is_alive(worker)
    driver.kill()
    driver.wait()
    wait_for(lambda: not is_alive(worker), seconds=30)


def test_the_command_line(cluster, tmp_path):
    """`star evolve --engine ray --address ...` says so when fewer workers fit than were asked for."""
    changes = ["--set", "evaluation=tabular", "--set", "search.baselines=", "--population", "5", "--generations", "1"]
    changes += ["--workers", "5", "--engine", "ray", "--address", cluster]
    command = [sys.executable, "-m", "star", "evolve", str(tmp_path / "run"), "--preset", "smoke", *changes]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(HERE.parent)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "engine.workers is 5, but the Ray cluster holds 4" in done.stdout
    assert len(Run(tmp_path / "run").candidates()) == 5


@pytest.mark.parametrize(
    "address", ["closed", "another program", "silent", "nowhere:1", "6379", "::1", "127.0.0.1:99999"]
)
def test_where_no_cluster_answers(tmp_path, address):
    """Within seconds: Ray tries for more than a minute."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"

        def reply() -> None:
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        if address == "another program":
            threading.Thread(target=reply, daemon=True).start()
        if address == "closed":
            server.close()
        given = place if address in ("closed", "another program", "silent") else address
        began = time.monotonic()
        driver = "from star.engine import Ray; Ray('jobs:job', address={!r}, shared={!r})".format
        command = [sys.executable, "-c", driver(given, str(tmp_path))]
        environment = os.environ | {"PYTHONPATH": str(HERE.parent), "RAY_ADDRESS": ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
        assert f"engine.address is {given!r} but no Ray cluster answers there (" in done.stderr
        assert "UserError" in done.stderr.splitlines()[-1] and time.monotonic() - began < 10


def test_impossible_settings_are_one_sentence(tmp_path, cluster, monkeypatch):
    with pytest.raises(UserError, match=r"engine.address is 'ray://a:1': run star on a machine of the cluster"):
        Ray("jobs:job", shared=tmp_path, address="ray://a:1")
    with pytest.raises(UserError, match="no machine of the Ray cluster has 3 CPU cores"):
        Ray("jobs:job", shared=tmp_path, address=cluster, cpus=3)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"package ray is missing .* pip install 'star\[ray\]'"):
        Ray("jobs:job", shared=tmp_path)
