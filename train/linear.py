"""Linear models on TF-IDF features: the baselines, and the bar that every transformer must clear.

Features are word n-grams and, if wanted, character n-grams within words. Whatever the solver, a trained model is one
matrix of weights and one offset per label, so scoring needs the vectorizers and a sparse product and nothing else.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import scipy.sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from sklearn.utils.class_weight import compute_sample_weight

from train import metrics
from train.artifact import InvalidArtifact, Layout
from train.config import InvalidConfig, LinearConfig

SINGLE_LABEL = "single_label_classification"

WORD = r"(?u)\b\w+\b"
"""Words of one letter count: `u`, `i` and lone letters of spaced-out words carry meaning in comments."""

NEVER = -30.0
"""The logit of a class that no training comment has: a probability of 1e-13."""


@dataclass(frozen=True)
class LinearModel:
    """Vectorizers, and for each label a weight per feature.

    :param vectorizers: fitted; their features stand side by side, in this order.
    :param weights: FP32. *Shape:* ``(features, labels)``
    :param intercepts: FP64. *Shape:* ``(labels,)``
    :param slope: of the calibration: probabilities come from ``slope * decision + offsets``.
    :param offsets: of the calibration, FP64. *Shape:* ``(labels,)``
    """

    vectorizers: list[TfidfVectorizer]
    weights: np.ndarray
    intercepts: np.ndarray
    names: tuple[str, ...]
    problem_type: str
    slope: float = 1.0
    offsets: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        if not len(self.offsets):
            object.__setattr__(self, "offsets", np.zeros(len(self.names)))

    def decision(self, texts: Sequence[str]) -> np.ndarray:
        """Logits (logistic regression) or margins (SVM), not calibrated. *Shape:* ``(comments, labels)``, FP64."""
        return np.asarray(_features(self.vectorizers, texts) @ self.weights + self.intercepts, dtype=np.float64)

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Calibrated probabilities. *Shape:* ``(comments, labels)``, FP64."""
        return metrics.probabilities(self.slope * self.decision(texts) + self.offsets, self.problem_type)

    def calibrated(self, slope: float, offsets: np.ndarray) -> LinearModel:
        """The model whose probabilities come from ``slope * decision + offsets``, as Platt scaling gives them.

        Source: Platt, "Probabilistic outputs for support vector machines", 1999.

        :param slope: above 0.
        :param offsets: *Shape:* ``(labels,)``
        """
        if slope <= 0 or np.shape(offsets) != (len(self.names),):
            raise ValueError(
                f"slope is {slope} and offsets have the shape {np.shape(offsets)}: the slope must be above 0, and "
                f"there must be {len(self.names)} offsets"
            )
        return replace(self, slope=float(slope), offsets=np.asarray(offsets, np.float64))


def fit_linear(
    config: LinearConfig,
    texts: Sequence[str],
    labels: np.ndarray,
    names: Sequence[str],
    problem_type: str,
    seed: int,
    progress: Callable[[str], None] | None = None,
) -> LinearModel:
    """Fit the features on ``texts``, and a model per label on them; single-label problems have one model.

    Single-label logistic regression is multinomial with ``saga`` and ``lbfgs``; with ``liblinear`` or naive Bayes
    scales it is one against the rest, as are support vector machines.

    :param labels: 0, 1, or NaN where unknown: a label is fitted on the comments where it is known.
        *Shape:* ``(comments, labels)``
    :param progress: is told, in words, what has been done.
    :raises InvalidConfig: when no feature is left, or there is nothing to tell classes apart.
    """
    say = progress or (lambda message: None)
    started = time.monotonic()
    vectorizers = _vectorizers(config)
    parts = []
    for vectorizer in vectorizers:
        try:
            parts.append(vectorizer.fit_transform(texts))
        except ValueError as error:  # an empty vocabulary
            raise InvalidConfig(f"no features in {len(texts)} comments ({error}): change linear.word_ngrams") from None
    features = scipy.sparse.hstack(parts, format="csr") if len(parts) > 1 else parts[0].tocsr()
    del parts
    say(
        f"{features.shape[1]} features of {features.shape[0]} comments, {features.nnz / features.shape[0]:.0f} a "
        f"comment, in {time.monotonic() - started:.0f} s"
    )
    fit = _fit_single if problem_type == SINGLE_LABEL else _fit_multi
    weights, intercepts = fit(config, features, np.asarray(labels), tuple(names), seed, say)
    return LinearModel(vectorizers, weights.astype(np.float32), intercepts, tuple(names), problem_type)


def save(model: LinearModel, folder: Path) -> None:
    """Write ``model.joblib``: whole, or not at all. It loads with scikit-learn alone, without this code."""
    target = Layout(folder).linear
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    content = {name: getattr(model, name) for name in LinearModel.__dataclass_fields__}
    try:
        joblib.dump(content, temporary, compress=3)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def load(folder: Path) -> LinearModel:
    """Read ``model.joblib``. Such a file is a pickle and can run any code when read: load only your own.

    :raises InvalidArtifact: when it is missing or holds something else.
    """
    path = Layout(folder).linear
    if not path.is_file():
        raise InvalidArtifact(f"{path} is missing: write an artifact with `python -m train fit` and a linear recipe")
    try:
        content: Any = joblib.load(path)
        return LinearModel(**content)
    except Exception as error:  # a pickle fails in as many ways as there are classes
        raise InvalidArtifact(f"{path} could not be read ({error}): fit the model again") from None


def _vectorizers(config: LinearConfig) -> list[TfidfVectorizer]:
    shared: dict[str, Any] = {"sublinear_tf": config.sublinear_tf, "dtype": np.float32, "strip_accents": "unicode"}
    word = TfidfVectorizer(
        ngram_range=tuple(config.word_ngrams), max_features=config.max_features, token_pattern=WORD, **shared
    )
    if config.char_ngrams is None:
        return [word]
    char = TfidfVectorizer(
        analyzer="char_wb", ngram_range=tuple(config.char_ngrams), max_features=config.char_features, **shared
    )
    return [word, char]


def _features(vectorizers: Sequence[TfidfVectorizer], texts: Sequence[str]) -> Any:
    """*Shape:* ``(comments, features)``, sparse."""
    return scipy.sparse.hstack([v.transform(texts) for v in vectorizers], format="csr")


def _fit_multi(
    config: LinearConfig,
    features: Any,
    labels: np.ndarray,
    names: tuple[str, ...],
    seed: int,
    say: Callable[[str], None],
) -> tuple[np.ndarray, np.ndarray]:
    """A model per label. :returns: weights and intercepts. *Shape:* ``(features, labels)``, ``(labels,)``."""
    weights, intercepts = np.zeros((features.shape[1], len(names)), np.float64), np.zeros(len(names))
    for i, name in enumerate(names):
        started = time.monotonic()
        known = ~np.isnan(labels[:, i])
        truth = labels[known, i] > 0.5
        positives = int(truth.sum())
        if 0 < positives < len(truth):
            rows = features if known.all() else features[known]
            weights[:, i], intercepts[i] = _fit_one(config, rows, truth, name, seed, say)
        else:  # one class alone: no feature can tell, the rate is all there is
            intercepts[i] = np.log((positives + 0.5) / (len(truth) - positives + 0.5))
        say(f"{name}: {positives} of {len(truth)} comments, {time.monotonic() - started:.1f} s")
    return weights, intercepts


def _fit_single(
    config: LinearConfig,
    features: Any,
    labels: np.ndarray,
    names: tuple[str, ...],
    seed: int,
    say: Callable[[str], None],
) -> tuple[np.ndarray, np.ndarray]:
    """One model of all classes. :returns: weights and intercepts. *Shape:* ``(features, labels)``, ``(labels,)``."""
    started = time.monotonic()
    known = ~np.isnan(labels).any(axis=1)
    classes = labels[known].argmax(axis=1)
    present = np.unique(classes)
    if len(present) < 2:
        raise InvalidConfig(f"all {len(classes)} comments are {names[present[0]] if len(present) else 'unlabelled'}")
    rows = features[known]
    if len(present) == 2:  # one model; the softmax of (0, z) is the sigmoid of z
        one, offset = _fit_one(config, rows, classes == present[1], names[present[1]], seed, say)
        coefficients, offsets = np.stack([np.zeros_like(one), one]), np.array([0.0, offset])
    elif config.naive_bayes or (config.model == "logreg" and config.solver == "liblinear"):
        each = [_fit_one(config, rows, classes == c, names[c], seed, say) for c in present]
        coefficients, offsets = np.stack([one for one, _ in each]), np.array([offset for _, offset in each])
    else:
        estimator = _estimator(config, seed)
        _run(estimator, rows, classes, ", ".join(names), say)
        coefficients, offsets = estimator.coef_, estimator.intercept_
    weights, intercepts = np.zeros((features.shape[1], len(names))), np.full(len(names), NEVER)
    weights[:, present], intercepts[present] = coefficients.T, offsets
    counts = ", ".join(f"{(classes == i).sum()} {name}" for i, name in enumerate(names))
    say(f"{counts}, {time.monotonic() - started:.1f} s")
    return weights, intercepts


def _fit_one(
    config: LinearConfig, features: Any, truth: np.ndarray, name: str, seed: int, say: Callable[[str], None]
) -> tuple[np.ndarray, float]:
    """A model of two classes. :returns: weights and intercept. *Shape:* ``(features,)``, and a number."""
    estimator = _estimator(config, seed)
    if not config.naive_bayes:
        _run(estimator, features, truth, name, say)
        return estimator.coef_[0], float(estimator.intercept_[0])
    ratios = _log_count_ratios(features, truth)
    _run(estimator, features @ scipy.sparse.diags(ratios), truth, name, say)
    # the scale goes into the weights, so that scoring need not know of it
    return estimator.coef_[0] * ratios, float(estimator.intercept_[0])


def _log_count_ratios(features: Any, truth: np.ndarray) -> np.ndarray:
    """How much heavier a feature is in a comment of the class than in another; a log. *Shape:* ``(features,)``.

    Source: Wang and Manning, "Baselines and bigrams: simple, good sentiment and topic classification", 2012, here
    with TF-IDF for counts and a mean over comments, one imagined comment with weight 1 everywhere added to each class.
    """
    means = [(1.0 + np.asarray(features[side].sum(axis=0)).ravel()) / (1.0 + side.sum()) for side in (truth, ~truth)]
    return np.asarray(np.log(means[0]) - np.log(means[1]), dtype=np.float32)


def _estimator(config: LinearConfig, seed: int) -> Any:
    shared = {
        "C": config.c,
        "class_weight": config.class_weight,
        "max_iter": config.max_iterations,
        "random_state": seed,
    }
    return LinearSVC(**shared) if config.model == "svm" else LogisticRegression(solver=config.solver, **shared)


def _run(estimator: Any, features: Any, truth: np.ndarray, name: str, say: Callable[[str], None]) -> None:
    weights = None
    if getattr(estimator, "solver", None) == "saga" and estimator.class_weight == "balanced":
        # SAGA's step is too long for weights above 1 (scikit-learn, pull request 31675): on comments with rare labels
        # it never converges. The same objective, with the greatest weight moved into C, has none.
        weights = compute_sample_weight("balanced", truth)
        greatest = float(weights.max())
        weights /= greatest
        estimator.set_params(C=estimator.C * greatest, class_weight=None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        estimator.fit(features, truth, sample_weight=weights)
    if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        say(f"{name}: not converged, the weights are those of the last iteration; raise linear.max_iterations")
