"""A run opened for work: locked, checked to be the same run, its record read, and an engine when it is needed.

with open_run(path) as session:
    session.record, session.config, session.corpus      # checked before anything is written
    engine = session.start_engine()                     # closed, like the store and the lock, at the end
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

import star
from star.assess.evaluations import load_evaluation
from star.config import RunConfig, diff
from star.engine import Engine
from star.errors import UserError
from star.search.workers import make_engine
from star.store import Record, RunLock, Store, read_meta

STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stoppable(Protocol):
    """A coordinator that ends cleanly when it is asked to."""

    stopped: bool

    def stop(self) -> None:
        """End cleanly soon."""


@dataclass
class Session:
    """Made by `open_run`. corpus: name, fingerprint, vocabulary, baselines of the text; record: all events so far."""

    path: Path
    config: RunConfig
    corpus: dict
    store: Store
    record: Record
    function: str  # "module:name" of what measures a candidate
    stack: contextlib.ExitStack

    def start_engine(self, engine: Engine | None = None, function: str = "") -> Engine:
        """The given engine, or a new one as configured, which is closed with the session.

        function: "module:name" of what it runs, if not what measures a candidate of the search.
        """
        if engine is None:
            engine = make_engine(self.config, function or self.function, self.path)
            self.stack.callback(engine.close)
        return engine

    @staticmethod
    def about(engine: Engine) -> dict:
        """Data of the "session" event that comes before any work."""
        return {"workers": engine.slots, "star": star.__version__, "packages": packages()}


@contextlib.contextmanager
def open_run(path: str | Path, workers: int | None = None, data: str | None = None) -> Iterator[Session]:
    """Open an existing run for work beside its search. workers: in place of `engine.workers`; data: where
    the text is now, if it was moved.

    Raises UserError if there is no run, if another process works on it, or if this software or the text differ from its
    own.
    """
    path = Path(path)
    meta = read_meta(path)
    config = RunConfig.from_json(meta["config"])
    check_same(path, meta, config)
    if workers is not None:
        config = config.replace({"engine.workers": workers})
    if data is not None:
        config = config.replace({"data.corpus": data}).located()
    evaluation = load_evaluation(config.evaluation)
    corpus = evaluation.prepare(config)
    corpus.pop("tokenizer_json", None)
    with contextlib.ExitStack() as stack:
        lock = RunLock(path)
        stack.callback(lock.release)
        store = Store(path, journal=config.journal)
        stack.callback(store.close)
        check_same(path, store.meta(), config, corpus)
        corpus["ladder"] = store.meta().get("ladder", ())
        function = f"{evaluation.__name__}:assess"
        yield Session(path, config, corpus, store, Record(store.events()), function, stack)


@dataclass(frozen=True)
class Ending:
    """How `evolve` ended. status: "finished", "interrupted" or "exhausted"; text: one sentence."""

    status: str
    text: str


def check_same(run: Path, meta: dict, config: RunConfig, corpus: dict | None = None) -> None:
    """Raises UserError, saying what differs, if this configuration, version or text is not that of the run."""
    if meta["star"] != star.__version__:
        raise UserError(
            f"{run} was made by star {meta['star']} and this is {star.__version__}: resume it with that version, "
            "or start another run directory (this version can still show, plot and export it)"
        )
    differences = diff(RunConfig.from_json(meta["config"]), config)
    if differences:
        told = "; ".join(f"{key} was {old!r} and is now {new!r}" for key, old, new in differences[:3])
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(
            f"{run} was started with another configuration: {told}{more}; use another run directory, "
            f"or resume it with its own configuration: star evolve {run} without options"
        )
    if corpus is not None and corpus["fingerprint"] != meta["corpus"]["fingerprint"]:
        raise UserError(
            f"the text of {config.data.corpus!r} is not the one that {run} was started with, so results could not be "
            "compared; give the original text with --data, or use another run directory"
        )


def packages() -> dict[str, str]:
    """Versions that a run's results may depend on."""
    found = {"star": star.__version__}
    for name in ("torch", "pymoo", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@contextlib.contextmanager
def stop_on_signals(work: Stoppable) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP stop the work; a second one raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number, frame):
        if work.stopped:
            raise KeyboardInterrupt
        work.stop()

    earlier = {number: signal.signal(number, handle) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
