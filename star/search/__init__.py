"""The search itself: algorithms behind ask and tell, and the loop that feeds them.

    algorithms/    one file per algorithm: `create(space, config, surrogate) -> Algorithm`
    algorithm.py   the interface between loop and algorithms;  pymoo_adapter.py, steady_state.py   what implements most
                   of it
    operators.py   sampling, crossover, mutation, repair, duplicate elimination on int64 vectors;  slots.py   on whole
                   LIVs
    surrogate.py   which offspring are worth training;  descriptors.py   what it sees of them;  gaussian_process.py
                   the model
    evolve.py      open or resume a run;   loop.py   ask, assess, tell;   pacing.py   when;   policy.py   failures,
                   seeds, rungs
    rescore.py     members of a front measured again with fresh seeds

Imports assess, engine, store and what is below them.
"""

from star.search.events import Callback
from star.search.evolution import evolve
from star.search.session import Ending

__all__ = ["Callback", "Ending", "evolve"]
