"""Jobs that behave and misbehave, for the tests of engines. Imports nothing slow: many workers import it."""

import os
import signal
import time
from pathlib import Path

WARM = []


def warm_up() -> None:
    """What workers call early, if they are started before there is a job."""
    WARM.append(os.getpid())


def job(job: dict, report) -> dict:
    """Ends as job["do"] says."""
    report({"step": 1})
    match job["do"]:
        case "ok":
            return {"number": job.get("number"), "pid": os.getpid(), "slot": os.environ.get("SLOT"), "warm": WARM}
        case "echo":
            return job
        case "progress":
            for step in range(1000):
                time.sleep(0.002)
                report({"step": step})
            return {}
        case "sleep":
            time.sleep(job["seconds"])
            return {}
        case "hang":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                time.sleep(1)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            raise SystemExit(0)
        case "raise":
            raise ValueError("first line\nsecond line")
        case "memory":
            raise MemoryError
        case "torch memory":
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ... 1 bytes")
        case "diverge":
            return {"status": "diverged", "reason": "the loss is not finite"}
        case "object":
            return {"number": object()}
        case "full":
            raise OSError(28, "No space left on device")
        case "write pid":
            Path(job["path"]).write_text(str(os.getpid()))
            time.sleep(60)


def in_turns(job: dict, report):
    """A job in steps: it notes each of them in a file, then ends as job["do"] says."""
    for step in range(job.get("steps", 3)):
        report({"step": step})
        with open(job["path"], "a") as file:
            file.write(f"{job['name']}{step} ")
        yield
        if job["do"] == "raise" and step == 1:
            raise ValueError("no")
        if job["do"] == "die" and step == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if job["do"] == "slow":
            time.sleep(0.2)
    return {"name": job["name"], "pid": os.getpid(), "side_by_side": job.get("side_by_side", 1)}


def hopeless(job: dict, report) -> dict:
    raise RuntimeError("no candidate can work here")


def lingering(job: dict, report) -> dict:
    """The tabular objective; for a moment, a file in `pids`, beside the run, has the id of the process."""
    from star.assess.evaluations import tabular

    path = Path(job["directory"]).parents[2] / "pids" / job["id"]
    path.write_text(str(os.getpid()))
    time.sleep(0.2)
    path.unlink()
    return tabular.assess(job, report)


def counted(job: dict, report) -> dict:
    """The tabular objective, and a line in `assessed`, beside the run."""
    from star.assess.evaluations import tabular

    with open(Path(job["directory"]).parents[2] / "assessed", "a") as file:
        file.write(f"{job['id']} {job['attempt']} {job['rung']}\n")
    return tabular.assess(job, report)


def heavy(job: dict, report) -> dict:
    """The tabular objective, with weights and a result on the disk, as after training."""
    from star.assess.evaluations import tabular
    from star.store.files import RESULT, WEIGHTS, write_atomically, write_json

    directory, result = Path(job["directory"]), tabular.assess(job, report)
    write_atomically(directory / WEIGHTS, lambda path: path.write_bytes(b"0" * 1000))
    write_json(directory / RESULT, {key: job[key] for key in ("id", "attempt", "seed", "rung")} | result)
    return result


def full(job: dict, report) -> dict:
    raise OSError(28, "No space left on device")


def running(directory: Path) -> dict[str, int]:
    """Process ids of running `lingering` jobs, by job id."""
    found = {}
    for path in directory.glob("*"):
        try:
            pid = int(path.read_text())
            os.kill(pid, 0)
        except (OSError, ValueError):  # finished, or not yet started
            continue
        found[path.name] = pid
    return found


ENDINGS = {
    "ok": "ok",
    "exit": "failed",
    "raise": "failed",
    "object": "failed",
    "memory": "oom",
    "torch memory": "oom",
    "diverge": "diverged",
    "full": "disk_full",
}


def drive(engine, jobs: dict[str, dict]) -> dict:
    """All outcomes by job id, never holding more jobs than the engine has slots."""
    waiting, outcomes, running = list(jobs.items()), {}, set()
    while waiting or running:
        while waiting and len(running) < engine.slots:
            id, job = waiting.pop(0)
            engine.submit(id, job)
            running.add(id)
        for outcome in engine.poll(1.0):
            assert outcome.job_id in running, "an outcome came twice"
            running.discard(outcome.job_id)
            outcomes[outcome.job_id] = outcome
    return outcomes


def wait_for(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
