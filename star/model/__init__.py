"""From a genome to a language model in torch. Imports `star.genome` and `star.liv`."""

from __future__ import annotations

from star.genome import Genome, load_genome, resolve
from star.model.language_model import LanguageModel, ModelState


def build(
    genome: Genome | str, vocab_size: int = 256, seed: int = 0, tie_embeddings: bool | None = None
) -> LanguageModel:
    """The language model of a genome, with weights initialised from `seed`.

    Args: genome: a `Genome`, a shipped name, a path or text; vocab_size: rows of the embedding;
        tie_embeddings: whether the head is the embedding, None for what the genome says.
    Raises: UserError if an operator does not fit the width or a sharing group cannot be shared.
    """
    chosen = genome if isinstance(genome, Genome) else load_genome(genome)
    model = LanguageModel(resolve(chosen), vocab_size, tie_embeddings)
    model.reset_parameters(seed)
    model.genome = chosen
    return model


__all__ = ["LanguageModel", "ModelState", "build"]
