"""One coordinator per run: an operating-system lock, which dies with its holder even under SIGKILL.

Between machines it holds where the file system passes flock on, as NFS of Linux does; some are mounted without (Lustre
without `-o flock`). There the record is the second line: its writer stops when it finds events that it did not write.
"""

import errno
import fcntl
import os
import socket
import time
from pathlib import Path

from star.errors import UserError

NAME = "run.lock"


class RunLock:
    """Exclusive lock of a run directory (flock). The text of the file says which process holds it."""

    def __init__(self, run: Path, patience: float = 1.0):
        """Raises UserError if another process still holds the run after `patience` seconds, or nothing can be written
        there.
        """
        self.path = run / NAME
        try:
            self.file = open(self.path, "a+")
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise UserError(
                f"{run} cannot be written ({error.strerror}): change its permissions, or copy the run and continue "
                "with the copy"
            ) from None
        deadline = time.monotonic() + patience
        while not _try(self.file, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                self.file.seek(0)
                holder = self.file.read().strip() or "another process"
                self.file.close()
                raise UserError(
                    f"{run} is being evolved by {holder}: wait for it, stop it, or use another run directory"
                )
            time.sleep(0.05)
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self.file.flush()

    def release(self) -> None:
        """Give the lock back."""
        self.file.truncate(0)
        self.file.close()


def is_held(run: Path) -> bool:
    """Whether some process is evolving this run now."""
    try:
        with open(run / NAME) as file:
            return not _try(file, fcntl.LOCK_SH)
    except OSError:
        return False


def _try(file, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
