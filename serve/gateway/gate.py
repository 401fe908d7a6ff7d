"""What every request passes before it is looked at: the body's size, the key, the key's rate; and what is counted."""

from __future__ import annotations

import hashlib
import logging
import math
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.gateway import errors
from serve.gateway.metrics import Metrics

log = logging.getLogger("tritox.gateway")

GUARDED = ("/v1alpha1/", "/predict", "/models", "/policies", "/rollout")
"""Paths that need a key, where there are keys."""

ADMIN = ("/models/switch", "/rollout")
DISCOVERY = "/$discovery/rest"
LOCAL_NAMES = {"127.0.0.1", "localhost", "::1", "testserver", "commentanalyzer.googleapis.com"}
"""Host names that a gateway without keys answers to: a web page that has its own name point here is refused."""

MAX_FIELDS = 100
"""Of a query."""

SERVICE = "commentanalyzer.googleapis.com"


class InvalidKeys(ValueError):
    """The file of keys has a line that is none."""


@dataclass
class Key:
    """:param name: what metrics and logs call it. :param rate: requests a second, 0 for any number.
    :param admin: may change which model answers.
    """

    name: str
    rate: float = 0.0
    admin: bool = False
    tokens: float = field(default=math.nan, repr=False)
    at: float = field(default=0.0, repr=False)

    def wait_s(self, now: float) -> float:
        """Take one request from the budget: 0, or seconds until there is one again. A second's worth is saved up."""
        if not self.rate:
            return 0.0
        most = max(1.0, self.rate)
        self.tokens = most if math.isnan(self.tokens) else min(most, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens >= 1.0:
            self.tokens -= 1.0
            return 0.0
        return (1.0 - self.tokens) / self.rate


class Keys:
    """The keys that are taken; where there are none, any is. Only their SHA-256 is kept."""

    def __init__(self, keys: Mapping[str, Key] | None = None, rate: float = 0.0) -> None:
        self._keys = {_digest(key): value for key, value in (keys or {}).items()}
        self._anyone = Key("anyone", rate, admin=True)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def get(self, key: str | None) -> Key | None:
        if not self._keys:
            return self._anyone
        return self._keys.get(_digest(key)) if key else None

    @classmethod
    def read(cls, path: Path | None, listed: str = "", rate: float = 0.0) -> Keys:
        """Keys of a file, and those of a list.

        A line of the file is a key, then optionally ``name=...``, ``rate=...`` (requests a second) and ``admin``.

        :param listed: keys between commas. :param rate: of keys that have none of their own.
        :raises InvalidKeys: naming the line, and not the key.
        """
        lines = path.read_text(encoding="utf-8").splitlines() if path else []
        keys: dict[str, Key] = {}
        for number, line in enumerate([*lines, *filter(None, (k.strip() for k in listed.split(",")))], 1):
            words = line.split("#")[0].split()
            if not words:
                continue
            if len(words[0]) < 8 or words[0] in keys:
                raise InvalidKeys(
                    f"key {number} is shorter than 8 characters or there twice: use `openssl rand -hex 16`"
                )
            key = Key(f"key{number}", rate)
            for word in words[1:]:
                name, _, value = word.partition("=")
                try:
                    if name == "rate" and float(value) >= 0 and math.isfinite(float(value)):
                        key.rate = float(value)
                    elif name == "name" and value.isidentifier():
                        key.name = value
                    elif word == "admin":
                        key.admin = True
                    else:
                        raise ValueError
                except ValueError:
                    raise InvalidKeys(
                        f"key {number} has {word!r}, must be name=letters_and_digits, rate=requests_a_second or admin"
                    ) from None
            keys[words[0]] = key
        return cls(keys, rate)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()


class Gate:
    """ASGI middleware. It logs one line a request, without the query, which holds the key.

    :param max_bytes: of a body. :param max_under_way: requests at a time.
    """

    def __init__(self, app: ASGIApp, keys: Keys, metrics: Metrics, max_bytes: int, max_under_way: int) -> None:
        self.app, self.keys, self.metrics = app, keys, metrics
        self.max_bytes, self.max_under_way = max_bytes, max_under_way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, name = time.perf_counter(), 0, "-"
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise self._too_long()
            return message

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                if received > self.max_bytes:
                    headers["Connection"] = "close"
            await send(message)

        self.metrics.under_way += 1
        try:
            key = self._admit(scope)
            name = scope["key_name"] = key.name if key else "-"
            await self.app(scope, limited, counted)
        except errors.ApiError as error:
            if status:
                raise
            await error.response()(scope, receive, counted)
        except Exception as error:
            # the message may hold a part of a text: only its kind and place are logged
            frame = traceback.extract_tb(error.__traceback__)[-1]
            log.error("%s at %s:%s", type(error).__name__, frame.filename, frame.lineno)
            if status:
                raise
            failed = errors.ApiError(500, "INTERNAL", "Internal error encountered.")
            await failed.response()(scope, receive, counted)
        finally:
            self.metrics.under_way -= 1
            route = getattr(scope.get("route"), "path", None) or "other"
            seconds = time.perf_counter() - start
            self.metrics.request(route, status, name, seconds)
            log.info("%s %s %s %s %.1f ms", scope["method"], route, status, name, seconds * 1000)

    def _admit(self, scope: Scope) -> Key | None:
        """The key of a request, None for paths that need none.

        :raises ApiError: as Google's servers refuse.
        """
        path: str = scope["path"]
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self.max_bytes:
            raise self._too_long()
        if not self.keys and _host(headers.get("host", "")) not in LOCAL_NAMES:
            raise errors.ApiError(
                403, "PERMISSION_DENIED", "Without keys, this gateway answers to names of this machine only."
            )
        guarded = path.startswith(GUARDED)
        if guarded and self.metrics.under_way > self.max_under_way:
            raise errors.unavailable("Too many requests are under way.")
        if scope["method"] == "OPTIONS" or not (guarded or path == DISCOVERY):
            return None
        try:
            query = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=MAX_FIELDS, errors="replace")
        except ValueError:
            raise errors.invalid(f"The query has more than {MAX_FIELDS} fields.") from None
        given = query.get("key", [None])[0] or headers.get("x-goog-api-key") or _bearer(headers.get("authorization"))
        key = self.keys.get(given)
        if key is None:
            if not guarded and not given:
                return None
            if given:
                raise errors.invalid(
                    "API key not valid. Please pass a valid API key.",
                    [
                        {
                            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                            "reason": "API_KEY_INVALID",
                            "domain": "googleapis.com",
                            "metadata": {"service": SERVICE},
                        }
                    ],
                )
            raise errors.ApiError(
                403,
                "PERMISSION_DENIED",
                "Method doesn't allow unregistered callers (callers without established identity). Please use API Key "
                "or other form of API consumer identity to call this API.",
            )
        if path.startswith(ADMIN) and not key.admin:
            raise errors.ApiError(403, "PERMISSION_DENIED", "This key may not switch models: it needs the word admin.")
        wait = key.wait_s(time.monotonic()) if guarded else 0.0
        if wait:
            self.metrics.limited(key.name)
            raise _over_quota(key, wait)
        return key

    def _too_long(self) -> errors.ApiError:
        return errors.ApiError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "INVALID_ARGUMENT",
            f"Request payload size exceeds the limit: {self.max_bytes} bytes.",
            headers={"Connection": "close"},
        )


def _host(header: str) -> str:
    """The name in a Host header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


def _bearer(header: str | None) -> str | None:
    kind, _, value = (header or "").partition(" ")
    return value.strip() or None if kind.lower() == "bearer" else None


def _over_quota(key: Key, wait: float) -> errors.ApiError:
    limit = "Analysis requests (AnalyzeComment)"
    return errors.ApiError(
        429,
        "RESOURCE_EXHAUSTED",
        f"Quota exceeded for quota metric '{limit}' and limit '{limit} per second' of service '{SERVICE}' for consumer "
        f"'{key.name}'.",
        [
            {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "RATE_LIMIT_EXCEEDED",
                "domain": "googleapis.com",
                "metadata": {
                    "service": SERVICE,
                    "consumer": key.name,
                    "quota_limit": "AnalyzeRequestsPerSecond",
                    "quota_limit_value": f"{key.rate:g}",
                },
            }
        ],
        {"Retry-After": str(math.ceil(wait))},
    )
