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

RECIPE = Recipe(tokens=1024, batch_size=2, seq_len=32, eval_interval=0.25, eval_tokens=512, device="cpu", warmup=0.1)


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
    recipes = [RECIPE.replace(seed=seed, tokens=640, eval_interval=0.5) for seed in range(2)]
    assert_same(train_many(models(2, backbone), corpus, recipes), separately(models(2, backbone), corpus, recipes))


def test_runs_may_differ_in_rates_decay_schedule_and_optimizer(corpus):
    """Muons of other rates, base widths and clips, and an AdamW of another schedule, betas and layer-wise rates, in one program."""
    recipes = [
        RECIPE.replace(optimizer="muon", learning_rate=8e-3, momentum=0.9),
        RECIPE.replace(optimizer="muon", seed=1, weight_decay=0.0, embedding_multiplier=3.0, schedule="cosine"),
        RECIPE.replace(betas=(0.8, 0.9), clip=0.0, layer_decay=0.5, schedule="wsd", warmup=0.3, learning_rate=1e-3),
        RECIPE.replace(clip=0.05, vector_multiplier=0.3, seed=3, optimizer="muon", base_width=16),
    ]
    together, apart = train_many(models(4), corpus, recipes), separately(models(4), corpus, recipes)
    assert_same(together, apart)
    assert len({round(result.val_loss, 3) for result in together}) == 4, "the settings matter, or this tests nothing"


def test_accumulation_a_rung_and_shared_weights(corpus):
    """The last step has fewer micro-batches, the stop is between two points of the curve, and LIVs share weights and features."""
    recipes = [RECIPE.replace(accumulate=3, seed=seed) for seed in range(2)]
    shared = "11212-9-11212-50022-50022"
    apart = [
        train(model, corpus, recipe, stop_tokens=700) for model, recipe in zip(models(2, shared), recipes, strict=True)
    ]
    assert_same(train_many(models(2, shared), corpus, recipes, stop_tokens=700), apart)
    assert apart[0].steps == 4 and apart[0].tokens == 12 * 64


def test_models_are_trained_in_place_and_own_their_weights_afterwards(corpus):
    pair, single = models(2), models(1)[0]
    train_many(pair, corpus, [RECIPE.replace(seed=seed) for seed in range(2)])
    train(single, corpus, RECIPE)
    for (name, mine), other in zip(pair[0].named_parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-2, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}")
        assert mine.grad is None and mine.untyped_storage().nbytes() == mine.nbytes
    before = pair[1].embedding.clone()
    train(pair[0], corpus, RECIPE.replace(tokens=128))
    assert torch.equal(pair[1].embedding, before)


def test_a_model_that_diverges_harms_no_other(corpus):
    recipes = [RECIPE, RECIPE.replace(learning_rate=1e9, clip=0.0), RECIPE.replace(seed=1)]
    results = train_many(models(3), corpus, recipes)
    assert [result.status for result in results] == ["ok", "diverged", "ok"]
    fine = separately([m for k, m in enumerate(models(3)) if k != 1], corpus, [recipes[0], recipes[2]])
    assert_same([results[0], results[2]], fine)
    assert results[1].tokens < RECIPE.tokens and "not finite" in results[1].reason
    assert all(result.status == "diverged" for result in train_many(models(2), corpus, [recipes[1]] * 2))


def test_deadline_and_progress(corpus, monkeypatch):
    monkeypatch.setattr("star.training.ensemble.PROGRESS_SECONDS", 0.0)
    seen = []
    results = train_many(models(2), corpus, [RECIPE] * 2, on_progress=seen.append, deadline=0.0)
    assert [result.status for result in results] == ["timeout"] * 2 and results[0].steps == 1
    train_many(models(2), corpus, [RECIPE] * 2, on_progress=seen.append)
    assert [row["step"] for row in seen] == list(range(1, 17)) and seen[0]["total_tokens"] == RECIPE.tokens


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adaptive": True}, "recipe's adaptive makes steps that differ"),
        ({"sparsify": 0.1}, "recipe's sparsify makes steps that differ"),
        ({"seq_len": 16}, "recipes' seq_len are 16, 32"),
        ({"batch_size": 4}, "recipes' batch_size are 2, 4"),
        ({"tokens": 512}, "recipes' tokens are 512, 1024"),
    ],
)
def test_what_cannot_be_batched_is_refused(corpus, change, message):
    with pytest.raises(UserError, match=message):
        train_many(models(2), corpus, [RECIPE, RECIPE.replace(**change)])


def test_models_that_cannot_be_batched_are_refused(corpus):
    with pytest.raises(UserError, match="several genomes"):
        train_many([*models(1, "1-9"), *models(1, "5-9")], corpus, [RECIPE] * 2)
    with pytest.raises(UserError, match="given several times"):
        train_many(models(1) * 2, corpus, [RECIPE] * 2)
    with pytest.raises(UserError, match="the models have 300 tokens and the corpus"):
        train_many([build(Genome(parse_text("1-9"), d_model=16, head_dim=8), vocab_size=300)], corpus, [RECIPE])
    with pytest.raises(ValueError, match="1 models and 2 recipes"):
        train_many(models(1), corpus, [RECIPE] * 2)
