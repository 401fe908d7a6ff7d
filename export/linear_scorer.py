"""Scores of a linear model from plain files, with numpy alone.

Words, character n-grams and TF-IDF are those of scikit-learn's ``TfidfVectorizer``, which the model was trained with;
its weights come as arrays instead of a pickle, which a server should not open. The exporter copies this file into the
version folder, and compares its scores with the artifact's.

A graph that takes strings (ONNX Runtime's Tokenizer and TfIdfVectorizer) was measured beside it, on word n-grams: 1.7
times as fast (11,600 against 6,700 comments/s of one core), but it has no character n-grams within words, which the
strong linear model lives on, keeps accents, and lower-cases only where the machine has the locale.

Files: ``linear.json`` (how features are made), ``vocabulary.json`` (for each kind of feature its terms, in order) and
``linear.npz`` (``weights`` FP32 *(features, labels)*, ``idf`` FP32 *(features,)*, ``intercepts`` FP32 *(labels,)*).
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class LinearScorer:
    """:param folder: holds the three files."""

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "linear.json").read_text(encoding="utf-8"))
        terms = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        with np.load(folder / "linear.npz") as arrays:
            self.weights: np.ndarray = arrays["weights"]
            self.intercepts: np.ndarray = arrays["intercepts"]
            idf = arrays["idf"]
        self.single_label: bool = about["problem_type"] == "single_label_classification"
        self.knots: list[dict[str, list[float]]] | None = about["knots"]
        self.features = []
        start = 0
        for settings, names in zip(about["features"], terms, strict=True):
            vocabulary = {name: start + i for i, name in enumerate(names)}
            self.features.append(Features(settings, vocabulary, idf))
            start += len(names)

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Calibrated probabilities, FP32. *Shape:* ``(texts, labels)``."""
        logits = np.tile(self.intercepts.astype(np.float64), (len(texts), 1))
        for row, text in enumerate(texts):
            plain = without_accents(text.lower())
            for features in self.features:
                columns, values = features.of(plain)
                logits[row] += values @ self.weights[columns]
        if self.single_label:
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            scores = powers / powers.sum(axis=1, keepdims=True)
        else:
            scores = 0.5 * (1.0 + np.tanh(0.5 * logits))
        if self.knots is not None:
            scores = np.stack([np.interp(scores[:, i], k["x"], k["y"]) for i, k in enumerate(self.knots)], axis=1)
        return np.asarray(scores, np.float32)


class Features:
    """One kind of TF-IDF feature: word n-grams, or character n-grams within words.

    :param settings: ``analyzer`` (``word`` or ``char_wb``), ``ngrams`` (shortest, longest), ``sublinear_tf``, and
        ``token_pattern`` for words.
    :param vocabulary: each term's column.
    :param idf: of all columns.
    """

    def __init__(self, settings: dict[str, Any], vocabulary: dict[str, int], idf: np.ndarray) -> None:
        self.shortest, self.longest = settings["ngrams"]
        self.sublinear: bool = settings["sublinear_tf"]
        self.vocabulary, self.idf = vocabulary, idf
        self.grams = self.word_grams if settings["analyzer"] == "word" else self.character_grams
        self.words = re.compile(settings["token_pattern"])

    def of(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Columns of a text's features and their values, of Euclidean length 1. *Shape:* ``(features,)`` each."""
        find = self.vocabulary.get
        found = [column for gram in self.grams(text) if (column := find(gram)) is not None]
        if not found:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        columns, counts = np.unique(found, return_counts=True)
        frequency = np.log(counts) + 1.0 if self.sublinear else counts
        values = frequency.astype(np.float32) * self.idf[columns]
        return columns, values / np.sqrt((values * values).sum())

    def word_grams(self, text: str) -> Iterator[str]:
        words = self.words.findall(text)
        for size in range(self.shortest, self.longest + 1):
            for start in range(len(words) - size + 1):
                yield words[start] if size == 1 else " ".join(words[start : start + size])

    def character_grams(self, text: str) -> Iterator[str]:
        for word in text.split():
            padded = f" {word} "
            for size in range(self.shortest, self.longest + 1):
                if size >= len(padded):
                    yield padded  # shorter than the n-gram: once, whole
                    break
                for start in range(len(padded) - size + 1):
                    yield padded[start : start + size]


def without_accents(text: str) -> str:
    """Letters without their combining marks, after compatibility decomposition."""
    if text.isascii():
        return text
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
