"""Progress of running jobs, as one small file per job that the worker replaces and the coordinator reads.

Files, not a queue: a worker killed while it holds a queue's lock would block all the others.
"""

import json
import os
import time
from pathlib import Path


class ProgressFile:
    """`report` for a job in another process: writes at most once per `every` seconds and never fails the job."""

    def __init__(self, path: str, every: float = 0.5):
        self.path, self.every, self.last = path, every, -every

    def __call__(self, progress: dict) -> None:
        now = time.monotonic()
        if now - self.last < self.every:
            return
        self.last = now
        try:
            with open(self.path + ".tmp", "w") as file:
                json.dump(progress, file)
            os.replace(self.path + ".tmp", self.path)
        except (OSError, TypeError, ValueError):
            pass


def read_progress(directory: Path | str) -> dict[str, dict]:
    """The last progress of every job that has any, by job id. A file that is missing or half there is skipped."""
    found = {}
    for path in sorted(Path(directory).glob("*.json")):
        try:
            found[path.stem] = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
    return found
