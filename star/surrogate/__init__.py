"""What results predict about architectures and recipes that were not trained: one layer below search and refinement.

gaussian_process.py   the model: exact GP regression with priors on its hyperparameters
descriptors.py        what the model sees of an architecture
posterior.py          the model averaged over its hyperparameters
acquisition.py        what a measurement is worth: expected improvement, hypervolume gain, knowledge gradient
calibration.py        how honest the predictions were, once the truth is known
screening.py          which offspring of a search are worth training
"""
