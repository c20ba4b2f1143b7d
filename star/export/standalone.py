"""Load the weights of this model, and generate text from the command line."""

# STAR never imports this module. `star.export.source` copies it to the end of every exported model.py, where
# `star.export.architecture` is the plan of that model (see `architecture_source`).

from __future__ import annotations

import argparse
import json
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
    """Continue a prompt, token by token: bytes, or those of tokenizer.json (which needs the package tokenizers)."""
    parser = argparse.ArgumentParser(description="Generate text with this model.")
    parser.add_argument("--prompt", default="", help="text to continue")
    parser.add_argument("--tokens", type=int, default=200, help="number of tokens to generate")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 always takes the most likely token")
    parser.add_argument("--top-k", type=int, default=None, help="sample from the k most likely tokens only")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    options = parser.parse_args()
    model = load(device=options.device)
    folder = Path(__file__).parent
    tokenizer, separator = None, 0  # byte 0 starts a document
    if (folder / "tokenizer.json").exists():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        separator = json.loads((folder / "config.json").read_text(encoding="utf-8"))["separator"]
        prompt = tokenizer.encode(options.prompt, add_special_tokens=False).ids
    else:
        prompt = list(options.prompt.encode(errors="surrogateescape"))
    tokens = torch.tensor([prompt or [separator]], device=options.device)
    try:
        tokens = model.generate(tokens, options.tokens, options.temperature, options.top_k, options.seed)
    except ValueError as error:
        parser.error(str(error))
    ids = [token for token in tokens[0].tolist() if token != separator]
    text = bytes(ids) if tokenizer is None else tokenizer.decode(ids, skip_special_tokens=False).encode()
    sys.stdout.buffer.write(text + b"\n")
