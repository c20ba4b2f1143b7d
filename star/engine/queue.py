"""Run many jobs to their end on an engine that holds a few at a time."""

from collections import deque
from collections.abc import Iterable, Iterator

from star.engine.protocol import Engine, Outcome

MOST_LOST = 3  # attempts whose worker died before a job is given up


def outcomes_of(engine: Engine, jobs: Iterable[tuple[str, dict]]) -> Iterator[Outcome]:
    """The outcome of each job (id, job), as they end. A job whose worker died is repeated, `MOST_LOST` times in all."""
    queue, lost = deque(jobs), dict[str, int]()
    running: dict[str, dict] = {}
    while queue or running:
        while queue and len(running) < engine.slots:
            id, job = queue.popleft()
            running[id] = job
            engine.submit(id, job)
        for outcome in engine.poll(0.5):
            id, job = outcome.job_id, running.pop(outcome.job_id)
            lost[id] = lost.get(id, 0) + (outcome.status == "lost")
            if outcome.status == "lost" and lost[id] < MOST_LOST:
                queue.append((id, job))
            else:
                yield outcome
