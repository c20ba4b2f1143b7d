"""Progress of running jobs: one small file per job, replaced by the worker and read by the coordinator.

Files, not a queue: a worker killed while it holds a queue's lock would block all the others.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path


class ProgressFile:
    """`report` for a job in another process: writes at most once every `every` seconds and never fails the job."""

    def __init__(self, path: str, every: float = 0.5):
        self.path, self.every, self.last = path, every, -every

    def __call__(self, progress: dict) -> None:
        now = time.monotonic()
        if now - self.last < self.every:
            return
        self.last = now
        with contextlib.suppress(OSError, TypeError, ValueError):
            with open(self.path + ".tmp", "w") as file:
                json.dump(progress, file)
            os.replace(self.path + ".tmp", self.path)


def read_progress(directory: Path | str) -> dict[str, dict]:
    """The latest progress of every job that has any, by job id. Missing or incomplete files are skipped."""
    found = {}
    for path in sorted(Path(directory).glob("*.json")):
        with contextlib.suppress(OSError, ValueError):
            found[path.stem] = json.loads(path.read_text())
    return found


class ProgressDirectory:
    """The coordinator's side: the files of all running jobs. Emptied at the start, removed at the end."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.shown: dict[str, dict] = {}
        self._clear()

    def file(self, job_id: str) -> str:
        """Path of the file for a job's `ProgressFile`."""
        return str(self.path / f"{job_id}.json")

    def show(self, running: Collection[str], on_progress: Callable[[str, dict], None] | None) -> None:
        """Call `on_progress` for every running job whose progress has changed."""
        if on_progress is None:
            return
        for job_id, progress in read_progress(self.path).items():
            if job_id in running and self.shown.get(job_id) != progress:
                self.shown[job_id] = progress
                on_progress(job_id, progress)

    def forget(self, job_id: str) -> None:
        """Remove the files of a job that has ended."""
        self.shown.pop(job_id, None)
        for path in self.path.glob(f"{job_id}.json*"):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove all files, and the directory if nothing else is in it."""
        self._clear()
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def _clear(self) -> None:
        for path in [*self.path.glob("*.json*"), *self.path.glob("coordinator-*")]:
            path.unlink(missing_ok=True)
