"""What a genome is worth: objectives, and the functions that measure the expensive ones.

    objectives/    one file per objective: its name, unit, and how it is read from costs or metrics
    evaluations/   one file per way to measure a candidate: `assess(job, report) -> dict`, run by an engine
    synthetic_tasks.py  how well an architecture learns six synthetic tasks
    constraints.py bounds on objectives, checked before or after training
    noise.py       how much of a fitness is luck, and which members stay on the front with fresh seeds
    pareto.py      dominance, fronts, hypervolume

Cheap objectives need only the plan and are known before training. A new objective is one new file.
Imports training, model, cost, genome and what is below them.
"""

from star.assess.objectives import Objective, load_objectives, objective_names
from star.assess.pareto import Frame, Front

__all__ = ["Frame", "Front", "Objective", "load_objectives", "objective_names"]
