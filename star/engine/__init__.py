"""Where jobs run: in this process, or in a pool of worker processes that may die without harm.

A job is a plain dict and goes in with an id; an `Outcome` with the same id comes back, whatever happened
to the job. The engine knows nothing of genomes, training or searches. Imports nothing of STAR.
"""

from star.engine.inprocess import InProcess
from star.engine.pool import ProcessPool
from star.engine.protocol import Engine, Outcome

__all__ = ["Engine", "InProcess", "Outcome", "ProcessPool"]
