"""What comments and scores were like when the model was measured: a file that goes with the model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from client.errors import InvalidInput
from serve.drift.measure import Finding, compare_rates, compare_shares
from serve.drift.texts import Census, Group

FORMAT = 1
SCORE_BOUNDS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
"""As the models and the gateway count them."""
LEAST_COMMENTS = 200
"""Of fewer, nothing is said."""
LEAST_OF_GROUP = 50
"""Comments in a language, or that name an identity, below which its rate is not compared."""


class InvalidReference(InvalidInput):
    """A file is no reference, or one of another model."""


@dataclass
class Reference:
    """Comments in each bin, then.

    :param source: where the comments came from: file name, SHA-256, number.
    :param scores: of each label: how many comments in each bin of ``score_bounds``, and above.
    :param lengths: comments by tokens, in the same way, and their ``bounds``; ``None`` where Triton did not count them.
    :param labelled: of each label: comments, and how many are at or above its threshold; ``languages`` and
        ``identities``: how many bear any label.
    :param curated: by name of the set: its SHA-256, and the rates of each label.
    """

    model: str
    version: str
    made: str
    source: dict[str, Any]
    thresholds: dict[str, float]
    scores: dict[str, list[int]]
    labelled: dict[str, list[int]]
    languages: dict[str, list[int]]
    identities: dict[str, list[int]]
    identity_terms: list[str]
    lengths: dict[str, list[float]] | None = None
    curated: dict[str, dict[str, Any]] = field(default_factory=dict)
    score_bounds: list[float] = field(default_factory=lambda: list(SCORE_BOUNDS))
    format: int = FORMAT

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.thresholds)

    def write(self, path: Path) -> None:
        """The whole file, or none."""
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, path)


def read_reference(path: Path) -> Reference:
    """:raises InvalidReference: when it cannot be read, or is of another format."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != FORMAT:
            raise InvalidReference(
                f"{path} has the format {raw['format']!r}, this program reads {FORMAT}: make it anew"
            )
        return Reference(**raw)
    except OSError as error:
        raise InvalidReference(
            f"{path} cannot be read ({error.strerror}): make it with `python -m serve.drift reference`"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidReference(f"{path} is no reference of `python -m serve.drift reference` ({error})") from None


def of_census(census: Census, model: str, version: str, made: str, source: dict[str, Any]) -> Reference:
    return Reference(
        model=model,
        version=version,
        made=made,
        source=source,
        thresholds=dict(census.thresholds),
        scores={label: counts.tolist() for label, counts in census.scores.items()},
        labelled=_plain(census.labelled),
        languages=_plain(census.languages),
        identities=_plain(census.named),
        identity_terms=list(census.identities.terms),
        score_bounds=list(census.bounds),
    )


def compare_scores(reference: Reference, scores: Mapping[str, np.ndarray]) -> list[Finding]:
    """:param scores: comments in each bin, by label."""
    return [
        compare_shares("score", label, reference.scores[label], counts)
        for label, counts in scores.items()
        if counts.sum() >= LEAST_COMMENTS
    ]


def compare_lengths(reference: Reference, counts: np.ndarray) -> list[Finding]:
    if reference.lengths is None or counts.sum() < LEAST_COMMENTS:
        return []
    return [compare_shares("length", "", reference.lengths["counts"], counts)]


def compare_census(reference: Reference, census: Census) -> list[Finding]:
    """Scores, flag rates of labels, the mix of languages, and flag rates within languages and identities."""
    if census.comments < LEAST_COMMENTS:
        return []
    findings = compare_scores(reference, census.scores)
    groups: list[tuple[str, list[int], Group]] = [
        (label, reference.labelled[label], census.labelled[label]) for label in census.labels
    ]
    if census.languages:
        names = sorted(set(reference.languages) | set(census.languages))
        then = [reference.languages.get(name, [0, 0])[0] for name in names]
        now = [census.languages.get(name, Group()).comments for name in names]
        if sum(then):
            findings.append(compare_shares("language", "", then, now))
    for kind, before, found in (
        ("language", reference.languages, census.languages),
        ("identity", reference.identities, census.named),
    ):
        for name, group in sorted(found.items()):
            if name in before and min(group.comments, before[name][0]) >= LEAST_OF_GROUP:
                groups.append((f"{kind} {name}", before[name], group))
    for name, (comments, flagged), group in groups:
        findings.append(compare_rates(name, flagged, comments, group.flagged, group.comments, len(groups)))
    return findings


def _plain(groups: Mapping[str, Group]) -> dict[str, list[int]]:
    return {name: [group.comments, group.flagged] for name, group in sorted(groups.items())}
