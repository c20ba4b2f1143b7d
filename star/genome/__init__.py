"""Genomes: integers that describe a backbone made of LIV operators, and the plan that a genome resolves to.

Imports only `star.liv` and `star.errors`. Read `genome.py`, then `plan.py`.
"""

from star.genome.classes import EXPORTABLE_CLASSES, PAPER_CLASSES, POOL, PoolClass, operator, register_family
from star.genome.codec import NamedGenome, from_json, parse_text, read_json, to_json
from star.genome.genome import EMBEDDINGS, NORMS, RESIDUALS, Gene, Genome
from star.genome.library import find_genome, layout_name, list_genomes, load_genome
from star.genome.operator_space import OperatorSpace, space_from_json
from star.genome.plan import BlockConfig, Layer, Plan, resolve
from star.genome.repair import repair
from star.genome.space import Space
from star.genome.table import gene_table

__all__ = [
    "BlockConfig",
    "EMBEDDINGS",
    "Gene",
    "Genome",
    "Layer",
    "NORMS",
    "NamedGenome",
    "OperatorSpace",
    "EXPORTABLE_CLASSES",
    "PAPER_CLASSES",
    "POOL",
    "Plan",
    "PoolClass",
    "RESIDUALS",
    "Space",
    "find_genome",
    "from_json",
    "gene_table",
    "layout_name",
    "list_genomes",
    "load_genome",
    "operator",
    "parse_text",
    "read_json",
    "register_family",
    "repair",
    "resolve",
    "space_from_json",
    "to_json",
]
