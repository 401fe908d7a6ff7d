from __future__ import annotations

import numpy as np
import pytest

from export.parity import (
    Gate,
    GateFailed,
    check,
    check_fp32,
    compare,
    compare_bias,
    identity_sentences,
    table,
)

LABELS = ("a", "b")
THRESHOLDS = {"a": 0.5, "b": 0.5}
REFERENCE = np.array([[0.9, 0.2], [0.6, 0.2], [0.4, 0.2], [0.1, 0.2]])
TRUTH = np.array([[1, 0], [1, 0], [0, 0], [0, 0]])


def test_differences_flips_and_areas_are_counted() -> None:
    candidate = REFERENCE.copy()
    candidate[1, 0] = 0.3  # falls below the threshold and below a negative comment
    report = compare(REFERENCE, candidate, TRUTH, LABELS, THRESHOLDS)
    assert report["max_difference"] == pytest.approx(0.3)
    assert report["flip_rate"] == pytest.approx(1 / 8)
    assert report["labels"]["a"]["roc_auc"] == [1.0, 0.75]
    assert report["labels"]["b"]["roc_auc"] == [None, None]
    assert report["mean_auc_drop"] == pytest.approx(0.25)
    assert "1.0000 -> 0.7500" in table(report)


def test_the_gate_names_each_limit_that_is_exceeded() -> None:
    candidate = REFERENCE.copy()
    candidate[1, 0] = 0.3
    report = compare(REFERENCE, candidate, TRUTH, LABELS, THRESHOLDS)
    with pytest.raises(
        GateFailed,
        match=r"falls by 0\.2500, allowed is 0\.001.*25\.00% of the decisions on a.*allowed is 0\.50%",
    ):
        check(report, Gate())
    check(report, Gate(max_auc_drop=0.25, max_flip_rate=0.25))
    with pytest.raises(GateFailed, match="--max-flip-rate"):
        check(report, Gate(max_auc_drop=0.25, max_flip_rate=0.24))


def test_scores_that_are_not_finite_pass_no_gate() -> None:
    candidate = REFERENCE.copy()
    report = compare(REFERENCE, candidate, TRUTH, LABELS, THRESHOLDS) | {"max_difference": float("nan")}
    with pytest.raises(GateFailed, match="differ by nan"):
        check_fp32(report)
    with pytest.raises(GateFailed, match="not finite"):
        check(report, Gate(1, 1))


def test_a_shift_of_identity_bias_is_measured_and_gated() -> None:
    labels = ("toxic", "threat")
    sentences = identity_sentences(labels)
    assert sentences is not None and len(sentences.groups) > 30
    rng = np.random.default_rng(1)
    fair = np.stack([sentences.toxic + 0.4 * rng.random(len(sentences.texts)), np.zeros(len(sentences.texts))], 1)
    unfair = fair.copy()
    unfair[sentences.groups["muslim"], 0] += 1  # harmless sentences that name it now score like hostile ones
    report = compare_bias(fair, unfair, sentences, labels)
    assert report["label"] == "toxic"
    assert report["bpsn_auc"][0] == 1.0 and report["bpsn_auc"][1] < 1.0
    assert report["most_moved"]["identity"] == "muslim"
    assert compare_bias(fair, fair, sentences, labels)["max_shift"] == 0
    comparison = compare(fair, fair, np.zeros_like(fair), labels, dict.fromkeys(labels, 0.5)) | {"bias": report}
    shift = report["max_shift"]
    check(comparison, Gate(max_bias_shift=shift))
    with pytest.raises(GateFailed, match=r"identity bias shifts by .*--max-bias-shift"):
        check(comparison, Gate(max_bias_shift=shift * 0.99))
    assert identity_sentences(("spam", "ham")) is None
    assert "identity bias of toxic" in table(comparison)


def test_single_label_models_flip_where_the_highest_score_changes() -> None:
    reference = np.array([[0.6, 0.4], [0.1, 0.9]])
    candidate = np.array([[0.45, 0.55], [0.3, 0.7]])
    report = compare(reference, candidate, np.eye(2), LABELS, THRESHOLDS, "single_label_classification")
    assert [report["labels"][label]["flips"] for label in LABELS] == [1, 1]
