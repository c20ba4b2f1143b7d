"""Where jobs run: in this process, in a pool of worker processes that may die without harm, or on a Ray cluster.

A job is a plain dict with an id. Whatever happens to it, an `Outcome` with the same id comes back. Engines know nothing
of genomes, training or searches; from STAR they import only `star.errors`.
"""

from star.engine.inprocess import InProcess
from star.engine.processes import ProcessPool
from star.engine.protocol import Engine, Outcome
from star.engine.queue import outcomes_of
from star.engine.ray import Ray

__all__ = ["Engine", "InProcess", "Outcome", "ProcessPool", "Ray", "outcomes_of"]
