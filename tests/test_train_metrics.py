from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics

from train.metrics import (
    SINGLE_LABEL,
    apply_isotonic,
    best_f1_thresholds,
    evaluate,
    expected_calibration_error,
    fit_calibration,
    fit_isotonic,
    fit_temperature,
    recall_at_fpr,
    reliability,
    tune_thresholds,
)


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


def reference(seed: int = 3, comments: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = (rng.random((comments, 3)) < [0.5, 0.2, 0.05]).astype(float)
    return np.clip(0.5 * truth + 0.6 * rng.random((comments, 3)), 0, 1).round(2), truth


NAMES = ["a", "b", "c"]
HALF = dict.fromkeys(NAMES, 0.5)


def test_multi_label_metrics_are_those_of_scikit_learn() -> None:
    scores, truth = reference()
    result = evaluate(scores, truth, NAMES, HALF)
    decided = (scores >= 0.5).astype(int)
    for average in ("macro", "micro"):
        for key, function in (
            ("precision", sklearn.metrics.precision_score),
            ("recall", sklearn.metrics.recall_score),
            ("f1", sklearn.metrics.f1_score),
        ):
            assert result[average][key] == pytest.approx(function(truth, decided, average=average)), (average, key)
    assert result["macro_f1"] == result["mean_f1"] == result["macro"]["f1"]
    assert result["exact_match"] == pytest.approx(sklearn.metrics.accuracy_score(truth, decided))
    assert result["accuracy"] == pytest.approx(1 - sklearn.metrics.hamming_loss(truth, decided))
    for i, name in enumerate(NAMES):
        m = result["labels"][name]
        assert m["roc_auc"] == pytest.approx(sklearn.metrics.roc_auc_score(truth[:, i], scores[:, i]))
        assert m["pr_auc"] == pytest.approx(sklearn.metrics.average_precision_score(truth[:, i], scores[:, i]))
        assert m["brier"] == pytest.approx(sklearn.metrics.brier_score_loss(truth[:, i], scores[:, i]))
        tn, fp, fn, tp = sklearn.metrics.confusion_matrix(truth[:, i], decided[:, i]).ravel().tolist()
        assert m["confusion"] == {"tp": tp, "fp": fp, "fn": fn, "tn": tn}
        assert m["accuracy"] == pytest.approx((tp + tn) / len(truth))


def test_calibration_error_worked_out_by_hand() -> None:
    # bin 0 holds 0.02 and 0.04 (mean 0.03, none positive), bin 9 (0.6 to 0.667) 0.62, positive, bin 14 1.0, negative
    scores, truth = np.array([0.02, 0.04, 0.62, 1.0]), np.array([False, False, True, False])
    assert expected_calibration_error(scores, truth) == pytest.approx((2 * 0.03 + 0.38 + 1.0) / 4)
    assert [(r["bin"], r["comments"]) for r in reliability(scores, truth)] == [(0, 2), (9, 1), (14, 1)]


def test_recall_at_a_false_positive_rate_worked_out_by_hand() -> None:
    # 20 clean comments: one of them above all is 5%, but more than 1%
    clean = np.arange(20) / 100
    clean[0] = 0.95
    scores, truth = np.concatenate([clean, [0.99, 0.9, 0.185, 0.01]]), np.array([False] * 20 + [True] * 4)
    assert recall_at_fpr(scores, truth, 0.01) == 0.25
    assert recall_at_fpr(scores, truth, 0.05) == 0.5
    assert recall_at_fpr(scores, truth, 0.1) == 0.75
    assert recall_at_fpr(scores, np.ones(24, bool), 0.1) is None


def test_unknown_labels_are_left_out() -> None:
    scores, truth = reference()
    partly = truth.copy()
    partly[::3, 1] = np.nan
    result, rows = evaluate(scores, partly, NAMES, HALF), ~np.isnan(partly[:, 1])
    alone = evaluate(scores[rows][:, [1]], truth[rows][:, [1]], ["b"], {"b": 0.5})
    assert result["labels"]["b"] == alone["labels"]["b"]
    assert result["labels"]["a"] == evaluate(scores, truth, NAMES, HALF)["labels"]["a"]
    thresholds, _ = tune_thresholds(scores, partly, NAMES)
    assert thresholds["b"] == best_f1_thresholds(scores[rows][:, [1]], truth[rows][:, [1]], ["b"])["b"]


def test_single_label_metrics_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(4)
    truth = rng.integers(0, 3, 300)
    scores = rng.random((300, 3)) + np.eye(3)[truth] * 0.5
    scores /= scores.sum(1, keepdims=True)
    result = evaluate(scores, np.eye(3)[truth], NAMES, HALF, SINGLE_LABEL)
    decided = scores.argmax(1)
    assert result["confusion_matrix"] == sklearn.metrics.confusion_matrix(truth, decided).tolist()
    assert result["accuracy"] == pytest.approx((truth == decided).mean())
    assert result["micro"]["f1"] == pytest.approx(result["accuracy"])
    assert result["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(truth, decided, average="macro"))
    one = sklearn.metrics.roc_auc_score(truth == 1, scores[:, 1])
    assert result["labels"]["b"]["roc_auc"] == pytest.approx(one)
    with pytest.raises(ValueError, match=r"row 1 has 2 labels.*exactly 1"):
        evaluate(scores[:1], np.array([[1.0, 1.0, 0.0]]), NAMES, HALF, SINGLE_LABEL)


def test_a_target_precision_takes_the_lowest_threshold_that_reaches_it() -> None:
    truth = np.array([[1], [0], [1], [1], [0], [0]])
    scores = np.array([[0.9], [0.8], [0.7], [0.6], [0.5], [0.1]])
    # precision at 0.9: 1; 0.8: 1/2; 0.7: 2/3; 0.6: 3/4; 0.5: 3/5
    assert tune_thresholds(scores, truth, ["a"], ("precision", 0.75)) == ({"a": 0.6}, {})
    assert tune_thresholds(scores, truth, ["a"], ("precision", 0.9)) == ({"a": 0.9}, {})
    thresholds, warnings = tune_thresholds(scores[1:], truth[1:], ["a"], ("precision", 0.9))
    assert thresholds == {"a": 0.6}
    assert "no threshold reaches a precision of 0.9, the best is 0.6667 at 0.6000" in warnings["a"]
    assert "no positive" in tune_thresholds(scores, 0 * truth, ["a"], ("precision", 0.9))[1]["a"]
    for wrong in ("recall", ("precision", 1.5), ("recall", 0.5)):
        with pytest.raises(ValueError, match="must"):
            tune_thresholds(scores, truth, ["a"], wrong)


def test_rounding_a_threshold_changes_no_decision() -> None:
    scores = np.array([[0.123456], [0.123449], [0.12344], [0.1]])
    threshold = best_f1_thresholds(scores, np.array([[1], [0], [0], [0]]), ["a"])["a"]
    assert threshold == 0.12345
    assert (scores >= threshold).tolist() == [[True], [False], [False], [False]]


def test_temperature_finds_the_scale_that_made_the_labels() -> None:
    rng = np.random.default_rng(5)
    logits = 2 * rng.normal(size=(20_000, 3))
    truth = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits / 2.5))).astype(float)
    assert fit_temperature(logits, truth) == pytest.approx(2.5, rel=0.03)
    truth[::2, 0] = np.nan
    assert fit_temperature(logits, truth) == pytest.approx(2.5, rel=0.04)
    chances = np.exp(logits / 0.5)
    chances /= chances.sum(1, keepdims=True)
    picked = (rng.random(len(chances))[:, None] > chances.cumsum(1)).sum(1).clip(max=2)
    assert fit_temperature(logits, np.eye(3)[picked], SINGLE_LABEL) == pytest.approx(0.5, rel=0.03)
    assert fit_temperature(logits, np.full(logits.shape, np.nan)) == 1.0


def test_isotonic_calibration_repairs_scores_and_keeps_their_order() -> None:
    rng = np.random.default_rng(6)
    scores = rng.random((8000, 2))
    truth = (rng.random(scores.shape) < scores**3).astype(float)
    truth[:50, 0] = np.nan
    knots = fit_isotonic(scores, truth)
    fresh = rng.random((8000, 2))
    repaired = apply_isotonic(fresh, knots)
    np.testing.assert_allclose(repaired, fresh**3, atol=0.08)
    assert np.abs(repaired - fresh**3).mean() < 0.02
    for i, k in enumerate(knots):
        assert len(k["x"]) == len(k["y"]) <= 32
        assert k["x"][0] == 0 and k["x"][-1] == 1
        assert (np.diff(k["x"]) > 0).all() and (np.diff(k["y"]) > 0).all()
        assert 0 <= k["y"][0] and k["y"][-1] <= 1
        assert (np.argsort(repaired[:, i]) == np.argsort(fresh[:, i])).all()


def test_isotonic_calibration_of_extreme_scores() -> None:
    scores = np.array([[0.0], [0.0], [1.0], [1.0]])
    ends = fit_isotonic(scores, np.array([[0.0], [0.0], [1.0], [1.0]]))
    np.testing.assert_allclose(apply_isotonic(scores, ends), scores, atol=0.001)
    alone = fit_isotonic(scores, np.zeros((4, 1)))
    np.testing.assert_array_equal(apply_isotonic(scores, alone), scores)
    same = fit_isotonic(np.full((4, 1), 0.3), np.array([[0.0], [1.0], [0.0], [0.0]]))
    assert apply_isotonic(np.array([[0.3]]), same)[0, 0] == pytest.approx(0.25, abs=0.001)
