"""The early stages of a cascade: each scores whole batches of comments, and answers those that it is sure of.

Stands in the cascade's version folder beside the stages' files; ``settings.json`` there lists them under ``stages``, in
their order: ``{"name": ..., "kind": ..., "file": ..., "exits": [[low, high] of each label]}``. With ``lengths``, some
numbers of characters, each class of lengths has such exits: texts shorter than the first number, and so on. Kinds:

- ``ngrams`` (where none is named): ``file`` is read by ``hashing.py``.
- ``onnx``: a small encoder, run in this process on one thread. ``file`` is a graph as ``export/ragged.py`` makes it;
  further keys are ``tokenizer``, its ``tokenizer.json``; ``max_tokens``; and ``batch_tokens``: rows of like length are
  run together, up to so many tokens.

Optional for both: ``with``, the names of stages before it whose logits are averaged with its own, since two of a kind
err less than one; and ``knots``, for each label two lists of logits, the stage's and what they are worth on the
encoder's scale, so that the scores of all stages can be ranked together.

Texts come as the cascade reads them, normalized where it normalizes. Written there by the exporter: change
``export/templates/stages.py`` instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hashing
import numpy as np

Logits = Callable[[Sequence[str]], np.ndarray]
"""Texts to logits, FP64 ``(texts, labels)``."""

EDGE = 1e-7
"""Scores of a graph are taken to lie so far from 0 and 1."""


@dataclass(frozen=True)
class Stage:
    """:param exits: for each label the highest score that is surely not it, and the lowest that surely is. FP64.
    *Shape:* ``(classes, labels, 2)``
    :param models: its own, and those of the stages that it averages with.
    :param knots: of each label, logits and what they are worth; ``None`` leaves them as they are.
    """

    name: str
    exits: np.ndarray
    models: tuple[Logits, ...]
    knots: tuple[tuple[np.ndarray, np.ndarray], ...] | None = None
    lengths: tuple[int, ...] = ()

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """The mean over the models, FP64. *Shape:* ``(texts, labels)``"""
        return np.asarray(np.mean([model(texts) for model in self.models], axis=0))

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Calibrated probabilities of (normalized) texts, FP32. *Shape:* ``(texts, labels)``."""
        return self.calibrated(self.logits(texts))

    def calibrated(self, logits: np.ndarray) -> np.ndarray:
        """What :meth:`scores` gives for these logits. *Shape:* ``(texts, labels)``"""
        if self.knots is not None:
            columns = [np.interp(logits[:, i], own, worth) for i, (own, worth) in enumerate(self.knots)]
            logits = np.stack(columns, axis=1)
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), np.float32)


class Remembering:
    """A model that knows what it said last: a later stage averages with it, and asks for some of the same texts again.

    :param model: gives a text the same logits beside any others, or nearly.
    """

    def __init__(self, model: Logits) -> None:
        self.model = model
        self.places: dict[str, int] = {}
        self.said = np.zeros((0, 0))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        places = [self.places.get(text, -1) for text in texts]
        if not places or min(places) < 0:
            self.said = self.model(texts)
            self.places = {text: place for place, text in enumerate(texts)}
            return self.said
        return self.said[places]


class Graph:
    """A small encoder in this process.

    :raises ValueError: for files that cannot be read.
    """

    def __init__(self, graph: Path, tokenizer: Path, max_tokens: int, batch_tokens: int) -> None:
        import onnxruntime
        from fast_tokenizer import FastTokenizer, pad

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
            self.tokenizer = FastTokenizer(tokenizer)
        except Exception as error:  # of whatever class the two libraries have for it
            raise ValueError(f"{graph} or {tokenizer} cannot be read ({error}): export the cascade again") from None
        self.pad, self.max_tokens, self.batch_tokens = pad, max_tokens, batch_tokens
        self.labels = int(self.session.get_outputs()[0].shape[1])

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """FP64. *Shape:* ``(texts, labels)``"""
        found = np.zeros((len(texts), self.labels))
        if not texts:
            return found
        table, _ = self.pad(*self.tokenizer.encode_batch(texts), self.max_tokens, self.tokenizer.tail)
        lengths = (table >= 0).sum(axis=1)
        order = np.argsort(-lengths, kind="stable")
        start = 0
        while start < len(order):
            rows = order[start : start + max(1, self.batch_tokens // int(lengths[order[start]]))]
            block = table[rows]
            feed = {"input_ids": block[block >= 0], "widths": lengths[rows, None].astype(np.int32)}
            found[rows] = self.session.run(["scores"], feed)[0]
            start += len(rows)
        scores = np.clip(found, EDGE, 1 - EDGE)
        return np.log(scores / (1 - scores))


def load(folder: Path, settings: dict[str, Any]) -> list[Stage]:
    """:raises ValueError: for a stage's file that cannot be read, or has another number of labels than exits."""
    stages: list[Stage] = []
    models: dict[str, Logits] = {}
    asked_again = {other for about in settings["stages"] for other in about.get("with", ())}
    for about in settings["stages"]:
        name, kind = about["name"], about.get("kind", "ngrams")
        lengths = tuple(about.get("lengths", ()))
        exits = np.array(about["exits"] if lengths else [about["exits"]], np.float64)
        if kind == "ngrams":
            hashed = hashing.load(folder / about["file"])
            models[name], labels = hashed.logits, len(hashed.scales)
        elif kind == "onnx":
            graph = Graph(
                folder / about["file"], folder / about["tokenizer"], about["max_tokens"], about["batch_tokens"]
            )
            models[name], labels = graph.logits, graph.labels
        else:
            raise ValueError(f"stage {name} is of the kind {kind!r}; known are ngrams, onnx: export the cascade again")
        if exits.shape != (len(lengths) + 1, labels, 2):
            raise ValueError(
                f"stage {name} has exits for {exits.shape[1]} labels and {len(exits)} classes of {len(lengths) + 1}, "
                f"its file {about['file']} has weights of {labels}: export the cascade again"
            )
        if name in asked_again:
            models[name] = Remembering(models[name])
        unknown = [other for other in about.get("with", ()) if other not in models]
        if unknown:
            raise ValueError(f"stage {name} is averaged with {unknown[0]!r}, which is no stage before it")
        together = (models[name], *(models[other] for other in about.get("with", ())))
        stages.append(Stage(name, exits, together, knots(about), lengths))
    return stages


def knots(about: dict[str, Any]) -> tuple[tuple[np.ndarray, np.ndarray], ...] | None:
    if "knots" not in about:
        return None
    return tuple((np.array(own, np.float64), np.array(worth, np.float64)) for own, worth in about["knots"])


def sure(stage: Stage, texts: Sequence[str], scores: np.ndarray) -> np.ndarray:
    """Which comments are answered: those whose every score lies at or beyond an exit. BOOL. *Shape:* ``(comments,)``"""
    exits = stage.exits[np.searchsorted(stage.lengths, [len(text) for text in texts], side="right")]
    return np.asarray(((scores <= exits[..., 0]) | (scores >= exits[..., 1])).all(axis=1))
