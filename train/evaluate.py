"""What a model is worth: on its validation comments, on test suites, and beside other models."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from train import bias
from train.artifact import InvalidArtifact, Labels, Layout, git_commit, load_normalizer, machine
from train.hatecheck import Predict, evaluate_hatecheck, flag, read_hatecheck, toxicity_labels
from train.metrics import MULTI_LABEL, SINGLE_LABEL, decide, evaluate, reliability, roc_auc

LENGTHS = (50, 150, 400, 1000)
"""Comments are also measured by their length in characters: up to each of these, and above the last."""

CURVE_POINTS = 200
HISTOGRAM_BINS = 20
EXAMPLES = 10
EXAMPLE_CHARACTERS = 160


class InvalidScores(ValueError):
    """A file of scores does not belong to the artifact's validation comments."""


def evaluate_scorer(
    predict: Predict | None,
    folder: Path,
    *,
    scores: Path | None = None,
    hatecheck: Sequence[Path] = (),
    hatecheck_labels: Sequence[str] | None = None,
    madlibs: Path | None = None,
    bias_label: str | None = None,
    obfuscation: bool = False,
    obfuscation_rows: int | None = None,
    predict_raw: Predict | None = None,
    examples: bool = False,
    seed: int = 17,
) -> dict[str, Any]:
    """Everything that is known about a model, ready for JSON and for :func:`train.report.html`.

    Always: the metrics of :func:`train.metrics.evaluate` on the validation comments, the same by length, the points of
    the curves, and where the model comes from. On demand: HateCheck, identity bias, obfuscation, the worst errors.

    :param predict: texts to probabilities; ``None`` does without the parts that need other texts scored. The
        validation comments have their scores in the artifact's ``validation.jsonl``.
    :param folder: the artifact, for its validation comments and thresholds.
    :param scores: instead of those that the artifact recorded: JSON lines with ``text`` and ``scores`` (label to
        probability), one for each validation comment in their order, as ``python -m client --jsonl - <
        validation.jsonl`` prints.
    :param hatecheck: files of test cases; the result has them by the name of the file.
    :param hatecheck_labels: any of them counts as hate; by default :func:`train.hatecheck.hate_labels`.
    :param madlibs: template sentences, see :func:`train.bias.read_madlibs`.
    :param bias_label: whose score and threshold identity bias is measured on; by default ``toxic`` where the model has
        it, else what means hate.
    :param obfuscation_rows: so many validation comments, drawn at random, are obfuscated; by default all.
    :param predict_raw: for an artifact that normalizes its texts: ``predict`` without the normalizer.
    :param examples: the result holds beginnings of the comments with the worst errors, which are not to be published.
    :raises InvalidArtifact, InvalidScores, InvalidData: when a file is missing or does not fit.
    :raises ValueError: when ``predict`` is missing where it is needed, or a label is unknown.
    """
    if predict is None and (hatecheck or madlibs is not None or obfuscation):
        raise ValueError("HateCheck, bias and obfuscation need a model to score their texts: give `predict`")
    layout = Layout(folder)
    layout.check()
    labels, rows, config = layout.read_labels(), layout.read_validation(), layout.read_config()
    names, thresholds, problem = labels.labels, labels.thresholds, config.problem_type
    texts, truth = [row["text"] for row in rows], _truth(rows)
    info = layout.read_training_info()
    model: dict[str, Any]
    if scores is not None:  # of another model, whose size and kind nobody here knows
        values, model = read_scores(scores, texts, labels)
    else:
        engine = {"transformer": "torch", "linear": "scikit-learn"}.get(config.kind, "numpy")
        model = {"name": folder.name, "scored_by": engine, **_described(layout, info)}
        values = _recorded(rows)
    result: dict[str, Any] = {
        "model": model,
        "data": {**info["data"], "validation_sha256": texts_sha256(texts)},
        "training": {
            k: info[k] for k in ("seed", "seconds", "machine", "git_commit", "versions", "throughput") if k in info
        },
        "recipe": info.get("recipe"),
        "machine": machine(),
        "git_commit": git_commit(),
        "validation": evaluate(values, truth, names, thresholds, problem),
        "length": by_length(texts, values, truth, labels, problem),
        "curves": {name: curves(values[:, i], truth[:, i]) for i, name in enumerate(names)},
    }
    if predict is not None and hatecheck:
        result["hatecheck"] = {}
        for path in hatecheck:
            found = evaluate_hatecheck(predict, read_hatecheck(path), names, thresholds, hatecheck_labels, problem)
            result["hatecheck"][path.name.split(".")[0]] = found
    if predict is not None and madlibs is not None:
        result["bias"] = measure_bias(predict, bias.read_madlibs(madlibs), labels, problem, bias_label)
    if predict is not None and obfuscation:
        drawn = _sample(len(texts), obfuscation_rows, seed)
        chosen, known = [texts[i] for i in drawn], truth[drawn]
        result["obfuscation"] = measure_obfuscation(predict, chosen, known, load_normalizer(layout), predict_raw, seed)
    if examples:
        result["examples"] = worst_errors(texts, values, truth, labels, problem)
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


def by_length(
    texts: Sequence[str], scores: np.ndarray, truth: np.ndarray, labels: Labels, problem_type: str = MULTI_LABEL
) -> list[dict[str, Any]]:
    """The mean metrics of comments by their number of characters; ranges without comments are left out."""
    lengths = np.array([len(text) for text in texts])
    found, low = [], 0
    for high in (*LENGTHS, None):
        rows = (lengths >= low) & (lengths <= (high if high is not None else lengths.max(initial=0)))
        if rows.any():
            m = evaluate(scores[rows], truth[rows], labels.labels, labels.thresholds, problem_type)
            kept = ("comments", "mean_roc_auc", "mean_pr_auc", "macro_f1", "accuracy")
            found.append({"from": low, "to": high, **{key: m[key] for key in kept}})
        low = (high or 0) + 1
    return found


def curves(scores: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The points of a label's ROC, precision-recall, reliability and threshold curves, and histograms of its scores.

    Numbers are rounded to four digits, and curves thinned to some 200 points. ROC and precision-recall are ``None``
    where the label has one class only.

    :param scores: *Shape:* ``(comments,)``
    :param labels: 0 or 1, or NaN for unknown. *Shape:* ``(comments,)``
    """
    known = ~np.isnan(labels)
    scores, truth = scores[known], labels[known] > 0.5
    result: dict[str, Any] = {"roc": None, "pr": None, "reliability": reliability(scores, truth)}
    if 0 < truth.sum() < len(truth):
        fpr, recall, _ = roc_curve(truth, scores)
        result["roc"] = dict(zip(("fpr", "recall"), _thinned(fpr, recall), strict=True))
        precision, recall, _ = precision_recall_curve(truth, scores)
        result["pr"] = dict(zip(("recall", "precision"), _thinned(recall[::-1], precision[::-1]), strict=True))
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    result["histogram"] = {
        name: np.histogram(np.clip(scores[side], 0, 1), edges)[0].tolist()
        for name, side in (("positive", truth), ("negative", ~truth))
    }
    cuts = np.linspace(0, 1, 101)
    flagged = scores[None] >= cuts[:, None]
    hits, count = (flagged & truth).sum(1), flagged.sum(1)
    precision = np.where(count > 0, hits / np.maximum(count, 1), 1.0)
    recall = hits / max(truth.sum(), 1)
    f1 = 2 * hits / np.maximum(count + truth.sum(), 1)
    named = (("threshold", cuts), ("precision", precision), ("recall", recall), ("f1", f1))
    result["thresholds"] = {name: np.round(values, 4).tolist() for name, values in named}
    return result


def measure_bias(
    predict: Predict, sentences: bias.BiasSet, labels: Labels, problem_type: str = MULTI_LABEL, label: str | None = None
) -> dict[str, Any]:
    """:func:`train.bias.identity_bias` of one label on template sentences, with the worst identities by each area."""
    chosen = [label] if label is not None else toxicity_labels(labels.labels)
    _, score = flag(predict(sentences.texts), labels.labels, labels.thresholds, chosen, problem_type)
    # a single-label model decides for its highest score, which for two labels is a threshold of one half
    threshold = 0.5 if problem_type == SINGLE_LABEL else min(labels.thresholds[name] for name in chosen)
    found = bias.identity_bias(score, sentences.toxic, sentences.groups, threshold)
    lowest = {area: [name for name, _ in bias.worst(found, area)] for area in bias.AREAS}
    return {"labels": chosen, **found, "worst": lowest}


def measure_obfuscation(
    predict: Predict,
    texts: Sequence[str],
    truth: np.ndarray,
    normalizer: Callable[[str], str] | None = None,
    predict_raw: Predict | None = None,
    seed: int = 17,
) -> dict[str, Any]:
    """Mean ROC-AUC of the clean texts and after each attack of :mod:`train.obfuscation`, the normalizer off and on.

    Texts that attack and normalizer leave alike are scored once.

    :param truth: *Shape:* ``(texts, labels)``
    :param normalizer: what ``predict`` itself passes its texts through; ``None`` where it takes them as they are.
    :param predict_raw: ``predict`` without its normalizer; where it has one and this is missing, "off" is left out.
    :returns: by attack (``clean`` first): ``off``, ``on``, and how much lower they are than clean: ``drop_...``.
    """
    from train.normalizer import normalize_text
    from train.obfuscation import ATTACKS, obfuscate

    raw = predict if normalizer is None else predict_raw
    scored: dict[str, np.ndarray] = {}

    def score(some: Sequence[str]) -> np.ndarray:
        new = list(dict.fromkeys(text for text in some if text not in scored))
        if new:
            scored.update(zip(new, (raw or predict)(new), strict=True))
        return np.stack([scored[text] for text in some])

    def with_normalizer(some: Sequence[str]) -> np.ndarray:
        return score(some) if raw is None else score([(normalizer or normalize_text)(text) for text in some])

    found: dict[str, dict[str, float | None]] = {}
    for name in ("clean", *ATTACKS):
        attacked = list(texts) if name == "clean" else obfuscate(texts, name, seed)
        on = _mean_roc_auc(with_normalizer(attacked), truth)
        found[name] = {"off": _mean_roc_auc(score(attacked), truth) if raw is not None else None, "on": on}
        for key in ("off", "on"):
            before, after = found["clean"][key], found[name][key]
            found[name][f"drop_{key}"] = before - after if before is not None and after is not None else None
    return {"comments": len(texts), "seed": seed, "mean_roc_auc": found}


def worst_errors(
    texts: Sequence[str],
    scores: np.ndarray,
    truth: np.ndarray,
    labels: Labels,
    problem_type: str = MULTI_LABEL,
    count: int = EXAMPLES,
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """By label the wrong decisions that the model was surest of: ``false_positives`` and ``false_negatives``.

    Each has the comment's ``index``, its ``score`` and the first 160 characters of its ``text``.
    """
    flagged = decide(scores, labels.labels, labels.thresholds, problem_type)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for i, name in enumerate(labels.labels):
        wrong = {
            "false_positives": flagged[:, i] & (truth[:, i] == 0),
            "false_negatives": ~flagged[:, i] & (truth[:, i] == 1),
        }
        found[name] = {}
        for kind, rows in wrong.items():
            indices = np.flatnonzero(rows)
            order = np.argsort(scores[indices, i], kind="stable")
            surest = indices[order[::-1] if kind == "false_positives" else order][:count]
            found[name][kind] = [
                {"index": int(j), "score": round(float(scores[j, i]), 4), "text": texts[j][:EXAMPLE_CHARACTERS]}
                for j in surest
            ]
    return found


def texts_sha256(texts: Sequence[str]) -> str:
    """A hash that two sets of comments share only if they are the same comments in the same order."""
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Comparison:
    """Artifacts side by side.

    :param rows: one per artifact; ``None`` is what it did not record. Sizes in bytes, times in seconds.
    :param warnings: why rows must not be compared with each other.
    """

    rows: list[dict[str, Any]]
    warnings: list[str]

    def text(self) -> str:
        """A table for the terminal, and the warnings."""
        table = [list(_HEAD), *(_cells(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in table) for i in range(len(_HEAD))]
        lines = ["  ".join(_aligned(line, widths)).rstrip() for line in table]
        return "\n".join([*lines, *(f"note: {warning}" for warning in self.warnings)])

    def markdown(self) -> str:
        """The same as Markdown."""
        lines = [f"| {' | '.join(_HEAD)} |", "|---|---|" + "---:|" * (len(_HEAD) - 2)]
        lines += [f"| {' | '.join(_cells(row))} |" for row in self.rows]
        return "\n".join([*lines, *(f"\n{warning[0].upper()}{warning[1:]}." for warning in self.warnings)])


def compare(folders: Sequence[Path]) -> Comparison:
    """Artifacts side by side: quality on their own validation comments, size and cost.

    Nothing is refused for being different; where validation comments or labels differ, the warnings say so.

    :raises InvalidArtifact: for a folder that is not an artifact, or none at all.
    """
    if not folders:
        raise InvalidArtifact("no artifact folders to compare: give at least one")
    rows = [_row(folder) for folder in folders]
    warnings = []
    for key, what in (("validation_sha256", "validation comments"), ("labels", "labels")):
        groups: dict[str, list[str]] = {}
        for row in rows:
            groups.setdefault(str(row[key]), []).append(row["name"])
        if len(groups) > 1:
            sets = "; ".join(", ".join(members) for members in groups.values())
            warnings.append(f"the {what} differ, so compare only within a group: {sets}")
    return Comparison(rows, warnings)


def markdown(result: dict[str, Any]) -> str:
    """The metrics as the table that stands in README."""
    metrics = result["validation"]
    lines = ["| label | positives | ROC-AUC | PR-AUC | F1 | threshold |", "|---|---:|---:|---:|---:|---:|"]
    for name, m in metrics["labels"].items():
        cells = [_number(m[key]) for key in ("roc_auc", "pr_auc", "f1", "threshold")]
        lines.append(f"| {name} | {m['positives']} | {' | '.join(cells)} |")
    means = [f"**{_number(metrics[f'mean_{key}'])}**" for key in ("roc_auc", "pr_auc", "f1")]
    lines.append(f"| **mean** | | {' | '.join(means)} | |")
    return "\n".join(lines)


_HEAD = (
    *("artifact", "kind", "comments", "ROC-AUC", "PR-AUC", "macro F1"),
    *("parameters", "MB", "training s", "comments/s"),
)


def _row(folder: Path) -> dict[str, Any]:
    layout = Layout(folder)
    layout.check()
    info, config = layout.read_training_info(), layout.read_config()
    metrics = info["metrics"]["validation"]
    texts = [row["text"] for row in layout.read_validation()]
    throughput = info.get("throughput")
    return {
        "name": folder.name,
        **_described(layout, info),
        "labels": list(layout.read_labels().labels),
        "problem_type": config.problem_type,
        "comments": len(texts),
        "validation_sha256": texts_sha256(texts),
        "mean_roc_auc": metrics["mean_roc_auc"],
        "mean_pr_auc": metrics["mean_pr_auc"],
        "macro_f1": metrics.get("macro_f1", metrics.get("mean_f1")),
        "seconds": info.get("seconds"),
        "comments_per_s": throughput.get("comments_per_s") if isinstance(throughput, dict) else throughput,
    }


def _cells(row: dict[str, Any]) -> list[str]:
    version = f" {row['version']}" if row["version"] else ""
    kind = row["kind"] if row["kind"] == row["architecture"] else f"{row['kind']}, {row['architecture']}"
    counts = [row["size_bytes"] / 1e6, row["seconds"], row["comments_per_s"]]
    return [
        row["name"] + version,
        kind,
        str(row["comments"]),
        *(_number(row[key]) for key in ("mean_roc_auc", "mean_pr_auc", "macro_f1")),
        "-" if row["parameters"] is None else f"{row['parameters']:,}",
        *("-" if value is None else f"{value:,.1f}" for value in counts),
    ]


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    """The first two columns are words and start at the left, the others are numbers."""
    return [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]


def _described(layout: Layout, info: dict[str, Any]) -> dict[str, Any]:
    """What the model is: its version, kind, architecture, number of parameters and bytes on disk without comments."""
    config, version = layout.read_config(), None
    if layout.model_version.is_file():
        version = json.loads(layout.model_version.read_text(encoding="utf-8")).get("version")
    comments = {layout.validation, layout.tuning}
    files = [f for f in layout.folder.rglob("*") if f.is_file() and f not in comments]
    return {
        "version": version,
        "kind": config.kind,
        "architecture": str(config.encoder.get("model_type", config.kind)),
        "parameters": info.get("parameters"),
        "size_bytes": sum(f.stat().st_size for f in files),
    }


def _recorded(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    return np.array([row["scores"] for row in rows], np.float64)


def _truth(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    return np.array([row["labels"] for row in rows], np.float64)  # null, an unknown label, becomes NaN


def _mean_roc_auc(scores: np.ndarray, truth: np.ndarray) -> float | None:
    areas = []
    for i in range(truth.shape[1]):
        known = ~np.isnan(truth[:, i])
        areas.append(roc_auc(scores[known, i], truth[known, i] > 0.5))
    present = [area for area in areas if area is not None]
    return float(np.mean(present)) if present else None


def _sample(count: int, wanted: int | None, seed: int) -> list[int]:
    if wanted is None or wanted >= count:
        return list(range(count))
    return sorted(random.Random(seed).sample(range(count), wanted))


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[list[float], list[float]]:
    """At most some 200 points of a curve, evenly spaced along its way; the first and the last are kept."""
    way = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    kept = np.unique(np.searchsorted(way, np.linspace(0, way[-1], CURVE_POINTS)))
    kept = np.unique(np.concatenate([[0], np.minimum(kept, len(x) - 1), [len(x) - 1]]))
    return np.round(x[kept], 4).tolist(), np.round(y[kept], 4).tolist()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
