"""What a call gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """What the model says about one text.

    :param scores: a probability in [0, 1] for each label, in the model's order.
    :param flagged: the labels whose score is at or above their threshold, in the model's order.
    :param truncated: the text was longer than the model reads, so only its beginning was scored.
    :param request_id: the request that carried the text, as in the server's log.
    """

    scores: Mapping[str, float]
    flagged: tuple[str, ...]
    truncated: bool
    model: str
    model_version: str
    request_id: str

    def to_dict(self, digits: int = 6) -> dict[str, Any]:
        """Plain values for ``json.dumps``, scores rounded to ``digits`` decimals."""
        return {
            "scores": {label: round(score, digits) for label, score in self.scores.items()},
            "flagged": list(self.flagged),
            "truncated": self.truncated,
            "model": self.model,
            "model_version": self.model_version,
            "request_id": self.request_id,
        }


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the server says about one version of a model.

    :param thresholds: for each label; a decision is ``score >= threshold``.
    :param max_tokens: longer texts are cut to this many tokens.
    :param max_batch_size: texts in one request; the client splits longer lists.
    :param precision: of the encoder's weights, such as ``int8``; empty where the server does not say.
    """

    name: str
    version: str
    labels: tuple[str, ...]
    thresholds: Mapping[str, float]
    max_tokens: int
    max_batch_size: int
    precision: str
