"""Metrics of an artifact, or of scores that something else gave to the same comments, on its validation comments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from train.artifact import Labels, Layout, git_commit, machine, write_json
from train.metrics import evaluate


class InvalidScores(ValueError):
    """A file of scores does not belong to the artifact's validation comments."""


def evaluate_artifact(folder: Path, scores: Path | None = None, out: Path | None = None) -> dict[str, Any]:
    """The metrics of the artifact's own scores, or of those in the file ``scores``, at the artifact's thresholds.

    :param scores: JSON lines with ``text`` and ``scores`` (label to probability), one for each validation comment in
        their order, as ``python -m client --jsonl - < validation.jsonl`` prints.
    :param out: a JSON file to write the result to.
    :raises InvalidArtifact, InvalidScores: when a file is missing or does not fit.
    """
    layout = Layout(folder)
    layout.check()
    labels = layout.read_labels()
    rows = layout.read_validation()
    truth = np.array([row["labels"] for row in rows])
    if scores is None:
        values, model = np.array([row["scores"] for row in rows]), {"name": folder.name, "scored_by": "torch"}
    else:
        values, model = read_scores(scores, [row["text"] for row in rows], labels)
    result = {
        "model": model,
        "data": layout.read_training_info()["data"],
        "machine": machine(),
        "git_commit": git_commit(),
        "validation": evaluate(values, truth, labels.labels, labels.thresholds),
    }
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, result)
    return result


def read_scores(path: Path, texts: list[str], labels: Labels) -> tuple[np.ndarray, dict[str, str]]:
    """:returns: the scores, ``(texts, labels)``, and which model gave them."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        found = [row["text"] for row in rows]
        values = np.array([[row["scores"][label] for label in labels.labels] for row in rows], np.float64)
    except FileNotFoundError:
        raise InvalidScores(
            f"no scores at {path}: write them with `python -m client --jsonl - < validation.jsonl`"
        ) from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InvalidScores(f"{path} must hold JSON lines with text and scores for each label: {error}") from None
    if found != texts:
        pairs = enumerate(zip(found, texts, strict=False))
        first = next((i for i, (a, b) in pairs if a != b), min(len(found), len(texts)))
        raise InvalidScores(
            f"{path} holds {len(found)} texts, the artifact's validation set {len(texts)}; the first that differs is "
            f"in line {first + 1}: score the artifact's validation.jsonl again"
        )
    last = rows[-1]
    return values, {"name": last["model"], "version": last["model_version"], "scored_by": "a running server"}


def markdown(result: dict[str, Any]) -> str:
    """The metrics as the table that stands in README."""
    metrics = result["validation"]
    lines = ["| label | positives | ROC-AUC | PR-AUC | F1 | threshold |", "|---|---:|---:|---:|---:|---:|"]
    for name, m in metrics["labels"].items():
        cells = [f"{m[key]:.4f}" for key in ("roc_auc", "pr_auc", "f1", "threshold")]
        lines.append(f"| {name} | {m['positives']} | {' | '.join(cells)} |")
    means = [f"**{metrics[f'mean_{key}']:.4f}**" for key in ("roc_auc", "pr_auc", "f1")]
    lines.append(f"| **mean** | | {' | '.join(means)} | |")
    return "\n".join(lines)
