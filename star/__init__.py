"""STAR: evolve language-model architectures, and take each point of the Pareto front away as a PyTorch module."""

__version__ = "0.1.0"

from star.cost import Costs, costs
from star.errors import RunFailed, UserError
from star.genome import Genome, list_genomes, load_genome
from star.model import LanguageModel, build

__all__ = ["Costs", "Genome", "LanguageModel", "RunFailed", "UserError", "build", "costs", "list_genomes", "load_genome"]
