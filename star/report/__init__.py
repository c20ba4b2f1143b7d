"""Plots, text tables and one HTML page about a run.

Imports `star.run`, `star.assess`, `star.cost`, `star.genome` and what they import; only the command line imports it. To
add a plot of a run, write one function in a file of its own and add its name to `star.report.plots.PLOTS`.
"""
