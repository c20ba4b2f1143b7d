"""Exports a model as a folder that does not need STAR.

    model.py             the architecture and `load`, in one readable file
    model.safetensors    the weights; shared ones are stored once
    config.json          genome, vocabulary, tokenizer, origin and metrics
    README.md, ...       the model card, the genome, an example

or, where a class of transformers can express it, as a checkpoint of that class (`export_hugging_face`).

Imports `star.model`, `star.genome` and what they import; only the command line imports it.
"""

from star.export.continuation import continuations
from star.export.folder import check_target, export_hugging_face, export_model, load, read_config
from star.export.weights import load_weights, save_weights

__all__ = [
    "check_target",
    "continuations",
    "export_hugging_face",
    "export_model",
    "load",
    "load_weights",
    "read_config",
    "save_weights",
]
