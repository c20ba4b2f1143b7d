"""Models that train at the same time: each ends where a training of its own would have ended, whatever the others do."""

import numpy as np
import pytest
import torch

from star.data import open_corpus
from star.errors import UserError
from star.genome import Genome
from star.genome.codec import parse_text
from star.model import build
from star.training import Recipe, train
from star.training.ensemble import train_many

RECIPE = Recipe(tokens=2048, batch_size=2, seq_len=32, eval_interval=0.25, eval_tokens=512, device="cpu", warmup=0.1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    words = ["star", "and", "evolves", "a", "backbone"]
    (folder / "words.txt").write_text(" ".join(np.random.default_rng(0).choice(words, 8000)))
    return open_corpus(folder / "words.txt", cache_dir=folder / "cache")


def models(count: int, backbone: str = "1-9-7-9", **fields) -> list:
    genome = Genome(parse_text(backbone), d_model=32, head_dim=8, **fields)
    return [build(genome, seed=seed) for seed in range(count)]


def separately(models, corpus, recipes):
    return [train(model, corpus, recipe) for model, recipe in zip(models, recipes, strict=True)]


def assert_same(together, apart):
    for a, b in zip(together, apart, strict=True):
        assert (a.status, a.steps, a.tokens, len(a.curve)) == (b.status, b.steps, b.tokens, len(b.curve))
        for here, there in zip(a.curve, b.curve):
            assert here["val_loss"] == pytest.approx(there["val_loss"], rel=1e-4)
            assert here["train_loss"] == pytest.approx(there["train_loss"], rel=1e-4)


# Every family: attention (windowed, grouped, filtered), recurrences (scalar, vector, delta), convolutions, memoryless, elementwise.
@pytest.mark.parametrize("backbone", ["1-9-3", "2-29-13", "5-6-14", "7-8-16", "37-38", "39-41", "42-47-49"])
def test_same_losses_as_separate_training(corpus, backbone):
    recipes = [RECIPE.replace(seed=seed) for seed in range(3)]
    assert_same(train_many(models(3, backbone), corpus, recipes), separately(models(3, backbone), corpus, recipes))
