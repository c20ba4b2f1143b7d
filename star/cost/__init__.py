"""Exact costs of a plan, without building it, for one genome or for a population. Imports `star.genome`.

What the built module has is the same numbers: parameters are its parameters, cache bytes are the bytes of its state
tensors.
"""

from star.cost.population import population_costs
from star.cost.single import NUMBER_BYTES, RECURRENT_BYTES, Costs, costs

__all__ = ["NUMBER_BYTES", "RECURRENT_BYTES", "Costs", "costs", "population_costs"]
