"""Jobs in worker processes on this machine, each of which may crash, hang or be killed at the cost of its job only.

One single-worker pebble pool per slot, so that a replacement worker inherits its slot's GPU. Facts behind this
file (measured): a killed worker costs its own task only; `cancel` kills a running task within 0.3 s; importing
torch takes seconds, so workers live on and are replaced after an error or after many jobs.
"""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pebble

from star.engine.progress import ProgressFile, read_progress
from star.engine.protocol import Engine, Outcome
from star.engine.worker import run_job, start_worker

VANISHED = 3.0  # seconds after which a job whose worker is gone is given up, if pebble has not noticed
START = 60.0  # seconds within which a job must have started in its worker
JOBS_PER_WORKER = 100  # then a fresh process: bounds whatever a job leaks


class ProcessPool(Engine):
    """`slots` workers, started when first needed (`spawn`: no inherited locks, threads or CUDA contexts).

    timeout: seconds after which a running job is killed, from its own start on this machine's monotonic clock
        (a suspended laptop or a corrected clock times nothing out); None for no limit.
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
        self.progress_directory = Path(progress_directory)
        self.progress_directory.mkdir(parents=True, exist_ok=True)
        self._clear_progress()
        self._shown: dict[str, dict] = {}
        self._slots = [_Slot(f"worker {i}", environments[i % len(environments)]) for i in range(slots)]

    def submit(self, job_id: str, job: dict) -> None:
        slot = next(slot for slot in self._slots if slot.job_id is None)
        slot.start(job_id, _run_with_progress, (self.function, job, str(self.progress_directory / f"{job_id}.json")))

    def poll(self, timeout: float) -> list[Outcome]:
        deadline = time.monotonic() + timeout
        while True:
            self._show_progress()
            outcomes = [outcome for slot in self._slots if (outcome := slot.outcome(self.timeout)) is not None]
            for outcome in outcomes:
                self._shown.pop(outcome.job_id, None)
                for path in self.progress_directory.glob(f"{outcome.job_id}.json*"):
                    path.unlink(missing_ok=True)
            left = deadline - time.monotonic()
            running = [slot.future for slot in self._slots if slot.job_id is not None]
            if outcomes or left <= 0 or not running:
                return outcomes
            wait(running, timeout=min(left, 0.25), return_when=FIRST_COMPLETED)

    def cancel(self, job_id: str) -> None:
        for slot in self._slots:
            if slot.job_id == job_id:
                slot.free(stop=True)

    def close(self) -> None:
        for slot in self._slots:
            slot.stop()
        self._clear_progress()
        with contextlib.suppress(OSError):
            self.progress_directory.rmdir()

    def _show_progress(self) -> None:
        if self.on_progress is None:
            return
        running = {slot.job_id for slot in self._slots}
        for job_id, progress in read_progress(self.progress_directory).items():
            if job_id in running and self._shown.get(job_id) != progress:
                self._shown[job_id] = progress
                self.on_progress(job_id, progress)

    def _clear_progress(self) -> None:
        for path in self.progress_directory.glob("*.json*"):
            path.unlink(missing_ok=True)


class _Slot:
    """One worker process at a time, and the job it holds."""

    def __init__(self, name: str, environment: dict[str, str]):
        self.name, self.environment = name, environment
        self.pool: pebble.ProcessPool | None = None
        self.job_id: str | None = None
        self.future: pebble.ProcessFuture | None = None
        self.submitted = self.began = 0.0  # began: when the worker was first seen working on the job; 0 before
        self.pid_file: Path | None = None  # which worker has the job, written by it
        self.gone = 0.0  # when that worker disappeared

    def start(self, job_id: str, function: Callable, args: tuple) -> None:
        if self.pool is None or not self.pool.active:
            self.stop()
            self.pool = pebble.ProcessPool(
                max_workers=1,
                max_tasks=JOBS_PER_WORKER,
                initializer=start_worker,
                initargs=(os.getpid(), self.environment),
                context=multiprocessing.get_context("spawn"),
            )
        self.job_id, self.submitted, self.began = job_id, time.monotonic(), 0.0
        self.pid_file, self.gone = Path(f"{args[2]}.pid"), 0.0
        self.pid_file.unlink(missing_ok=True)
        self.future = self.pool.schedule(function, args=args)

    def _vanished(self, now: float) -> bool:
        """Whether the worker is gone without pebble noticing, which loses a worker that is killed while it starts
        (seen).
        """
        try:
            pid = int(self.pid_file.read_text())
        except (OSError, ValueError):
            return now - self.submitted > START
        if pid in {process.pid for process in multiprocessing.active_children()}:
            self.gone = 0.0
            return False
        self.gone = self.gone or now
        return now - self.gone > VANISHED

    def outcome(self, timeout: float | None) -> Outcome | None:
        """The outcome of this slot's job, once it has one; the slot is free then."""
        if self.job_id is None:
            return None
        now, job_id = time.monotonic(), self.job_id
        if not self.future.done():
            if not self.began and self.future.running():
                self.began = now
            if self._vanished(now):
                fields = {"status": "lost", "reason": "its worker disappeared"}
            elif timeout and self.began and now - self.began >= timeout:
                fields = {"status": "timeout", "reason": f"killed after {timeout:g} s"}
            else:
                return None
            self.free(stop=True)
        else:
            fields = self._result()
            self.free(stop=fields["status"] != "ok")  # an error may have left memory or state behind: fresh worker
        return Outcome(
            **({"job_id": job_id, "worker": self.name, "seconds": now - (self.began or self.submitted)} | fields)
        )

    def _result(self) -> dict:
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

    def free(self, stop: bool) -> None:
        self.job_id = self.future = None
        if stop:
            self.stop()

    def stop(self) -> None:
        """Kill the worker, if there is one. A new one is started for the next job."""
        pool, self.pool = self.pool, None
        if pool is not None:
            pool.stop()
            pool.join()


def _run_with_progress(function: str, job: dict, progress_path: str) -> dict:
    with contextlib.suppress(OSError):  # a full disk must not fail the job here
        Path(f"{progress_path}.pid").write_text(str(os.getpid()))
    return run_job(function, job, ProgressFile(progress_path))
