"""What results predict about architectures and recipes that were not trained: one layer below search and refinement.

Read in this order; each file imports only from those above it:
    descriptors.py        what the model sees of an architecture
    gaussian_process.py   the model: exact regression with priors on its hyperparameters; `fit(X, y, groups)`
    posterior.py          the model averaged over its hyperparameters, for refinements; `fit(observations, fidelity)`
    acquisition.py        what a measurement is worth
    calibration.py        how honest predictions were, once the truth is known
    screening.py          which offspring of a search are worth training

A model has `marginals(X)` -> mean [n], variance [n]; `predict(X)` -> mean [n], covariance [n, n]; `leave_one_out()`.
Imports assess, cost and what is below them.
"""
