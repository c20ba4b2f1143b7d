"""The search itself: algorithms behind ask and tell, and the loop that feeds them.

    algorithms/    one file per algorithm: `create(space, config) -> Algorithm`
    algorithm.py   the interface between loop and algorithms
    operators.py   sampling, crossover, mutation, repair, duplicate elimination on int64 vectors
    evolve.py      open or resume a run;   loop.py   ask, assess, tell;   policy.py   failures, seeds

Imports assess, engine, store and what is below them.
"""

from star.search.events import Callback
from star.search.evolve import Ending, evolve

__all__ = ["Callback", "Ending", "evolve"]
