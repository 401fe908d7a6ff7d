"""Does the exported model decide like the original? The comparison, and the gate that it must pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score
from tqdm import tqdm

from train.augment import patterns
from train.bias import AREAS, BiasSet, find_identities, identity_bias
from train.hatecheck import toxicity_labels
from train.metrics import MULTI_LABEL, decide

FP32_TOLERANCE = 1e-4
"""The largest difference of a score between torch and the fused FP32 graph."""

SENTENCES = 1500
"""Written sentences that identity bias is compared on: about 30 for each of some 50 identities."""

FEWEST = 5
"""Hostile sentences, and harmless ones, that an identity must have: an area over fewer moves with any rounding."""

Scorer = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""input_ids and attention_mask ``(batch, tokens)`` to scores ``(batch, labels)``."""


class GateFailed(RuntimeError):
    """The exported model differs from the original by more than the gate allows."""


@dataclass(frozen=True)
class Gate:
    """What may differ between the artifact and what is published.

    :param max_auc_drop: of the mean ROC-AUC over the labels.
    :param max_flip_rate: share of the comments whose decision changes at the shipped thresholds, of any label.
    :param max_bias_shift: change of the mean over identities of the Subgroup, BPSN and BNSP area, each.
    """

    max_auc_drop: float = 0.001
    max_flip_rate: float = 0.005
    max_bias_shift: float = 0.01


def pad(rows: Sequence[Sequence[int]], width: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids padded on the right, and their mask, INT32. *Shape:* ``(rows, width)`` each."""
    input_ids = np.full((len(rows), width), pad_id, np.int32)
    mask = np.zeros_like(input_ids)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return input_ids, mask


def score(
    scorer: Scorer,
    ids: Sequence[Sequence[int]],
    *,
    pad_id: int,
    labels: int,
    progress: str,
) -> np.ndarray:
    """Scores in the order of ``ids``, computed in length-sorted batches.

    :param ids: token ids of each comment.
    :returns: *Shape:* ``(comments, labels)``
    """
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    out = np.zeros((len(ids), labels), np.float32)
    with tqdm(total=len(ids), desc=progress, unit=" comments") as bar:
        for start in range(0, len(order), 32):
            batch = order[start : start + 32]
            out[batch] = scorer(*pad([ids[i] for i in batch], len(ids[batch[0]]), pad_id))
            bar.update(len(batch))
    return out


def identity_sentences(labels: Sequence[str]) -> BiasSet | None:
    """Sentences that name identities, hostile and harmless, always the same; ``None`` where none fit these labels."""
    try:
        texts, truth = patterns(labels, SENTENCES, seed=23)
    except ValueError:
        return None
    truth = truth[:, [list(labels).index(name) for name in toxicity_labels(labels)]]
    known = np.flatnonzero(~np.isnan(truth).any(axis=1))
    texts = [texts[i] for i in known]
    return BiasSet(texts, truth[known].max(axis=1) > 0.5, find_identities(texts))


def compare(
    reference: np.ndarray,
    candidate: np.ndarray,
    truth: np.ndarray,
    labels: Sequence[str],
    thresholds: dict[str, float],
    problem_type: str = MULTI_LABEL,
    candidate_thresholds: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Differences between two models' scores on the same comments. *Shapes:* ``(comments, labels)``.

    A label that has only one class here gets ``None`` for its areas, and is left out of the means.

    :param candidate_thresholds: where the candidate's are others.
    """
    difference = np.abs(reference - candidate)
    before = decide(reference, labels, thresholds, problem_type)
    after = decide(candidate, labels, candidate_thresholds or thresholds, problem_type)
    flips = (before != after).sum(axis=0)
    per_label: dict[str, Any] = {}
    for i, label in enumerate(labels):
        known = ~np.isnan(truth[:, i])
        is_true = truth[known, i] > 0.5
        both = 0 < is_true.sum() < len(is_true)
        areas = {
            name: [float(area(is_true, s[known, i])) if both else None for s in (reference, candidate)]
            for name, area in (("roc_auc", roc_auc_score), ("pr_auc", average_precision_score))
        }
        per_label[label] = {
            "positives": int(is_true.sum()),
            "max_difference": float(difference[:, i].max()),
            "mean_difference": float(difference[:, i].mean()),
            "flips": int(flips[i]),
            "flip_rate": float(flips[i] / len(truth)),
            **areas,
        }
    worst = np.unravel_index(int(np.nan_to_num(difference, nan=np.inf).argmax()), difference.shape)
    return {
        "comments": len(truth),
        "max_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "worst": {
            "comment": int(worst[0]),
            "label": labels[int(worst[1])],
            "scores": [float(s[worst]) for s in (reference, candidate)],
        },
        "flip_rate": float(flips.sum() / difference.size),
        "max_flip_rate": float(flips.max() / len(truth)),
        "mean_auc_drop": _mean_drop(per_label, "roc_auc"),
        "mean_pr_auc_drop": _mean_drop(per_label, "pr_auc"),
        "labels": per_label,
    }


def compare_bias(
    reference: np.ndarray, candidate: np.ndarray, sentences: BiasSet, labels: Sequence[str]
) -> dict[str, Any]:
    """The three areas, before and after, as means over identities. *Shape of scores:* ``(sentences, labels)``.

    Plain means over the identities with enough sentences (:data:`FEWEST`), not the power means of :mod:`train.bias`:
    these hang on the worst identity, and would move with rounding.
    """
    chosen = toxicity_labels(labels)
    columns = [list(labels).index(name) for name in chosen]
    found = [
        identity_bias(scores[:, columns].max(axis=1), sentences.toxic, sentences.groups)["identities"]
        for scores in (reference, candidate)
    ]
    areas: dict[str, list[float]] = {}
    moved: dict[str, float] = {}
    enough = [n for n, m in found[0].items() if FEWEST <= m["positives"] <= m["comments"] - FEWEST]
    for area in AREAS:
        names = [name for name in enough if found[0][name][area] is not None]
        if names:
            areas[area] = [float(np.mean([f[name][area] for name in names])) for f in found]
        for name in names:
            moved[name] = max(moved.get(name, 0.0), abs(found[0][name][area] - found[1][name][area]))
    most = max(moved, key=lambda name: moved[name], default=None)
    return {
        "sentences": len(sentences.texts),
        "identities": len(enough),
        "label": " or ".join(chosen),
        **areas,
        "max_shift": max((abs(a - b) for a, b in areas.values()), default=None),
        "most_moved": None if most is None else {"identity": most, "shift": moved[most]},
    }


def check_fp32(report: dict[str, Any], what: str = "the ONNX FP32 graph") -> None:
    """:raises GateFailed: when the FP32 form is not the model that was trained."""
    if not report["max_difference"] <= FP32_TOLERANCE:  # "not <=", so that NaN fails too
        raise GateFailed(
            f"the artifact and {what} differ by {report['max_difference']:.2e}, allowed is {FP32_TOLERANCE:.0e}: "
            "the conversion is wrong; nothing was published"
        )


def failures(report: dict[str, Any], gate: Gate) -> list[str]:
    """Each limit that is exceeded, with the value and the option."""
    if not np.isfinite(report["max_difference"]):
        return ["the scores are not finite"]
    found = []
    drop = report["mean_auc_drop"]
    if drop is not None and drop > gate.max_auc_drop:
        found.append(f"mean ROC-AUC falls by {drop:.4f}, allowed is {gate.max_auc_drop} (--max-auc-drop)")
    flips = report["max_flip_rate"]
    if flips > gate.max_flip_rate:
        label = max(report["labels"], key=lambda name: report["labels"][name]["flips"])
        found.append(
            f"{flips:.2%} of the decisions on {label} change, allowed is {gate.max_flip_rate:.2%} (--max-flip-rate)"
        )
    shift = (report.get("bias") or {}).get("max_shift")
    if shift is not None and shift > gate.max_bias_shift:
        found.append(f"identity bias shifts by {shift:.4f}, allowed is {gate.max_bias_shift} (--max-bias-shift)")
    return found


def check(report: dict[str, Any], gate: Gate) -> None:
    """:raises GateFailed: naming each limit that is exceeded, with the value and the remedy."""
    found = failures(report, gate)
    if found:
        raise GateFailed(
            f"{'; '.join(found)}. Nothing was published: try --method auto or --quantize none, new thresholds with "
            "--retune where only decisions change, or raise the limit"
        )


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
    worst = report["worst"]
    lines.append(
        f"{report['comments']} comments: mean ROC-AUC drop {_signed(report['mean_auc_drop'])}, mean PR-AUC drop "
        f"{_signed(report['mean_pr_auc_drop'])}, decisions changed {report['flip_rate']:.3%} (at most "
        f"{report['max_flip_rate']:.3%} of a label), largest difference {report['max_difference']:.5f} "
        f"({worst['label']} of comment {worst['comment']}: {worst['scores'][0]:.4f} -> {worst['scores'][1]:.4f})"
    )
    bias = report.get("bias")
    if bias:
        areas = ", ".join(f"{area.split('_')[0]} {_pair(bias[area])}" for area in AREAS)
        lines.append(
            f"identity bias of {bias['label']}, {bias['sentences']} sentences on {bias['identities']}: {areas}"
        )
    return "\n".join(lines)


def _mean_drop(per_label: dict[str, Any], area: str) -> float | None:
    drops = [m[area][0] - m[area][1] for m in per_label.values() if m[area][0] is not None]
    return float(np.mean(drops)) if drops else None


def _pair(values: Sequence[float | None]) -> str:
    return "-" if values[0] is None else f"{values[0]:.4f} -> {values[1]:.4f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.5f}"
