"""What a genome is worth: objectives, and the functions that measure the expensive ones.

    objectives/    one file per objective: its name, unit, and how it is read off the costs or the metrics
    evaluations/   one file per way to measure a candidate: `assess(job, report) -> dict`, run by an engine
    tasks.py       six synthetic tasks, as a second opinion beside the corpus
    constraints.py bounds on objectives, checked before or after training
    noise.py       how much of a fitness is luck, and which members stay on the front with fresh seeds
    pareto.py      dominance, fronts, hypervolume

Cheap objectives need the plan alone and are known before anything is trained. A new objective is one new file.
Imports training, model, cost, genome and what is below them.
"""

from star.assess.objectives import Objective, load_objectives, objective_names
from star.assess.pareto import Frame, Front

__all__ = ["Frame", "Front", "Objective", "load_objectives", "objective_names"]
