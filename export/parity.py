"""Does the exported model decide like the original? The comparison, and the gate that it must pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score
from tokenizers import Tokenizer
from tqdm import tqdm

FP32_TOLERANCE = 1e-4
"""The largest difference of a score between torch and the fused FP32 graph."""

Scorer = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""input_ids and attention_mask ``(batch, tokens)`` to scores ``(batch, labels)``."""


class GateFailed(RuntimeError):
    """The exported model differs from the original by more than the gate allows."""


@dataclass(frozen=True)
class Gate:
    """What may differ between the artifact and what is published.

    :param max_auc_drop: of the mean ROC-AUC over the labels.
    :param max_flip_rate: share of decisions (comments x labels) that change at the shipped thresholds.
    """

    max_auc_drop: float = 0.002
    max_flip_rate: float = 0.005


def score(
    scorer: Scorer,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    buckets: Sequence[int],
    pad_id: int,
    labels: int,
    progress: str,
) -> np.ndarray:
    """Scores in the order of ``texts``, computed in length-sorted batches padded as the server pads.

    :param tokenizer: with truncation on and padding off.
    :returns: *Shape:* ``(texts, labels)``
    """
    ids = [e.ids for e in tokenizer.encode_batch(list(texts))]
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    out = np.zeros((len(ids), labels), np.float32)
    with tqdm(total=len(ids), desc=progress, unit=" comments") as bar:
        for start in range(0, len(order), 32):
            batch = order[start : start + 32]
            width = next(b for b in buckets if b >= len(ids[batch[0]]))
            input_ids = np.full((len(batch), width), pad_id, np.int64)
            mask = np.zeros_like(input_ids)
            for row, i in enumerate(batch):
                input_ids[row, : len(ids[i])] = ids[i]
                mask[row, : len(ids[i])] = 1
            out[batch] = scorer(input_ids, mask)
            bar.update(len(batch))
    return out


def compare(
    reference: np.ndarray, candidate: np.ndarray, truth: np.ndarray, labels: Sequence[str], thresholds: dict[str, float]
) -> dict[str, Any]:
    """Differences between two models' scores on the same comments. *Shapes:* ``(comments, labels)``.

    A label that has only one class here gets ``None`` for its areas, and is left out of the mean.
    """
    difference = np.abs(reference - candidate)
    per_label: dict[str, Any] = {}
    for i, label in enumerate(labels):
        flips = (reference[:, i] >= thresholds[label]) != (candidate[:, i] >= thresholds[label])
        both = 0 < truth[:, i].sum() < len(truth)
        per_label[label] = {
            "positives": int(truth[:, i].sum()),
            "max_difference": float(difference[:, i].max()),
            "mean_difference": float(difference[:, i].mean()),
            "flips": int(flips.sum()),
            "roc_auc": [float(roc_auc_score(truth[:, i], s[:, i])) if both else None for s in (reference, candidate)],
            "pr_auc": [
                float(average_precision_score(truth[:, i], s[:, i])) if both else None for s in (reference, candidate)
            ],
        }
    drops = [m["roc_auc"][0] - m["roc_auc"][1] for m in per_label.values() if m["roc_auc"][0] is not None]
    return {
        "comments": len(truth),
        "max_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "flip_rate": sum(m["flips"] for m in per_label.values()) / difference.size,
        "mean_auc_drop": float(np.mean(drops)) if drops else None,
        "labels": per_label,
    }


def check_fp32(report: dict[str, Any]) -> None:
    """:raises GateFailed: when the FP32 graph is not the network that was trained."""
    if not report["max_difference"] <= FP32_TOLERANCE:  # "not <=", so that NaN fails too
        raise GateFailed(
            f"torch and the ONNX FP32 graph differ by {report['max_difference']:.2e}, allowed is {FP32_TOLERANCE:.0e}: "
            "the graph is wrong; nothing was published"
        )


def check(report: dict[str, Any], gate: Gate) -> None:
    """:raises GateFailed: naming each limit that is exceeded, with the value and the remedy."""
    if not np.isfinite(report["max_difference"]):
        raise GateFailed("the exported model gives scores that are not finite; nothing was published")
    failures = []
    drop = report["mean_auc_drop"]
    if drop is not None and drop > gate.max_auc_drop:
        failures.append(f"mean ROC-AUC falls by {drop:.4f}, allowed is {gate.max_auc_drop} (--max-auc-drop)")
    if report["flip_rate"] > gate.max_flip_rate:
        failures.append(
            f"{report['flip_rate']:.2%} of the decisions change, allowed is {gate.max_flip_rate:.2%} (--max-flip-rate)"
        )
    if failures:
        raise GateFailed(f"{'; '.join(failures)}. Nothing was published: use --quantize none, or raise the limit")


def table(report: dict[str, Any]) -> str:
    """A comparison for reading."""
    lines = [
        f"{'label':<14}{'positives':>10}{'max diff':>10}{'mean diff':>11}{'flips':>7}{'ROC-AUC':>18}{'PR-AUC':>18}"
    ]
    for label, m in report["labels"].items():
        areas = "".join(f"{_pair(m[key]):>18}" for key in ("roc_auc", "pr_auc"))
        lines.append(
            f"{label:<14}{m['positives']:>10}{m['max_difference']:>10.5f}{m['mean_difference']:>11.6f}{m['flips']:>7}{areas}"
        )
    drop = report["mean_auc_drop"]
    lines.append(
        f"{report['comments']} comments: largest difference {report['max_difference']:.5f}, decisions changed "
        f"{report['flip_rate']:.3%}, mean ROC-AUC drop {'-' if drop is None else f'{drop:+.5f}'}"
    )
    return "\n".join(lines)


def _pair(values: list[float | None]) -> str:
    return "-" if values[0] is None else f"{values[0]:.4f} -> {values[1]:.4f}"
