"""Train candidates of a run again at several times its budget, and at another width.

    climb("runs/first", budgets=(3, 10), width=2)

A search ranks candidates by short trainings. Whether that order holds for longer ones differs between search spaces,
recipes and budgets, so it is measured, on a sample of all kinds of candidates (`star.evidence.sampling`). What was
found is read by `star.evidence.order`.
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

from star.engine import Engine, outcomes_of
from star.errors import UserError
from star.evidence.sampling import sample
from star.genome import from_json
from star.genome.scale import scaled
from star.run import Run
from star.search.events import Callback, Emitter
from star.search.jobs import Candidates
from star.search.session import open_run
from star.store import Proposal


def climb(
    run: str | Path,
    budgets: Sequence[float] = (3.0, 10.0),
    width: float = 2.0,
    n: int = 24,
    workers: int | None = None,
    engine: Engine | None = None,
    callbacks: Iterable[Callback] = (),
    data: str | None = None,
) -> int:
    """Train a sample of n genomes at each of `budgets` (times that of the search), and at `width` times its width.

    width: 1 for none. Returns how many trainings were made; those of an earlier call count, so the same call resumes
    after a kill. Callbacks get "ladder_end" events: the data of the record's "ladder" event, done and total.
    Raises UserError for budgets that are not above 1, and for a run that has too few candidates.
    """
    wrong = [f"{budget:g}" for budget in budgets if budget <= 1]
    if wrong or not budgets:
        raise UserError(f"budgets are {', '.join(wrong) or 'empty'}; each must be above 1, in budgets of the search")
    emit = Emitter(callbacks)
    with open_run(run, workers, data) as session:
        found, candidates = Run(run), Candidates(session.config, session.corpus)
        members, genomes = sample(found, n)
        known = {p.id: p for p in session.record.proposals}
        proposals = [known[c.id] for c in members] + [candidates.propose(genome, "random") for genome in genomes]
        rungs = [(budget, 1.0) for budget in sorted(set(budgets))] + ([(1.0, float(width))] if width != 1 else [])
        done = {(row["id"], row["tokens"], row["width"]) for row in session.record.ladder}
        wanted = [(p, (1.0, 1.0)) for p in proposals if p.id not in known] + [(p, r) for r in rungs for p in proposals]
        todo = {
            f"{proposal.id}-{tokens:g}-{wide:g}": (proposal, (tokens, wide), _as_wide(candidates, proposal, wide))
            for proposal, (tokens, wide) in wanted
            if (proposal.id, tokens, wide) not in done
        }
        jobs = [(key, candidates.larger(scaled_, rung[0])) for key, (_, rung, scaled_) in todo.items()]
        engine = session.start_engine(engine)
        session.store.record([("session", session.about(engine))])
        for number, outcome in enumerate(outcomes_of(engine, jobs), 1):
            proposal, (tokens, wide), scaled_ = todo[outcome.job_id]
            facts: dict = {"id": proposal.id, "genome": proposal.genome, "origin": proposal.origin}
            facts |= {"tokens": tokens, "width": wide, "seed": dict(jobs)[outcome.job_id]["seed"]}
            facts |= candidates.again(scaled_, outcome)
            facts["bpb"] = facts["metrics"].get("bpb") if facts["status"] == "ok" else None
            if (tokens, wide) != (1.0, 1.0):  # nothing is to be predicted from it
                facts["objectives"] = None
            session.store.record([("ladder", facts)])
            emit("ladder_end", **facts, done=number, total=len(jobs))
        return len(jobs)


def _as_wide(candidates: Candidates, proposal: Proposal, width: float) -> Proposal:
    if width == 1:
        return proposal
    genome = scaled(from_json(proposal.genome), depth=1, width=Fraction(width).limit_denominator(64))
    return candidates.propose(genome, "baseline")
