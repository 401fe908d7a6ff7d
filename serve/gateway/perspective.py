"""Perspective API: ``comments:analyze`` and ``comments:suggestscore``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from client import ModelInfo, Result
from serve.gateway import attributes, errors, languages
from serve.gateway.messages import (
    AnalyzeCommentRequest,
    Context,
    Score,
    SuggestCommentScoreRequest,
    TextEntry,
)

MAX_TEXT_BYTES = 20480
"""Perspective's limit of a text. A model reads less of it: see ``max_tokens`` of ``GET /models``."""

DIGITS = 7
PLAIN = (None, "TEXT_TYPE_UNSPECIFIED", "PLAIN_TEXT")
PROBABILITY = (None, "SCORE_TYPE_UNSPECIFIED", "PROBABILITY")


@dataclass(frozen=True)
class Rules:
    """What the gateway takes.

    :param languages: of the model; the first is assumed where a text's script says nothing.
    :param drop_unsupported: leave out attributes that no label answers for, where the request does not say otherwise.
    """

    languages: tuple[str, ...] = ("en",)
    drop_unsupported: bool = False


@dataclass(frozen=True)
class Analysis:
    """A request that can be answered.

    :param labels: of the attributes that will be returned, by attribute.
    """

    text: str
    labels: dict[str, str]
    languages: list[str]
    detected: str


def check_text(comment: TextEntry | None) -> str:
    """The text of a comment.

    :raises ApiError: as Perspective refuses it.
    """
    if comment is None or not (comment.text or "").strip():
        raise errors.analyzer("Comment must be non-empty.", "COMMENT_EMPTY")
    if comment.type not in PLAIN:
        raise errors.invalid("Currently, only 'PLAIN_TEXT' comments are supported")
    assert comment.text is not None
    size = len(comment.text.encode())
    if size > MAX_TEXT_BYTES:
        raise errors.analyzer(
            f"Comment text was too many bytes. Value ({size}) exceeded limit ({MAX_TEXT_BYTES}).", "COMMENT_TOO_LONG"
        )
    return comment.text


def check_context(context: Context | None) -> None:
    if context and context.entries is not None and context.article_and_parent_comment is not None:
        raise errors.invalid(
            "Context can have either entries or article_and_parent_comment, but both fields were populated."
        )


def check(request: AnalyzeCommentRequest, info: ModelInfo, rules: Rules) -> Analysis:
    """:raises ApiError: as Perspective refuses a request."""
    text = check_text(request.comment)
    check_context(request.context)
    if not request.requested_attributes:
        raise errors.invalid("Missing requested_attributes")
    detected = languages.detect(text, rules.languages[0])
    requested = request.languages or [detected]
    drop = (
        rules.drop_unsupported if request.drop_unsupported_attributes is None else request.drop_unsupported_attributes
    )
    unsupported = languages.unsupported(requested, rules.languages)
    labels: dict[str, str] = {}
    for name, parameters in request.requested_attributes.items():
        label = attributes.label_of(name, info.labels)
        if (label is None or unsupported) and drop:
            continue
        if label is None:
            raise attributes.unknown(name)
        if unsupported:
            shown = [code[:20] for code in unsupported[:20]]
            raise errors.analyzer(
                f"Attribute {name} does not support request languages: {', '.join(shown)}",
                "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE",
                languageNotSupportedByAttributeError={
                    "requestedLanguages" if request.languages else "detectedLanguages": shown,
                    "attribute": name,
                },
            )
        if parameters.score_type not in PROBABILITY:
            raise errors.invalid(f"Requested score type {parameters.score_type} is not supported by attribute {name}")
        labels[name] = label
    return Analysis(text, labels, list(requested), detected)


def reply(
    request: AnalyzeCommentRequest,
    analysis: Analysis,
    result: Result,
    found: Sequence[tuple[int, int, dict[str, float]]] | None,
) -> dict[str, Any]:
    """:param found: sentences of the text; None where they were not asked for, then the whole text is one span."""
    assert request.requested_attributes is not None
    units = utf16(analysis.text)
    scores: dict[str, Any] = {}
    for name, label in analysis.labels.items():
        value = round(float(result.scores[label]), DIGITS)
        threshold = request.requested_attributes[name].score_threshold
        if threshold is not None and value < threshold:
            continue
        parts = [(0, len(analysis.text), result.scores)] if found is None else found
        scores[name] = {
            "spanScores": [
                {"begin": units(begin), "end": units(end), "score": _score(each[label])} for begin, end, each in parts
            ],
            "summaryScore": _score(value),
        }
    answer = {"attributeScores": scores, "languages": analysis.languages, "detectedLanguages": [analysis.detected]}
    if request.client_token is not None:
        answer["clientToken"] = request.client_token
    return answer


def _score(value: float) -> dict[str, Any]:
    return {"value": round(float(value), DIGITS), "type": "PROBABILITY"}


class utf16:  # noqa: N801 - used like a function
    """Offsets in UTF-16 code units, from offsets in Unicode characters."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.same = len(text) == 0 or max(text) <= "\uffff"

    def __call__(self, offset: int) -> int:
        return offset if self.same else offset + sum(c > "\uffff" for c in self.text[:offset])


@dataclass(frozen=True)
class Suggestion:
    """What a caller thinks of a text. ``scores`` are of the whole text, by attribute."""

    text: str
    scores: dict[str, float]
    span_scores: dict[str, list[dict[str, Any]]]
    languages: list[str]
    session_id: str | None
    community_id: str | None
    client_token: str | None


def check_suggestion(request: SuggestCommentScoreRequest, info: ModelInfo) -> Suggestion:
    """:raises ApiError: as Perspective refuses a request."""
    text = check_text(request.comment)
    check_context(request.context)
    if not request.attribute_scores:
        raise errors.invalid("Missing attribute_scores")
    units = utf16(text)
    length = units(len(text))
    scores: dict[str, float] = {}
    spans: dict[str, list[dict[str, Any]]] = {}
    for name, suggested in request.attribute_scores.items():
        if attributes.label_of(name, info.labels) is None:
            raise attributes.unknown(name)
        if suggested.summary_score is None and not suggested.span_scores:
            raise errors.invalid(f"Attribute {name} has neither a summary_score nor span_scores")
        if suggested.summary_score is not None:
            scores[name] = _value(name, suggested.summary_score)
        for span in suggested.span_scores or ():
            if span.begin is None or span.end is None or not 0 <= span.begin < span.end <= length:
                raise errors.invalid(f"A span of {name} must have 0 <= begin < end <= {length}")
            if span.score is None:
                raise errors.invalid(f"A span of {name} has no score")
            value = _value(name, span.score)
            spans.setdefault(name, []).append({"begin": span.begin, "end": span.end, "value": value})
    return Suggestion(
        text,
        scores,
        spans,
        request.languages or [],
        request.session_id,
        request.community_id,
        request.client_token,
    )


def _value(name: str, score: Score) -> float:
    if score.type not in PROBABILITY:
        raise errors.invalid(f"Requested score type {score.type} is not supported by attribute {name}")
    if score.value is None or not 0 <= score.value <= 1:
        raise errors.invalid(f"The score of {name} must be a probability between 0 and 1")
    return score.value
