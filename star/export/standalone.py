"""Load the weights of this model, and generate text from the command line."""

# STAR never imports this module. `star.export.source` copies it to the end of every exported model.py, where
# `star.export.architecture` is the plan of that model (see `architecture_source`).

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from star.export.architecture import PLAN, TIE_EMBEDDINGS, VOCAB_SIZE  # type: ignore[attr-defined]  # written there
from star.model.language_model import LanguageModel


def load(folder: str | Path = Path(__file__).parent, device: str = "cpu") -> LanguageModel:
    """The model in evaluation mode, with the weights in `folder` (by default the folder of this file).

    Raises ValueError if the weights belong to another architecture.
    """
    model = LanguageModel(PLAN, VOCAB_SIZE, TIE_EMBEDDINGS)
    weights = load_file(Path(folder) / "model.safetensors")
    parameters = dict(model.named_parameters())  # shared parameters are named once
    if {n: w.shape for n, w in weights.items()} != {n: p.shape for n, p in parameters.items()}:
        raise ValueError(f"{folder}/model.safetensors holds weights of another architecture")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.data = weights[name]
    return model.to(device).eval()


def main() -> None:
    """Continue a prompt byte by byte."""
    parser = argparse.ArgumentParser(description="Generate text with this model.")
    parser.add_argument("--prompt", default="", help="text to continue")
    parser.add_argument("--tokens", type=int, default=200, help="number of bytes to generate")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 always takes the most likely byte")
    parser.add_argument("--top-k", type=int, default=None, help="sample from the k most likely bytes only")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    options = parser.parse_args()
    model = load(device=options.device)
    prompt = list(options.prompt.encode(errors="surrogateescape")) or [0]  # byte 0 starts a document
    tokens = torch.tensor([prompt], device=options.device)
    try:
        tokens = model.generate(tokens, options.tokens, options.temperature, options.top_k, options.seed)
    except ValueError as error:
        parser.error(str(error))
    sys.stdout.buffer.write(bytes(tokens[0].tolist()).replace(b"\0", b"") + b"\n")
