"""Bodies of requests: read, repaired where Google's servers do, and checked."""

from __future__ import annotations

import asyncio
import re
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from serve.gateway import errors

BODY_S = 15.0
"""How long a caller may take to send the body."""

MAX_REPAIRED = 100_000
"""Bodies of so many bytes are repaired; larger ones must be JSON, as repairs take time from all other callers."""

# Every alternative takes all that it begins to read, closed or not: a pattern that gave up at the end of the body would
# be tried again from each character in it, and one request could keep the gateway busy for hours.
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"?|\'(?:[^\'\\]|\\.)*(\'?)|[A-Za-z_$][\w$]*|,', re.DOTALL)
_COLON, _CLOSING = re.compile(r"\s*:"), re.compile(r"\s*[}\]]")

M = TypeVar("M", bound=BaseModel)


async def read(request: Request, form: type[M]) -> M:
    """The body, checked.

    :raises ApiError: with what is wrong.
    """
    try:
        async with asyncio.timeout(BODY_S):  # type: ignore[attr-defined]  # mypy checks for Python 3.10, see pyproject
            body = await request.body()
    except TimeoutError:
        raise errors.ApiError(408, "DEADLINE_EXCEEDED", f"The body did not arrive within {BODY_S:g} s.") from None
    except ClientDisconnect:
        raise errors.ApiError(499, "CANCELLED", "The caller left.") from None
    try:
        found: M = form.model_validate_json(body)
        return found
    except ValidationError as error:
        if error.errors(include_url=False, include_input=False)[0]["type"] != "json_invalid":
            raise errors.malformed(error) from None
        first = error
    if len(body) > MAX_REPAIRED:
        raise errors.malformed(first)
    try:
        found = form.model_validate_json(relaxed(body.decode("utf-8")))
        return found
    except UnicodeDecodeError:
        raise errors.malformed(first) from None
    except ValidationError as second:
        kind = second.errors(include_url=False, include_input=False)[0]["type"]
        raise errors.malformed(first if kind == "json_invalid" else second) from None


def relaxed(text: str) -> str:
    """JSON, from JSON with bare names, single quotes or commas too many.

    Google's servers take these, and the first example of Perspective's own guide has bare names.
    """
    return _TOKENS.sub(_repair, text)


def _repair(match: re.Match[str]) -> str:
    token = match[0]
    if token[0] == '"' or (token[0] == "'" and not match[1]):
        return token  # right as it is, or beyond repair
    if token[0] == "'":
        inner = token[1:-1].replace("\\'", "'")
        return '"' + re.sub(r'(?<!\\)"', '\\"', inner) + '"'
    if token == ",":
        return "" if _CLOSING.match(match.string, match.end()) else token
    return f'"{token}"' if _COLON.match(match.string, match.end()) else token
