"""Jobs in worker processes on this machine. A worker may crash, hang or be killed; that costs only its own job.

Each slot is a pebble pool with one worker, so that a replacement worker inherits the GPU of its slot. Measured facts
behind this file: a killed worker costs only its own task; `cancel` kills a running task within 0.3 s; importing torch
takes seconds, so workers are kept, and replaced only after an error or after many jobs.
"""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pebble

from star.engine.progress import ProgressDirectory, ProgressFile
from star.engine.protocol import Engine, Outcome
from star.engine.worker import run_job, start_worker

VANISHED = 3.0  # seconds after which a job whose worker is gone is lost, if pebble has not noticed
START = 60.0  # seconds within which a job must have started in its worker
JOBS_PER_WORKER = 100  # then a fresh process: bounds whatever jobs leak


class ProcessPool(Engine):
    """`slots` workers, started when first needed (`spawn`: no inherited locks, threads or CUDA contexts).

    timeout: seconds after which a running job is killed, from its own start on this machine's monotonic clock
        (suspending the machine or correcting its clock does not count); None for no limit.
    environments: environment variables of each slot's workers, for example CUDA_VISIBLE_DEVICES; cycled over slots.
    progress_directory: where workers write the progress of running jobs; emptied at the start.
    """

    def __init__(
        self,
        function: str,
        slots: int,
        progress_directory: Path | str,
        timeout: float | None = None,
        environments: Sequence[dict[str, str]] = ({},),
    ):
        self.function, self.slots, self.timeout = function, slots, timeout
        self.on_progress: Callable[[str, dict], None] | None = None
        self.progress = ProgressDirectory(progress_directory)
        self._slots = [_Slot(f"worker {i}", environments[i % len(environments)]) for i in range(slots)]

    def submit(self, job_id: str, job: dict) -> None:
        slot = next(slot for slot in self._slots if slot.job is None)
        slot.start(job_id, self.function, job, self.progress.file(job_id))

    def poll(self, timeout: float) -> list[Outcome]:
        deadline = time.monotonic() + timeout
        while True:
            self.progress.show({slot.job.id for slot in self._slots if slot.job}, self.on_progress)
            outcomes = [outcome for slot in self._slots if (outcome := slot.outcome(self.timeout)) is not None]
            for outcome in outcomes:
                self.progress.forget(outcome.job_id)
            left = deadline - time.monotonic()
            running = [slot.job.future for slot in self._slots if slot.job]
            if outcomes or left <= 0 or not running:
                return outcomes
            wait(running, timeout=min(left, 0.25), return_when=FIRST_COMPLETED)

    def cancel(self, job_id: str) -> None:
        for slot in self._slots:
            if slot.job and slot.job.id == job_id:
                slot.stop()

    def close(self) -> None:
        for slot in self._slots:
            slot.stop()
        self.progress.close()


@dataclass
class _Job:
    """A job that a worker has."""

    id: str
    future: pebble.ProcessFuture
    pid_file: Path  # the worker writes its process id there when it takes the job
    submitted: float
    began: float = 0.0  # when the worker was first seen working on the job; 0 before
    gone: float = 0.0  # when the worker disappeared; 0 before

    def vanished(self, now: float) -> bool:
        """Whether the worker is gone. Pebble does not notice a worker that is killed while it starts (seen)."""
        try:
            pid = int(self.pid_file.read_text())
        except (OSError, ValueError):
            return now - self.submitted > START
        if pid in {process.pid for process in multiprocessing.active_children()}:
            self.gone = 0.0
            return False
        self.gone = self.gone or now
        return now - self.gone > VANISHED

    def result(self) -> dict[str, Any]:
        """Fields of the outcome, once the future is done."""
        try:
            return self.future.result()
        except pebble.ProcessExpired as death:
            code = death.exitcode
            how = f"was killed by signal {-code}" if code and code < 0 else f"ended with exit code {code}"
            hint = ": the machine may be out of memory" if code == -9 else ""
            return {"status": "lost", "reason": f"its worker {how}{hint}"}
        except BrokenProcessPool as error:
            hint = "a script that evolves must do so under `if __name__ == '__main__':`"
            return {"status": "lost", "reason": f"its worker could not start ({error}); {hint}"}
        except (CancelledError, RuntimeError, OSError) as error:
            return {"status": "lost", "reason": f"its worker pool broke ({type(error).__name__}: {error})"}


class _Slot:
    """One worker process at a time, and the job it has."""

    def __init__(self, name: str, environment: dict[str, str]):
        self.name, self.environment = name, environment
        self.pool: pebble.ProcessPool | None = None
        self.job: _Job | None = None

    def start(self, job_id: str, function: str, job: dict, progress_path: str) -> None:
        if self.pool is None or not self.pool.active:
            self.stop()
            self.pool = pebble.ProcessPool(
                max_workers=1,
                max_tasks=JOBS_PER_WORKER,
                initializer=start_worker,
                initargs=(os.getpid(), self.environment),
                context=multiprocessing.get_context("spawn"),
            )
        pid_file = Path(f"{progress_path}.pid")
        pid_file.unlink(missing_ok=True)
        future = self.pool.schedule(_run_with_progress, args=(function, job, progress_path))
        self.job = _Job(job_id, future, pid_file, time.monotonic())

    def outcome(self, timeout: float | None) -> Outcome | None:
        """The outcome of this slot's job, once it has one; the slot is free then."""
        job, now = self.job, time.monotonic()
        if job is None:
            return None
        if job.future.done():
            fields = job.result()
        else:
            if not job.began and job.future.running():
                job.began = now
            if job.vanished(now):
                fields = {"status": "lost", "reason": "its worker disappeared"}
            elif timeout and job.began and now - job.began >= timeout:
                fields = {"status": "timeout", "reason": f"killed after {timeout:g} s"}
            else:
                return None
        self.job = None
        if fields["status"] != "ok":  # an error may have left memory or state behind: fresh worker
            self.stop()
        facts: dict[str, Any] = {"job_id": job.id, "worker": self.name, "seconds": now - (job.began or job.submitted)}
        return Outcome(**facts | fields)

    def stop(self) -> None:
        """Kill the worker, if there is one, and drop its job. The next job starts a new worker."""
        pool, self.pool, self.job = self.pool, None, None
        if pool is not None:
            pool.stop()
            pool.join()


def _run_with_progress(function: str, job: dict, progress_path: str) -> dict:
    with contextlib.suppress(OSError):  # a full disk must not fail the job here
        Path(f"{progress_path}.pid").write_text(str(os.getpid()))
    return run_job(function, job, ProgressFile(progress_path))
