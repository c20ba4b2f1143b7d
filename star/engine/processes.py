"""Jobs in worker processes on this machine. A worker may crash, hang or be killed; that costs only its own job.

Each worker is a pebble pool of one process, so that a replacement process inherits its GPU. Measured facts
behind this file: a killed worker costs only its own task; `cancel` kills a running task within 0.3 s; importing torch
takes seconds, so workers are kept, and replaced only after an error or after many jobs.
"""

import contextlib
import errno
import importlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pebble

from star.engine.progress import ProgressDirectory, ProgressFile
from star.engine.protocol import Engine, Outcome
from star.engine.worker import run_job, run_side_by_side, start_worker
from star.errors import UserError

VANISHED = 3.0  # seconds after which a job whose worker is gone is lost, if pebble has not noticed
START = 60.0  # seconds within which a job must have started in its worker
SHARED_MEMORY = "/dev/shm"  # where Linux keeps the locks of processes
JOBS_PER_WORKER = 100  # then a fresh process: bounds whatever jobs leak


class ProcessPool(Engine):
    """`workers` processes, started when first needed (`spawn`: no inherited locks, threads or CUDA contexts).

    company: job -> how many jobs may share a worker with it, itself included; None: each has a worker to itself. If the
        worker dies, all of them are lost.
    most: the largest number that `company` gives.
    timeout: seconds after which a running job is killed, from its own start on this machine's monotonic clock
        (suspending the machine or correcting its clock does not count); None for no limit.
    environments: environment variables of each worker, for example CUDA_VISIBLE_DEVICES; cycled over the workers.
    progress_directory: where workers write the progress of running jobs; emptied at the start.
    started: workers to use in place of new ones, see `start_workers`.
    """

    def __init__(
        self,
        function: str,
        workers: int,
        progress_directory: Path | str,
        timeout: float | None = None,
        environments: Sequence[dict[str, str]] = ({},),
        company: Callable[[dict], int] | None = None,
        most: int = 1,
        started: Sequence["Worker"] = (),
    ):
        self.function, self.slots, self.timeout = function, workers * most, timeout
        self.company = company or (lambda job: 1)
        self.on_progress: Callable[[str, dict], None] | None = None
        self.progress = ProgressDirectory(progress_directory)
        self.waiting: dict[str, dict] = {}
        self._workers = list(started) or make_workers(workers, environments)

    def submit(self, job_id: str, job: dict) -> None:
        self.waiting[job_id] = job
        if self.company(job) == 1:  # others wait for company until the next poll
            self._start()

    def poll(self, timeout: float) -> list[Outcome]:
        deadline = time.monotonic() + timeout
        while True:
            self._start()
            groups = [worker.group for worker in self._workers if worker.group]
            self.progress.show({job_id for group in groups for job_id in group.jobs}, self.on_progress)
            outcomes = [outcome for worker in self._workers for outcome in worker.outcomes(self.timeout)]
            for outcome in outcomes:
                self.progress.forget(outcome.job_id)
            left = deadline - time.monotonic()
            running = [worker.group.future for worker in self._workers if worker.group]
            if outcomes or left <= 0 or not running:
                return outcomes
            wait(running, timeout=min(left, 0.25), return_when=FIRST_COMPLETED)

    def _start(self) -> None:
        """Give waiting jobs to free workers, in their order, with as many beside the first as all of them allow."""
        for worker in self._workers:
            if worker.group or not self.waiting:
                continue
            chosen, most = dict[str, dict](), len(self.waiting)
            for job_id, job in self.waiting.items():
                allowed = min(most, self.company(job))
                if len(chosen) < allowed:
                    chosen[job_id], most = job, allowed
            for job_id in chosen:
                del self.waiting[job_id]
            worker.start(self.function, chosen, [self.progress.file(job_id) for job_id in chosen])

    def cancel(self, job_id: str) -> None:
        self.waiting.pop(job_id, None)
        for worker in self._workers:
            if worker.group and job_id in worker.group.jobs:
                others = {other: job for other, job in worker.group.jobs.items() if other != job_id}
                worker.stop()
                self.waiting = others | self.waiting

    def close(self) -> None:
        self.waiting.clear()
        for worker in self._workers:
            worker.stop()
        self.progress.close()


@contextlib.contextmanager
def named_shared_memory() -> Iterator[None]:
    """For starting processes: their locks are files in shared memory, whose errors name no file. Raises UserError."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT):
            raise
        wrong = f"cannot be written ({error.strerror}): mount it with write access"
        what = "is full: free some space there" if error.errno == errno.ENOSPC else wrong
        raise UserError(
            f"{SHARED_MEMORY}, where worker processes keep their locks, {what}, or do without: --engine inprocess"
        ) from None


@dataclass
class _Group:
    """Jobs that a worker runs side by side; mostly one."""

    jobs: dict[str, dict]  # by id
    future: pebble.ProcessFuture
    pid_file: Path  # the worker writes its process id there when it takes the jobs
    submitted: float
    began: float = 0.0  # when the worker was first seen working on the jobs; 0 before
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

    def results(self) -> list[dict[str, Any]]:
        """Fields of the outcomes of all jobs, once the future is done."""
        try:
            return self.future.result()
        except pebble.ProcessExpired as death:
            code = death.exitcode
            how = f"was killed by signal {-code}" if code and code < 0 else f"ended with exit code {code}"
            hint = ": the machine may be out of memory" if code == -9 else ""
            reason = f"its worker {how}{hint}"
        except BrokenProcessPool as error:
            hint = "a script that evolves must do so under `if __name__ == '__main__':`"
            reason = f"its worker could not start ({error}); {hint}"
        except (CancelledError, RuntimeError, OSError) as error:
            reason = f"its worker pool broke ({type(error).__name__}: {error})"
        return self.all("lost", reason)

    def all(self, status: str, reason: str) -> list[dict[str, Any]]:
        """The same fields for every job."""
        return [{"status": status, "reason": reason}] * len(self.jobs)


class Worker:
    """One process at a time, and the jobs it has."""

    def __init__(self, name: str, environment: dict[str, str]):
        self.name, self.environment = name, environment
        self.pool: pebble.ProcessPool | None = None
        self.group: _Group | None = None

    def start(self, function: str, jobs: dict[str, dict], progress_paths: list[str]) -> None:
        """Give it these jobs. It must be free."""
        pid_file = Path(f"{progress_paths[0]}.pid")
        pid_file.unlink(missing_ok=True)
        future = self.schedule(_run_with_progress, function, list(jobs.values()), progress_paths)
        self.group = _Group(jobs, future, pid_file, time.monotonic())

    def schedule(self, function: Callable, *arguments: Any) -> pebble.ProcessFuture:
        """Call the function in its process, after whatever was scheduled before."""
        with named_shared_memory():
            if self.pool is None or not self.pool.active:
                self.stop()
                self.pool = pebble.ProcessPool(
                    max_workers=1,
                    max_tasks=JOBS_PER_WORKER,
                    initializer=start_worker,
                    initargs=(os.getpid(), self.environment),
                    context=multiprocessing.get_context("spawn"),
                )
            return self.pool.schedule(function, args=arguments)

    def outcomes(self, timeout: float | None) -> list[Outcome]:
        """The outcomes of this worker's jobs, once it has them; the worker is free then."""
        group, now = self.group, time.monotonic()
        if group is None:
            return []
        if group.future.done():
            results = group.results()
        else:
            if not group.began and group.future.running():
                group.began = now
            if group.vanished(now):
                results = group.all("lost", "its worker disappeared")
            elif timeout and group.began and now - group.began >= timeout:
                # Of several jobs, some may have ended in time: all are repeated, each alone.
                status = "timeout" if len(group.jobs) == 1 else "lost"
                results = group.all(status, f"killed after {timeout:g} s")
            else:
                return []
        self.group = None
        if any(fields["status"] not in ("ok", "diverged") for fields in results):
            self.stop()  # an error may have left memory or state behind
        known: dict[str, Any] = {"worker": self.name, "seconds": now - (group.began or group.submitted)}
        return [Outcome(job_id=id, **known | fields) for id, fields in zip(group.jobs, results, strict=True)]

    def stop(self) -> None:
        """Kill the process, if there is one, and drop its jobs. The next jobs start a new process."""
        pool, self.pool, self.group = self.pool, None, None
        if pool is not None:
            pool.stop()
            pool.join()


def make_workers(count: int, environments: Sequence[dict[str, str]] = ({},)) -> list[Worker]:
    """Workers without processes yet; the environments are cycled over them."""
    return [Worker(f"worker {i}", environments[i % len(environments)]) for i in range(count)]


def start_workers(function: str, workers: Sequence[Worker]) -> None:
    """Start their processes, and in each call `warm_up` of the module of `function`, if it has one."""
    for worker in workers:
        worker.schedule(_warm_up, function)


def _warm_up(function: str) -> None:
    warm_up = getattr(importlib.import_module(function.partition(":")[0]), "warm_up", None)
    if warm_up is not None:
        warm_up()


def _run_with_progress(function: str, jobs: list[dict], progress_paths: list[str]) -> list[dict]:
    with contextlib.suppress(OSError):  # a full disk must not fail the jobs here
        Path(f"{progress_paths[0]}.pid").write_text(str(os.getpid()))
    reports = [ProgressFile(path) for path in progress_paths]
    if len(jobs) == 1:
        return [run_job(function, jobs[0], reports[0])]
    return run_side_by_side(function, jobs, reports)
