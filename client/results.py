"""What a call gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of a call went, in seconds.

    :param total_s: from the call to the answer for this text.
    :param queued_s: of that, waiting for company in a batch; only ``score`` waits.
    :param request_s: of that, the try that was answered: network, server's queue and model.
    :param tries: how often the request was sent, hedges included.
    """

    total_s: float = 0.0
    queued_s: float = 0.0
    request_s: float = 0.0
    tries: int = 1


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
    timing: Timing = Timing()

    @property
    def decisions(self) -> dict[str, bool]:
        """For each label, whether its score is at or above its threshold."""
        return {label: label in self.flagged for label in self.scores}

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
    :param release: the training's version of the model, such as ``1.2.0``; empty where the server does not say.
    :param normalizer: of the code that undoes disguises, the beginning of its SHA-256; empty where there is none.
    """

    name: str
    version: str
    labels: tuple[str, ...]
    thresholds: Mapping[str, float]
    max_tokens: int
    max_batch_size: int
    precision: str
    release: str = ""
    normalizer: str = ""
