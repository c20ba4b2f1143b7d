"""How well an architecture does what a loss may not show: `star.data.skills`, and the loss beyond the training context.

    scores = finish(measuring(genome, {"mqar": SKILLS["mqar"]}, tokens=200_000, seed=0))      # {"mqar": error, ...}
    scores = loss_by_position(model, corpus, recipe)      # {"extrapolation": bits per byte lost, ...}

For each task a new model with the genome's pattern, at most `WIDTH` wide, is trained from scratch. The objective of a
task is its error, 1 - accuracy on held-out sequences, under the task's name; accuracies of its parts stand under "NAME
PART", such as "needle 50%".
"""

import time
from collections.abc import Generator, Mapping

import numpy as np
import torch

from star.assess.synthetic_tasks import WIDTH, accuracy, fit
from star.data import Corpus, validation_blocks
from star.data.skills import SKILLS, Skill
from star.errors import UserError
from star.genome import Genome
from star.model import LanguageModel
from star.model.cross_entropy import IGNORED
from star.training.evaluation import position_losses
from star.training.program import on_own_stream
from star.training.recipe import Recipe

EXTRAPOLATION = "extrapolation"
NAMES = (*SKILLS, EXTRAPOLATION)
TEST_SEQUENCES = 512  # of each part of a task
TOKENS_AT_ONCE = 16_384
# Attention finds recall late: with a linear schedule, or at MAD's rate, its rate has fallen before that.
RECIPE = Recipe(learning_rate=3e-3, weight_decay=0.0, schedule="wsd", warmup=0.3)

CONTEXTS = (1, 2, 4, 8)  # times the training context: losses are of positions up to each, from the one before
POSITION_TOKENS = 65_536  # validation text for losses by position
LEAST_BLOCKS = 16  # of the longest context, where the text has so many


def measuring(
    genome: Genome,
    skills: Mapping[str, Skill],
    tokens: int,
    seed: int = 0,
    device: str = "cpu",
    deadline: float | None = None,
) -> Generator[None, None, dict[str, float] | None]:
    """Errors by task and accuracies of their parts; None past the deadline (as of time.monotonic). In steps.

    tokens: training tokens for each task.
    """
    genome = genome.scaled(d_model=WIDTH) if genome.d_model > WIDTH else genome
    where, scores = torch.device(device), dict[str, float]()
    for name, skill in skills.items():
        own = seed + list(SKILLS).index(name)  # a score does not depend on which others are measured
        answers = yield from on_own_stream(fit(genome, skill, tokens, own, where, RECIPE, deadline), where)
        if answers is None:
            return None
        found = {}
        for number, (part, test) in enumerate(skill.tests().items()):
            if deadline is not None and time.monotonic() > deadline:
                return None
            inputs, targets = test.batch(TEST_SEQUENCES, np.random.default_rng([own, 1, number]))
            at_once = max(1, TOKENS_AT_ONCE // test.length)
            logits = torch.cat([answers(rows.to(where)).cpu() for rows in inputs.split(at_once)])
            found[part] = accuracy(logits, targets)
            yield
        scores |= {f"{name} {part}": score for part, score in found.items() if part}
        scores[name] = 1.0 - sum(found.values()) / len(found)
    return scores


def check_text(corpus: Corpus, seq_len: int) -> None:
    """Raises UserError unless the text is long enough for the longest context of `loss_by_position`."""
    need, have = 2 * CONTEXTS[-1] * seq_len + 1, len(corpus.validation)
    if have < need:
        raise UserError(
            f'{EXTRAPOLATION}: the validation part of the corpus "{corpus.name}" has {have:,} tokens, and '
            f"{CONTEXTS[-1]} times the training context of {seq_len} needs {need:,}; give more text, or leave it out"
        )


def loss_by_position(model: LanguageModel, corpus: Corpus, recipe: Recipe) -> dict[str, float]:
    """Bits per byte by position in validation text, up to 8 times the training context `recipe.seq_len`.

    "extrapolation" is how many bits per byte the tokens from 4 to 8 times the context lose against the same tokens
    read in contexts as long as the training's: 0 if nothing changes, below 0 if the model has use for the longer
    context. "extrapolation_se" is its standard error over blocks of text. "extrapolation 2x" is the loss of positions
    from 1 to 2 times the context, and so on.

    Raises UserError if the text, or with separate documents every one of them, is too short, or if the model has
    learned positions and too few of them.
    """
    seq_len = recipe.seq_len
    check_text(corpus, seq_len)
    longest, positions = CONTEXTS[-1] * seq_len, model.plan.positions
    if 0 < positions < longest:
        raise UserError(
            f"{EXTRAPOLATION}: the model has {positions} learned positions, and {CONTEXTS[-1]} times the training "
            f"context are {longest}; nothing lies beyond its last position"
        )
    device = next(model.parameters()).device
    separator = corpus.tokenizer.separator if recipe.documents == "separate" else None
    tokens = max(POSITION_TOKENS, LEAST_BLOCKS * longest)
    inputs, targets = (p.to(device) for p in validation_blocks(corpus.validation, longest, tokens, separator))
    model.eval()
    far = position_losses(model, inputs, targets)  # [n, 8 T]
    near = position_losses(model, *(part.reshape(-1, seq_len) for part in (inputs, targets))).reshape(far.shape)
    counts = (targets != IGNORED).sum(dim=0)  # [8 T]
    if not counts[CONTEXTS[-2] * seq_len :].any():
        raise UserError(
            f'{EXTRAPOLATION}: no document of the corpus "{corpus.name}" is longer than {CONTEXTS[-2]} times the '
            f"training context of {seq_len} tokens; nothing can be measured there"
        )
    found, ranges = {}, zip((0, *CONTEXTS), CONTEXTS, strict=False)
    for part in (slice(low * seq_len, high * seq_len) for low, high in ranges):
        loss = far[:, part].sum() / counts[part].sum()
        found[f"{EXTRAPOLATION} {part.stop // seq_len}x"] = corpus.bits_per_byte(loss.item())
    lost = (far - near)[:, part].sum(dim=1)  # [n], at the farthest positions
    error = lost.std() * len(lost) ** 0.5 / counts[part].sum()
    found[EXTRAPOLATION] = corpus.bits_per_byte((lost.sum() / counts[part].sum()).item())
    return found | {f"{EXTRAPOLATION}_se": corpus.bits_per_byte(error.item())}
