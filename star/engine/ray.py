"""Jobs on a Ray cluster: many GPUs or many machines. Needs the extra `ray`; nothing else of STAR imports Ray.

Each job is one Ray task in a fresh process (`max_calls=1`: its exit frees all CUDA memory), with `max_retries=0`,
because who is tried again is the search's decision. The task is a generator of two items, where it runs and what became
of it, so that a deadline counts from the job's own start even if the cluster is shared and the task had to queue. Ray
ends a driver's tasks with the driver. Imports `star.errors`.
"""

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from star.engine.progress import ProgressFile, read_progress
from star.engine.protocol import Engine, Outcome
from star.engine.worker import run_job
from star.errors import UserError

OBJECT_STORE = 100 * 2**20  # bytes on a local cluster; jobs are kilobytes in and out


class Ray(Engine):
    """`slots` tasks at a time on the cluster at `address`, or on one of its own on this machine, which ends with it.

    address: "" for RAY_ADDRESS if that is set, else this machine; "auto" or "host:port" for a cluster that runs.
    slots: 0 for as many as fit; more than fit are cut. cpus: CPU cores of each job.
    per_gpu: jobs that share a GPU, if the cluster has GPUs; 0 for jobs that need none.
    timeout: seconds after which a running job is killed, counted from its own start; None for no limit.
    environment: environment variables of each job.
    shared: a directory. Where a job cannot see this very directory, because its machine does not mount it, strings in
        the job that are paths inside become None, and there is no progress.
    Raises UserError if Ray is not installed, or no cluster answers, or it has nothing for a job to run on.
    """

    def __init__(
        self,
        function: str,
        slots: int = 0,
        shared: Path | str = ".",
        address: str = "",
        timeout: float | None = None,
        cpus: int = 1,
        per_gpu: int = 0,
        environment: dict[str, str] | None = None,
    ):
        self.function, self.timeout, self.environment = function, timeout, dict(environment or {})
        self.on_progress: Callable[[str, dict], None] | None = None
        self.ray = import_ray()
        self.owns_cluster = not self.ray.is_initialized()
        if self.owns_cluster:
            _connect(self.ray, address or os.environ.get("RAY_ADDRESS", ""), max(slots, 1) * cpus)
        per_gpu = per_gpu if self.ray.cluster_resources().get("GPU") else 0
        fitting = self._fitting(cpus, per_gpu)
        if not fitting:
            self._disconnect()
            needs = f"a GPU and {cpus} CPU cores" if per_gpu else f"{cpus} CPU cores"
            raise UserError(
                f"no machine of the Ray cluster has {needs} for a candidate: lower engine.threads or add machines"
            )
        self.slots = min(slots or fitting, fitting)
        self.shared = Path(shared).absolute()
        self.progress_directory = self.shared / "progress"
        self.progress_directory.mkdir(parents=True, exist_ok=True)
        self._clear_progress()
        # Who sees it sees this very directory
        self.marker = self.progress_directory / f"coordinator-{uuid.uuid4().hex}"
        self.marker.touch()
        gpus = 1 / per_gpu if per_gpu else 0
        decorate = self.ray.remote(num_cpus=cpus, num_gpus=gpus, max_calls=1, max_retries=0, num_returns="streaming")
        self._task = decorate(_run)
        self._running: dict[str, _Task] = {}
        self._shown: dict[str, dict] = {}

    def submit(self, job_id: str, job: dict) -> None:
        if len(self._running) >= self.slots:
            raise RuntimeError(f"the engine has {self.slots} slots and all are taken")
        place = (str(self.shared), str(self.marker), str(self.progress_directory / f"{job_id}.json"))
        items = self._task.remote(self.function, job, self.environment, *place)
        self._running[job_id] = _Task(items, time.monotonic())

    def poll(self, timeout: float) -> list[Outcome]:
        deadline = time.monotonic() + timeout
        while True:
            self._show_progress()
            outcomes = [outcome for job_id in list(self._running) if (outcome := self._look(job_id)) is not None]
            for outcome in outcomes:
                self._forget(outcome.job_id)
            left = deadline - time.monotonic()
            if outcomes or left <= 0 or not self._running:
                return outcomes
            self.ray.wait([task.items for task in self._running.values()], num_returns=1, timeout=min(left, 0.25))

    def cancel(self, job_id: str) -> None:
        if job_id in self._running:
            self._kill(self._running[job_id])
            self._forget(job_id)

    def close(self) -> None:
        for job_id in list(self._running):
            self.cancel(job_id)
        self._disconnect()
        self._clear_progress()
        with contextlib.suppress(OSError):
            self.progress_directory.rmdir()

    def _look(self, job_id: str) -> Outcome | None:
        """What became of a job, if it is known. Errors of each job are caught alone."""
        task, ray = self._running[job_id], self.ray
        try:
            while ray.wait([task.items], num_returns=1, timeout=0)[0]:
                item = ray.get(next(task.items))
                if "where" not in item:
                    return Outcome(job_id=job_id, worker=task.worker, **item)
                task.worker, task.began = item["where"], time.monotonic()
        except StopIteration:  # cannot happen: the task yields its outcome or raises
            return self._lost(job_id, "its worker ended without a result")
        except (
            ray.exceptions.RayTaskError
        ) as error:  # our own body did not run: STAR is missing there, or another version
            reason = f"the job could not be run on the cluster: {str(error).strip().splitlines()[-1]}"
            return Outcome(job_id, "failed", reason=reason[:500], traceback=str(error), worker=task.worker)
        except ray.exceptions.OutOfMemoryError:
            return self._lost(job_id, "Ray killed its worker because its machine was out of memory")
        except ray.exceptions.RayError as error:
            return self._lost(job_id, f"its worker or machine died ({type(error).__name__})")
        if not self.timeout or not task.began or time.monotonic() - task.began < self.timeout:
            return None
        self._kill(task)
        seconds = time.monotonic() - task.began
        return Outcome(
            job_id, "timeout", reason=f"killed after {self.timeout:g} s", seconds=seconds, worker=task.worker
        )

    def _lost(self, job_id: str, reason: str) -> Outcome:
        task = self._running[job_id]
        seconds = time.monotonic() - (task.began or task.submitted)
        return Outcome(job_id, "lost", reason=reason, seconds=seconds, worker=task.worker)

    def _kill(self, task: "_Task") -> None:
        with contextlib.suppress(self.ray.exceptions.RayError):
            self.ray.cancel(task.items, force=True)

    def _forget(self, job_id: str) -> None:
        self._running.pop(job_id, None)
        self._shown.pop(job_id, None)
        (self.progress_directory / f"{job_id}.json").unlink(missing_ok=True)

    def _fitting(self, cpus: int, per_gpu: int) -> int:
        """Jobs that the machines of the cluster hold together. A job does not stretch over two of them."""
        machines = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        by_cpu = [int(machine.get("CPU", 0) // cpus) for machine in machines]
        by_gpu = [int(machine.get("GPU", 0)) * per_gpu for machine in machines] if per_gpu else by_cpu
        return sum(map(min, by_cpu, by_gpu))

    def _show_progress(self) -> None:
        if self.on_progress is None:
            return
        for job_id, progress in read_progress(self.progress_directory).items():
            if job_id in self._running and self._shown.get(job_id) != progress:
                self._shown[job_id] = progress
                self.on_progress(job_id, progress)

    def _clear_progress(self) -> None:
        for path in [*self.progress_directory.glob("*.json*"), *self.progress_directory.glob("coordinator-*")]:
            path.unlink(missing_ok=True)

    def _disconnect(self) -> None:
        if self.owns_cluster:
            self.ray.shutdown()


@dataclass
class _Task:
    items: Any  # ray.ObjectRefGenerator
    submitted: float
    began: float = 0.0  # when it was first known to run; 0 before
    worker: str = ""


def import_ray():
    """Raises UserError if the package is missing."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    try:
        import ray
    except ImportError as error:
        raise UserError(
            f"engine.kind is 'ray' but the package ray is missing ({error}): pip install 'star[ray]'"
        ) from None
    return ray


def _connect(ray, address: str, cpus: int) -> None:
    """Connect to a cluster, or start one here: with all cores of this machine, and at least `cpus`."""
    quiet = {"log_to_driver": False, "logging_level": "error"}
    if address.startswith("ray://"):
        raise UserError(
            f"engine.address is {address!r}: run star on a machine of the cluster and write auto or HOST:PORT"
        )
    if not address or address == "local":
        cpus = max(cpus, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        ray.init("local", num_cpus=cpus, include_dashboard=False, object_store_memory=OBJECT_STORE, **quiet)
        return
    try:
        ray.init(address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        why = str(error).strip().splitlines()[0]
        raise UserError(
            f"engine.address is {address!r} but no Ray cluster answers there ({why}): start one by ray start "
            "--head, or leave the address out"
        ) from None


def _run(function: str, job: dict, environment: dict[str, str], shared: str, marker: str, progress_path: str):
    """The task. Yields where it runs, then the fields of its Outcome."""
    os.environ.update(environment)
    yield {"where": f"{socket.gethostname()}:{os.getpid()}"}
    report = ProgressFile(progress_path)
    if not os.path.exists(marker):
        inside, report = os.path.join(shared, ""), _say_nothing
        job = {
            key: None if isinstance(value, str) and value.startswith(inside) else value for key, value in job.items()
        }
    yield run_job(function, job, report)


def _say_nothing(progress: dict) -> None:
    pass
