"""Start a run or go on with one: check that it is the same run, rebuild the algorithm from its record, and loop."""

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import star
from star.assess import load_objectives
from star.assess.constraints import bounds
from star.assess.evaluations import load_evaluation
from star.config import RunConfig, diff
from star.cost import costs as costs_of
from star.engine import Engine, InProcess, ProcessPool, Ray
from star.errors import UserError
from star.genome import Gene, Genome, OperatorSpace, Space, find_genome
from star.search.algorithm import Algorithm, Told, load_algorithm
from star.search.events import Callback, Emitter
from star.search.loop import Loop
from star.search.surrogate import make_surrogate
from star.store import Event, Record, RunLock, Store
from star.store.database import exists, read_meta
from star.training import packing

GRACE = 60.0  # seconds that a candidate which watches its own deadline gets before it is killed
MOST_WORKERS = 4096  # that a steady state keeps busy: it has no generation to wait for


@dataclass(frozen=True)
class Ending:
    """How `evolve` ended. status: "finished", "interrupted" or "exhausted"; text: a sentence for people."""

    status: str
    text: str


def evolve(
    run: str | Path, config: RunConfig, engine: Engine | None = None, callbacks: Iterable[Callback] = ()
) -> Ending:
    """Evolve a population in the directory `run`, or go on where an earlier call, however it ended, had come to.

    engine: by default the one that `config.engine` describes. callbacks: see `star.search.events`.
    The first Ctrl-C (or SIGTERM) ends the run cleanly, a second one at once.
    Raises UserError if the directory holds something else or another run; RunFailed if all of the first generation
    fails or the disk is full. Whatever is raised, what was recorded stays, and the same call goes on from there.
    """
    run, emit = Path(run), Emitter(callbacks)
    resumed = exists(run)
    if resumed:
        check_same(run, read_meta(run), config)
    space = make_space(config)
    baselines = make_baselines(space, config)
    evaluation = load_evaluation(config.evaluation)
    load_objectives(config.objectives.names)  # a wrong name is an error before anything is created
    corpus = evaluation.prepare(config)
    check_bounds(space, config, corpus["vocab_size"])
    algorithm = load_algorithm(space, config, make_surrogate(config, corpus["vocab_size"]))
    run.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        lock = RunLock(run)
        stack.callback(lock.release)
        meta = {"star": star.__version__, "config": config.to_json(), "space": space.to_json(), "corpus": corpus}
        store = Store(run, meta | {"packages": packages()}, journal=config.journal)
        stack.callback(store.close)
        stored = store.meta()
        check_same(run, stored, config, corpus)  # again: another process may have been faster
        if stored["config"] != config.to_json():
            store.set_meta("config", config.to_json())  # resumable settings may change
        events = store.events()
        replay(algorithm, events, run, stored)
        if engine is None:
            engine = make_engine(
                config, f"{evaluation.__name__}:assess", run, functools.partial(emit, "message", level="info")
            )
            stack.callback(engine.close)
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
        text = f"Stopped after {done} of {total} candidates; star evolve {run} goes on from here."
        return Ending("interrupted", text)
    if loop.record.exhausted:
        return Ending("exhausted", f"All {done} genomes of the search space were assessed before the budget was spent.")
    return Ending("finished", f"All {done} candidates are done.")


def make_space(config: RunConfig) -> Space:
    settings = config.space
    fields: dict = {"classes": tuple(sorted({0, *settings.classes}))} if settings.classes else {}
    if settings.level == "operator":
        fields["evolved"] = settings.evolved
    kind = OperatorSpace if settings.level == "operator" else Space
    return kind(
        n_slots=settings.slots,
        d_models=settings.d_models,
        head_dim=settings.head_dim,
        norms=settings.norms,
        residuals=settings.residuals,
        max_groups=None if settings.sharing else 0,
        **fields,
    )


def check_bounds(space: Space, config: RunConfig, vocab_size: int) -> None:
    """Raises UserError if no genome of the space can meet a bound that is known before training.

    The cheapest genome has as few LIVs as the space allows, all of one class; several bounds that each can be met but
    not together are not noticed here: the run then reports that its genomes break them.
    """
    if not bounds(config.objectives) or isinstance(
        space, OperatorSpace
    ):  # the cheapest operator is not known beforehand
        return
    least = 1 if 0 in space.classes else space.n_slots
    cheapest = [
        Genome((Gene(c),) * least, d_model, space.head_dim, norm, residual, space.rope_theta)
        for c in space.classes
        if c
        for d_model in space.d_models[:1]
        for norm in space.norms
        for residual in space.residuals
    ]
    found = [costs_of(genome, vocab_size=vocab_size, seq_len=config.objectives.cache_tokens) for genome in cheapest]
    for objective in load_objectives(tuple(bounds(config.objectives))):
        bound = bounds(config.objectives)[objective.name]
        if objective.cheap and (smallest := min(objective.measure(cost) for cost in found)) > bound:
            raise UserError(
                f"objectives.max_{objective.name} is {bound:,.0f} and the smallest genome of this space has {smallest:,.0f}; "
                "raise the bound, or allow narrower models (space.d_models) or fewer LIVs (class 0)"
            )


def make_baselines(space: Space, config: RunConfig) -> list[tuple[str, Genome]]:
    """Names and genomes of the baselines, scaled to the width and depth of the space; each genome once."""
    found: dict[str, tuple[str, Genome]] = {}
    for name in config.search.baselines:
        named = find_genome(name)
        genome = space.fit(named.genome)
        if not genome.fits:
            raise UserError(
                f"search.baselines: {name} does not fit a width of {genome.d_model}; leave it out or change the width"
            )
        found.setdefault(genome.id, (named.name or Path(name).stem, genome))
    return list(found.values())


def make_engine(config: RunConfig, function: str, run: Path, say: Callable = lambda text: None) -> Engine:
    """The engine that the configuration asks for. Workers: `workers_on_gpu` of them on each GPU, or one per `threads` CPU cores.

    No more than a generation keeps busy; `say` is told of workers that would stay idle or do not fit.
    """
    settings = config.engine
    if settings.kind == "inprocess":
        return InProcess(function, slots=settings.workers or 1)
    busy = MOST_WORKERS if config.search.asynchronous else max(config.search.population, config.offspring)
    on_gpu = config.training.device in ("auto", "cuda") and config.evaluation == "training"
    threads = {name: str(settings.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = visible_gpus() if on_gpu else []
    timeout = settings.timeout + GRACE if settings.timeout else None
    if settings.kind == "ray":
        per_gpu = workers_on_gpu(config, len(gpus), cores) if on_gpu else 0
        wanted = min(settings.workers, busy)
        engine = Ray(function, wanted, run, settings.address, timeout, settings.threads, per_gpu, threads)
        if engine.slots < wanted:
            say(
                text=f"engine.workers is {settings.workers}, but the Ray cluster holds {engine.slots} at one time: those are used."
            )
        engine.slots = slots = min(engine.slots, busy)
    else:
        gpus *= workers_on_gpu(config, len(gpus), cores)
        environments = [threads | {"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus] or [threads]
        slots = min(settings.workers or len(gpus) or max(1, cores // settings.threads), busy)
        engine = ProcessPool(function, slots, run / "progress", timeout, environments)
    if settings.workers > busy:
        say(
            text=f"engine.workers is {settings.workers}, but a generation has {busy} candidates: {slots} workers are used."
        )
    if slots > config.offspring and config.search.generations > 1 and not config.search.asynchronous:
        text = f"{slots} workers, but a generation after the first has {config.offspring} candidates: raise search.offspring or use --async."
        say(text=text)
    return engine


def workers_on_gpu(config: RunConfig, n_gpus: int, cores: int) -> int:
    """`engine.workers_per_gpu`, or where that is 0 what suits the largest genome of the space on the GPUs of this machine."""
    if config.engine.workers_per_gpu or not n_gpus:
        return config.engine.workers_per_gpu or 1
    return packing.workers_per_gpu(
        largest_step(config), packing.visible_gpu(), max(1, cores // config.engine.threads // n_gpus)
    )


def largest_step(config: RunConfig, vocab_size: int = 256) -> packing.Step:
    """A training step that takes as much as any genome of the space: all slots full, at the greatest width."""
    space, recipe = make_space(config), config.training
    steps = []
    for class_id in filter(None, space.classes):
        genome = Genome(
            (Gene(class_id),) * space.n_slots,
            max(space.d_models),
            space.head_dim,
            space.norms[0],
            space.residuals[0],
            space.rope_theta,
        )
        with contextlib.suppress(UserError):  # a class that does not fit this width
            costs = costs_of(genome, vocab_size=vocab_size, seq_len=recipe.seq_len)
            steps.append(packing.step_of(costs, recipe, genome.d_model, space.n_slots, vocab_size))
    return packing.largest(steps)


def visible_gpus() -> list[str]:
    """Values of CUDA_VISIBLE_DEVICES that each show one GPU."""
    import torch

    count = torch.cuda.device_count()
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in shown.split(",") if name.strip()]
    return (names or [str(i) for i in range(count)])[:count]


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


def check_same(run: Path, meta: dict, config: RunConfig, corpus: dict | None = None) -> None:
    """Raises UserError, saying what differs, unless this configuration is that of the run."""
    if meta["star"] != star.__version__:
        raise UserError(
            f"{run} was made by star {meta['star']} and this is {star.__version__}: go on with that version, "
            "or start another run directory (this version can still show, plot and export it)"
        )
    differences = diff(RunConfig.from_json(meta["config"]), config)
    if differences:
        told = "; ".join(f"{key} was {old!r} and is now {new!r}" for key, old, new in differences[:3])
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(
            f"{run} was started with another configuration: {told}{more}; use another run directory, "
            f"or go on with its own configuration by star evolve {run} without options"
        )
    if corpus is not None and corpus["fingerprint"] != meta["corpus"]["fingerprint"]:
        raise UserError(
            f"the text of {config.data.corpus!r} has changed since {run} was started, so its results could not be "
            "compared with new ones; restore the text or use another run directory"
        )


def packages() -> dict[str, str]:
    """Versions that a run's results may depend on."""
    found = {"star": star.__version__}
    for name in ("torch", "pymoo", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@contextlib.contextmanager
def stop_on_signals(loop: Loop) -> Iterator[None]:
    """SIGINT and SIGTERM stop the loop; a second one raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number, frame):
        if loop.stopped:
            raise KeyboardInterrupt
        loop.stop()

    earlier = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
