"""Quality of scores against labels, and the thresholds that go with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score


def evaluate(
    scores: np.ndarray, labels: np.ndarray, names: Sequence[str], thresholds: dict[str, float]
) -> dict[str, Any]:
    """Per label and on average: ROC-AUC, PR-AUC (average precision), and F1, precision and recall at the threshold.

    A label that has only one class here gets ``None`` for the areas, and is left out of their means.

    :param scores: probabilities. *Shape:* ``(comments, labels)``
    :param labels: 0 or 1. *Shape:* ``(comments, labels)``
    """
    per_label: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(names):
        truth, score = labels[:, i] > 0.5, scores[:, i]
        flagged = score >= thresholds[name]
        hits = int((flagged & truth).sum())
        both = 0 < truth.sum() < len(truth)
        per_label[name] = {
            "positives": int(truth.sum()),
            "roc_auc": float(roc_auc_score(truth, score)) if both else None,
            "pr_auc": float(average_precision_score(truth, score)) if both else None,
            "threshold": float(thresholds[name]),
            "f1": _ratio(2 * hits, int(flagged.sum() + truth.sum())),
            "precision": _ratio(hits, int(flagged.sum())),
            "recall": _ratio(hits, int(truth.sum())),
        }
    means = {}
    for key in ("roc_auc", "pr_auc", "f1"):
        values = [m[key] for m in per_label.values() if m[key] is not None]
        means[f"mean_{key}"] = float(np.mean(values)) if values else None
    return {"comments": len(labels), **means, "labels": per_label}


def best_f1_thresholds(scores: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """For each label the threshold with the highest F1; 0.5 where the label has no positive comment."""
    thresholds = {}
    for i, name in enumerate(names):
        if labels[:, i].sum() == 0:
            thresholds[name] = 0.5
            continue
        precision, recall, cuts = precision_recall_curve(labels[:, i], scores[:, i])
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        thresholds[name] = round(float(cuts[int(np.argmax(f1[:-1]))]), 4)
    return thresholds


def fit_calibration(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Platt scaling with one slope for all labels and an offset each: ``p = sigmoid(slope * logit + offset)``.

    Rare labels have too few positive comments for a slope of their own. A weak prior keeps the offsets finite where a
    label has none at all. Source: Platt, "Probabilistic outputs for support vector machines", 1999.

    :param logits: *Shape:* ``(comments, labels)``
    :returns: the slope, and the offsets. *Shape:* ``(labels,)``
    """
    x = logits.astype(np.float64)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        slope, offset = parameters[0], parameters[1:]
        z = slope * x + offset
        # log(1 + exp(z)) - y z, without overflow
        value = (np.logaddexp(0.0, z) - labels * z).sum() + 0.5 * (offset**2).sum() * 0.1
        error = 0.5 * (1.0 + np.tanh(0.5 * z)) - labels
        return float(value), np.concatenate([[(error * x).sum()], error.sum(0) + 0.1 * offset])

    start = np.concatenate([[1.0], np.zeros(x.shape[1])])
    bounds = [(0.05, 20.0)] + [(None, None)] * x.shape[1]  # a slope of 0 or less would turn the order of scores round
    best = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(best[0]), best[1:]


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
