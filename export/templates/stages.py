"""The early stages of a cascade: each scores whole batches of comments, and answers those that it is sure of.

Stands in the cascade's version folder beside ``hashing.py`` and the stages' files; ``settings.json`` there lists them
under ``stages``, in their order: ``{"name": ..., "file": ..., "exits": [[low, high] of each label]}``. Written there by
the exporter: change ``export/templates/stages.py`` instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hashing
import numpy as np


@dataclass(frozen=True)
class Stage:
    """:param exits: for each label the highest score that is surely not it, and the lowest that surely is. FP64.
    *Shape:* ``(labels, 2)``
    """

    name: str
    exits: np.ndarray
    model: hashing.HashedModel

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Calibrated probabilities of (normalized) texts, FP32. *Shape:* ``(texts, labels)``."""
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * self.model.logits(texts))), np.float32)


def load(folder: Path, settings: dict[str, Any]) -> list[Stage]:
    """:raises ValueError: for a stage's file that cannot be read, or has another number of labels than exits."""
    stages = []
    for about in settings["stages"]:
        exits = np.array(about["exits"], np.float64).reshape(-1, 2)
        model = hashing.load(folder / about["file"])
        if len(exits) != len(model.scales):
            raise ValueError(
                f"stage {about['name']} has exits for {len(exits)} labels, its file {about['file']} has weights of "
                f"{len(model.scales)}: export the cascade again"
            )
        stages.append(Stage(about["name"], exits, model))
    return stages


def sure(scores: np.ndarray, exits: np.ndarray) -> np.ndarray:
    """Which comments are answered: those whose every score lies at or beyond an exit. BOOL. *Shape:* ``(comments,)``"""
    return np.asarray(((scores <= exits[:, 0]) | (scores >= exits[:, 1])).all(axis=1))
