"""What is answered instead of a result, in the form of Google's APIs.

::

    {"error": {"code": 400, "message": "...", "status": "INVALID_ARGUMENT", "details": [{"@type": "...", ...}]}}

    cause                                              code  status
    body, text, attribute, language, wrong key          400  INVALID_ARGUMENT
    no key; a key without the right                     403  PERMISSION_DENIED
    no such path, model or policy                       404  NOT_FOUND
    a path that does not take the method                405  INVALID_ARGUMENT
    a switch is under way, or the model will not load   409  FAILED_PRECONDITION
    body too long                                       413  INVALID_ARGUMENT
    rate limit of the key                               429  RESOURCE_EXHAUSTED
    a fault of the gateway                              500  INTERNAL
    Triton is away, busy, or too slow                   503  UNAVAILABLE, with Retry-After
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from starlette.responses import Response

from client import InvalidInput, ModelNotFound, ServerUnavailable, ToxicityError

ANALYZER_ERROR = "type.googleapis.com/google.commentanalyzer.v1alpha1.Error"
RETRY_AFTER_S = 1
MAX_VIOLATIONS = 10


class ApiError(Exception):
    """An answer that is no result.

    :param code: the HTTP status. :param status: Google's name of it.
    """

    def __init__(
        self,
        code: int,
        status: str,
        message: str,
        details: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.status, self.message = code, status, message
        self.details, self.headers = list(details), dict(headers or {})

    def body(self) -> dict[str, Any]:
        error: dict[str, Any] = {"code": self.code, "message": self.message, "status": self.status}
        if self.details:
            error["details"] = self.details
        return {"error": error}

    def response(self) -> Response:
        return Response(dumps(self.body()), self.code, self.headers, media_type="application/json")


def dumps(value: Any) -> bytes:
    """JSON as UTF-8; a lone surrogate, which UTF-8 cannot express, becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def invalid(message: str, details: Sequence[Mapping[str, Any]] = ()) -> ApiError:
    return ApiError(400, "INVALID_ARGUMENT", message, details)


def unavailable(message: str) -> ApiError:
    """What may pass: the caller is told to come back."""
    return ApiError(503, "UNAVAILABLE", message, headers={"Retry-After": str(RETRY_AFTER_S)})


def analyzer(message: str, kind: str, **fields: Any) -> ApiError:
    """An error with Perspective's own detail.

    :param kind: its ``errorType``.
    """
    return invalid(message, [{"@type": ANALYZER_ERROR, "errorType": kind, **fields}])


def malformed(error: ValidationError) -> ApiError:
    """The error for a body that is no JSON, or not of the form it must have. It holds nothing of a text."""
    violations = []
    for each in error.errors(include_url=False, include_input=False, include_context=False)[:MAX_VIOLATIONS]:
        place = ".".join(str(part) for part in each["loc"])[:200]
        if each["type"] == "json_invalid":
            description = f"Invalid JSON payload received. {each['msg']}"
        elif each["type"] == "extra_forbidden":
            description = f'Invalid JSON payload received. Unknown name "{place}": Cannot find field.'
        else:
            description = f"Invalid value at '{place}': {each['msg']}"
        violations.append({"field": place, "description": description} if place else {"description": description})
    message = "\n".join(violation["description"] for violation in violations)
    return invalid(message, [{"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": violations}])


def from_client(error: ToxicityError) -> ApiError:
    """What the way to Triton, or Triton itself, did wrong."""
    if isinstance(error, ServerUnavailable):
        return unavailable("The model cannot answer now.")
    if isinstance(error, ModelNotFound):  # the server starts, or the model is being loaded
        return unavailable("The model is not loaded now.")
    if isinstance(error, InvalidInput):
        return invalid("The model refused the text.")
    return ApiError(500, "INTERNAL", "The model failed.")
