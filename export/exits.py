"""Which comments an early stage may answer: exits on both sides of each label, and what may be said of them.

The exits follow from one number, the *risk*: a logistic curve for each stage and label, fitted on comments that shape
nothing else, tells how likely the encoder is to flag a comment of a given score; a score whose risk of another decision
is at most that number is beyond an exit. So there is one ladder of exits, from careful to bold, fixed before any
comment is looked at that they are judged on. It is climbed from the careful end, and the last step counts whose upper
limit (Clopper and Pearson, 95%) on the share of changed comments is within the bound, before the first where it is not.
Going in a fixed order to the first failure keeps the 95% true of the step that is chosen: Angelopoulos et al., "Learn
then test: calibrating predictive algorithms to achieve risk control", 2021.

A comment counts as changed when the decision on any label is not the encoder's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import beta
from sklearn.linear_model import LogisticRegression

from train.metrics import evaluate

CONFIDENCE = 0.95
RISKS = tuple(float(f"{risk:.3g}") for risk in np.geomspace(3e-4, 0.4, 32))
MARGIN = 1e-6
"""How far below a label's threshold its lower exit stays, at least."""

NEVER = (-1.0, 2.0)
"""Exits that no score reaches."""


@dataclass(frozen=True)
class Judged:
    """Comments with the encoder's scores and each stage's. *Shape of each:* ``(comments, labels)``"""

    encoder: np.ndarray
    stages: Sequence[np.ndarray]

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


Curves = list[tuple[float, float]]


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
    """Send the comments through the stages. :param exits: of each stage. *Shape:* ``(labels, 2)``"""
    by = np.full(len(judged), len(exits))
    scores = judged.encoder.copy()
    for number, (own, limits) in enumerate(zip(judged.stages, exits, strict=True)):
        sure = ((own <= limits[:, 0]) | (own >= limits[:, 1])).all(axis=1) & (by == len(exits))
        by[sure] = number
        scores[sure] = own[sure]
    return Outcome(by, scores, (scores >= thresholds) != (judged.encoder >= thresholds))


def upper_limit(changed: int, comments: int, confidence: float = CONFIDENCE) -> float:
    """The share that is not exceeded at this confidence, where ``changed`` of ``comments`` were: one-sided, exact.

    Source: Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial",
    1934.
    """
    return 1.0 if changed >= comments else float(beta.ppf(confidence, changed + 1, comments - changed))


def curve(
    path: Judged,
    tuning: Judged,
    validation: Judged,
    truth: np.ndarray,
    names: Sequence[str],
    thresholds: np.ndarray,
    cpu_us: Sequence[float],
    read_us: float,
    cores: int,
) -> list[dict[str, Any]]:
    """Every step of the ladder: its exits, the limit on changed comments, and what it does to the validation comments.

    :param path: what the risks are fitted on. :param tuning: what the limit comes from; disjoint from ``path``.
    :param truth: of the validation comments. *Shape:* ``(comments, labels)``
    :param cpu_us: CPU time of a comment in each stage, and in the encoder.
    :param read_us: CPU time of a comment before the first stage.
    """
    curves = fit_curves(path, thresholds)
    chosen = dict(zip(names, map(float, thresholds), strict=True))
    alone = evaluate(validation.encoder, truth, names, chosen)
    rows = []
    for risk in RISKS:
        exits = [exits_at(risk, own, thresholds) for own in curves]
        tuned, found = apply(tuning, exits, thresholds), apply(validation, exits, thresholds)
        now = evaluate(found.scores, truth, names, chosen)
        reached = [float((found.by >= number).mean()) for number in range(len(cpu_us))]
        cost = read_us + sum(share * each for share, each in zip(reached, cpu_us, strict=True))
        rows.append(
            {
                "risk": risk,
                "exits": [np.round(limits, 6).tolist() for limits in exits],
                "tuning": {
                    "comments": len(tuning),
                    "early": float((tuned.by < len(exits)).mean()),
                    "changed_comments": tuned.changed_comments,
                    "upper_limit": upper_limit(tuned.changed_comments, len(tuning)),
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
                "speedup": (read_us + cpu_us[-1]) / cost,
            }
        )
    return rows


def choose(rows: Sequence[dict[str, Any]], bound: float) -> int | None:
    """The number of the last step within ``bound``, before the first that is not; ``None`` where that is the first."""
    inside = [row["tuning"]["upper_limit"] <= bound for row in rows]
    steps = inside.index(False) if False in inside else len(inside)
    return steps - 1 if steps else None


def _logit(scores: np.ndarray) -> np.ndarray:
    chance = np.clip(np.asarray(scores, np.float64), 1e-7, 1 - 1e-7)
    return np.asarray(np.log(chance / (1 - chance)))
