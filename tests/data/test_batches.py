"""Batches of separate documents: every sequence lies in one, all of a document is learned, nothing looks across."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from star.data import Batches, DeviceBatches, open_corpus, validation_blocks
from star.data.batches import IGNORED, document_starts
from star.errors import UserError
from star.genome import Genome
from star.genome.codec import parse_text
from star.model import build
from star.model.cross_entropy import IGNORED as NOT_COUNTED
from star.training import Recipe, train
from star.training.evaluation import block_losses

END = 0


def joined(lengths: list[int], last: bool = True) -> np.ndarray:
    """Documents of these lengths, each followed by the separator; the tokens of document k are k + 1."""
    text = np.concatenate([np.append(np.full(n, k % 200 + 1), END) for k, n in enumerate(lengths)])
    return (text if last else text[:-1]).astype(np.uint8)


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=3, max_size=20), st.integers(1, 16), st.booleans())
def test_every_sequence_lies_in_one_document_and_every_token_is_learned(lengths, seq_len, last):
    text = joined([*lengths, 3 * seq_len], last)
    batches = Batches(text, batch_size=2, seq_len=seq_len, seed=0, separator=END)
    _, targets = batches.sequences(0, batches.n_blocks)
    counts = (targets != IGNORED).numpy()
    document = np.cumsum(np.concatenate([[0], text[:-1] == END]))  # of each token
    starts = torch.from_numpy(batches.starts(0, batches.n_blocks))
    position = (starts[:, None] + torch.arange(seq_len)).numpy()
    mine, theirs = document[position], document[np.minimum(position + 1, len(text) - 1)]
    assert (mine[counts] == document[starts.numpy()][:, None].repeat(seq_len, axis=1)[counts]).all()
    assert (mine[counts] == theirs[counts]).all()
    learned = set((position + 1)[counts].tolist())
    first = {0, *(np.flatnonzero(text == END) + 1).tolist()}
    assert learned == set(range(len(text))) - first - {len(text)}
    assert (targets.numpy()[counts] == text[(position + 1)[counts]]).all()


def test_an_epoch_has_every_sequence_once_and_the_device_gathers_the_same():
    text = joined([5, 40, 17, 1, 90, 33])
    batches = Batches(text, batch_size=3, seq_len=8, seed=4, separator=END)
    starts = batches.starts(0, batches.n_blocks)
    assert sorted(starts) == sorted(document_starts(text, 8, END))
    assert not np.array_equal(starts, batches.starts(batches.n_blocks, batches.n_blocks))
    gathered = DeviceBatches(batches, 2 * batches.n_blocks, torch.device("cpu"))
    gathered.load(0)
    for step in range(4):
        for ours, theirs in zip(gathered(torch.tensor(3 * step), 3), batches[step], strict=True):
            assert torch.equal(ours, theirs)
    assert IGNORED == NOT_COUNTED


@pytest.mark.parametrize("text", ["1", "5", "10-1", "8-9", "12", "3-2"])
def test_no_operator_looks_across(text):
    model = build(Genome(parse_text(text), d_model=32, head_dim=8), vocab_size=256, seed=0).eval()
    short = joined([4, 30, 30])
    other = short.copy()
    other[5:35] = 77  # the document behind the short one
    losses = []
    for tokens in (short, other):
        batches = Batches(tokens, 2, 8, 0, separator=END)
        inputs, targets = batches.sequences(0, batches.n_blocks)
        alone = torch.from_numpy(batches.starts(0, batches.n_blocks) == 0)
        losses.append(block_losses(model, inputs[alone], targets[alone]))
        assert (targets[alone] != IGNORED).sum() == 4
    assert torch.equal(*losses)


def test_the_mean_over_blocks_is_the_mean_over_tokens():
    model = build(Genome(parse_text("1"), d_model=16, head_dim=8), vocab_size=256, seed=0).eval()
    inputs, targets = validation_blocks(joined([3, 50, 2, 70]), 8, 400, END)
    losses = model.loss(inputs, targets, reduction="none")
    assert block_losses(model, inputs, targets).mean() == pytest.approx(
        (losses.sum() / (targets != IGNORED).sum()).item(), rel=1e-5
    )
    whole = validation_blocks(joined([3, 50, 2, 70]), 8, 400)
    assert torch.equal(block_losses(model, *whole), model.loss(*whole, reduction="none").double().mean(dim=1))


def test_a_recipe_can_train_so_and_says_when_it_cannot(tmp_path):
    for name, words in (("a", 200), ("b", 150), ("c", 90), ("d", 160), ("e", 170), ("f", 5)):
        (tmp_path / f"{name}.txt").write_text(f"{name} word " * words)
    corpus = open_corpus(tmp_path, cache_dir=tmp_path / "cache")
    recipe = Recipe(tokens=1024, batch_size=2, seq_len=16, eval_tokens=256, documents="separate", device="cpu")
    found = {}
    for documents in ("separate", "joined"):
        model = build(Genome(parse_text("1-9"), d_model=16, head_dim=8), vocab_size=256, seed=0)
        found[documents] = train(model, corpus, recipe.replace(documents=documents))
    assert found["separate"].status == "ok" and found["separate"].val_loss < 5
    assert found["separate"].val_loss != found["joined"].val_loss
    with pytest.raises(UserError, match=r"training\.documents is separate and the text has \d sequences"):
        document_starts(joined([3, 3]), 16, END)
