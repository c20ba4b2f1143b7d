"""Baselines that a model must beat: the losses of unigram and bigram counts."""

import numpy as np

BLOCK = 1 << 24  # tokens counted at a time, to bound memory


def ngram_losses(train: np.ndarray, validation: np.ndarray, vocab_size: int) -> dict[str, float]:
    """Nats per token on `validation` of unigram and bigram models counted on `train`.

    Unigram: add-one smoothing. Bigram: one pseudo-count after each token, distributed like the unigram (a Dirichlet
    prior), so that after a token never seen in training it equals the unigram.
    """
    pairs = _count_pairs(train, vocab_size)  # [V, V]: first token, second token
    unigram = pairs.sum(axis=0) + 1.0
    unigram /= unigram.sum()
    bigram = (pairs + unigram) / (pairs.sum(axis=1, keepdims=True) + 1.0)
    test = _count_pairs(validation, vocab_size)
    n = test.sum()
    return {
        "unigram": float(-(test.sum(axis=0) * np.log(unigram)).sum() / n),
        "bigram": float(-(test * np.log(bigram)).sum() / n),
    }


def _count_pairs(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    counts = np.zeros(vocab_size * vocab_size)
    for start in range(0, len(tokens) - 1, BLOCK):
        block = tokens[start : start + BLOCK + 1].astype(np.int64)
        counts += np.bincount(block[:-1] * vocab_size + block[1:], minlength=len(counts))
    return counts.reshape(vocab_size, vocab_size)
