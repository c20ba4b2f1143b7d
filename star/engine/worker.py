"""Run one job, in any process: every ending, exceptions included, becomes a plain dict."""

import errno
import importlib
import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Sequence

from star.engine.protocol import Report
from star.errors import is_out_of_memory
from star.turns import finish, take_turns


class Cancelled(BaseException):
    """Raised inside a job, from its `report`, to stop it. Not an Exception, so that no job swallows it."""


def run_job(function: str, job: dict, report: Report) -> dict:
    """Run one job and return the fields of its Outcome (all but job_id and worker). Raises nothing but Cancelled."""
    return finish(_steps(function, job, report))


def run_side_by_side(function: str, jobs: Sequence[dict], reports: Sequence[Report]) -> list[dict]:
    """Run several jobs, whose functions are generators, in turn; the fields of their Outcomes in the same order."""
    number = {"side_by_side": len(jobs)}
    return take_turns([_steps(function, job | number, report) for job, report in zip(jobs, reports, strict=True)])


def _steps(function: str, job: dict, report: Report) -> Generator[None, None, dict]:
    start = time.perf_counter()
    try:
        result = find(function)(job, report)
        if isinstance(result, Generator):
            result = yield from result
        result = json.loads(json.dumps(result))  # ensures that it is plain data
        outcome = {"status": result.get("status", "ok"), "reason": result.get("reason", ""), "result": result}
    except (Cancelled, GeneratorExit):
        raise
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: they must not end a worker
        notes = " ".join(getattr(error, "__notes__", [])) or str(error).strip().split(chr(10))[0]
        reason = f"{type(error).__name__}: {notes}"
        outcome = {"status": kind_of(error), "reason": reason[:500], "traceback": traceback.format_exc()}
    return outcome | {"seconds": time.perf_counter() - start}


def find(function: str) -> Callable[[dict, Report], dict | Generator[None, None, dict]]:
    """The callable behind "module:function"."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def kind_of(error: BaseException) -> str:
    """One of "oom", "disk_full", "failed"."""
    if is_out_of_memory(error):
        return "oom"
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left on device" in str(error):
        return "disk_full"
    return "failed"


def start_worker(coordinator: int, environment: dict[str, str]) -> None:
    """Initialize a new worker process. Kept trivial, because an initializer that raises breaks its pool for good."""
    os.environ.update(environment)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # die at once, even inside a long torch call
    threading.Thread(target=_leave_with, args=(coordinator,), daemon=True).start()


def _leave_with(coordinator: int, every: float = 0.5) -> None:
    """Exit when the coordinator is gone, even in the middle of a job."""
    while os.getppid() == coordinator:
        time.sleep(every)
    os._exit(1)
