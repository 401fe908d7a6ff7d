"""Quality of scores against labels, and the thresholds and calibration that go with them.

A label may be NaN, which means that nobody knows it: every function here leaves such a cell out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
ECE_BINS = 15
MAX_KNOTS = 32
MIXED_IN = 1e-3
"""How much of the score itself an isotonic calibration keeps, so that two different scores never become one."""


def evaluate(
    scores: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    thresholds: dict[str, float],
    problem_type: str = MULTI_LABEL,
) -> dict[str, Any]:
    """All metrics per label, their means over labels, and those of all decisions together.

    Per label: ROC-AUC, PR-AUC (average precision), recall at a false positive rate of 1% and 5%, Brier score, expected
    calibration error (15 bins of equal width), and of the decisions: accuracy, precision, recall, F1 and the counts
    ``tp, fp, fn, tn``. A label that has only one class here gets ``None`` for areas and recall at a rate, and is left
    out of their means (``mean_...``).

    ``macro`` is the mean over labels, ``micro`` counts all decisions together. Multi-label: a decision is ``score >=
    threshold``; ``accuracy`` is the share of right decisions, ``exact_match`` the share of comments with all of them
    right. Single-label: the decision is the label with the highest score; ``accuracy`` is the share of comments with
    the right label, the same as micro F1; ``confusion_matrix`` counts comments by true (row) and decided (column)
    label; the areas are one label against the rest.

    :param scores: probabilities. *Shape:* ``(comments, labels)``
    :param labels: 0 or 1, or NaN for unknown; single-label: one 1 a row. *Shape:* ``(comments, labels)``
    :raises ValueError: when a single-label row has no 1 or several.
    """
    labels = np.asarray(labels, np.float64)
    known = ~np.isnan(labels)
    single = problem_type == SINGLE_LABEL
    if single:
        _check_one_hot(labels)
        known &= known.all(axis=1, keepdims=True)
    flagged = decide(scores, names, thresholds, problem_type)
    per_label: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(names):
        rows = known[:, i]
        per_label[name] = _one_label(scores[rows, i], labels[rows, i] > 0.5, flagged[rows, i], float(thresholds[name]))
    means = {f"mean_{key}": _mean([m[key] for m in per_label.values()]) for key in ("roc_auc", "pr_auc", "f1")}
    macro = {key: _mean([m[key] for m in per_label.values()]) for key in ("precision", "recall", "f1")}
    truth = labels > 0.5
    right = (flagged == truth) & known
    tp, fp, fn = (int((a & b & known).sum()) for a, b in ((flagged, truth), (flagged, ~truth), (~flagged, truth)))
    result: dict[str, Any] = {
        "comments": len(labels),
        "problem_type": problem_type,
        **means,
        "mean_brier": _mean([m["brier"] for m in per_label.values()]),
        "mean_ece": _mean([m["ece"] for m in per_label.values()]),
        "macro_f1": macro["f1"],
        "macro": macro,
        "micro": {
            "precision": _ratio(tp, tp + fp),
            "recall": _ratio(tp, tp + fn),
            "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        },
    }
    if single:
        rows = known.all(axis=1)
        result["accuracy"] = _ratio(tp, int(rows.sum()))
        matrix = np.zeros((len(names), len(names)), int)
        np.add.at(matrix, (truth[rows].argmax(axis=1), flagged[rows].argmax(axis=1)), 1)
        result["confusion_matrix"] = matrix.tolist()
    else:
        result["accuracy"] = _ratio(int(right.sum()), int(known.sum()))
        result["exact_match"] = _ratio(int((right | ~known).all(axis=1).sum()), len(labels))
    result["ece_bins"] = ECE_BINS
    result["labels"] = per_label
    return result


def probabilities(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """Sigmoids without overflow, or for single-label problems the softmax, FP64. *Shape:* ``(comments, labels)``."""
    logits = logits.astype(np.float64)
    if problem_type == SINGLE_LABEL:
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))


def decide(
    scores: np.ndarray, names: Sequence[str], thresholds: dict[str, float], problem_type: str = MULTI_LABEL
) -> np.ndarray:
    """Which labels a comment gets: all at or above their threshold; single-label: the one with the highest score.

    :returns: BOOL. *Shape:* ``(comments, labels)``
    """
    if problem_type == SINGLE_LABEL:
        return np.asarray(scores.argmax(axis=1)[:, None] == np.arange(scores.shape[1])[None])
    return np.asarray(scores >= np.array([thresholds[name] for name in names])[None])


def roc_auc(scores: np.ndarray, truth: np.ndarray) -> float | None:
    """Area under the ROC curve; ``None`` where only one class is present. *Shape:* ``(comments,)`` each."""
    return float(roc_auc_score(truth, scores)) if 0 < truth.sum() < len(truth) else None


def reliability(scores: np.ndarray, truth: np.ndarray, bins: int = ECE_BINS) -> list[dict[str, float]]:
    """Comments in bins of equal width by score, each with its mean score and its share of positives.

    A score on the edge of two bins counts to the upper one. Empty bins are left out.

    :param scores: *Shape:* ``(comments,)``
    :param truth: BOOL. *Shape:* ``(comments,)``
    """
    where = np.minimum((np.asarray(scores) * bins).astype(int), bins - 1)
    rows = []
    for number in np.unique(where):
        inside = where == number
        rows.append(
            {
                "bin": int(number),
                "comments": int(inside.sum()),
                "score": float(scores[inside].mean()),
                "positive": float(truth[inside].mean()),
            }
        )
    return rows


def expected_calibration_error(scores: np.ndarray, truth: np.ndarray, bins: int = ECE_BINS) -> float:
    """Mean distance between score and share of positives over bins of equal width, weighted by their comments.

    Source: Naeini, Cooper, Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", 2015.
    """
    rows = reliability(scores, truth, bins)
    return sum(r["comments"] * abs(r["score"] - r["positive"]) for r in rows) / max(len(truth), 1)


def recall_at_fpr(scores: np.ndarray, truth: np.ndarray, limit: float) -> float | None:
    """The highest recall of any threshold whose false positive rate is at most ``limit``."""
    if not 0 < truth.sum() < len(truth):
        return None
    fpr, recall, _ = roc_curve(truth, scores, drop_intermediate=False)
    return float(recall[fpr <= limit].max())


def best_f1_thresholds(scores: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """For each label the threshold with the highest F1; 0.5 where the label has no positive comment."""
    return tune_thresholds(scores, labels, names)[0]


def tune_thresholds(
    scores: np.ndarray, labels: np.ndarray, names: Sequence[str], objective: str | tuple[str, float] = "f1"
) -> tuple[dict[str, float], dict[str, str]]:
    """A threshold per label: of the highest F1, or the lowest one whose precision reaches a target.

    :param objective: ``"f1"``, or ``("precision", target)``.
    :returns: the thresholds, and a warning for each label that could not be tuned: with no positive comment it gets
        0.5; where no threshold reaches the target precision, it gets that of the best precision.
    :raises ValueError: for another objective, or a target outside (0, 1].
    """
    target = _target_precision(objective)
    thresholds, warnings = {}, {}
    for i, name in enumerate(names):
        known = ~np.isnan(labels[:, i])
        truth, score = labels[known, i] > 0.5, scores[known, i]
        if not truth.any():
            thresholds[name] = 0.5
            warnings[name] = "no positive comment to tune on: the threshold is 0.5"
            continue
        precision, recall, cuts = precision_recall_curve(truth, score)
        precision, recall = precision[:-1], recall[:-1]  # the last point has no threshold
        if target is None:
            chosen = int(np.argmax(2 * precision * recall / np.maximum(precision + recall, 1e-12)))
        else:
            reached = np.flatnonzero(precision >= target)
            chosen = int(reached[0]) if len(reached) else int(np.argmax(precision))
            if not len(reached):
                warnings[name] = (
                    f"no threshold reaches a precision of {target:g}, the best is {precision[chosen]:.4f} at "
                    f"{cuts[chosen]:.4f} with a recall of {recall[chosen]:.4f}"
                )
        below = cuts[chosen - 1] if chosen else -math.inf
        thresholds[name] = _rounded(float(cuts[chosen]), float(below))
    return thresholds, warnings


def fit_calibration(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Platt scaling with one slope for all labels and an offset each: ``p = sigmoid(slope * logit + offset)``.

    Rare labels have too few positive comments for a slope of their own. A weak prior keeps the offsets finite where a
    label has none at all. Source: Platt, "Probabilistic outputs for support vector machines", 1999.

    :param logits: *Shape:* ``(comments, labels)``
    :param labels: 0 or 1, or NaN for unknown. *Shape:* ``(comments, labels)``
    :returns: the slope, and the offsets. *Shape:* ``(labels,)``
    """
    x = logits.astype(np.float64)
    known = ~np.isnan(labels)
    truth = np.where(known, labels, 0.0)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        slope, offset = parameters[0], parameters[1:]
        z = slope * x + offset
        # log(1 + exp(z)) - y z, without overflow
        value = ((np.logaddexp(0.0, z) - truth * z) * known).sum() + 0.5 * (offset**2).sum() * 0.1
        error = (0.5 * (1.0 + np.tanh(0.5 * z)) - truth) * known
        return float(value), np.concatenate([[(error * x).sum()], error.sum(0) + 0.1 * offset])

    start = np.concatenate([[1.0], np.zeros(x.shape[1])])
    bounds = [(0.05, 20.0)] + [(None, None)] * x.shape[1]  # a slope of 0 or less would turn the order of scores round
    best = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(best[0]), best[1:]


def fit_temperature(logits: np.ndarray, labels: np.ndarray, problem_type: str = MULTI_LABEL) -> float:
    """The temperature T of the lowest log loss: ``sigmoid(logits / T)``; single-label ``softmax(logits / T)``.

    The order of comments and, single-label, all decisions stay as they were.
    Source: Guo et al., "On calibration of modern neural networks", 2017.

    :param logits: *Shape:* ``(comments, labels)``
    :param labels: 0 or 1, or NaN for unknown (single-label: such a row is left out). *Shape:* ``(comments, labels)``
    :returns: between 0.05 and 20; 1 where there is nothing to fit on.
    """
    x, truth = logits.astype(np.float64), np.asarray(labels, np.float64)
    known = ~np.isnan(truth)
    if problem_type == SINGLE_LABEL:
        rows = known.all(axis=1)
        x, truth = x[rows], truth[rows]
        _check_one_hot(truth)
    if not known.any() or not len(x):
        return 1.0

    def loss(log_temperature: float) -> float:
        z = x * math.exp(-log_temperature)
        if problem_type == SINGLE_LABEL:
            top = z.max(axis=1, keepdims=True)
            normalizer = top[:, 0] + np.log(np.exp(z - top).sum(axis=1))
            return float((normalizer - (z * truth).sum(axis=1)).mean())
        return float((np.logaddexp(0.0, z) - np.where(known, truth, 0.0) * z)[known].mean())

    limits = (math.log(0.05), math.log(20.0))
    return math.exp(float(minimize_scalar(loss, bounds=limits, method="bounded", options={"xatol": 1e-5}).x))


def fit_isotonic(scores: np.ndarray, labels: np.ndarray) -> list[dict[str, list[float]]]:
    """Per label a monotone, piecewise linear map from score to probability, for :func:`apply_isotonic`.

    Isotonic regression puts comments into blocks of equal probability. A knot is set at the mean score of each block,
    so that the map rises between blocks instead of in steps, and a thousandth of the score itself is mixed in: the
    order of comments, and so ROC-AUC, stays as it was. Knots that change the map least are then taken out, until at
    most 32 are left. A label with one class only keeps its scores as they are.

    Sources: Zadrozny, Elkan, "Transforming classifier scores into accurate multiclass probability estimates", 2002;
    Oron, Flournoy, "Centered isotonic regression", 2017.

    :param scores: in [0, 1]. *Shape:* ``(comments, labels)``
    :param labels: 0 or 1, or NaN for unknown. *Shape:* ``(comments, labels)``
    :returns: a dict ``{x, y}`` per label; ``x`` rises strictly from 0 to 1, ``y`` lies in [0, 1].
    """
    return [_isotonic(scores[:, i].astype(np.float64), labels[:, i]) for i in range(scores.shape[1])]


def apply_isotonic(scores: np.ndarray, knots: Sequence[dict[str, list[float]]]) -> np.ndarray:
    """The calibrated scores, by linear interpolation between the knots of :func:`fit_isotonic`.

    :param scores: *Shape:* ``(comments, labels)``
    :returns: FP64. *Shape:* ``(comments, labels)``
    """
    columns = [np.interp(scores[:, i], k["x"], k["y"]) for i, k in enumerate(knots)]
    return np.stack(columns, axis=1)


def _one_label(scores: np.ndarray, truth: np.ndarray, flagged: np.ndarray, threshold: float) -> dict[str, Any]:
    counts = {
        "tp": int((flagged & truth).sum()),
        "fp": int((flagged & ~truth).sum()),
        "fn": int((~flagged & truth).sum()),
        "tn": int((~flagged & ~truth).sum()),
    }
    tp, wrong = counts["tp"], counts["fp"] + counts["fn"]
    area = roc_auc(scores, truth)
    return {
        "comments": len(truth),
        "positives": int(truth.sum()),
        "roc_auc": area,
        "pr_auc": None if area is None else float(average_precision_score(truth, scores)),
        "threshold": threshold,
        "accuracy": _ratio(tp + counts["tn"], len(truth)),
        "precision": _ratio(tp, tp + counts["fp"]),
        "recall": _ratio(tp, tp + counts["fn"]),
        "f1": _ratio(2 * tp, 2 * tp + wrong),
        "recall_at_1_percent_fpr": recall_at_fpr(scores, truth, 0.01),
        "recall_at_5_percent_fpr": recall_at_fpr(scores, truth, 0.05),
        "brier": float(((scores - truth) ** 2).mean()) if len(truth) else None,
        "ece": expected_calibration_error(scores, truth) if len(truth) else None,
        "confusion": counts,
    }


def _isotonic(scores: np.ndarray, labels: np.ndarray) -> dict[str, list[float]]:
    known = ~np.isnan(labels)
    scores, truth = scores[known], labels[known] > 0.5
    if truth.all() or not truth.any():
        return {"x": [0.0, 1.0], "y": [0.0, 1.0]}
    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit_transform(scores, truth)
    blocks = np.unique(fitted)
    x = np.array([scores[fitted == block].mean() for block in blocks])
    weight = np.array([(fitted == block).sum() for block in blocks], np.float64)
    inside = (x > 1e-6) & (x < 1 - 1e-6) & (np.diff(x, prepend=0.0) > 1e-6)
    x, y, weight = x[inside], blocks[inside], weight[inside]
    first, last = (y[0], y[-1]) if len(y) else (blocks[0], blocks[-1])
    x, y, weight = np.array([0.0, *x, 1.0]), np.array([first, *y, last]), np.array([0.0, *weight, 0.0])
    while len(x) > MAX_KNOTS:
        left, right = x[:-2], x[2:]
        line = y[:-2] + (y[2:] - y[:-2]) * (x[1:-1] - left) / (right - left)
        away = 1 + int(np.argmin(np.abs(line - y[1:-1]) * weight[1:-1]))
        x, y, weight = np.delete(x, away), np.delete(y, away), np.delete(weight, away)
    y = (1 - MIXED_IN) * y + MIXED_IN * x
    return {"x": x.tolist(), "y": y.tolist()}


def _target_precision(objective: str | tuple[str, float]) -> float | None:
    if objective == "f1":
        return None
    if not isinstance(objective, str) and len(objective) == 2 and objective[0] == "precision":
        target = float(objective[1])
        if 0 < target <= 1:
            return target
        raise ValueError(f"the target precision is {target}, must lie above 0 and at most at 1")
    raise ValueError(f"the objective is {objective!r}, must be 'f1' or ('precision', target)")


def _rounded(threshold: float, below: float) -> float:
    """``threshold`` with as few digits, 4 or more, as keep every decision: above the next lower score ``below``."""
    for digits in range(4, 17):
        for short in (round(threshold, digits), math.floor(threshold * 10**digits) / 10**digits):
            if below < short <= threshold:
                return short
    return threshold


def _check_one_hot(labels: np.ndarray) -> None:
    sums = labels.sum(axis=1)
    wrong = np.flatnonzero((sums != 1) & ~np.isnan(sums))
    if len(wrong):
        raise ValueError(
            f"row {wrong[0] + 1} has {sums[wrong[0]]:g} labels, a single-label problem needs exactly 1 in each row "
            f"({len(wrong)} such rows)"
        )


def _mean(values: Sequence[float | None]) -> float | None:
    present = [v for v in values if v is not None]
    return float(np.mean(present)) if present else None


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
