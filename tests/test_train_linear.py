from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from conftest import LABELS
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from train.artifact import PROBLEM_TYPES, InvalidArtifact, Layout
from train.config import InvalidConfig, LinearConfig
from train.linear import LinearModel, fit_linear, load, save
from train.metrics import fit_calibration

MULTI, SINGLE = PROBLEM_TYPES
SMALL = LinearConfig(max_features=500, char_features=500, solver="liblinear")
CLASSES = ("hate", "offensive", "neither")
WORDS = {"hate": "foreigners", "offensive": "damn", "neither": "map"}


@pytest.fixture(scope="module")
def rows(comments_csv: Path) -> tuple[list[str], np.ndarray]:
    table = pd.read_csv(comments_csv)
    return table["comment_text"].tolist(), table[list(LABELS)].to_numpy(np.float32)


def classed(count: int = 150) -> tuple[list[str], np.ndarray]:
    """Texts of three classes, each with a word of its own, and their classes one-hot."""
    rng = np.random.default_rng(3)
    places = rng.integers(0, 3, count)
    filler = ["the", "town", "please", "add", "one", "you"]
    texts = [" ".join([*rng.choice(filler, 4), WORDS[CLASSES[p]]]) for p in places]
    return texts, np.eye(3, dtype=np.float32)[places]


def multi(config: LinearConfig, rows: tuple[list[str], np.ndarray], seed: int = 1) -> LinearModel:
    return fit_linear(config, rows[0][:500], rows[1][:500], LABELS, MULTI, seed)


@pytest.mark.parametrize(
    "config",
    [
        replace(SMALL, solver="saga"),
        replace(SMALL, model="svm"),
        replace(SMALL, char_ngrams=[2, 4], sublinear_tf=True, class_weight=None, c=4.0),
        replace(SMALL, char_ngrams=[2, 4], class_weight=None, naive_bayes=True),
    ],
    ids=["logreg", "svm", "word-and-char", "naive-bayes"],
)
def test_labels_are_learnt(config: LinearConfig, rows: tuple[list[str], np.ndarray]) -> None:
    texts, labels = rows[0][500:], rows[1][500:]
    model = multi(config, rows)
    scores = model.scores(texts)
    assert scores.shape == (200, 6) and scores.dtype == np.float64
    assert ((scores >= 0) & (scores <= 1)).all()
    areas = [roc_auc_score(labels[:, i], scores[:, i]) for i in range(6)]
    assert min(areas) > 0.85 and np.mean(areas) > 0.95
    assert len(model.vectorizers) == (2 if config.char_ngrams else 1)


def test_scores_are_those_of_scikit_learn(rows: tuple[list[str], np.ndarray]) -> None:
    model = multi(SMALL, rows)
    estimator = LogisticRegression(solver="liblinear", class_weight="balanced", random_state=1)
    features = model.vectorizers[0].transform(rows[0][:500])
    estimator.fit(features, rows[1][:500, 4] > 0.5)
    np.testing.assert_allclose(model.scores(rows[0][:500])[:, 4], estimator.predict_proba(features)[:, 1], atol=1e-6)


def test_unknown_labels_are_left_out_of_their_label_alone(rows: tuple[list[str], np.ndarray]) -> None:
    whole = multi(SMALL, rows)
    texts, labels = rows[0][:500], rows[1][:500].copy()
    labels[100:300, 0] = np.nan
    model = fit_linear(SMALL, texts, labels, LABELS, MULTI, 1)
    assert np.array_equal(model.weights[:, 1:], whole.weights[:, 1:])
    known = ~np.isnan(labels[:, 0])
    estimator = LogisticRegression(solver="liblinear", class_weight="balanced", random_state=1)
    estimator.fit(model.vectorizers[0].transform(texts)[known], labels[known, 0] > 0.5)
    np.testing.assert_allclose(model.weights[:, 0], estimator.coef_[0], atol=1e-5)


def test_a_label_with_one_class_scores_its_rate(rows: tuple[list[str], np.ndarray]) -> None:
    labels = rows[1][:500].copy()
    labels[:, 3], labels[:, 4], labels[:, 5] = 0, 1, np.nan
    scores = fit_linear(SMALL, rows[0][:500], labels, LABELS, MULTI, 1).scores(["kill the map", "thanks"])
    assert scores[:, 3] == pytest.approx(0.5 / 501) and scores[:, 4] == pytest.approx(500.5 / 501)
    assert scores[:, 5] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "config",
    [
        replace(SMALL, solver="saga"),
        replace(SMALL, solver="lbfgs"),
        SMALL,
        replace(SMALL, model="svm"),
        replace(SMALL, naive_bayes=True),
    ],
    ids=["saga", "lbfgs", "liblinear", "svm", "naive-bayes"],
)
@pytest.mark.parametrize("classes", [3, 2])
def test_single_label_scores_are_a_distribution(config: LinearConfig, classes: int) -> None:
    texts, labels = classed()
    if classes == 2:
        labels = np.stack([labels[:, 2], labels[:, 0] + labels[:, 1]], axis=1)
    names = CLASSES if classes == 3 else ("regular", "hate")
    scores = fit_linear(config, texts, labels, names, SINGLE, 1).scores(texts)
    assert scores.shape == (150, classes)
    np.testing.assert_allclose(scores.sum(1), 1.0)
    assert (scores.argmax(1) == labels.argmax(1)).all()


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_saga_converges_on_rare_labels(problem_type: str) -> None:
    rng = np.random.default_rng(1)
    rare = rng.random(3000) < 0.01
    filler = [f"w{i}" for i in range(200)]
    texts = [" ".join([*rng.choice(filler, 8), "kill" if r and i % 2 else "map"]) for i, r in enumerate(rare)]
    labels = np.stack([~rare, rare], axis=1).astype(np.float32)
    messages: list[str] = []
    arguments = (texts, labels, ("regular", "threat"), problem_type, 1)
    saga = fit_linear(replace(SMALL, solver="saga"), *arguments, messages.append)
    exact = fit_linear(replace(SMALL, solver="lbfgs"), *arguments)
    assert not any("not converged" in message for message in messages)
    np.testing.assert_allclose(saga.scores(texts), exact.scores(texts), atol=0.03)


def test_multinomial_scores_are_those_of_scikit_learn() -> None:
    texts, labels = classed()
    config = replace(SMALL, solver="lbfgs")
    model = fit_linear(config, texts, labels, CLASSES, SINGLE, 1)
    estimator = LogisticRegression(solver="lbfgs", class_weight="balanced", max_iter=1000, random_state=1)
    features = model.vectorizers[0].transform(texts)
    estimator.fit(features, labels.argmax(1))
    np.testing.assert_allclose(model.scores(texts), estimator.predict_proba(features), atol=1e-5)


def test_naive_bayes_scales_are_folded_into_the_weights(rows: tuple[list[str], np.ndarray]) -> None:
    config = replace(SMALL, naive_bayes=True, class_weight=None)
    model = multi(config, rows)
    texts, truth = rows[0][:500], rows[1][:500, 4] > 0.5
    features = model.vectorizers[0].transform(texts).toarray()
    share = [(1 + features[side].sum(0)) / (1 + side.sum()) for side in (truth, ~truth)]
    scaled = features * np.log(share[0] / share[1])
    estimator = LogisticRegression(solver="liblinear", random_state=1).fit(scaled, truth)
    np.testing.assert_allclose(model.decision(texts)[:, 4], estimator.decision_function(scaled), atol=1e-4)


def test_a_class_without_comments_is_never_given_and_one_class_alone_is_refused() -> None:
    texts, labels = classed()
    two = labels[:, 1] == 0
    kept = [t for t, k in zip(texts, two, strict=True) if k]
    scores = fit_linear(SMALL, kept, labels[two], CLASSES, SINGLE, 1).scores(texts)
    assert scores[:, 1].max() < 1e-9 and scores[:, 0].max() > 0.6 and scores[:, 2].max() > 0.6
    only = labels[:, 2] == 1
    with pytest.raises(InvalidConfig, match=r"all \d+ comments are neither"):
        fit_linear(SMALL, [t for t, k in zip(texts, only, strict=True) if k], labels[only], CLASSES, SINGLE, 1)
    with pytest.raises(InvalidConfig, match="no features in 2 comments"):
        fit_linear(SMALL, ["!!", "??"], np.eye(2), ("a", "b"), MULTI, 1)


def test_the_seed_decides_and_progress_is_told(rows: tuple[list[str], np.ndarray]) -> None:
    config = replace(SMALL, solver="saga", max_iterations=2)
    messages: list[str] = []
    first, again, other = (multi(config, rows, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.weights, again.weights) and not np.array_equal(first.weights, other.weights)
    fit_linear(config, *rows, LABELS, MULTI, 1, messages.append)
    assert "features of 700 comments" in messages[0]
    assert any("threat: not converged" in m and "linear.max_iterations" in m for m in messages)
    assert any(m.startswith(f"toxic: {int(rows[1][:, 0].sum())} of 700 comments, ") for m in messages)


def test_calibration_makes_margins_probabilities(rows: tuple[list[str], np.ndarray]) -> None:
    model = multi(replace(SMALL, model="svm"), rows)
    texts, labels = rows[0][500:], rows[1][500:]
    slope, offsets = fit_calibration(model.decision(texts), labels)
    calibrated = model.calibrated(slope, offsets)
    assert np.array_equal(calibrated.decision(texts), model.decision(texts))
    before, after = (((m.scores(texts) - labels) ** 2).mean() for m in (model, calibrated))
    assert after < before
    np.testing.assert_allclose(calibrated.scores(texts).mean(0), labels.mean(0), atol=0.02)
    for wrong in ((0.0, offsets), (1.0, offsets[:2])):
        with pytest.raises(ValueError, match="must be above 0, and there must be 6 offsets"):
            model.calibrated(*wrong)


def test_saved_and_loaded_models_score_alike(tmp_path: Path, rows: tuple[list[str], np.ndarray]) -> None:
    model = multi(replace(SMALL, char_ngrams=[2, 3]), rows).calibrated(1.5, np.linspace(-1, 1, 6))
    save(model, tmp_path)
    save(model, tmp_path)  # over the old one
    assert [p.name for p in tmp_path.iterdir()] == ["model.joblib"]
    loaded = load(tmp_path)
    assert (loaded.names, loaded.problem_type) == (LABELS, MULTI)
    assert np.array_equal(loaded.scores(rows[0][500:]), model.scores(rows[0][500:]))


def test_the_file_is_read_without_this_code(tmp_path: Path, rows: tuple[list[str], np.ndarray]) -> None:
    model = multi(SMALL, rows)
    save(model, tmp_path)
    code = (
        "import joblib, numpy as np, sys; m = joblib.load('model.joblib'); assert 'train' not in sys.modules; "
        "z = m['vectorizers'][0].transform(['you idiot']) @ m['weights'] + m['intercepts']; print(float(z[0, 4]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(model.decision(["you idiot"])[0, 4])


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArtifact, match=r"model\.joblib is missing: write an artifact"):
        load(tmp_path)
    Layout(tmp_path).linear.write_bytes(b"nothing")
    with pytest.raises(InvalidArtifact, match="could not be read .*fit the model again"):
        load(tmp_path)
    joblib.dump({"weights": 1}, Layout(tmp_path).linear)
    with pytest.raises(InvalidArtifact, match="could not be read .*vectorizers"):
        load(tmp_path)
