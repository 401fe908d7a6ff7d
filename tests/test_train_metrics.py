from __future__ import annotations

import numpy as np
import pytest

from train.metrics import best_f1_thresholds, evaluate, fit_calibration


def test_metrics_of_a_case_worked_out_by_hand() -> None:
    truth = np.array([[1], [1], [0], [0]])
    scores = np.array([[0.9], [0.4], [0.6], [0.1]])
    report = evaluate(scores, truth, ["toxic"], {"toxic": 0.5})
    # 3 of 4 pairs in order; precision 1/1 at the first hit, 2/3 at the second
    assert report["labels"]["toxic"]["roc_auc"] == pytest.approx(0.75)
    assert report["labels"]["toxic"]["pr_auc"] == pytest.approx((1 + 2 / 3) / 2)
    assert report["labels"]["toxic"]["f1"] == pytest.approx(0.5)


def test_a_label_with_one_class_is_left_out_of_the_means() -> None:
    truth = np.array([[1, 0], [0, 0]])
    scores = np.array([[0.9, 0.2], [0.1, 0.1]])
    report = evaluate(scores, truth, ["a", "b"], {"a": 0.5, "b": 0.5})
    assert report["labels"]["b"]["roc_auc"] is None
    assert report["mean_roc_auc"] == 1.0


def test_best_threshold_is_where_f1_is_highest() -> None:
    truth = np.array([[1, 0], [1, 0], [0, 0], [0, 0]])
    scores = np.array([[0.9, 0.5], [0.4, 0.5], [0.3, 0.5], [0.1, 0.5]])
    assert best_f1_thresholds(scores, truth, ["a", "b"]) == {"a": 0.4, "b": 0.5}


def test_calibration_finds_the_scale_that_made_the_labels() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(20_000, 2))
    truth = rng.random((20_000, 2)) < 1 / (1 + np.exp(-(2.0 * logits + [0.5, -1.0])))
    slope, offsets = fit_calibration(logits, truth.astype(float))
    assert slope == pytest.approx(2.0, abs=0.1)
    np.testing.assert_allclose(offsets, [0.5, -1.0], atol=0.1)


def test_calibration_never_turns_the_order_round_and_stays_finite_without_positives() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(500, 1))
    slope, _ = fit_calibration(logits, (logits < 0).astype(float))
    assert slope > 0
    slope, offsets = fit_calibration(logits, np.zeros((500, 1)))
    assert np.isfinite(slope) and np.isfinite(offsets).all()
