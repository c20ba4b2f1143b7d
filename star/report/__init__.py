"""What people look at: plots, text tables and one HTML page.

Imports `star.run`, `star.assess`, `star.cost`, `star.genome` and what is below them; nothing imports it but the command
line. A new plot of a run is one function in a file of its own and one name in `star.report.plots.PLOTS`.
"""
