"""Start a run or resume one: check that it is the same run, rebuild the algorithm from its record, and loop."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import star
from star.assess import load_objectives
from star.assess.evaluations import load_evaluation
from star.config import RunConfig
from star.data.tokenizer import TOKENIZER_FILE, token_word
from star.engine import Engine
from star.errors import UserError
from star.genome import POOL
from star.search.algorithm import Algorithm, Told, load_algorithm
from star.search.events import Callback, Emitter
from star.search.ladders import steps_of, with_horizon
from star.search.loop import Loop
from star.search.region import unused, within_region
from star.search.session import Ending, check_same, packages, stop_on_signals
from star.search.spaces import check_bounds, left_out, make_baselines, make_space
from star.search.workers import early_workers, make_engine
from star.store import Event, Record, RunLock, Store
from star.store.database import exists, read_meta
from star.store.files import write_atomically
from star.surrogate.screening import make_surrogate


def evolve(
    run: str | Path,
    config: RunConfig,
    engine: Engine | None = None,
    callbacks: Iterable[Callback] = (),
    before: Callable[[RunConfig], None] | None = None,
) -> Ending:
    """Evolve a population in the directory `run`, or resume an earlier call, however it ended.

    engine: default: as `config.engine` says. callbacks: see `star.search.events`.
    before: called once everything has been checked and before a new run is created, which an exception prevents.
    The first Ctrl-C (or SIGTERM) ends the run cleanly, a second one at once.
    Raises UserError if the directory holds something else or another run; RunFailed if all of the first generation
    fails or the disk is full. Whatever is raised, the record stays, and the same call resumes.
    """
    run, emit = Path(run), Emitter(callbacks)
    config, ranked = with_horizon(config.located(), run)
    resumed = exists(run)
    if resumed:
        check_same(run, read_meta(run), config)
    space = make_space(config)
    baselines = make_baselines(space, config)
    evaluation = load_evaluation(config.evaluation)
    load_objectives(config.objectives.names)  # a wrong name is an error before anything is created
    corpus = evaluation.prepare(config)
    tokenizer = corpus.pop("tokenizer_json", None)
    ladder = [] if resumed else steps_of(config)
    check_bounds(space, config, corpus["vocab_size"])
    space = within_region(space, baselines, config, corpus["vocab_size"])
    algorithm = load_algorithm(space, config, make_surrogate(config, corpus["vocab_size"]))
    function = f"{evaluation.__name__}:assess"
    with contextlib.ExitStack() as stack:
        workers = early_workers(config, function) if engine is None else []
        for worker in workers:
            stack.callback(worker.stop)
        if before is not None and not resumed:
            before(config)
        run.mkdir(parents=True, exist_ok=True)
        lock = RunLock(run)
        stack.callback(lock.release)
        meta = {"star": star.__version__, "config": config.to_json(), "space": space.to_json(), "corpus": corpus}
        meta |= {"ladder": ladder} if ladder else {}
        store = Store(run, meta | {"packages": packages()}, journal=config.journal)
        stack.callback(store.close)
        stored = store.meta()
        corpus = corpus | {"ladder": stored.get("ladder", ())}
        check_same(run, stored, config, corpus)  # again: another process may have been faster
        if tokenizer is not None and not (run / TOKENIZER_FILE).exists():
            write_atomically(run / TOKENIZER_FILE, lambda path: path.write_text(tokenizer, encoding="utf-8"))
        if stored["config"] != config.to_json():
            store.set_meta("config", config.to_json())  # resumable settings may change
        events = store.events()
        replay(algorithm, events, run, stored)
        if engine is None:
            engine = make_engine(config, function, run, functools.partial(emit, "message", level="info"), workers)
            stack.callback(engine.close)
        if ranked:
            emit("message", level="info", text=ranked)
        if unused(config):
            text = f"all sizes are searched: {config.search.region} is relative to baselines, and there are none"
            emit("message", level="info", text=text)
        for note in corpus.get("notes", ()):
            emit("message", level="info", text=f"{corpus['name']}: {note}")
        if unfit := left_out(config):
            names = ", ".join(POOL[number - 1].name for number in unfit)
            text = f"left out, because they do not fit a width of this space: {names} ({next(iter(unfit.values()))})"
            emit("message", level="info", text=text)
        record = Record(events)
        loop = Loop(run, config, corpus, store, record, algorithm, engine, emit)
        with stop_on_signals(loop):
            session = {"workers": engine.slots, "star": star.__version__, "packages": packages()}
            loop.start(baselines, session)
            emit(
                "run_start",
                run=str(run),
                resumed=resumed,
                generation=max(record.generation, 0),
                generations=config.search.generations,
                population=config.search.population,
                workers=engine.slots,
                corpus=corpus["name"],
                token=token_word(corpus),
                bytes_per_token=corpus.get("bytes_per_token", 1.0),
                baselines=corpus["baselines"],
                **loop.budget(),
            )
            unfinished = loop.run()
        ending = _ending(run, loop, unfinished)
        emit("run_end", status=ending.status, text=ending.text, **loop.budget())
        return ending


def _ending(run: Path, loop: Loop, unfinished: bool) -> Ending:
    done, total = loop.budget()["done"], loop.budget()["total"]
    if loop.stopped and (unfinished or done < total):
        text = f"Stopped after {done} of {total} candidates; star evolve {run} resumes."
        return Ending("interrupted", text)
    if loop.record.exhausted:
        return Ending("exhausted", f"All {done} genomes of the search space were assessed before the budget was spent.")
    return Ending("finished", f"All {done} candidates are done.")


def replay(algorithm: Algorithm, events: Sequence[Event], run: Path, meta: dict) -> None:
    """Bring a new algorithm to the recorded state by repeating all asks and tells. Raises UserError if it deviates."""
    for event in events:
        data = event.data
        if event.kind == "ask" and data["generation"] is not None:
            batch = algorithm.ask(data["wanted"])
            same = batch is not None and [child.id for child in batch.offspring] == [p["id"] for p in data["proposals"]]
        elif event.kind == "tell":
            told = [
                (id, tuple(F), tuple(G), fidelity, tuple(map(tuple, rungs)))
                for id, F, G, fidelity, rungs in data["told"]
            ]
            algorithm.tell([Told(*row) for row in told])
            same = True
        elif event.kind == "exhausted":
            algorithm.ask(data["wanted"])
            continue
        else:
            continue
        if not same or algorithm.digest() != data["digest"]:
            made = ", ".join(f"{name} {number}" for name, number in meta["packages"].items())
            raise UserError(
                f"{run} cannot be continued: its event {event.seq} ({event.kind}) does not repeat with this software; "
                f"it was made with {made}; this is {', '.join(f'{n} {v}' for n, v in packages().items())}"
            )
