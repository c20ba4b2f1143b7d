"""Refinement of the members of a front: recipes and local edits, chosen by Bayesian optimization and a policy trained
in imagination.

Read in this order (each imports only from those above it):
    pool.py         what can be tried, and what has been seen
    posterior.py    what the results say: a Gaussian process, averaged over its hyperparameters
    transfer.py     results of related tasks as further observations
    acquisition.py  what a trial is worth: expected improvement, rate of gain of cheap trials, expected hypervolume;
                    trust regions
    imagine.py      futures drawn from the posterior, played by any chooser
    policy.py       the network that sees the posterior of every candidate, and how it learns in imagined futures
    pretrain.py     its first education: worlds drawn from the prior, no data
    propose.py      what to try next: a pure function of (pool, observations, seed, step)

These are numbers alone: they may import numpy, scipy, torch, `star.assess` and the surrogate of `star.search`, and know
no store, engine or genome. What makes a refinement of a run out of them:
    settings.py     what a person chooses
    space.py        the typed settings of a recipe, their ranges, and the rules by which a recipe follows from them
    edits.py        local edits of a genome
    encode.py       candidates, and the one encoding of them
    neighbourhood.py  which candidates a step may choose from
    plan.py         what to train next: a pure function of the record
    refine.py       the coordinator: lock, engine, record
    results.py      what it brought, as anyone may read it
    analysis.py     which settings mattered
"""

from star.refine.candidates import KINDS, Pool, fidelity_coordinate

__all__ = ["KINDS", "Pool", "fidelity_coordinate"]
