"""Jobs one after the other in this process: the simplest to debug, without overhead for jobs that take microseconds."""

import functools
import time
from collections.abc import Callable

from star.engine.protocol import Engine, Outcome
from star.engine.worker import Cancelled, run_job


class InProcess(Engine):
    """Runs waiting jobs inside `poll`.

    Jobs are not isolated: a crash of the interpreter ends the run, and only the function itself can keep a deadline.
    With more than one slot, a poll can run several short jobs before it returns.
    """

    def __init__(self, function: str, slots: int = 1):
        self.function, self.slots = function, slots
        self.on_progress: Callable[[str, dict], None] | None = None
        self.waiting: dict[str, dict] = {}
        self.cancelled: set[str] = set()

    def submit(self, job_id: str, job: dict) -> None:
        self.waiting[job_id] = job

    def poll(self, timeout: float) -> list[Outcome]:
        """Run waiting jobs until `timeout` seconds have passed, but at least one if there is one."""
        outcomes: list[Outcome] = []
        deadline = time.monotonic() + timeout
        while self.waiting and (not outcomes or time.monotonic() < deadline):
            job_id = next(iter(self.waiting))
            try:
                fields = run_job(self.function, self.waiting[job_id], functools.partial(self._report, job_id))
                outcomes.append(Outcome(job_id=job_id, worker="in process", **fields))
            except Cancelled:
                self.cancelled.discard(job_id)
            self.waiting.pop(job_id, None)
        return outcomes

    def cancel(self, job_id: str) -> None:
        """Drop a waiting job, or stop the running one at its next report."""
        self.waiting.pop(job_id, None)
        self.cancelled.add(job_id)

    def close(self) -> None:
        self.waiting.clear()

    def _report(self, job_id: str, progress: dict) -> None:
        if self.on_progress is not None:
            self.on_progress(job_id, progress)
        if job_id in self.cancelled:
            raise Cancelled
