"""HateCheck: functional tests of hate speech detection, in English and other languages. For evaluation only.

Sources: Röttger et al., "HateCheck: functional tests for hate speech detection models", 2021; Röttger et al.,
"Multilingual HateCheck: functional tests for multilingual hate speech detection models", 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from train.data import read_test_sentences
from train.metrics import MULTI_LABEL, SINGLE_LABEL, decide, roc_auc

Predict = Callable[[Sequence[str]], np.ndarray]
"""Texts to probabilities, FP64. *Shape:* ``(texts, labels)``"""

HATE_LABELS = ("hate", "identity_hate", "identity_attack", "hateful")
"""The labels that mean hate against a group, the first one found counts."""

CLEAN_LABELS = ("regular", "neither", "normal", "clean", "none", "non-hateful")
"""Labels that say that nothing is wrong."""


TOXIC_LABELS = ("toxic", "toxicity")


@dataclass(frozen=True)
class Cases:
    """Test cases, whether each is hateful, what it tests, and whom it targets ('' where it says nothing).

    ``hateful`` is BOOL. *Shape:* ``(cases,)``
    """

    texts: list[str]
    hateful: np.ndarray
    functionality: list[str]
    target: list[str]


def read_hatecheck(path: Path) -> Cases:
    """A HateCheck file (CSV, also ``.gz``): ``test_case``, ``label_gold`` (hateful, non-hateful), ``functionality``.

    :raises InvalidData: for a missing file or column, or another label.
    """
    columns = ("test_case", "label_gold", "functionality")
    table = read_test_sentences(path, columns, "label_gold", ("hateful", "non-hateful"))
    target = table["target_ident"].tolist() if "target_ident" in table.columns else [""] * len(table)
    hateful = (table["label_gold"] == "hateful").to_numpy()
    return Cases(table["test_case"].tolist(), hateful, table["functionality"].tolist(), target)


def hate_labels(names: Sequence[str]) -> list[str]:
    """The labels that count as hate unless the caller says which: the one of :data:`HATE_LABELS` that the model has.

    For Jigsaw's labels that is ``identity_hate``, as Perspective was scored on HateCheck by its identity attack. A
    model without such a label is taken by all its labels but the :data:`CLEAN_LABELS`.

    :raises ValueError: when nothing is left.
    """
    lower = {name.lower(): name for name in names}
    for label in HATE_LABELS:
        if label in lower:
            return [lower[label]]
    others = [name for name in names if name.lower() not in CLEAN_LABELS]
    if not others:
        raise ValueError(f"none of the labels {', '.join(names)} can mean hate: name those that do")
    return others


def toxicity_labels(names: Sequence[str]) -> list[str]:
    """The label whose identity bias is measured: toxicity, or where there is none what :func:`hate_labels` says."""
    toxic = [name for name in names if name.lower() in TOXIC_LABELS][:1]
    return toxic or hate_labels(names)


def flag(
    scores: np.ndarray,
    names: Sequence[str],
    thresholds: dict[str, float],
    chosen: Sequence[str],
    problem_type: str = MULTI_LABEL,
) -> tuple[np.ndarray, np.ndarray]:
    """Whether any of the ``chosen`` labels is decided for, and a score for it.

    The score is the highest of the chosen labels; single-label: their sum. Scores of several labels with thresholds
    of their own have no common scale: the decision does not follow from this score then.

    :returns: BOOL and FP64. *Shape:* ``(comments,)`` each.
    :raises ValueError: for a label that the model does not have.
    """
    unknown = [label for label in chosen if label not in names]
    if unknown or not chosen:
        raise ValueError(f"no label {', '.join(unknown) or 'is chosen'}: the model has {', '.join(names)}")
    columns = [list(names).index(label) for label in chosen]
    flagged = decide(scores, names, thresholds, problem_type)[:, columns].any(axis=1)
    part = scores[:, columns]
    return flagged, part.sum(axis=1) if problem_type == SINGLE_LABEL else part.max(axis=1)


def evaluate_hatecheck(
    predict: Predict,
    cases: Cases,
    names: Sequence[str],
    thresholds: dict[str, float],
    labels: Sequence[str] | None = None,
    problem_type: str = MULTI_LABEL,
) -> dict[str, Any]:
    """Accuracy overall, on hateful and on other cases, by functionality and by target; macro F1 and ROC-AUC.

    A case counts as found hateful where any of ``labels`` is decided for.

    :param labels: by default :func:`hate_labels`.
    """
    chosen = list(labels) if labels is not None else hate_labels(names)
    flagged, score = flag(predict(cases.texts), names, thresholds, chosen, problem_type)
    return {"labels": chosen, "thresholds": {n: thresholds[n] for n in chosen}, **judge(flagged, score, cases)}


def judge(flagged: np.ndarray, score: np.ndarray, cases: Cases) -> dict[str, Any]:
    """The result of :func:`evaluate_hatecheck` from decisions and scores. *Shape:* ``(cases,)`` each."""
    right = flagged == cases.hateful
    hits = int((flagged & cases.hateful).sum())
    misses = int((flagged & ~cases.hateful).sum()), int((~flagged & cases.hateful).sum())
    rejected = int((~flagged & ~cases.hateful).sum())
    f1 = [2 * n / (2 * n + sum(misses)) if n else 0.0 for n in (hits, rejected)]
    return {
        "cases": len(cases.texts),
        "accuracy": float(right.mean()),
        "accuracy_hateful": _share(right[cases.hateful]),
        "accuracy_non_hateful": _share(right[~cases.hateful]),
        "f1_hateful": f1[0],
        "f1_non_hateful": f1[1],
        "macro_f1": sum(f1) / 2,
        "roc_auc": roc_auc(score, cases.hateful),
        "functionality": _by(cases.functionality, right, cases.hateful),
        "target": _by(cases.target, right, cases.hateful),
    }


def _by(keys: Sequence[str], right: np.ndarray, hateful: np.ndarray) -> dict[str, dict[str, Any]]:
    """Number of cases, how many of them are hateful, and accuracy, by key in the order of the file."""
    found = {}
    column = np.array(keys, dtype=object)
    for key in dict.fromkeys(k for k in keys if k):
        rows = column == key
        found[key] = {"cases": int(rows.sum()), "hateful": int(hateful[rows].sum()), "accuracy": _share(right[rows])}
    return found


def _share(right: np.ndarray) -> float | None:
    return float(right.mean()) if len(right) else None
