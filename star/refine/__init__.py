"""Refinement of members of a front: recipes and local edits, chosen by Bayesian optimization and a learned policy.

Read in this order; each file imports only from those above it:
    settings.py      what the user chooses
    candidates.py    candidates, their encoding for the Gaussian process, and the list that a step chooses from
    policy.py        the policy: which member next, at which fidelity, or stop
    propose.py       what to try next: Bayesian optimization, and the policy
    planner.py       the design, the proposals and the last measurements, as a pure function of the record
    coordinator.py   engine, record and signals

The spaces that it searches are `star.training.recipe_space` and `star.genome.local_edits`; the results of a refinement
are read by `star.refined`.
Imports search, surrogate and what is below them.
"""
