"""Scored comments from files: their scores, languages, and the identities that they name."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from client.files import InvalidFile, Row, open_source
from client.records import POSTGRES, Records, RecordsFailed
from serve.gateway.languages import detect
from serve.identities import Identities

ROWS = 4096
SQLITE = b"SQLite format 3\0"
"""How such a file begins."""
MODEL_KEYS = ("model", "model_version")


def read_terms(path: Path) -> tuple[str, ...]:
    """One a line.

    :raises InvalidFile: when there is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidFile(f"{path} cannot be read: {error}") from None
    terms = tuple(dict.fromkeys(line.strip().lower() for line in lines if line.strip()))
    if not terms:
        raise InvalidFile(f"{path} holds no terms: write one a line")
    return terms


@dataclass
class Group:
    """Comments of a kind, and how many of them bear any label."""

    comments: int = 0
    flagged: int = 0

    def add(self, flagged: bool) -> None:
        self.comments += 1
        self.flagged += flagged


@dataclass
class Census:
    """Scored comments, counted.

    :param bounds: upper ends of the bins of scores; one more bin holds what is above.
    """

    labels: tuple[str, ...]
    thresholds: Mapping[str, float]
    bounds: Sequence[float]
    identities: Identities
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    labelled: dict[str, Group] = field(default_factory=dict)
    languages: dict[str, Group] = field(default_factory=dict)
    named: dict[str, Group] = field(default_factory=dict)
    comments: int = 0

    def __post_init__(self) -> None:
        self.scores = {label: np.zeros(len(self.bounds) + 1, np.int64) for label in self.labels}
        self.labelled = {label: Group() for label in self.labels}

    def add(self, scores: Mapping[str, float], text: str | None = None, language: str | None = None) -> None:
        """:param text: without, nothing is learned of language (but where it is given) and identities."""
        self.comments += 1
        flagged = {label: scores[label] >= self.thresholds[label] for label in self.labels}
        for label in self.labels:
            self.scores[label][int(np.searchsorted(self.bounds, scores[label], side="left"))] += 1
            self.labelled[label].add(flagged[label])
        if language is None and text is not None:
            language = detect(text, "latin")
        if language is not None:
            self.languages.setdefault(language, Group()).add(any(flagged.values()))
        for term in self.identities.named(text) if text is not None else ():
            self.named.setdefault(term, Group()).add(any(flagged.values()))


def rows_of(path: Path, column: str, skipped: Counter[str]) -> Iterator[Row]:
    """The rows of a file that have a text.

    :param skipped: counts those that have none, by why.
    :raises InvalidFile: when the file cannot be read.
    """
    with closing(open_source(path, column)) as source:
        for chunk in source.rows(ROWS):
            for row in chunk.rows:
                if row.text is None:
                    skipped["no text"] += 1
                else:
                    yield row


def are_decisions(where: str) -> bool:
    """Whether decision records are there, and not a file of scored comments."""
    if where.startswith(POSTGRES):
        return True
    try:
        with open(where, "rb") as file:
            return file.read(len(SQLITE)) == SQLITE
    except OSError:
        return False  # who reads it as a file says why it cannot be read


def decisions(where: str, since: str | None) -> Iterator[Row]:
    """Decision records as rows; they have a text where texts are kept.

    :param since: the beginning of a time in UTC, such as ``2026-11-21T10``; older ones are left out.
    :raises InvalidFile: when they cannot be read.
    """
    try:
        with Records(where, read_only=True) as records:
            for number, record in enumerate(records.rows(since=since), 1):
                values = {"scores": record.scores, "model": record.model, "model_version": record.model_version}
                yield Row(number, values, record.text)
    except RecordsFailed as error:
        raise InvalidFile(f"the decision records cannot be read: {error}") from None


def scores_of(values: Mapping[str, Any], labels: Sequence[str]) -> dict[str, float] | None:
    """The scores of a row: in columns ``score_<label>``, or an object ``scores`` of labels; ``None`` where it has none.

    :raises ValueError: for a score that is no number in [0, 1].
    """
    found = values.get("scores")
    if isinstance(found, str):
        found = json.loads(found)
    if isinstance(found, dict):
        raw = [found.get(label) for label in labels]
    else:
        raw = [values.get(f"score_{label}") for label in labels]
    if any(value is None or value == "" for value in raw):
        return None
    scores = {label: float(value) for label, value in zip(labels, raw, strict=True)}  # type: ignore[arg-type]
    for label, score in scores.items():
        if not 0 <= score <= 1:
            raise ValueError(f"the score of {label} is {score}, must be in [0, 1]")
    return scores


def truth_of(values: Mapping[str, Any], labels: Sequence[str]) -> list[float]:
    """Whether people gave a comment each label: 1, 0, or NaN for unknown. From columns named as the labels, at least
    0.5 for yes; or from a list ``labels``, as in an artifact's ``validation.jsonl``.
    """
    listed = values.get("labels")
    if isinstance(listed, list) and len(listed) == len(labels):
        raw = listed
    else:
        raw = [values.get(label) for label in labels]
    found = []
    for value in raw:
        try:
            share = float(value)
        except (TypeError, ValueError):
            share = float("nan")
        found.append(share if np.isnan(share) else float(share >= 0.5))
    return found


def survey(
    where: str,
    column: str,
    census: Census,
    texts: bool = True,
    model: tuple[str, str] | None = None,
    since: str | None = None,
) -> Counter[str]:
    """Count scored comments: a file, such as ``python -m client --in`` writes, or decision records.

    :param where: a file, also of decision records, or their ``postgresql://`` address.
    :param column: of a file's texts; with ``texts`` off, of any string: then neither languages (but where there is a
        column ``language``) nor identities are known.
    :param model: name and version; rows of others are left out.
    :param since: of decision records.
    :returns: rows that were left out, by why.
    :raises InvalidFile: when it cannot be read, or no row has scores.
    """
    skipped: Counter[str] = Counter()
    recorded = are_decisions(where)
    for row in decisions(where, since) if recorded else rows_of(Path(where), column, skipped):
        if model is not None:
            given = tuple(str(row.values.get(key) or own) for key, own in zip(MODEL_KEYS, model, strict=True))
            if given != model:
                skipped["another model or version"] += 1
                continue
        try:
            scores = scores_of(row.values, census.labels)
        except (ValueError, TypeError):
            scores = None
        if scores is None:
            skipped["no scores"] += 1
            continue
        language = row.values.get("language")
        known = language if isinstance(language, str) and language else None
        census.add(scores, row.text if texts else None, known)
    if not census.comments:
        why = ", ".join(f"{n}: {why}" for why, n in skipped.items()) or "no rows"
        if recorded:
            raise InvalidFile(f"the decision records have none of this model{f' since {since}' * bool(since)} ({why})")
        raise InvalidFile(
            f"{where} has no row with scores ({why}): it needs columns such as score_toxic, or a key scores, as "
            "`python -m client --in FILE --out FILE` writes"
        )
    return skipped
