"""Genomes on the command line: a file, a shipped name, text, or RUN:ID."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star.errors import UserError

if TYPE_CHECKING:
    from star.genome import Genome
    from star.run import Candidate, Run

GENOME_HELP = "A genome file, a shipped name, text such as 21211-31112, or RUN:ID (RUN:knee is the knee of the front)."


@dataclass(frozen=True)
class Chosen:
    """A genome, and the run and candidate that it comes from, if any."""

    genome: Genome
    name: str = ""
    description: str = ""
    vocab_size: int | None = None
    run: Run | None = None
    candidate: Candidate | None = None

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics and objectives of the candidate; empty without one."""
        return {} if self.candidate is None else {**self.candidate.metrics, **(self.candidate.objectives or {})}


def choose_genome(source: str, d_model: int | None = None, depth: int | None = None) -> Chosen:
    """The genome that the text names. Raises UserError if it is unknown or malformed, or if a run's genome is to be
    scaled.
    """
    from star.genome import find_genome

    if is_run_id(source):
        if d_model or depth:
            raise UserError(f"{source}: --d-model and --depth scale shipped genomes and files, not a genome of a run")
        run, candidate = find_candidate(source)
        return Chosen(candidate.genome, f"{run.path}:{candidate.id}", "", run.corpus["vocab_size"], run, candidate)
    found = find_genome(source)
    genome = found.genome if d_model is depth is None else found.genome.scaled(d_model, depth)
    return Chosen(genome, found.name, found.description, found.vocab_size)


def is_run_id(source: str) -> bool:
    """Whether the text is RUN:ID and not a file."""
    return ":" in source and not Path(source).exists()


def find_candidate(source: str) -> tuple[Run, Candidate]:
    """The run and the candidate of RUN:ID. ID may be shortened, or be "knee"."""
    from star.run import Run

    path, _, id = source.rpartition(":")
    if not path or not id:
        raise UserError(f"'{source}' must be RUN:ID, such as runs/first:knee; star front RUN lists ids")
    run = Run(path)
    return run, run.knee() if id == "knee" else run.candidate(id)


def load_candidate(chosen: Chosen):
    """The trained model of a candidate. Raises UserError if its weights were not kept."""
    from star.export import load_weights
    from star.model import build

    run, candidate = chosen.run, chosen.candidate
    path = run.weights(candidate.id)
    if path is None:
        why = (
            f"it ended as '{candidate.status}'"
            if candidate.status != "ok"
            else f"this run keeps weights of: {run.config.keep}"
        )
        raise UserError(
            f"{run.path}:{candidate.id} has no weights on the disk ({why}); choose a member of the front (star "
            f"front {run.path}) "
            f"or train it by star train {run.path}:{candidate.id}"
        )
    model = build(candidate.trained_genome, vocab_size=run.corpus["vocab_size"])
    load_weights(model, path)
    return model.eval()
