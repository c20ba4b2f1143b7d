"""The interface of all engines, and the outcome that they return for each job."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

Report = Callable[[dict], None]


@dataclass(frozen=True)
class Outcome:
    """What became of one job.

    status: "ok", or another word that the function put under "status" in its result ("diverged", "timeout");
        "oom" (out of memory), "failed" (exception: `traceback` is set), "timeout" (killed past its deadline),
        "lost" (its worker died, through no fault of the job), "disk_full" (nothing can be written: stop, keep the job).
    result: what the function returned; None if it did not return.
    reason: one line of text; empty when ok.
    seconds: time its worker was busy with it, measured by the worker, or by the coordinator if the worker died.
    worker: where it ran, for example "worker 1".
    """

    job_id: str
    status: str
    result: dict | None = None
    reason: str = ""
    traceback: str | None = None
    seconds: float = 0.0
    worker: str = ""


class Engine(Protocol):
    """Runs `function(job, report) -> dict` for submitted jobs.

    The function is given by name, "module:function", and takes and returns plain JSON-able dicts. It may be a generator
    that yields between its steps: then one worker can run several jobs in turn. It may call
    `report(dict)` to show progress, which reaches `on_progress(job_id, dict)` in the coordinator now and then. Progress
    is for display only and may be lost.
    """

    slots: int  # jobs it can hold at one time
    on_progress: Callable[[str, dict], None] | None

    def submit(self, job_id: str, job: dict) -> None:
        """Take a job, and start it if a worker is free. There must be fewer than `slots` jobs without an outcome."""

    def poll(self, timeout: float) -> list[Outcome]:
        """Outcomes since the last call, each once; waits up to `timeout` seconds for the first."""

    def cancel(self, job_id: str) -> None:
        """Stop a job. It will have no outcome."""

    def close(self) -> None:
        """Stop all jobs and free all resources."""
