"""Fit hashed n-grams, most usefully to a teacher's scores: the first stage of a cascade.

The features are those of :mod:`train.hashing`. The most frequent buckets get a row of weights each: how much the bucket
alone tells of the label, as log-odds, times a factor; the factors are those of a logistic regression with soft labels,
found by L-BFGS. Weights are stored in INT8 and used as they are stored.

What did worse, at a like cost, on the starter model's scores: counts instead of presence, no inverse document
frequencies, and stochastic gradients (Adagrad) with or without the log-odds, which learnt the training comments by
heart before the rare n-grams had moved.

Sources: Wang and Manning, "Baselines and bigrams: simple, good sentiment and topic classification", 2012; Liu and
Nocedal, "On the limited memory BFGS method for large scale optimization", 1989.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse
from scipy.optimize import minimize

from train.config import InvalidConfig, NgramConfig
from train.hashing import HashedModel, HashSettings, distinct, features

TEXTS = 512
"""Texts whose features are computed at a time."""

IMAGINED = 1.0
"""How much presence of a bucket is imagined, with the labels of all comments, so that rare ones move little."""

MEMORY = 6
"""Steps that L-BFGS remembers."""


def fit_ngrams(
    config: NgramConfig,
    texts: Sequence[str],
    targets: np.ndarray,
    progress: Callable[[str], None] | None = None,
) -> HashedModel:
    """Weights that give ``texts`` the probabilities ``targets``. Nothing is drawn at random.

    :param targets: in [0, 1], or NaN where nobody knows. *Shape:* ``(comments, labels)``
    :param progress: is told, in words, what has been done.
    :raises InvalidConfig: when no bucket is in enough comments, or the settings do not fit together.
    """
    say = progress or (lambda message: None)
    started = time.monotonic()
    try:
        settings = HashSettings(config.bits, tuple(config.characters), config.words, config.max_bytes)
    except ValueError as error:
        raise InvalidConfig(f"ngrams.{error}") from None
    parts = [features(texts[i : i + TEXTS], settings) for i in range(0, len(texts), TEXTS)]
    sizes = [len(texts[i : i + TEXTS]) for i in range(0, len(texts), TEXTS)]
    everything = np.arange(1, 2**settings.bits + 1, dtype=np.int32)
    counts = np.zeros(2**settings.bits + 1, np.int64)
    for kinds, size in zip(parts, sizes, strict=True):
        counts += np.bincount(distinct(kinds, everything, size)[0], minlength=len(counts))
    frequent = np.flatnonzero(counts[1:] >= config.min_count)
    if not len(frequent):
        raise InvalidConfig(f"no n-gram stands in {config.min_count} of {len(texts)} comments: lower ngrams.min_count")
    most = np.argsort(-counts[1:][frequent], kind="stable")[: config.rows]
    buckets = np.sort(frequent[most]).astype(np.int32)
    places = np.zeros(2**settings.bits, np.int32)
    places[buckets] = np.arange(1, len(buckets) + 1)
    inverse = np.log((1 + len(texts)) / (1 + counts[1:][buckets])) + 1
    x = _matrix([distinct(kinds, places, size) for kinds, size in zip(parts, sizes, strict=True)], inverse)
    del parts
    say(
        f"{len(buckets)} rows, {x.nnz / max(len(texts), 1):.0f} of them in a comment, in "
        f"{time.monotonic() - started:.0f} s"
    )
    weights, intercepts = _fit(config, x, np.asarray(targets, np.float32), say)
    learnt = weights * inverse[:, None]
    scales = np.maximum(np.abs(learnt).max(axis=0), 1e-9) / 127
    unit = float((inverse**2).max()) / 255
    return HashedModel(
        settings,
        buckets,
        np.round(learnt / scales).astype(np.int8),
        np.maximum(np.round(inverse**2 / unit), 1).astype(np.uint8),
        scales / np.sqrt(unit),
        intercepts,
    )


def _matrix(parts: Sequence[tuple[np.ndarray, np.ndarray]], inverse: np.ndarray) -> Any:
    """The comments' features, each comment of length 1. *Shape:* ``(comments, rows)``, sparse, FP32."""
    blocks = []
    for every, starts in parts:
        found, bounds = every[every > 0], starts - np.arange(len(starts))  # place 0 is that of no row
        values = inverse[found - 1]
        squares = np.concatenate(([0.0], np.cumsum(values**2)))
        lengths = np.sqrt(np.maximum(squares[bounds[1:]] - squares[bounds[:-1]], 1e-9))
        values = (values / np.repeat(lengths, np.diff(bounds))).astype(np.float32)
        block = (values, (found - 1).astype(np.int32), bounds.astype(np.int32))
        blocks.append(scipy.sparse.csr_matrix(block, shape=(len(bounds) - 1, len(inverse))))
    return scipy.sparse.vstack(blocks, format="csr")


def _fit(config: NgramConfig, x: Any, targets: np.ndarray, say: Callable[[str], None]) -> tuple[np.ndarray, np.ndarray]:
    """:returns: weights and intercepts. *Shape:* ``(rows, labels)``, ``(labels,)``."""
    known = ~np.isnan(targets)
    share = (known / np.maximum(known.sum(axis=0), 1)).astype(np.float32)
    y = np.nan_to_num(targets)
    base = np.clip((share * y).sum(axis=0), 1e-5, 1 - 1e-5)
    across = x.T.tocsr()
    odds = _log_odds(across, np.where(known, y, base).astype(np.float32), base)
    rows, labels = odds.shape
    started = time.monotonic()

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        factors, offsets = point[: rows * labels].reshape(rows, labels).astype(np.float32), point[rows * labels :]
        logits = x @ (odds * factors) + offsets
        value = float((share * (np.logaddexp(0, logits) - y * logits)).sum())
        value += config.l2 / 2 * float(np.square(point[: rows * labels]).sum())
        error = (share * (0.5 * (1 + np.tanh(0.5 * logits)) - y)).astype(np.float32)
        gradient = odds * (across @ error) + np.float32(config.l2) * factors
        return value, np.concatenate((gradient.ravel(), error.sum(axis=0))).astype(np.float64)

    start = np.concatenate((np.zeros(rows * labels), np.log(base / (1 - base))))
    limits = {"maxiter": config.iterations, "maxcor": MEMORY}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=limits)
    say(f"{found.nit} iterations: loss {found.fun:.4f}, in {time.monotonic() - started:.0f} s")
    return odds * found.x[: rows * labels].reshape(rows, labels), found.x[rows * labels :]


def _log_odds(across: Any, y: np.ndarray, base: np.ndarray) -> np.ndarray:
    """How a bucket moves the log-odds of each label away from those of all comments. *Shape:* ``(rows, labels)``."""
    presence = np.asarray(across.sum(axis=1)).reshape(-1, 1)
    share = np.clip((across @ y + IMAGINED * base) / (presence + IMAGINED), 1e-6, 1 - 1e-6)
    return np.asarray(np.log(share / (1 - share)) - np.log(base / (1 - base)), np.float32)
