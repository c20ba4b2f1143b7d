"""Jobs on a Ray cluster: many GPUs or many machines. Needs the extra `ray`; nothing else of STAR imports Ray.

Each job is one Ray task in a fresh process (`max_calls=1`: its exit frees all CUDA memory), with `max_retries=0`,
because the search decides what is tried again. The task is a generator of two items: where it runs, and its outcome. A
deadline therefore counts from the job's own start, even if the task had to queue on a shared cluster. When a driver
dies, Ray ends its tasks. From STAR this module imports only `star.errors`.
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

from star.engine.progress import ProgressDirectory, ProgressFile
from star.engine.protocol import Engine, Outcome, Report
from star.engine.worker import run_job
from star.errors import UserError

OBJECT_STORE = 100 * 2**20  # bytes on a local cluster; jobs are kilobytes in and out
PATIENCE = (
    4.0  # seconds within which a cluster must answer; Ray itself tries for more than a minute, and prints nothing
)
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(
    [0, 0, 0, 4, 0, 0, 0, 0, 0]
)  # to a gRPC server: preface, settings


class Ray(Engine):
    """`slots` tasks at a time on the cluster at `address`, or on a local cluster that this engine starts and stops.

    address: "" for RAY_ADDRESS if that is set, else this machine; "auto" or "host:port" for a running cluster.
    slots: reduced to as many as fit; 0 for as many as fit. cpus: CPU cores of each job.
    per_gpu: jobs that share a GPU, if the cluster has GPUs; 0 for jobs that need none.
    timeout: seconds after which a running job is killed, counted from its own start; None for no limit.
    environment: environment variables of each job.
    shared: a directory. On a machine that does not mount this directory, strings in the job that are paths inside it
        become None, and no progress is reported.
    Raises UserError if Ray is not installed, no cluster answers, or no machine of the cluster can run a job.
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
        self.progress = ProgressDirectory(self.shared / "progress")
        self.marker = self.progress.path / f"coordinator-{uuid.uuid4().hex}"  # seen only where the directory is mounted
        self.marker.touch()
        gpus = 1 / per_gpu if per_gpu else 0
        decorate = self.ray.remote(num_cpus=cpus, num_gpus=gpus, max_calls=1, max_retries=0, num_returns="streaming")
        self._task = decorate(_run)
        self._running: dict[str, _Task] = {}

    def submit(self, job_id: str, job: dict) -> None:
        if len(self._running) >= self.slots:
            raise RuntimeError(f"all {self.slots} slots of the engine are taken")
        paths = str(self.shared), str(self.marker), self.progress.file(job_id)
        items = self._task.remote(self.function, job, self.environment, *paths)
        self._running[job_id] = _Task(items, time.monotonic())

    def poll(self, timeout: float) -> list[Outcome]:
        deadline = time.monotonic() + timeout
        while True:
            self.progress.show(self._running, self.on_progress)
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
        self.progress.close()

    def _look(self, job_id: str) -> Outcome | None:
        """The outcome of a job, if there is one yet. Each job's errors are handled separately."""
        task, ray = self._running[job_id], self.ray
        try:
            while ray.wait([task.items], num_returns=1, timeout=0)[0]:
                item = ray.get(next(task.items))
                if "where" not in item:
                    return Outcome(job_id=job_id, worker=task.worker, **item)
                task.worker, task.began = item["where"], time.monotonic()
        except StopIteration:  # cannot happen: the task yields its outcome or raises
            return self._ended(job_id, "lost", "its worker ended without a result")
        except ray.exceptions.RayTaskError as error:  # `_run` itself failed: STAR is missing there or differs
            reason = f"the job could not be run on the cluster: {str(error).strip().splitlines()[-1]}"
            return Outcome(job_id, "failed", reason=reason[:500], traceback=str(error), worker=task.worker)
        except ray.exceptions.OutOfMemoryError:
            return self._ended(job_id, "lost", "Ray killed its worker because its machine was out of memory")
        except ray.exceptions.RayError as error:
            return self._ended(job_id, "lost", f"its worker or machine died ({type(error).__name__})")
        if not self.timeout or not task.began or time.monotonic() - task.began < self.timeout:
            return None
        self._kill(task)
        return self._ended(job_id, "timeout", f"killed after {self.timeout:g} s")

    def _ended(self, job_id: str, status: str, reason: str) -> Outcome:
        task = self._running[job_id]
        seconds = time.monotonic() - (task.began or task.submitted)
        return Outcome(job_id, status, reason=reason, seconds=seconds, worker=task.worker)

    def _kill(self, task: "_Task") -> None:
        with contextlib.suppress(self.ray.exceptions.RayError):
            self.ray.cancel(task.items, force=True)

    def _forget(self, job_id: str) -> None:
        self._running.pop(job_id, None)
        self.progress.forget(job_id)

    def _fitting(self, cpus: int, per_gpu: int) -> int:
        """How many jobs fit on the cluster at one time. A job runs on one machine."""
        machines = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        by_cpu = [int(machine.get("CPU", 0) // cpus) for machine in machines]
        by_gpu = [int(machine.get("GPU", 0)) * per_gpu for machine in machines] if per_gpu else by_cpu
        return sum(map(min, by_cpu, by_gpu))

    def _disconnect(self) -> None:
        if self.owns_cluster:
            self.ray.shutdown()


@dataclass
class _Task:
    items: Any  # ray.ObjectRefGenerator
    submitted: float
    began: float = 0.0  # when it was first known to be running; 0 before
    worker: str = ""


def import_ray():
    """The package `ray`. Raises UserError if it is missing."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise Ray sends usage statistics
    try:
        import ray
    except ImportError as error:
        raise UserError(
            f"engine.kind is 'ray' but the package ray is missing ({error}): pip install 'star[ray]'"
        ) from None
    return ray


def _connect(ray, address: str, cpus: int) -> None:
    """Connect to a cluster, or start a local one with all cores of this machine, but at least `cpus`."""
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
        if address != "auto":
            _greet(address)
        ray.init(address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        why = str(error).strip().splitlines()[0]
        raise UserError(
            f"engine.address is {address!r} but no Ray cluster answers there ({why}): start one by ray start "
            "--head, or leave the address out"
        ) from None


def _greet(address: str) -> None:
    """Raises OSError or ValueError unless a server that speaks Ray's protocol answers at HOST:PORT."""
    host, colon, port = address.rpartition(":")
    if not colon or not (port.isascii() and port.isdecimal() and int(port) < 2**16):
        raise ValueError("it is not HOST:PORT")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE) as connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
            return  # an encrypted port does not answer in clear
        connection.sendall(GREETING)
        with contextlib.suppress(TimeoutError):
            if connection.recv(9)[3:4] == b"\x04":  # its settings
                return
    raise ConnectionError("another program listens there")


def _run(function: str, job: dict, environment: dict[str, str], shared: str, marker: str, progress_path: str):
    """The task. Yields where it runs, then the fields of its Outcome."""
    os.environ.update(environment)
    yield {"where": f"{socket.gethostname()}:{os.getpid()}"}
    report: Report = ProgressFile(progress_path)
    if not os.path.exists(marker):
        prefix, report = os.path.join(shared, ""), _ignore
        job = {key: None if isinstance(v, str) and v.startswith(prefix) else v for key, v in job.items()}
    yield run_job(function, job, report)


def _ignore(progress: dict) -> None:
    pass
