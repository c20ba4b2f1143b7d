"""Measure members of a front again with fresh seeds, to detect members that were lucky.

The best of many noisy measurements is partly luck: its loss is low also because its seed was good. Fresh measurements
of the same genome under the same recipe have no such bias. They are recorded beside the search's own result and change
nothing in it; `star.Run.repeats` and `star.assess.noise` read them.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from star.engine import Engine, outcomes_of
from star.errors import UserError
from star.run import Run
from star.search.events import Callback, Emitter
from star.search.jobs import Candidates
from star.search.session import open_run
from star.store import Proposal, Record, Store


def rescore(
    run: str | Path,
    repeats: int = 3,
    ids: Sequence[str] = (),
    workers: int | None = None,
    engine: Engine | None = None,
    callbacks: Iterable[Callback] = (),
    data: str | None = None,
) -> int:
    """Bring every member of the front (or the candidates `ids`) to `repeats` fresh measurements; returns how many were
    made.

    Repeats of an earlier call count, so the same call resumes after a kill. Callbacks get "repeat_end" events
    with the data of the record's "repeat" event, done and total. Raises UserError if there is no front, if a candidate
    was never trained to the end, or if another process works on the run.
    """
    emit = Emitter(callbacks)
    with open_run(run, workers, data) as session:
        found, record = Run(run), session.record
        members = [found.candidate(id) for id in ids] if ids else found.front(searched=True)
        if not members:
            raise UserError(f"{run} has no front to measure again; star status {run} shows its progress")
        for member in members:
            if not member.objectives:
                raise UserError(
                    f"{run}:{member.id} ended as '{member.status}', so there is nothing to measure again; "
                    f"give ids of star front {run}"
                )
        engine = session.start_engine(engine)
        candidates = Candidates(session.config, session.corpus)
        proposals = {p.id: p for p in record.proposals}
        todo = [(proposals[m.id], k) for k in range(repeats) for m in members if k not in _measured(record, m.id)]
        session.store.record([("session", session.about(engine))])
        _work(todo, candidates, session.store, engine, emit)
        return len(todo)


def _measured(record: Record, id: str) -> set[int]:
    return {data["repeat"] for data in record.repeats.get(id, ())}


def _work(
    todo: list[tuple[Proposal, int]], candidates: Candidates, store: Store, engine: Engine, emit: Emitter
) -> None:
    measured = {f"{proposal.id}-{repeat}": (proposal, repeat) for proposal, repeat in todo}
    jobs = [(key, candidates.repeat(*what)) for key, what in measured.items()]
    for done, outcome in enumerate(outcomes_of(engine, jobs), 1):
        proposal, repeat = measured[outcome.job_id]
        data = {"id": proposal.id, "repeat": repeat, "seed": candidates.repeat(proposal, repeat)["seed"]}
        data |= candidates.again(proposal, outcome)
        store.record([("repeat", data)])
        emit("repeat_end", **data, done=done, total=len(todo))
