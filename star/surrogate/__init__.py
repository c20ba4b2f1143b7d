"""What results predict about architectures and recipes that were not trained: one layer below search and refinement.

Read in this order; each file imports only from those above it:
    descriptors.py        what the model sees of an architecture
    gaussian_process.py   the model: exact regression with priors on its hyperparameters; `fit(X, y, groups)`
    posterior.py          the model averaged over its hyperparameters, for refinements; `fit(observations, fidelity)`
    acquisition.py        what a measurement is worth
    calibration.py        how honest predictions were, once the truth is known
    screening.py          which offspring of a search are worth training

A model has `marginals(X)` -> mean [n], variance [n]; `predict(X)` -> mean [n], covariance [n, n]; `leave_one_out()`.
BoTorch 0.18 was compared on two tables (benchmarks/search/botorch_comparison.py): its SingleTaskGP ranks unseen
architectures no better (Spearman 0.005 to 0.045 lower on our table, equal on HW-GPT-Bench) with intervals that are too
narrow (90 % hold 73 to 83 % against 85 to 89 %), qLogNEHVI's choices are as good, and a choice takes 0.7 to 1.3 s
instead of 0.008 s, which the coordinator would spend between two candidates. So the model is our own.

Imports assess, cost and what is below them.
"""
