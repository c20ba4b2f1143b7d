"""Files of candidates that are too large for the record. Each is written completely or not at all."""

import json
import os
import shutil
from collections.abc import Callable, Container
from pathlib import Path

WEIGHTS = "weights.safetensors"
RESULT = "result.json"
CHECKPOINTS = "checkpoint-*.safetensors"  # one for each attempt that waits at a rung


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call write(temporary path), flush the file, and rename it to `path`. A reader sees the old file or the new."""
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
    """Write JSON, completely or not at all."""
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
        """The result of this attempt and rung, if its worker wrote it and the coordinator died before recording it."""
        try:
            data = json.loads((self.root / id / RESULT).read_text())
        except (OSError, ValueError):  # missing or damaged: the attempt is run again
            return None
        if not isinstance(data, dict):
            return None
        matches = (data.get("attempt"), data.get("seed"), data.get("rung", 0)) == (attempt, seed, rung)
        return data if matches else None

    def clean(self, keep_weights: Container[str], untouched: Container[str]) -> None:
        """Remove the results and checkpoints of settled candidates, and all weights except those of `keep_weights`.

        untouched: candidates that are not settled, whose files may still be needed.
        """
        for directory in self.root.iterdir() if self.root.is_dir() else ():
            if directory.name in untouched:
                continue
            if directory.name in keep_weights:
                for path in (directory / RESULT, *directory.glob(CHECKPOINTS)):
                    path.unlink(missing_ok=True)
            else:
                shutil.rmtree(directory, ignore_errors=True)
