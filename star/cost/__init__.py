"""Exact costs of an architecture without building it, for one genome or for a population. Imports `star.genome`.

They equal the counts of the built module: its parameters, and the bytes of its state tensors.
"""

from star.cost.population import population_costs
from star.cost.single import NUMBER_BYTES, RECURRENT_BYTES, Costs, costs

__all__ = ["NUMBER_BYTES", "RECURRENT_BYTES", "Costs", "costs", "population_costs"]
