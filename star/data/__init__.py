"""Real text as token files: what a model is trained and evaluated on.

    corpus = open_corpus("python")                  # or "stdlib", a file, a folder, "hf:NAME[:CONFIG]"
    corpus.train, corpus.validation                 # memory-mapped token ids, never sharing a document
    Batches(corpus.train, batch_size=2, seq_len=128, seed=0)[step]

A corpus is tokenised once per machine, cached, and opened from the cache in milliseconds.
From STAR this package imports only `star.errors`.
"""

from star.data.batches import Batches, DeviceBatches, validation_blocks
from star.data.corpus import Corpus, open_corpus
from star.data.tokenizer import ByteTokenizer

__all__ = ["Batches", "ByteTokenizer", "Corpus", "DeviceBatches", "open_corpus", "validation_blocks"]
