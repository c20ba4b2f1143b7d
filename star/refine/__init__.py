"""Refinement of the members of a front: recipes and local edits, chosen by Bayesian optimization and a policy trained in imagination.

Read in this order (each imports only from those above it):
    pool.py         what can be tried, and what has been seen
    posterior.py    what the results say: a Gaussian process, averaged over its hyperparameters
    transfer.py     results of related tasks as further observations
    acquisition.py  what a trial is worth: expected improvement, rate of gain of cheap trials, expected hypervolume; trust regions
    imagine.py      futures drawn from the posterior, played by any chooser
    policy.py       the network that sees the posterior of every candidate, and how it learns in imagined futures
    pretrain.py     its first education: worlds drawn from the prior, no data
    propose.py      what to try next: a pure function of (pool, observations, seed, step)

This package may import numpy, scipy, torch, `star.assess` and the surrogate of `star.search`; it knows no store, engine or genome.
"""

from star.refine.pool import KINDS, Observations, Pool, fidelity_coordinate

__all__ = ["KINDS", "Observations", "Pool", "fidelity_coordinate"]
