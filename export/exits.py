"""Which comments an early stage may answer: exits on both sides of each label, and what may be said of them.

The exits of all stages follow from one number, the *risk*: a logistic curve for each stage and label, fitted on
comments that shape nothing else, tells how likely the encoder is to flag a comment of a given score; a score whose risk
of another decision is at most that number is beyond an exit. Of several stages the last takes that risk, and each one
before it a fixed part of the next one's, a ratio that is chosen on the same comments, as small as costs little: an
early answer saves the most, and ranks comments worst. Where a comment's length is known, so is what the encoder would
take for it: a long one may be answered at a higher risk than a short one, by a power of that cost, which is chosen on
the same comments, too: the same changes for less. So there is one ladder of exits, from careful to bold, fixed before
any comment is looked at that they are judged on. It is climbed from the careful end, and the last step counts whose
upper limit (95%) on what changes is within the bound, before the first where it is not. Going in a fixed order to the
first failure keeps the 95% true of every step before it, and so of whichever of them is chosen: Angelopoulos et al.,
"Learn then test: calibrating predictive algorithms to achieve risk control", 2021. Hence a step further down may be
taken where ROC-AUC asks for it.

What is bounded is one of two shares. Of ``comments``: one counts as changed when the decision on any label is not the
encoder's; the limit is that of Clopper and Pearson. Of ``decisions``, one for each comment and label: those of a
comment depend on each other, so the comment is the unit, with the share of its decisions that changed; the limit is
that of Fay and Feuer for weighted sums of Poisson counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import beta, chi2
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from train.metrics import evaluate

CONFIDENCE = 0.95
RISKS = tuple(float(f"{risk:.3g}") for risk in np.geomspace(3e-4, 0.45, 160))
RATIOS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.06, 0.03)
"""A stage's risk as a part of the next one's: those that are tried."""

LENGTHS = (50, 100, 150, 200, 300, 400, 600)
"""Characters at which the next class of lengths begins; each class has exits of its own."""

POWERS = (0.0, 0.3, 0.6, 1.0)
"""Of a class's cost, by that of all: the factor of its risk; those that are tried."""

ALIKE = 1.03
"""Costs that are no more than this factor apart cannot be told apart on so few comments."""

MOST_RISK = 0.5
COUNTS = ("decisions", "comments")
QUANTILES = np.concatenate([[0, 0.002, 0.005, 0.01], np.linspace(0.02, 0.98, 49), [0.99, 0.995, 0.998, 1]])
MARGIN = 1e-6
"""How far below a label's threshold its lower exit stays, at least."""

NEVER = (-1.0, 2.0)
"""Exits that no score reaches."""


@dataclass(frozen=True)
class Judged:
    """Comments with the encoder's scores, each stage's, and their labels. *Shape of each:* ``(comments, labels)``

    :ivar lengths: characters of each, as stages read it; ``None`` puts all into one class. *Shape:* ``(comments,)``
    """

    encoder: np.ndarray
    stages: Sequence[np.ndarray]
    truth: np.ndarray
    lengths: np.ndarray | None = None

    @property
    def classes(self) -> np.ndarray:
        """*Shape:* ``(comments,)``"""
        if self.lengths is None:
            return np.zeros(len(self), np.int64)
        return np.searchsorted(LENGTHS, self.lengths, side="right")

    def __len__(self) -> int:
        return len(self.encoder)


@dataclass(frozen=True)
class Outcome:
    """What a cascade does to comments.

    :ivar by: the number of the stage that answers each, the number of stages for the encoder. *Shape:* ``(comments,)``
    :ivar scores: those that are answered. *Shape:* ``(comments, labels)``
    :ivar changed: which decisions are not the encoder's. BOOL. *Shape:* ``(comments, labels)``
    """

    by: np.ndarray
    scores: np.ndarray
    changed: np.ndarray

    @property
    def changed_comments(self) -> int:
        return int(self.changed.any(axis=1).sum())

    @property
    def changed_shares(self) -> np.ndarray:
        """Of each comment's decisions. *Shape:* ``(comments,)``"""
        return np.asarray(self.changed.mean(axis=1))

    def limit(self, count: str) -> float:
        """The share of ``comments`` or of ``decisions`` that change, at most, at 95% confidence."""
        if count == "comments":
            return upper_limit(self.changed_comments, len(self.changed))
        return mean_upper_limit(self.changed_shares)


Curves = list[tuple[float, float]]


def fit_knots(logits: np.ndarray, encoder: np.ndarray) -> list[tuple[list[float], list[float]]]:
    """For each label, logits of a stage and what they are worth on the encoder's scale: quantile for quantile.

    Answers of different stages are ranked together, so their scores must mean the same. The order of a stage's own
    scores stays as it is.

    :param logits: of a stage; ``encoder``: the scores of the same comments. *Shape:* ``(comments, labels)``
    """
    worth = _logit(encoder)
    found = []
    for label in range(logits.shape[1]):
        pair = (np.quantile(values[:, label], QUANTILES) for values in (logits, worth))
        own, target = (np.round(np.maximum.accumulate(values), 4).tolist() for values in pair)
        found.append((own, target))
    return found


def fit_curves(path: Judged, thresholds: np.ndarray) -> list[Curves]:
    """Of each stage and label, slope and offset of the logit of a score: how likely the encoder flags the comment."""
    flagged = path.encoder >= thresholds
    curves = []
    for scores in path.stages:
        logits = _logit(scores)
        own: Curves = []
        for label in range(flagged.shape[1]):
            if 0 < flagged[:, label].sum() < len(flagged):
                fitted = LogisticRegression(C=1.0).fit(logits[:, [label]], flagged[:, label])
                own.append((float(fitted.coef_[0, 0]), float(fitted.intercept_[0])))
            else:  # nothing to learn from: the score is taken at its word
                own.append((1.0, 0.0))
        curves.append(own)
    return curves


def exits_at(risk: float, curves: Curves, thresholds: np.ndarray) -> np.ndarray:
    """For each label the highest score that is surely not it, and the lowest that surely is. *Shape:* ``(labels, 2)``

    They never let a stage answer against its own score: low < threshold <= high.
    """
    found = []
    for (slope, offset), threshold in zip(curves, thresholds, strict=True):
        if slope <= 0:
            found.append(NEVER)
            continue
        low, high = (1 / (1 + np.exp(-(_logit(np.array(p)) - offset) / slope)) for p in (risk, 1 - risk))
        found.append((min(float(low), threshold - MARGIN), max(float(high), threshold)))
    return np.array(found)


def apply(judged: Judged, exits: Sequence[np.ndarray], thresholds: np.ndarray) -> Outcome:
    """Send the comments through the stages.

    :param exits: of each stage. *Shape:* ``(labels, 2)``, or ``(classes, labels, 2)``
    """
    by = np.full(len(judged), len(exits))
    scores = judged.encoder.copy()
    for number, (own, limits) in enumerate(zip(judged.stages, exits, strict=True)):
        each = limits if limits.ndim == 2 else limits[judged.classes]
        sure = ((own <= each[..., 0]) | (own >= each[..., 1])).all(axis=1) & (by == len(exits))
        by[sure] = number
        scores[sure] = own[sure]
    return Outcome(by, scores, (scores >= thresholds) != (judged.encoder >= thresholds))


def upper_limit(changed: int, comments: int, confidence: float = CONFIDENCE) -> float:
    """The share that is not exceeded at this confidence, where ``changed`` of ``comments`` were: one-sided, exact.

    Source: Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial",
    1934.
    """
    return 1.0 if changed >= comments else float(beta.ppf(confidence, changed + 1, comments - changed))


def mean_upper_limit(shares: np.ndarray, confidence: float = CONFIDENCE) -> float:
    """The mean that is not exceeded at this confidence, of a quantity between 0 and 1 that is 0 for most comments.

    Each value is taken for the weight of a Poisson count, the largest possible weight being one whole comment: with
    weights of 0 and 1 alone it is the exact limit for a Poisson count. Source: Fay and Feuer, "Confidence intervals for
    directly standardized rates: a method based on the gamma distribution", 1997.

    :param shares: *Shape:* ``(comments,)``
    """
    largest = 1 / len(shares)
    mean = float(shares.mean()) + largest
    variance = float(np.square(shares).sum()) / len(shares) ** 2 + largest**2
    return min(1.0, variance / (2 * mean) * float(chi2.ppf(confidence, 2 * mean**2 / variance)))


def boldness(judged: Judged, cpu_us: np.ndarray, power: float) -> np.ndarray:
    """The factor of the risk of each class of lengths. *Shape:* ``(classes,)``

    :param cpu_us: what the encoder takes for each comment. *Shape:* ``(comments,)``
    """
    counts = np.bincount(judged.classes, minlength=len(LENGTHS) + 1)
    sums = np.bincount(judged.classes, weights=cpu_us, minlength=len(LENGTHS) + 1)
    costs = np.where(counts > 0, sums / np.maximum(counts, 1), cpu_us.mean())
    return np.asarray((costs / cpu_us.mean()) ** power)


def ladder(
    curves: Sequence[Curves], ratio: float, thresholds: np.ndarray, bold: np.ndarray | None = None
) -> list[list[np.ndarray]]:
    """The exits of every stage at every step.

    :param ratio: see :data:`RATIOS`. :param bold: see :func:`boldness`; ``None`` for exits without classes.
    """
    last = len(curves) - 1

    def exits(risk: float, own: Curves) -> np.ndarray:
        if bold is None:
            return exits_at(risk, own, thresholds)
        return np.stack([exits_at(min(risk * factor, MOST_RISK), own, thresholds) for factor in bold])

    return [[exits(risk * ratio ** (last - number), own) for number, own in enumerate(curves)] for risk in RISKS]


def choose_shape(
    path: Judged,
    curves: Sequence[Curves],
    thresholds: np.ndarray,
    cpu_us: Sequence[float | np.ndarray],
    count: str,
    bound: float,
) -> tuple[float, float]:
    """The ratio and the power whose boldest step within the bound, as counted on ``path``, costs least.

    Of those that cost about as little it is the smallest ratio: the first stage then answers less, and ranks worst. How
    well the whole ranks is not asked here: the encoder may have been trained on ``path``, and ranks it too well.

    :param cpu_us: of a comment in each stage, and in the encoder: of each comment of ``path``, or of any.
    """
    if len(curves) == 1 and path.lengths is None:
        return RATIOS[0], POWERS[0]
    each = [np.broadcast_to(np.asarray(cost, np.float64), (len(path),)) for cost in cpu_us]
    costs = {}
    for power in POWERS if path.lengths is not None else POWERS[:1]:
        bold = boldness(path, each[-1], power) if path.lengths is not None else None
        for ratio in RATIOS if len(curves) > 1 else RATIOS[:1]:
            for exits in reversed(ladder(curves, ratio, thresholds, bold)):
                found = apply(path, exits, thresholds)
                share = found.changed.mean() if count == "decisions" else found.changed_comments / len(path)
                if share <= bound:
                    costs[ratio, power] = sum(float(cost[found.by >= n].sum()) for n, cost in enumerate(each))
                    break
    if not costs:
        return RATIOS[-1], POWERS[0]
    least = min(costs.values())
    return min(shape for shape, cost in costs.items() if cost <= ALIKE * least)


def mean_auc(scores: np.ndarray, truth: np.ndarray) -> float | None:
    """The mean ROC-AUC over the labels that have both kinds of comments; ``None`` where none has."""
    columns = [i for i in range(truth.shape[1]) if 0 < truth[:, i].sum() < len(truth)]
    areas = [roc_auc_score(truth[:, i], scores[:, i]) for i in columns]
    return float(np.mean(areas)) if areas else None


def dropped(areas: Sequence[float | None]) -> float:
    """What a pair of areas falls by; nothing where there are none."""
    before, after = areas
    return 0.0 if before is None or after is None else before - after


def curve(
    path: Judged,
    tuning: Judged,
    validation: Judged,
    names: Sequence[str],
    thresholds: np.ndarray,
    cpu_us: Sequence[float | np.ndarray],
    read_us: float,
    cores: int,
    count: str = "decisions",
    bound: float = 0.003,
    path_us: Sequence[float | np.ndarray] | None = None,
) -> list[dict[str, Any]]:
    """Every step of the ladder: its exits, the limits on what changes, and what it does to the validation comments.

    :param path: what the risks are fitted on. :param tuning: what the limits come from; disjoint from ``path``.
    :param cpu_us: CPU time of a comment in each stage, and in the encoder: of each validation comment, or of any.
    :param read_us: CPU time of a comment before the first stage.
    :param count: what ``bound`` is on, of :data:`COUNTS`.
    :param path_us: as ``cpu_us``, of the comments of ``path``; ``None`` takes the means of ``cpu_us``.
    """
    curves = fit_curves(path, thresholds)
    costs = [np.broadcast_to(np.asarray(each, np.float64), (len(validation),)) for each in cpu_us]
    path_us = path_us or [float(c.mean()) for c in costs]
    ratio, power = choose_shape(path, curves, thresholds, path_us, count, bound)
    bold = boldness(path, np.broadcast_to(path_us[-1], (len(path),)), power) if path.lengths is not None else None
    chosen = dict(zip(names, map(float, thresholds), strict=True))
    alone = evaluate(validation.encoder, validation.truth, names, chosen)
    tuning_alone = mean_auc(tuning.encoder, tuning.truth)
    rows = []
    for risk, exits in zip(RISKS, ladder(curves, ratio, thresholds, bold), strict=True):
        exits = [np.round(limits, 6) for limits in exits]  # as they are written, and served
        tuned, found = apply(tuning, exits, thresholds), apply(validation, exits, thresholds)
        now = evaluate(found.scores, validation.truth, names, chosen)
        cost = read_us + sum(float(each[found.by >= number].sum()) for number, each in enumerate(costs)) / len(
            validation
        )
        rows.append(
            {
                "risk": risk,
                "ratio": ratio,
                "power": power,
                "exits": [limits.tolist() for limits in exits],
                "tuning": {
                    "comments": len(tuning),
                    "early": float((tuned.by < len(exits)).mean()),
                    "changed_comments": tuned.changed_comments,
                    "changed_decisions": float(tuned.changed.mean()),
                    "upper_limit": {name: tuned.limit(name) for name in COUNTS},
                    "mean_roc_auc": [tuning_alone, mean_auc(tuned.scores, tuning.truth)],
                },
                "validation": {
                    "comments": len(validation),
                    "answered_by": [float((found.by == number).mean()) for number in range(len(cpu_us))],
                    "changed_comments": found.changed_comments,
                    "changed_share": found.changed_comments / len(validation),
                    "changed_decisions": float(found.changed.mean()),
                    "missed": int((found.changed & (found.scores < thresholds)).sum()),
                    "invented": int((found.changed & (found.scores >= thresholds)).sum()),
                    **{key: [alone[key], now[key]] for key in ("mean_roc_auc", "mean_pr_auc", "macro_f1")},
                },
                "cpu_us": cost,
                "comments_per_s": cores * 1e6 / cost,
                "speedup": (read_us + float(costs[-1].mean())) / cost,
            }
        )
    return rows


def choose(rows: Sequence[dict[str, Any]], count: str, bound: float, max_auc_drop: float | None = None) -> int | None:
    """The number of the last step within ``bound``, before the first that is not; ``None`` where that is the first.

    :param max_auc_drop: go back from there until the tuning comments' mean ROC-AUC falls by no more.
    """
    inside = [row["tuning"]["upper_limit"][count] <= bound for row in rows]
    steps = inside.index(False) if False in inside else len(inside)
    while max_auc_drop is not None and steps and dropped(rows[steps - 1]["tuning"]["mean_roc_auc"]) > max_auc_drop:
        steps -= 1
    return steps - 1 if steps else None


def _logit(scores: np.ndarray) -> np.ndarray:
    chance = np.clip(np.asarray(scores, np.float64), 1e-7, 1 - 1e-7)
    return np.asarray(np.log(chance / (1 - chance)))
