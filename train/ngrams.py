"""Fit hashed n-grams, most usefully to a teacher's scores: the first stage of a cascade.

The features are those of :mod:`train.hashing`. The most frequent buckets get a row of weights each: how much the bucket
alone tells of the label, as log-odds, times a factor that is fitted by stochastic gradients with a step size of its own
(Adagrad). Without the log-odds, the many buckets that tell nothing learn the training comments by heart. Weights are
stored in INT8 and used as they are stored.

Sources: Wang and Manning, "Baselines and bigrams: simple, good sentiment and topic classification", 2012, for the
log-odds; Duchi, Hazan, Singer, "Adaptive subgradient methods for online learning and stochastic
optimization", 2011.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional

from train.config import InvalidConfig, NgramConfig
from train.hashing import HashedModel, HashSettings, features

TEXTS = 1024
"""Texts whose features are computed at a time."""

IMAGINED = 2.0


def fit_ngrams(
    config: NgramConfig,
    texts: Sequence[str],
    targets: np.ndarray,
    seed: int,
    progress: Callable[[str], None] | None = None,
    weights: np.ndarray | None = None,
) -> HashedModel:
    """Weights that give ``texts`` the probabilities ``targets``.

    :param targets: in [0, 1], or NaN where nobody knows. *Shape:* ``(comments, labels)``
    :param progress: is told, in words, what has been done.
    :param weights: how much each comment counts; ``None`` for all alike. *Shape:* ``(comments,)``
    :raises InvalidConfig: when no bucket is in enough comments, or the settings do not fit together.
    """
    say = progress or (lambda message: None)
    started = time.monotonic()
    try:
        settings = HashSettings(config.bits, tuple(config.characters), config.words, config.max_bytes)
    except ValueError as error:
        raise InvalidConfig(f"ngrams.{error}") from None
    found, bounds = _all_features(texts, settings)
    counts = np.bincount(found, minlength=2**settings.bits)
    frequent = np.flatnonzero(counts >= config.min_count)
    if not len(frequent):
        raise InvalidConfig(
            f"no n-gram stands {config.min_count} times in {len(texts)} comments: lower ngrams.min_count"
        )
    most = np.argsort(-counts[frequent], kind="stable")[: config.rows]
    buckets = np.sort(frequent[most]).astype(np.int32)
    places = np.full(2**settings.bits, len(buckets), np.int32)  # the last row is of all buckets that have none
    places[buckets] = np.arange(len(buckets), dtype=np.int32)
    found = places[found]
    say(
        f"{len(buckets)} rows for {len(found) / max(len(texts), 1):.0f} features a comment, "
        f"{(found < len(buckets)).mean():.0%} of them, in {time.monotonic() - started:.0f} s"
    )
    learnt, intercepts = _descend(config, found, bounds, targets, len(buckets), seed, say, weights)
    scales = np.maximum(np.abs(learnt).max(axis=0), 1e-9) / 127
    codes = np.round(learnt / scales).astype(np.int8)
    return HashedModel(settings, buckets, codes, scales.astype(np.float64), intercepts)


def _all_features(texts: Sequence[str], settings: HashSettings) -> tuple[np.ndarray, np.ndarray]:
    """Buckets of all texts, one text behind the other, and where each begins; one more bound at the end."""
    parts: list[np.ndarray] = []
    lengths = np.zeros(len(texts), np.int64)
    for i in range(0, len(texts), TEXTS):
        kinds = features(texts[i : i + TEXTS], settings)
        for row in range(len(texts[i : i + TEXTS])):
            own = [buckets[starts[row] : ends[row]] for buckets, starts, ends in kinds]
            parts += own
            lengths[i + row] = sum(map(len, own))
    return np.concatenate(parts), np.concatenate(([0], np.cumsum(lengths)))


def _descend(
    config: NgramConfig,
    found: np.ndarray,
    bounds: np.ndarray,
    targets: np.ndarray,
    rows: int,
    seed: int,
    say: Callable[[str], None],
    importance: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """:returns: weights and intercepts. *Shape:* ``(rows, labels)``, ``(labels,)``."""
    rng = np.random.default_rng(seed)
    known = ~np.isnan(targets)
    chance = np.clip(np.nansum(targets, axis=0) / np.maximum(known.sum(axis=0), 1), 1e-4, 1 - 1e-4)
    intercepts = torch.tensor(np.log(chance / (1 - chance)), dtype=torch.float32, requires_grad=True)
    odds = torch.from_numpy(_log_odds(found, bounds, np.where(known, targets, chance), rows))
    factors = torch.zeros(rows + 1, targets.shape[1], requires_grad=True)
    optimizer = torch.optim.Adagrad([factors, intercepts], lr=config.learning_rate, eps=1e-8)
    steps = max(round(config.epochs * len(targets) / config.batch_size), 1)
    order = np.concatenate([rng.permutation(len(targets)) for _ in range(int(np.ceil(config.epochs)))])
    started, losses = time.monotonic(), []
    for step in range(steps):
        batch = order[step * config.batch_size : (step + 1) * config.batch_size]
        lengths = bounds[batch + 1] - bounds[batch]
        own = torch.from_numpy(np.concatenate([found[bounds[i] : bounds[i + 1]] for i in batch]))
        offsets = torch.from_numpy((np.cumsum(lengths) - lengths).astype(np.int32))
        sums = functional.embedding_bag(own, odds * factors, offsets, mode="sum", padding_idx=rows)
        logits = sums / torch.from_numpy(np.sqrt(np.maximum(lengths, 1)).astype(np.float32))[:, None] + intercepts
        share = known[batch].astype(np.float32)
        if importance is not None:
            share *= importance[batch, None].astype(np.float32)
        loss = functional.binary_cross_entropy_with_logits(
            logits,
            torch.from_numpy(np.nan_to_num(targets[batch]).astype(np.float32)),
            weight=torch.from_numpy(share),
            reduction="sum",
        ) / len(batch)
        penalty = config.l2 * factors.square().sum()
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 - step / steps)
        optimizer.zero_grad()
        (loss + penalty).backward()
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % max(steps // 5, 1) == 0:
            recent = float(np.mean(losses[-max(steps // 5, 1) :]))
            say(f"step {step + 1} of {steps}: loss {recent:.4f}, {time.monotonic() - started:.0f} s")
    return (odds * factors).detach().numpy()[:rows], intercepts.detach().numpy().astype(np.float64)


def _log_odds(found: np.ndarray, bounds: np.ndarray, targets: np.ndarray, rows: int) -> np.ndarray:
    """How a bucket moves the log-odds of each label, away from those of all comments; 0 in the row of no bucket.

    A bucket is taken to have been met :data:`IMAGINED` times more, with the labels of all comments, so that rare ones
    move little. *Shape:* ``(rows + 1, labels)``, FP32.
    """
    comments = np.repeat(np.arange(len(targets)), np.diff(bounds))
    counts = np.bincount(found, minlength=rows + 1)
    odds = np.zeros((rows + 1, targets.shape[1]), np.float32)
    for label in range(targets.shape[1]):
        each = targets[:, label][comments]
        base = float(np.clip(each.mean(), 1e-6, 1 - 1e-6))
        share = (np.bincount(found, weights=each, minlength=rows + 1) + IMAGINED * base) / (counts + IMAGINED)
        share = np.clip(share, 1e-6, 1 - 1e-6)
        odds[:, label] = np.log(share / (1 - share)) - np.log(base / (1 - base))
    odds[rows] = 0
    return odds
