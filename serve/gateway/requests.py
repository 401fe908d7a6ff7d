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

_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'|[A-Za-z_$][\w$]*(?=\s*:)|,(?=\s*[}\]])', re.DOTALL)

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
    if token[0] == "'":
        inner = token[1:-1].replace("\\'", "'")
        return '"' + re.sub(r'(?<!\\)"', '\\"', inner) + '"'
    if token[0] == '"':
        return token
    return "" if token == "," else f'"{token}"'
