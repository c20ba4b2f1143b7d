"""The quality of a candidate: objectives, and the functions that measure the expensive ones.

    objectives/         one file for each objective: its name, unit, and how to read it from the costs or the metrics
    evaluations/        one file for each way to measure a candidate: `assess(job, report) -> dict`, run by an engine
    synthetic_tasks.py  how well an architecture learns six synthetic tasks
    skill_tests.py      capabilities: six further tasks; skill_jobs.py: as jobs apart from a search
    constraints.py      bounds on objectives, checked before or after training
    pareto.py           dominance, fronts, hypervolume
    noise.py            how much of an objective is luck, and which members stay on the front with new random seeds

Cheap objectives follow from the genome alone and are known before training. A new objective is one new file.
Imports training, model, cost, genome and what is below them.
"""

from star.assess.objectives import QUALITY, Objective, load_objectives, objective_names
from star.assess.pareto import Frame, Front

__all__ = ["QUALITY", "Frame", "Front", "Objective", "load_objectives", "objective_names"]
