"""Jobs that behave and misbehave, for the tests of engines. Imports nothing slow: many workers import it."""

import os
import signal
import time
from pathlib import Path


def job(job: dict, report) -> dict:
    """Ends as job["do"] says."""
    report({"step": 1})
    match job["do"]:
        case "ok":
            return {"number": job.get("number"), "pid": os.getpid(), "slot": os.environ.get("SLOT")}
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
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"
            )
        case "diverge":
            return {"status": "diverged", "reason": "the loss is not finite"}
        case "object":
            return {"number": object()}
        case "full":
            raise OSError(28, "No space left on device")
        case "write pid":
            Path(job["path"]).write_text(str(os.getpid()))
            time.sleep(60)


def hopeless(job: dict, report) -> dict:
    raise RuntimeError("no candidate can work here")


def lingering(job: dict, report) -> dict:
    """The tabular objective, and a file in `pids`, beside the run, that says which process is at it for a moment."""
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
    """The tabular objective, with weights, and a result on the disk as training leaves it."""
    from star.assess.evaluations import tabular
    from star.store.files import RESULT, WEIGHTS, write_atomically, write_json

    directory, result = Path(job["directory"]), tabular.assess(job, report)
    write_atomically(directory / WEIGHTS, lambda path: path.write_bytes(b"0" * 1000))
    write_json(directory / RESULT, {key: job[key] for key in ("id", "attempt", "seed", "rung")} | result)
    return result


def full(job: dict, report) -> dict:
    raise OSError(28, "No space left on device")


def running(directory: Path) -> dict[str, int]:
    """Process ids of jobs at work, by job, where jobs are `fakes.lingering`."""
    found = {}
    for path in directory.glob("*"):
        try:
            pid = int(path.read_text())
            os.kill(pid, 0)
        except (OSError, ValueError):  # over, or not yet begun
            continue
        found[path.name] = pid
    return found
