"""Where jobs run: in this process, in a pool of worker processes that may die without harm, or on a Ray cluster.

A job is a plain dict and goes in with an id; an `Outcome` with the same id comes back, whatever happened
to the job. The engine knows nothing of genomes, training or searches. Imports `star.errors`.
"""

from star.engine.inprocess import InProcess
from star.engine.processes import ProcessPool
from star.engine.protocol import Engine, Outcome
from star.engine.ray import Ray

__all__ = ["Engine", "InProcess", "Outcome", "ProcessPool", "Ray"]
