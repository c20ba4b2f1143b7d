"""The search: algorithms that propose and learn, and the loop that trains what they propose.

Read in this order:
    spaces.py         the search space and the baselines that a configuration describes
    variation.py      sampling, crossover, mutation, repair and duplicates on int64 vectors; slots.py: on whole LIVs
    algorithm.py      the interface of an algorithm: ask, tell, digest
    pymoo_adapter.py, steady_state.py   base classes: pymoo's algorithms, and our own with one archive
    algorithms/       one file per algorithm: `create(space, config, surrogate) -> Algorithm`
    jobs.py           a candidate as a job for a worker;  workers.py: the engine, and how many workers share a GPU
    outcomes.py       failures, attempts, seeds and rungs, as results for an algorithm
    pacing.py         when the algorithm is told and asked: by generation, or one by one
    loop.py           ask, train, record, tell;  events.py: what a display is shown
    session.py        a run opened for work: lock, checks, record, engine, signals
    evolution.py      `evolve`: start or resume a search;  repeats.py: `rescore`, the front with fresh seeds

Imports surrogate, assess, engine, store and what is below them.
"""

from star.search.events import Callback
from star.search.evolution import evolve
from star.search.session import Ending

__all__ = ["Callback", "Ending", "evolve"]
