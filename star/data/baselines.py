"""Baselines that a model must beat: the losses of unigram and bigram counts."""

import numpy as np

BLOCK = 1 << 24  # tokens counted at a time, to bound memory


DENSE = 1024  # tokens of a vocabulary whose pairs are counted in a table


def ngram_losses(train: np.ndarray, validation: np.ndarray, vocab_size: int) -> dict[str, float]:
    """Nats per token on `validation` of unigram and bigram models counted on `train`.

    Unigram: add-one smoothing. Bigram: one pseudo-count after each token, distributed like the unigram (a Dirichlet
    prior), so that after a token never seen in training it equals the unigram.
    """
    codes, counts = _count_pairs(train, vocab_size)  # of a pair: first * V + second
    unigram = np.bincount(codes % vocab_size, weights=counts, minlength=vocab_size) + 1.0
    unigram /= unigram.sum()
    after = np.bincount(codes // vocab_size, weights=counts, minlength=vocab_size)  # pairs that begin with a token
    seen, times = _count_pairs(validation, vocab_size)
    first, second = np.divmod(seen, vocab_size)
    place = np.searchsorted(codes, seen).clip(max=max(len(codes) - 1, 0))
    known = np.where(codes[place] == seen, counts[place], 0.0) if len(codes) else np.zeros(len(seen))
    bigram = (known + unigram[second]) / (after[first] + 1.0)
    n = times.sum()
    return {
        "unigram": float(-(times * np.log(unigram[second])).sum() / n),
        "bigram": float(-(times * np.log(bigram)).sum() / n),
    }


def _count_pairs(tokens: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the neighbouring pairs that occur, rising, and how often each does."""
    dense = np.zeros(vocab_size * vocab_size if vocab_size <= DENSE else 0)
    codes: np.ndarray = np.empty(0, np.int64)
    counts: np.ndarray = np.empty(0)
    for start in range(0, len(tokens) - 1, BLOCK):
        block = tokens[start : start + BLOCK + 1].astype(np.int64)
        pairs = block[:-1] * vocab_size + block[1:]
        if len(dense):
            dense += np.bincount(pairs, minlength=len(dense))
        else:
            found, times = np.unique(pairs, return_counts=True)
            codes, place = np.unique(np.concatenate([codes, found]), return_inverse=True)
            counts = np.bincount(place, weights=np.concatenate([counts, times]))
    if len(dense):
        codes = np.flatnonzero(dense)
        counts = dense[codes]
    return codes, counts
