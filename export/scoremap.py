"""``python -m export.scoremap``: thresholds of an old version as thresholds of a new one.

A new model, or the same one quantized anew, gives other scores to the same comments. Who has set a threshold on the old
ones wants the new threshold that flags as many comments, or flags as precisely: then a release moves nobody's policy.
Both versions score the same comments here, with the graphs that are published.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

GRID = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


class InvalidRequest(ValueError):
    """What is asked for cannot be mapped."""


def equal_flag_rate(old: np.ndarray, new: np.ndarray, threshold: float) -> float:
    """The threshold on ``new`` that flags as many comments as ``threshold`` does on ``old``.

    It lies in the middle between the last score that is flagged and the next one. *Shape of scores:* ``(comments,)``
    """
    flagged = int((old >= threshold).sum())
    falling = np.sort(new)[::-1]
    if flagged == 0:
        return _between(float(falling[0]), 1.0)
    if flagged == len(new):
        return float(falling[-1])
    return _between(float(falling[flagged]), float(falling[flagged - 1]))


def equal_precision(old: np.ndarray, new: np.ndarray, truth: np.ndarray, threshold: float) -> float | None:
    """The lowest threshold on ``new`` that is as precise as ``threshold`` is on ``old``; ``None`` where none is.

    :param truth: 0 or 1. *Shape:* ``(comments,)``, as that of the scores.
    """
    flagged = old >= threshold
    if not flagged.any():
        return None
    wanted = truth[flagged].mean()
    order = np.argsort(-new, kind="stable")
    precision = np.cumsum(truth[order]) / np.arange(1, len(new) + 1)
    scores = new[order]
    last_of_its_score = np.append(scores[:-1] != scores[1:], True)
    reached = np.flatnonzero((precision >= wanted - 1e-12) & last_of_its_score)
    if not len(reached):
        return None
    at = int(reached[-1])
    return _between(float(scores[at + 1]) if at + 1 < len(scores) else 0.0, float(scores[at]))


def _between(low: float, high: float) -> float:
    """A number above ``low`` and at most ``high``, with as few digits as that takes."""
    for digits in range(4, 17):
        middle = round((low + high) / 2, digits)
        if low < middle <= high:
            return middle
    return high


def score_map(
    old: np.ndarray,
    new: np.ndarray,
    labels: Sequence[str],
    thresholds: dict[str, list[float]],
    truth: np.ndarray | None = None,
    equal: str = "flag-rate",
) -> dict[str, list[dict[str, Any]]]:
    """For each label and old threshold the new one, with what both flag.

    :param old: scores of the old version, ``new`` those of the new one. *Shape:* ``(comments, labels)``
    :param truth: needed for ``equal="precision"``; with it, precisions are given. *Shape:* as the scores.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for i, label in enumerate(labels):
        known = ~np.isnan(truth[:, i]) if truth is not None else np.ones(len(old), bool)
        before, after = old[known, i], new[known, i]
        right = truth[known, i] > 0.5 if truth is not None else None
        found[label] = []
        for threshold in thresholds[label]:
            if equal == "precision":
                assert right is not None
                mapped = equal_precision(before, after, right, threshold)
            else:
                mapped = equal_flag_rate(before, after, threshold)
            row: dict[str, Any] = {"old": threshold, "new": mapped}
            for name, scores, cut in (("old", before, threshold), ("new", after, mapped)):
                flagged = scores >= cut if cut is not None else np.zeros(len(scores), bool)
                row[f"flagged_{name}"] = float(flagged.mean())
                if right is not None:
                    row[f"precision_{name}"] = float(right[flagged].mean()) if flagged.any() else None
            if mapped is not None:
                row["changed"] = float(((before >= threshold) != (after >= mapped)).mean())
            found[label].append(row)
    return found


def scorer_of(
    repository: Path, name: str, number: int
) -> tuple[Callable[[Sequence[str]], np.ndarray], tuple[str, ...]]:
    """What version ``number`` makes of texts, and its labels: from the files that a server would read.

    :raises InvalidRepository: when there is no such version.
    """
    from tokenizers import Tokenizer

    from export import graph, parity
    from export.linear_scorer import LinearScorer
    from export.repository import ModelVersions
    from train.artifact import normalizer_from

    settings = ModelVersions(repository, name).settings(number)
    encoder = repository / f"{name}_encoder" / str(number)
    texts_of = encoder if settings.kind == "linear" else repository / f"{name}_tokenizer" / str(number)
    normalize = normalizer_from(texts_of / "normalizer.py") if settings.normalize else str

    def prepared(texts: Sequence[str]) -> list[str]:
        return [normalize(text)[: settings.max_characters] for text in texts]

    if settings.kind == "linear":
        linear = LinearScorer(encoder)
        return lambda texts: linear.scores(prepared(texts)), settings.labels
    tokenizer = Tokenizer.from_file(str(texts_of / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(settings.max_tokens)
    session = graph.session(encoder / "model.onnx")

    def scores(texts: Sequence[str]) -> np.ndarray:
        return parity.score(
            lambda ids, mask: graph.run(session, ids, mask),
            [e.ids for e in tokenizer.encode_batch(prepared(texts))],
            pad_id=settings.pad_token_id,
            labels=len(settings.labels),
            progress=f"version {number}",
        )

    return scores, settings.labels


def read_comments(path: Path, labels: Sequence[str]) -> tuple[list[str], np.ndarray | None]:
    """Comments, and their labels where there are some. ``.jsonl``: objects with ``text`` and, if known, ``labels``, as
    in an artifact's ``validation.jsonl``. Any other file: a comment on each line.

    :raises InvalidRequest: for a missing or empty file, or a row that cannot be read, with its number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} cannot be read ({error}): give a UTF-8 text file, or a .jsonl file") from None
    if path.suffix != ".jsonl":
        texts = [line for line in lines if line.strip()]
        truth = None
    else:
        texts, rows = [], []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                texts.append(row["text"])
            except (json.JSONDecodeError, TypeError, KeyError) as error:
                raise InvalidRequest(f"{path}, line {number} is no JSON object with a text: {error!r}") from None
            rows.append(row.get("labels"))
        complete = all(isinstance(row, list) and len(row) == len(labels) for row in rows)
        truth = np.array(rows, np.float64) if complete else None
    if not texts:
        raise InvalidRequest(f"{path} holds no comments")
    return texts, truth


def wanted_thresholds(given: Sequence[str], labels: Sequence[str], shipped: dict[str, float]) -> dict[str, list[float]]:
    """The old thresholds to map: those given, else the shipped ones and a grid.

    :raises InvalidRequest: for an unknown label, or a threshold outside [0, 1].
    """
    if not given:
        return {label: sorted({shipped[label], *GRID}) for label in labels}
    found: dict[str, list[float]] = {label: [] for label in labels}
    for text in given:
        label, _, value = text.partition("=")
        try:
            threshold = float(value)
        except ValueError:
            threshold = -1.0
        if label not in found or not 0 <= threshold <= 1:
            raise InvalidRequest(
                f"--threshold is {text!r}, must be a label and a number in [0, 1], such as {labels[0]}=0.8; the labels "
                f"are {', '.join(labels)}"
            )
        found[label].append(threshold)
    return found


def table(result: dict[str, Any]) -> str:
    """A score map for reading."""
    lines = [f"{'label':<14}{'old':>8}{'new':>9}{'flagged':>20}{'precision':>20}{'changed':>10}"]

    def pair(row: dict[str, Any], what: str) -> str:
        values = [row.get(f"{what}_{side}") for side in ("old", "new")]
        return " -> ".join("-" if v is None else f"{v:.2%}" for v in values)

    for label, rows in result["labels"].items():
        for row in rows:
            new = "-" if row["new"] is None else f"{row['new']:.4f}"
            changed = f"{row['changed']:.2%}" if "changed" in row else "-"
            precision = pair(row, "precision") if "precision_old" in row else ""
            lines.append(f"{label:<14}{row['old']:>8.4f}{new:>9}{pair(row, 'flagged'):>20}{precision:>20}{changed:>10}")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m export.scoremap",
        description="Map thresholds on the scores of an old version to thresholds on those of a new one, such that the "
        "same share of comments is flagged, or with the same precision.",
        epilog="examples:\n"
        "  python -m export.scoremap --old 1 --new 2 --comments artifacts/starter/validation.jsonl\n"
        "  python -m export.scoremap --old 1 --new 2 --comments my-comments.txt --threshold toxic=0.8\n"
        "  python -m export.scoremap --old 1 --new 2 --comments artifacts/starter/validation.jsonl --equal precision\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--repository", type=Path, default=Path("model_repository"), help="default: %(default)s")
    p.add_argument("--name", default="toxicity", help="model name that clients ask for (default: %(default)s)")
    p.add_argument("--old", type=int, required=True, help="version that the thresholds are of")
    p.add_argument("--new", type=int, required=True, help="version to find thresholds for")
    p.add_argument(
        "--comments",
        type=Path,
        required=True,
        help="comments like those that are moderated: a .jsonl file with text and labels, or a comment on each line",
    )
    p.add_argument("--equal", choices=("flag-rate", "precision"), default="flag-rate", help="default: %(default)s")
    p.add_argument(
        "--threshold",
        action="append",
        default=[],
        metavar="LABEL=VALUE",
        help="an old threshold; may be repeated (default: the shipped ones and a grid)",
    )
    p.add_argument("--json", type=Path, help="write the map to this file too")
    return p


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        from export.repository import InvalidRepository, ModelVersions
        from train.artifact import write_json

        versions = ModelVersions(arguments.repository, arguments.name)
        versions.served()  # that there is such a model
        shipped = versions.settings(arguments.old).thresholds
    except ModuleNotFoundError as error:
        sys.stderr.write(f"a score map needs the package {error.name}: pip install -e '.[export]' -c constraints.txt\n")
        return 2
    except InvalidRepository as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    try:
        (old, labels), (new, _) = (
            scorer_of(arguments.repository, arguments.name, n) for n in (arguments.old, arguments.new)
        )
        thresholds = wanted_thresholds(arguments.threshold, labels, shipped)
        texts, truth = read_comments(arguments.comments, labels)
        if arguments.equal == "precision" and truth is None:
            raise InvalidRequest(
                f"--equal precision needs labels, {arguments.comments} has none for {', '.join(labels)}: give a .jsonl "
                "file with text and labels, or use --equal flag-rate"
            )
        found = score_map(old(texts), new(texts), labels, thresholds, truth, arguments.equal)
    except (InvalidRequest, InvalidRepository) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    result = {
        "model": arguments.name,
        "old": arguments.old,
        "new": arguments.new,
        "equal": arguments.equal,
        "comments": len(texts),
        "labels": found,
    }
    print(table(result))
    if arguments.json is not None:
        write_json(arguments.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
