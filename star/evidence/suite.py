"""Measure what members of a run can do beside their loss: the tasks of `star.assess.skill_tests`.

    examine("runs/first", tasks=("mqar", "needle"))      # trains; the same call resumes after a kill
    capability_rows(Run("runs/first"))                   # reads

Nothing in the search changes.
"""

import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from star.assess.skill_tests import EXTRAPOLATION, NAMES, check_text
from star.candidate import Candidate
from star.data.skills import SKILLS
from star.engine import Engine, outcomes_of
from star.errors import UserError
from star.genome import to_json
from star.run import Run
from star.search.events import Callback, Emitter
from star.search.jobs import SKILL_SEED, Candidates
from star.search.session import Session, open_run
from star.store import Proposal

FUNCTION = "star.assess.skill_jobs:assess"
Sizes = Mapping[str, Mapping[str, int | float]]


def chosen(run: Run, words: Sequence[str] = ("front",)) -> list[Candidate]:
    """The candidates that these words name, each once: "front" (with the baselines), "all", or ids, best and knee.

    Raises UserError if there is none, or if one of them was never trained to the end.
    """
    found: dict[str, Candidate] = {}
    baselines = run.candidates("baseline")
    for word in words:
        if word == "front":
            part = [c for c in (*run.front(), *baselines) if c.objectives]
        elif word == "all":
            part = [c for c in (*run.candidates(), *baselines) if c.objectives]
        else:
            part = [run.candidate(word)]
        found |= {c.id: c for c in part if c.id not in found}
    for c in found.values():
        if not c.objectives:
            raise UserError(f"{run.path}:{c.id} ended as '{c.status}'; give ids of star front {run.path}")
    if not found:
        raise UserError(f"{run.path} has no front yet; star status {run.path} shows its progress")
    return list(found.values())


def check_tasks(tasks: Sequence[str], sizes: Sizes) -> None:
    """Raises UserError for a task or a size that there is not, and for a size that is out of range."""
    for name in (*tasks, *sizes):
        if name not in NAMES:
            raise UserError(f"there is no task {name!r}; tasks are {', '.join(NAMES)}")
    if EXTRAPOLATION in sizes:
        raise UserError(f"task {EXTRAPOLATION} has no sizes: its contexts are 1, 2, 4 and 8 times that of the training")
    for name, changes in sizes.items():
        SKILLS[name].sized(changes)
    if not tasks:
        raise UserError(f"no task is given; tasks are {', '.join(NAMES)}")


def examine(
    run: str | Path,
    members: Sequence[str] = ("front",),
    tasks: Sequence[str] = NAMES,
    tokens: int | None = None,
    seeds: int = 1,
    sizes: Sizes | None = None,
    workers: int | None = None,
    engine: Engine | None = None,
    callbacks: Iterable[Callback] = (),
    data: str | None = None,
) -> int:
    """Measure `members` (see `chosen`) on `tasks`, with `seeds` models each; returns how many measurements were made.

    tokens: training tokens of each model (default: `objectives.skill_tokens`). sizes: changes by task.
    The loss by position is that of the kept weights, under the first seed; a member without weights is trained first,
    as `star rescore` does, and so is every member under a further seed. Measurements of an earlier call count, so the
    same call resumes after a kill. Callbacks get "capability_end" events: the data of the record's "capability" event,
    done and total. Raises UserError as `chosen` and `check_tasks` do, and for a text that is too short.
    """
    emit, sizes = Emitter(callbacks), sizes or {}
    check_tasks(tasks, sizes)
    with open_run(run, workers, data) as session:
        found = Run(run)
        candidates = Candidates(session.config, session.corpus)
        tokens = tokens or session.config.objectives.skill_tokens
        if EXTRAPOLATION in tasks:
            _check_text(session)
        done = {_key(row) for row in session.record.capabilities}
        todo: dict[str, tuple[dict, dict]] = {}  # facts for the record and the job, by the id of the job
        for number in range(seeds):
            for task in dict.fromkeys(tasks):
                for c in chosen(found, members):
                    facts, job = _measurement(found, candidates, c, task, sizes.get(task, {}), tokens, number)
                    if _key(facts) not in done:
                        todo[f"{c.id}-{task}-{number}"] = facts, job
        engine = session.start_engine(engine, FUNCTION)
        session.store.record([("session", session.about(engine))])
        jobs = [(key, job) for key, (_, job) in todo.items()]
        for n, outcome in enumerate(outcomes_of(engine, jobs), 1):
            facts = todo[outcome.job_id][0] | candidates.examined(outcome)
            session.store.record([("capability", facts)])
            emit("capability_end", **facts, done=n, total=len(todo))
        return len(todo)


def _measurement(
    run: Run, candidates: Candidates, c: Candidate, task: str, sizes: Mapping, tokens: int, number: int
) -> tuple[dict, dict]:
    beyond = task == EXTRAPOLATION
    weights = run.weights(c.id) if beyond and number == 0 else None
    genome = c.trained_genome if weights else c.genome
    job = candidates.repeat(Proposal(c.id, to_json(genome), c.origin, costs=c.costs), SKILL_SEED + number)
    if c.recipe is not None:
        job["recipe"] = dataclasses.asdict(c.recipe) | {"seed": job["seed"]}
    skill = {"name": task, "sizes": dict(sizes), "tokens": tokens, "weights": weights and str(weights.absolute())}
    facts = {"id": c.id, "task": task, "sizes": dict(sizes), "tokens": None if beyond else tokens, "number": number}
    return facts | {"seed": job["seed"], "weights": bool(weights)}, job | {
        "skill": skill,
        "tasks": None,
        "skills": None,
    }


def _check_text(session: Session) -> None:
    if session.config.evaluation != "training":
        raise UserError(
            f"{EXTRAPOLATION} needs trained models, and the evaluation of {session.path} is "
            f"{session.config.evaluation!r}; leave it out of --tasks"
        )
    from star.data import open_corpus

    data = session.config.data
    check_text(open_corpus(data.corpus, tokenizer=data.tokenizer), session.config.training.seq_len)


def _variant(row: Mapping) -> tuple[str, str, int | None]:
    """Equal for rows that can be compared."""
    return row["task"], json.dumps(row["sizes"], sort_keys=True), row["tokens"]


def _key(row: Mapping) -> tuple:
    return row["id"], *_variant(row), row["number"]


def capability_rows(run: Run) -> list[dict]:
    """One row for each candidate, task, sizes and budget.

    id, name (of a baseline), origin, task, sizes, tokens; chance (None of extrapolation); seeds, failed: measurements
    that ended well, and that did not; reason: of the last that did not. value: mean over seeds of the accuracy, or of
    the bits per byte lost (None if all failed); values: of each seed; parts: means of accuracies or bits per byte by
    part.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in run.capabilities():
        groups.setdefault((row["id"], *_variant(row)), []).append(row)
    found = []
    for rows in groups.values():
        first, c = rows[0], run.candidate(rows[0]["id"])
        task, beyond = first["task"], first["task"] == EXTRAPOLATION
        ended = [row["metrics"] for row in rows if row["status"] == "ok"]
        values = [m[task] if beyond else 1.0 - m[task] for m in ended]
        parts = [key for key in (ended[0] if ended else ()) if key.startswith(f"{task} ")]
        found.append(
            {"id": c.id, "name": c.name, "origin": c.origin, "task": task}
            | {"sizes": first["sizes"], "tokens": first["tokens"]}
            | {"chance": None if beyond else SKILLS[task].sized(first["sizes"]).chance}
            | {"seeds": len(values), "failed": len(rows) - len(values)}
            | {"reason": next((row["reason"] for row in reversed(rows) if row["status"] != "ok"), "")}
            | {"value": statistics.fmean(values) if values else None, "values": values}
            | {"parts": {p.removeprefix(f"{task} "): statistics.fmean(m[p] for m in ended) for p in parts}}
        )
    return found
