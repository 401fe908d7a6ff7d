"""Token embeddings to begin with, from which tokens stand near each other in the training comments.

An encoder from scratch sees a rare token a few times in training, too few to place it. Counting its neighbours places
it beforehand, without labels and in a minute. Counts are weighed by distance; positive pointwise mutual information
with smoothed contexts is factorized by a truncated SVD.

Sources: Levy, Goldberg and Dagan, "Improving distributional similarity with lessons learned from word embeddings",
2015; Qi et al., "When and why are pre-trained word embeddings useful for neural machine translation?", 2018.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse
from sklearn.utils.extmath import randomized_svd

WINDOW = 5
"""Neighbours on each side; the weight falls with the distance."""
SMOOTHING = 0.75
"""The exponent of contexts' frequencies: without it rare contexts would count too much."""


def token_vectors(rows: Sequence[Sequence[int]], vocabulary: int, width: int, seed: int) -> np.ndarray:
    """Vectors of tokens by their neighbours; of length 1, or of zeros where a token never occurs.

    :param rows: token ids of comments.
    :returns: FP32. *Shape:* ``(vocabulary, width)``
    """
    near = _counts(rows, vocabulary)
    tokens = np.asarray(near.sum(axis=1)).ravel()
    contexts = tokens**SMOOTHING
    contexts /= max(contexts.sum(), 1e-12)
    entries = near.tocoo()
    information = np.log(np.maximum(entries.data / np.maximum(tokens[entries.row] * contexts[entries.col], 1e-12), 1.0))
    positive = scipy.sparse.csr_matrix((information, (entries.row, entries.col)), shape=near.shape)
    positive.eliminate_zeros()
    left, values, _ = randomized_svd(positive, min(width, vocabulary - 1), random_state=seed)
    vectors = np.zeros((vocabulary, width), np.float32)
    vectors[:, : left.shape[1]] = left * np.sqrt(values)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1))


def _counts(rows: Sequence[Sequence[int]], vocabulary: int) -> scipy.sparse.csr_matrix:
    """How often, weighed, two tokens stand near each other. Symmetric. *Shape:* ``(vocabulary, vocabulary)``"""
    ids = np.concatenate([np.asarray(row, np.int64) for row in rows]) if len(rows) else np.zeros(0, np.int64)
    comment = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    keys, weights = [], []
    for distance in range(1, WINDOW + 1):
        same = comment[:-distance] == comment[distance:]
        pairs = ids[:-distance][same] * vocabulary + ids[distance:][same]
        found, counts = np.unique(pairs, return_counts=True)
        keys.append(found)
        weights.append(counts / distance)
    joined = np.concatenate(keys)
    shape = (vocabulary, vocabulary)
    near = scipy.sparse.coo_matrix((np.concatenate(weights), np.divmod(joined, vocabulary)), shape=shape).tocsr()
    return near + near.T
