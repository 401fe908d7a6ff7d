"""The same labelled comments, scored again: what moves there is the model or the machine, and not the comments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from client.errors import InvalidInput
from client.results import Result
from serve.drift.measure import DRIFTED, MOVED, STEADY, Finding
from serve.drift.texts import rows_of, truth_of

BINS = 10
"""Of equal width, for the calibration error."""
LIMITS = {
    "false_positive_rate": (0.005, 0.02),
    "false_negative_rate": (0.02, 0.05),
    "calibration_error": (0.01, 0.03),
}
"""How far each may be from the reference: moved, drifted. INT8 moves scores a little with the comments beside them; on
the starter model's export it changed 0.13% of the decisions."""
REQUEST = 256


class Scorer(Protocol):
    """A :class:`client.ToxicityClient`."""

    def classify(self, texts: Sequence[str], timeout: float | None = None) -> list[Result]: ...


def read_labelled(path: Path, column: str, labels: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Comments and what people said of them.

    :returns: texts, and 1, 0 or NaN. *Shape:* ``(comments, labels)``
    :raises InvalidInput: when nothing is labelled.
    """
    texts, truth = [], []
    for row in rows_of(path, column, Counter()):
        assert row.text is not None
        texts.append(row.text)
        truth.append(truth_of(row.values, labels))
    found = np.array(truth, np.float64).reshape(len(texts), len(labels))
    if np.isnan(found).all():
        raise InvalidInput(f"{path} labels no comment: it needs a column for each label, such as {labels[0]!r}")
    return texts, found


def score(client: Scorer, texts: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """*Shape:* ``(comments, labels)``"""
    found: list[list[float]] = []
    for start in range(0, len(texts), REQUEST):
        results = client.classify(texts[start : start + REQUEST])
        found.extend([result.scores[label] for label in labels] for result in results)
    return np.array(found, np.float64).reshape(len(texts), len(labels))


def rates(scores: np.ndarray, truth: np.ndarray, thresholds: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """For each label that is known of some comments: errors at its threshold, and of its probabilities.

    ``calibration_error`` is the mean distance, over comments, of the mean score from the share of positives within the
    bin of scores that a comment is in. A rate is ``None`` where there is nothing to err on.
    """
    found = {}
    for at, (label, threshold) in enumerate(thresholds.items()):
        known = ~np.isnan(truth[:, at])
        if not known.any():
            continue
        given, right = scores[known, at], truth[known, at] > 0
        flagged = given >= threshold
        bins = np.minimum((given * BINS).astype(int), BINS - 1)
        distances = [
            abs(given[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)
        ]
        found[label] = {
            "positives": int(right.sum()),
            "negatives": int((~right).sum()),
            "false_positive_rate": _share(flagged[~right]),
            "false_negative_rate": _share(~flagged[right]),
            "calibration_error": round(float(sum(distances)), 6),
            "brier_score": round(float(((given - right) ** 2).mean()), 6),
            "mean_score": round(float(given.mean()), 6),
        }
    return found


def _share(values: np.ndarray) -> float | None:
    return round(float(values.mean()), 6) if len(values) else None


def compare(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Finding]:
    """:param before: rates of each label, as the reference has them."""
    findings = []
    for label, rates_now in now.items():
        comments = rates_now["positives"] + rates_now["negatives"]
        for measure, (some, much) in LIMITS.items():
            then, found = before.get(label, {}).get(measure), rates_now[measure]
            if then is None or found is None:
                continue
            moved = found - then
            verdict = STEADY if abs(moved) < some else MOVED if abs(moved) < much else DRIFTED
            findings.append(Finding(measure, f"{name} {label}", moved, None, verdict, comments, then, found))
    return findings
