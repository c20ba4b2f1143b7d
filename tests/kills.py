"""Processes that are killed at a chosen moment, to test what a run survives."""

import contextlib
import os
import signal
from pathlib import Path

import pytest
from fakes import history

from star.engine import InProcess
from star.run import Run
from star.search import evolve
from star.store import CandidateFiles, Store

SMALL = {"search__population": 4, "search__generations": 4, "search__baselines": ("transformer++",)}
# Settings; slots (a steady-state search depends on the order of arrival, which one slot fixes); step between boundaries
MODES = [
    pytest.param({}, 2, 1, id="generations"),
    pytest.param({"search__asynchronous": True, "search__generations": 3}, 1, 1, id="steady state"),
    pytest.param({"search__rungs": (0.25, 0.5)}, 2, 4, id="rungs"),
    pytest.param({"search__rungs": (0.5,), "search__asynchronous": True}, 1, 7, id="rungs in a steady state"),
]


def child(function, *args) -> int:
    """Runs `function` in a forked process and returns how that ended: 0, 1 for an error, -9 for SIGKILL."""
    pid = os.fork()
    if pid == 0:
        try:
            function(*args)
            os._exit(0)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Fuse:
    """Kills its process at the k-th boundary, counted from 0; `passed` says how many there were."""

    def __init__(self, k: float):
        self.k, self.passed = k, 0

    def __call__(self, *_) -> None:
        if self.passed == self.k:
            os.kill(os.getpid(), signal.SIGKILL)
        self.passed += 1

    def around(self, owner, name: str) -> None:
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            self()
            result = original(*args, **kwargs)
            self()
            return result

        setattr(owner, name, wrapped)

    def install(self) -> None:
        transaction = Store._transaction

        @contextlib.contextmanager
        def killed_inside(store):
            with transaction(store):
                yield
                self()  # rows are written and not committed

        Store._transaction = killed_inside
        self.around(Store, "record")
        self.around(InProcess, "submit")
        self.around(InProcess, "poll")
        self.around(CandidateFiles, "clean")


def session(path: Path, settings, slots: int, k: float = float("inf"), function: str = "jobs:counted") -> None:
    """One call of `evolve`, to be run in a child. Writes the number of boundaries it passed beside the run."""
    fuse = Fuse(k)
    fuse.install()
    evolve(path, settings, engine=InProcess(function, slots=slots))
    (path.parent / "boundaries").write_text(str(fuse.passed))


def everything(path: Path) -> tuple:
    """Asks, tells and states, the front, and the result of every candidate; equal only if bit-identical."""
    found = Run(path)
    front = [(c.id, c.genome, c.objectives) for c in found.front()]
    candidates = [(c.id, c.status, c.objectives, c.origin, c.generation, c.parents) for c in found.candidates()]
    return history(path), front, candidates
