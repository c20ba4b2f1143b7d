"""The few things too large for the record: files of candidates, always written whole or not at all."""

import json
import os
import shutil
from collections.abc import Callable, Container
from pathlib import Path

WEIGHTS = "weights.safetensors"
RESULT = "result.json"
CHECKPOINTS = "checkpoint-*.safetensors"  # one for each attempt that waits at a rung


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls write(temporary path), then puts the file in place. A reader sees the old file or the new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: dict) -> None:
    """Write JSON, whole or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(data)))


class CandidateFiles:
    """The directory `candidates/` of a run, or `refined/`, whose candidates are trials."""

    def __init__(self, run: Path, name: str = "candidates"):
        self.root = Path(run) / name

    def directory(self, id: str) -> Path:
        """The directory of a candidate."""
        return self.root / id

    def weights(self, id: str) -> Path | None:
        """The file with weights, or None."""
        path = self.root / id / WEIGHTS
        return path if path.exists() else None

    def result(self, id: str, attempt: int, seed: int, rung: int = 0) -> dict | None:
        """What a worker finished writing for this attempt and rung, if its coordinator died before recording it."""
        try:
            data = json.loads((self.root / id / RESULT).read_text())
        except (OSError, ValueError):  # missing, or torn by something other than us: the attempt is run again
            return None
        if not isinstance(data, dict) or (data.get("attempt"), data.get("seed"), data.get("rung", 0)) != (
            attempt,
            seed,
            rung,
        ):
            return None
        return data

    def clean(self, keep_weights: Container[str], untouched: Container[str]) -> None:
        """Remove what the record makes superfluous: results and checkpoints of settled candidates, and weights that
        need not be kept.

        untouched: candidates that are not settled, whose files may be needed yet.
        """
        for directory in self.root.iterdir() if self.root.is_dir() else ():
            if directory.name in untouched:
                continue
            if directory.name in keep_weights:
                for path in (directory / RESULT, *directory.glob(CHECKPOINTS)):
                    path.unlink(missing_ok=True)
            else:
                shutil.rmtree(directory, ignore_errors=True)
