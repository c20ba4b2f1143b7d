"""One coordinator per run: an operating-system lock that is released when its process dies, even by SIGKILL.

Between machines it works if the file system supports flock: NFS on Linux does, Lustre without `-o flock` does not.
The record is a second guard: its writer stops when it finds events that it did not write.
"""

import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import TextIO

from star.errors import UserError

NAME = "run.lock"


class RunLock:
    """Exclusive lock of a run directory (flock). The text of the file says which process holds it."""

    def __init__(self, run: Path, patience: float = 1.0):
        """Raises UserError if another process still holds the run after `patience` seconds, or `run` is read-only."""
        self.path = run / NAME
        try:
            self.file = open(self.path, "a+")
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            hint = "change its permissions, or copy the run and continue with the copy"
            raise UserError(f"{run} cannot be written ({error.strerror}): {hint}") from None
        deadline = time.monotonic() + patience
        while not _try(self.file, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                self.file.seek(0)
                holder = self.file.read().strip() or "another process"
                self.file.close()
                hint = "wait for it, stop it, or use another run directory"
                raise UserError(f"{run} is being evolved by {holder}: {hint}")
            time.sleep(0.05)
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self.file.flush()

    def release(self) -> None:
        """Release the lock."""
        self.file.truncate(0)
        self.file.close()


def is_held(run: Path) -> bool:
    """Whether some process is evolving this run now."""
    try:
        with open(run / NAME) as file:
            return not _try(file, fcntl.LOCK_SH)
    except OSError:
        return False


def _try(file: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
