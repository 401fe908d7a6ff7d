"""The requests and replies of Perspective API and of the plain API, as they are checked and documented."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

ScoreType = Literal["SCORE_TYPE_UNSPECIFIED", "PROBABILITY", "STD_DEV_SCORE", "PERCENTILE", "RAW"]
TextType = Literal["TEXT_TYPE_UNSPECIFIED", "PLAIN_TEXT", "HTML"]
Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]


class Message(BaseModel):
    """Fields are camelCase; the snake_case names of the protocol buffers are taken too, and null is as good as absent,
    as Google's servers do it. Unknown fields are refused, as there.
    """

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", strict=True, allow_inf_nan=False
    )


# --- Perspective API


class TextEntry(Message):
    text: str | None = None
    type: TextType | None = None


class ArticleAndParentComment(Message):
    article: TextEntry | None = None
    parent_comment: TextEntry | None = None


class Context(Message):
    entries: list[TextEntry] | None = None
    article_and_parent_comment: ArticleAndParentComment | None = None


class AttributeParameters(Message):
    score_type: ScoreType | None = None
    score_threshold: float | None = None


class AnalyzeCommentRequest(Message):
    comment: TextEntry | None = None
    context: Context | None = None
    requested_attributes: dict[str, AttributeParameters] | None = None
    span_annotations: bool | None = None
    languages: list[str] | None = None
    do_not_store: bool | None = None
    drop_unsupported_attributes: bool | None = None
    client_token: str | None = None
    session_id: str | None = None
    community_id: str | None = None


class Score(Message):
    value: float | None = None
    type: ScoreType | None = None


class SpanScore(Message):
    """``begin`` and ``end`` count UTF-16 code units of the text; ``end`` is exclusive."""

    begin: Int32 | None = None
    end: Int32 | None = None
    score: Score | None = None


class AttributeScores(Message):
    summary_score: Score | None = None
    span_scores: list[SpanScore] | None = None


class AnalyzeCommentResponse(Message):
    attribute_scores: dict[str, AttributeScores]
    languages: list[str]
    detected_languages: list[str] = []
    client_token: str | None = None


class SuggestCommentScoreRequest(Message):
    comment: TextEntry | None = None
    context: Context | None = None
    attribute_scores: dict[str, AttributeScores] | None = None
    languages: list[str] | None = None
    do_not_store: bool | None = None
    client_token: str | None = None
    session_id: str | None = None
    community_id: str | None = None


class SuggestCommentScoreResponse(Message):
    client_token: str | None = None


class Status(BaseModel):
    code: int
    message: str
    status: str
    details: list[dict[str, Any]] = []


class ErrorResponse(BaseModel):
    """Every answer that is no result."""

    error: Status


# --- the plain API


class Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class PredictRequest(Plain):
    """Either ``text`` or ``texts``.

    ``model`` is one of ``GET /models``, by default the active one; ``policy`` one of ``GET /policies``.
    """

    text: str | None = None
    texts: list[str] | None = None
    model: str | None = None
    policy: str | None = None
    spans: bool = False


class Span(BaseModel):
    """``begin`` and ``end`` count UTF-16 code units, as JavaScript's strings do; ``end`` is exclusive."""

    begin: int
    end: int
    scores: dict[str, float]


class Prediction(BaseModel):
    scores: dict[str, float]
    flagged: list[str]
    truncated: bool
    model: str
    model_version: str
    decision: dict[str, Any] | None = None
    spans: list[Span] | None = None


class PredictResponse(BaseModel):
    results: list[Prediction]
    took_ms: float


class Model(BaseModel):
    name: str
    active: bool
    ready: bool
    version: str | None = None
    labels: list[str] = []
    thresholds: dict[str, float] = {}
    max_tokens: int | None = None
    precision: str | None = None


class ModelsResponse(BaseModel):
    active: str
    models: list[Model]


class SwitchRequest(Plain):
    """``model`` is a name in the server's repository.

    ``unload`` takes the former model out of memory; ``reload`` reads the model's files anew, for another version.
    """

    model: str
    unload: bool = False
    reload: bool = False


class SwitchResponse(BaseModel):
    active: str
    version: str
    previous: str
    took_ms: float


class RolloutRequest(Plain):
    """``candidate`` is a model beside the one that answers, null lets it go. It gets the ``share`` of the requests, and
    scores the share ``shadow`` of the others unseen; it is let go by itself when a limit is passed.
    """

    candidate: str | None = None
    share: float = Field(0.0, ge=0, le=1)
    shadow: float = Field(0.0, ge=0, le=1)
    max_error_rate: float | None = Field(None, ge=0)
    max_slower: float | None = Field(None, gt=0)
    max_flip_rate: float | None = Field(None, ge=0)
    least: int | None = Field(None, ge=1)


class PoliciesResponse(BaseModel):
    policies: dict[str, dict[str, Any]]
