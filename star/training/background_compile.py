"""Compiles the blocks of one model in another process, while the model already trains.

    compilation = Compilation(model, recipe, device)
    compilation.ready()                                  # then `compile_blocks(model)` finds the code on disk
    python -m star.training.background_compile JOB              # the process

Compiled blocks cost about 8 s for each kind of block, and save 2 % of a step of 125 M parameters that is captured as a
CUDA graph and has the one-pass kernels of `star.liv.triton_kernels` (one H200; a third of the step without them). So
they pay for a training of hours, not for a candidate.
"""

from __future__ import annotations

import json
import subprocess
import sys

import torch

from star.genome import from_json, to_json
from star.model import build
from star.model.language_model import LanguageModel
from star.training.compile import compile_blocks, kinds
from star.training.device import resolve_dtype
from star.training.recipe import Recipe

DEVICES: tuple[str, ...] = ("cuda",)
GAIN, COST = 1 / 50, 8.0  # share of the time that is saved; seconds for each kind of block


def pays(model: LanguageModel, seconds_left: float) -> bool:
    """Whether compiled blocks save at least twice what they cost, in a training with so many seconds left."""
    return GAIN * seconds_left > 2 * COST * len(kinds(model))


class Compilation:
    """A process that compiles, and leaves the code in the cache on disk. Its output is dropped."""

    def __init__(self, model: LanguageModel, recipe: Recipe, device: torch.device):
        job = {"genome": to_json(model.genome), "vocab_size": model.vocab_size, "dtype": recipe.dtype}
        job |= {"shape": [recipe.batch_size, recipe.seq_len], "device": str(device)}
        command = [sys.executable, "-m", "star.training.background_compile", json.dumps(job)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.used = False

    def ready(self) -> bool:
        """True once: when the code is there. Never if the process failed: then blocks stay as they are."""
        if self.used or self.process.poll() != 0:
            return False
        self.used = True
        return True

    def stop(self) -> None:
        """End the process."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def main() -> None:
    """Compile the blocks of the job on the command line, forward and backward."""
    job = json.loads(sys.argv[1])
    device = torch.device(job["device"])
    model = build(from_json(job["genome"]), job["vocab_size"]).to(device).train()
    model.compute_dtype = resolve_dtype(job["dtype"], device)
    compile_blocks(model)
    tokens = torch.zeros(job["shape"], dtype=torch.int64, device=device)
    model.loss(tokens, tokens).backward()


if __name__ == "__main__":
    main()
