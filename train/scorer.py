"""Any trained model behind one face: texts in, logits or calibrated probabilities out."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from train import hashing, linear, metrics, model
from train.artifact import ClassifierConfig, InvalidArtifact, Layout, load_normalizer, write_json
from train.data import Comments

Knots = list[dict[str, list[float]]]


class Scorer(ABC):
    """A model that scores texts.

    :ivar knots: of the isotonic calibration, by label in their order; ``None`` for none.
    """

    knots: Knots | None = None
    config: ClassifierConfig

    @abstractmethod
    def logits(self, texts: Sequence[str], progress: str | None = None) -> np.ndarray:
        """Of each text and label, FP64. *Shape:* ``(texts, labels)``; ``progress`` names a progress bar."""

    @abstractmethod
    def fold(self, slope: float, offsets: np.ndarray) -> None:
        """From now on the logits are ``slope * logits + offsets``. *Shape of offsets:* ``(labels,)``."""

    @abstractmethod
    def without_normalizer(self) -> Scorer:
        """Itself, from now on without the text normalizer: to measure what it does."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model into an artifact folder: config, weights, and what turns texts into features."""

    @property
    @abstractmethod
    def parameters(self) -> int:
        """How many numbers were learnt."""

    def activate(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities from logits: sigmoids, or a softmax for single-label models; then the isotonic calibration."""
        scores = metrics.probabilities(logits, self.config.problem_type)
        return metrics.apply_isotonic(scores, self.knots) if self.knots is not None else scores

    def scores(self, texts: Sequence[str], progress: str | None = None) -> np.ndarray:
        """Calibrated probabilities. *Shape:* ``(texts, labels)``."""
        return self.activate(self.logits(texts, progress))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """As :meth:`scores`, with a progress bar."""
        return self.scores(texts, "scoring")


class TransformerScorer(Scorer):
    """A fine-tuned encoder and its tokenizer."""

    def __init__(self, network: model.ToxicityClassifier, tokenizer: PreTrainedTokenizerFast) -> None:
        self.network, self.tokenizer, self.config = network, tokenizer, network.config

    def without_normalizer(self) -> TransformerScorer:
        self.network.normalizer = None
        return self

    def logits(self, texts: Sequence[str], progress: str | None = None) -> np.ndarray:
        return model.predict_logits(self.network, self.tokenizer, texts, progress=progress).astype(np.float64)

    @torch.no_grad()
    def fold(self, slope: float, offsets: np.ndarray) -> None:
        head = self.network.head
        head.weight.mul_(slope)
        head.bias.mul_(slope).add_(torch.tensor(offsets, dtype=head.bias.dtype, device=head.bias.device))

    def save(self, folder: Path) -> None:
        model.save(self.network, self.tokenizer, folder)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())


class LinearScorer(Scorer):
    """A linear model on TF-IDF features."""

    def __init__(
        self, weights: linear.LinearModel, config: ClassifierConfig, normalizer: Callable[[str], str] | None
    ) -> None:
        self.weights, self.config, self.normalizer = weights, config, normalizer

    def without_normalizer(self) -> LinearScorer:
        self.normalizer = None
        return self

    def logits(self, texts: Sequence[str], progress: str | None = None) -> np.ndarray:
        if self.normalizer is not None:
            texts = [self.normalizer(text) for text in texts]
        return np.asarray(self.weights.slope * self.weights.decision(texts) + self.weights.offsets)

    def fold(self, slope: float, offsets: np.ndarray) -> None:
        self.weights = self.weights.calibrated(slope * self.weights.slope, slope * self.weights.offsets + offsets)

    def save(self, folder: Path) -> None:
        linear.save(self.weights, folder)
        write_json(Layout(folder).config, replace(self.config, kind="linear"))
        if self.config.normalize:
            model.copy_normalizer(folder)

    @property
    def parameters(self) -> int:
        return int(self.weights.weights.size + self.weights.intercepts.size)


class NgramScorer(Scorer):
    """Hashed n-grams."""

    def __init__(
        self, weights: hashing.HashedModel, config: ClassifierConfig, normalizer: Callable[[str], str] | None
    ) -> None:
        self.weights, self.config, self.normalizer = weights, config, normalizer

    def without_normalizer(self) -> NgramScorer:
        self.normalizer = None
        return self

    def logits(self, texts: Sequence[str], progress: str | None = None) -> np.ndarray:
        if self.normalizer is not None:
            texts = [self.normalizer(text) for text in texts]
        return self.weights.logits(texts)

    def fold(self, slope: float, offsets: np.ndarray) -> None:
        self.weights = self.weights.calibrated(slope, offsets)

    def save(self, folder: Path) -> None:
        self.weights.save(Layout(folder).ngrams)
        write_json(Layout(folder).config, replace(self.config, kind="ngrams"))
        if self.config.normalize:
            model.copy_normalizer(folder)

    @property
    def parameters(self) -> int:
        return int(self.weights.codes.size + self.weights.intercepts.size)


def load(folder: Path) -> tuple[Scorer, tuple[str, ...], dict[str, float]]:
    """The model of an artifact folder, its labels, and their thresholds.

    :raises InvalidArtifact: when the folder is not a whole artifact.
    """
    layout = Layout(folder)
    layout.check()
    config, labels = layout.read_config(), layout.read_labels()
    scorer: Scorer
    if config.kind == "linear":
        scorer = LinearScorer(linear.load(folder), config, load_normalizer(layout))
    elif config.kind == "ngrams":
        try:
            scorer = NgramScorer(hashing.load(layout.ngrams), config, load_normalizer(layout))
        except ValueError as error:
            raise InvalidArtifact(str(error)) from None
    else:
        network, tokenizer, _ = model.load(folder)
        scorer = TransformerScorer(network, tokenizer)
    if layout.calibration.is_file():
        knots = json.loads(layout.calibration.read_text(encoding="utf-8"))["knots"]
        scorer.knots = [knots[label] for label in labels.labels]
    return scorer, labels.labels, labels.thresholds


def calibrate(scorer: Scorer, logits: np.ndarray, labels: np.ndarray, method: str = "auto") -> np.ndarray:
    """Make ``scorer``'s scores probabilities, from ``logits`` that it gave to comments it was not trained on.

    :param labels: 0 or 1. *Shape:* ``(comments, labels)``
    :param method: ``platt`` (one slope, an offset for each label; multi-label), ``temperature`` (one slope),
        ``isotonic`` (a monotone map for each label, on top of the present scores; multi-label), or ``auto``: platt for
        multi-label models and temperature for single-label ones.
    :returns: the calibrated scores of the same comments. *Shape:* ``(comments, labels)``
    :raises ValueError: for a method that the problem type does not have.
    """
    single = scorer.config.problem_type == metrics.SINGLE_LABEL
    if method == "auto":
        method = "temperature" if single else "platt"
    if single and method != "temperature":
        raise ValueError(f"the calibration method is {method!r}; a single-label model has `temperature` alone")
    if method == "isotonic":
        scorer.knots = None
        scores = scorer.activate(logits)
        scorer.knots = metrics.fit_isotonic(scores, labels)
        return metrics.apply_isotonic(scores, scorer.knots)
    if method == "platt":
        slope, offsets = metrics.fit_calibration(logits, labels)
    else:
        slope = 1 / metrics.fit_temperature(logits, labels, scorer.config.problem_type)
        offsets = np.zeros(labels.shape[1])
    scorer.fold(slope, offsets)
    scorer.knots = None
    return scorer.activate(slope * logits + offsets)


def write_scored(path: Path, comments: Comments, scores: np.ndarray) -> None:
    """One JSON object a line: text, labels, scores. Later stages compare against it; it is not meant for publishing."""
    with path.open("w", encoding="utf-8") as file:
        for text, labels, row in zip(comments.texts, comments.labels, scores, strict=True):
            values = {"text": text, "labels": labels.astype(int).tolist(), "scores": np.round(row, 6).tolist()}
            file.write(json.dumps(values, ensure_ascii=False) + "\n")
