"""Change an artifact's thresholds or calibration without training: by its tuning comments, as a PATCH version."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from train import metrics, version
from train.artifact import Labels, Layout, new_folder, write_json
from train.data import Comments
from train.scorer import Scorer, calibrate, load, write_scored


@dataclass(frozen=True)
class Adjusted:
    """What changed.

    :param before: metrics of the validation comments; ``after`` likewise.
    :param warnings: labels whose threshold could not be tuned, and why.
    """

    version: str
    before: dict[str, Any]
    after: dict[str, Any]
    warnings: dict[str, str]


def tune(folder: Path, objective: str | tuple[str, float] = "f1") -> Adjusted:
    """New thresholds, from the scores of the tuning comments.

    :param objective: as in :func:`train.metrics.tune_thresholds`.
    :raises InvalidArtifact: when the folder is not a whole artifact, or lacks ``tuning.jsonl``.
    """
    layout = Layout(folder)
    layout.check()
    labels, (scores, truth) = layout.read_labels(), _scored(layout.read_tuning())
    thresholds, warnings = metrics.tune_thresholds(scores, truth, labels.labels, objective)
    goal = objective if isinstance(objective, str) else f"{objective[0]} {objective[1]}"
    with _patched(folder, f"thresholds tuned for {goal}") as copy:
        write_json(copy.labels, Labels(labels.labels, thresholds))
        before, after = (_metrics(copy, _scored(copy.read_validation()), t) for t in (labels.thresholds, thresholds))
        _note(copy, after)
    return Adjusted(_version(folder), before, after, warnings)


def recalibrate(folder: Path, method: str = "auto") -> Adjusted:
    """New calibration, and thresholds of best F1 to go with it.

    :param method: as in :func:`train.scorer.calibrate`.
    :raises InvalidArtifact: when the folder is not a whole artifact, or lacks ``tuning.jsonl``.
    :raises ValueError: for a method that the problem type does not have.
    """
    scorer, names, thresholds = load(folder)
    layout = Layout(folder)
    rows, held_out = layout.read_tuning(), layout.read_validation()
    truth = _scored(rows)[1]
    before = _metrics(layout, _scored(held_out), thresholds)
    tuning = calibrate(scorer, scorer.logits([r["text"] for r in rows], "tuning"), truth, method)
    new = metrics.best_f1_thresholds(tuning, truth, names)
    scores = scorer.scores([r["text"] for r in held_out], "validation")
    with _patched(folder, f"calibrated by {method}") as copy:
        _save(scorer, names, copy)
        write_json(copy.labels, Labels(names, new))
        write_scored(copy.tuning, _comments(rows), tuning)
        write_scored(copy.validation, _comments(held_out), scores)
        after = _metrics(copy, (scores, _scored(held_out)[1]), new)
        _note(copy, after)
    return Adjusted(_version(folder), before, after, {})


@contextmanager
def _patched(folder: Path, change: str) -> Iterator[Layout]:
    """A copy of the artifact to change, which takes its place as the next PATCH version."""
    previous = version.read(folder)
    with new_folder(folder) as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        yield Layout(copy)
        version.write(copy, previous, change=change)


def _save(scorer: Scorer, names: tuple[str, ...], copy: Layout) -> None:
    scorer.save(copy.folder)
    if scorer.knots is not None:
        write_json(copy.calibration, {"method": "isotonic", "knots": dict(zip(names, scorer.knots, strict=True))})
    else:
        copy.calibration.unlink(missing_ok=True)


def _note(copy: Layout, validation: dict[str, Any]) -> None:
    info = copy.read_training_info()
    info["metrics"]["validation"] = validation
    write_json(copy.training_info, info)


def _metrics(layout: Layout, scored: tuple[np.ndarray, np.ndarray], thresholds: dict[str, float]) -> dict[str, Any]:
    names, problem_type = layout.read_labels().labels, layout.read_config().problem_type
    return metrics.evaluate(*scored, names, thresholds, problem_type)


def _scored(rows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([r["scores"] for r in rows]), np.array([r["labels"] for r in rows], np.float32)


def _comments(rows: list[dict[str, Any]]) -> Comments:
    return Comments([r["text"] for r in rows], _scored(rows)[1])


def _version(folder: Path) -> str:
    written = version.read(folder)
    assert written is not None
    return written.version
