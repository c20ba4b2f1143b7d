"""What people take away: a folder with one self-contained PyTorch file, its weights, and what they are.

    model.py             the architecture and `load`; needs torch and safetensors, nothing of STAR
    model.safetensors    the weights, shared ones once
    config.json          genome, vocabulary, tokenizer, where it came from and what it scored

Imports `star.run`, `star.model`, `star.genome` and what is below them; nothing imports it but the command line.
"""

from star.export.folder import check_target, export_model, load, read_config
from star.export.weights import load_weights, save_weights

__all__ = ["check_target", "export_model", "load", "load_weights", "read_config", "save_weights"]
