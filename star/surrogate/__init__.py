"""Predictions for architectures and recipes that were not trained: the layer below search and refinement.

Read in this order; each file imports only from those above it:
    descriptors.py        genomes as vectors
    gaussian_process.py   the model: exact regression with priors on its hyperparameters; `fit(X, y, groups)`
    posterior.py          the model averaged over its hyperparameters, for refinements; `fit(observations, fidelity)`
    acquisition.py        the value of a measurement before it is made
    calibration.py        how honest predictions were, once the truth is known
    screening.py          which offspring of a search are worth training

Both models have the same methods, for X [m, d] and n observations:
    predict(X)         mean [m] and sd [m] of a measurement, noise included
    joint(X)           mean [m] and covariance [m, m] of the function without noise, and the variance of the noise
    leave_one_out()    mean [n] and sd [n] of each observation given all others, and the observations [n]

BoTorch 0.18 was compared on two tables (benchmarks/search/botorch_comparison.py): its SingleTaskGP ranks held-out
architectures no better (Spearman 0.006 to 0.045 lower on our table, equal on HW-GPT-Bench), and on our table its 90 %
intervals cover only 73 to 83 % against our 85 to 89 %. qLogNEHVI chooses equally well, but a choice takes 0.7 to 1.3 s
instead of 0.008 s, during which the coordinator of a search would have to wait, so the model is our own.

Imports assess, cost and what is below them.
"""
