"""A candidate beside the model that answers: it gets a share of the requests (canary), or scores a share of them
unseen (shadow), and is let go by itself when it does badly.

A request is the candidate's or not by a hash of its first text: the same comment gets the same version from every
gateway, for as long as the share stays, and one request is never answered by two versions. Where the candidate fails,
the model that is served answers instead: a canary costs no caller an answer.

What is told a gateway here is forgotten when it ends: a gateway that starts has no candidate.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

from client import InvalidInput, ModelInfo, ModelNotFound, Result, ToxicityError
from serve.gateway import errors
from serve.gateway.backend import Client
from serve.gateway.flips import Flips
from serve.gateway.models import Models

log = logging.getLogger("tritox.gateway")
MOST_SHADOWS = 16
"""Requests that are scored once more at a time; beyond that they are not: a shadow must not slow what it follows."""
TIMES = 1000
"""The latest requests of a side, whose times are compared."""

T = TypeVar("T")
Work = Callable[[Client], Awaitable[tuple[T, Sequence[Result]]]]
"""Answers a request with a client: the answer, and the results of its texts."""


@dataclass(frozen=True)
class Limits:
    """When a candidate is let go.

    :param max_error_rate: of its requests. :param max_slower: its 95th percentile of time, over that of the served one.
    :param max_flip_rate: comments with another decision on any label, of those that both scored.
    :param least: requests, or comments, before anything is concluded.
    """

    max_error_rate: float = 0.01
    max_slower: float = 2.0
    max_flip_rate: float = 0.05
    least: int = 100


@dataclass
class Side:
    """What one of the two versions did."""

    requests: int = 0
    errors: int = 0
    times: deque[float] = field(default_factory=lambda: deque(maxlen=TIMES))

    def ms(self, share: float) -> float | None:
        ordered = sorted(self.times)
        return round(ordered[int(share * (len(ordered) - 1))] * 1000, 3) if ordered else None

    def to_dict(self) -> dict[str, Any]:
        return {"requests": self.requests, "errors": self.errors, "p50_ms": self.ms(0.5), "p95_ms": self.ms(0.95)}


class Rollout:
    """Of one gateway; used by one event loop."""

    def __init__(self, models: Models, language: str = "en") -> None:
        self.models, self.language = models, language
        self.candidate: str | None = None
        self.reason = "no candidate was named yet"
        self._tasks: set[asyncio.Task[None]] = set()
        self._reset(0.0, 0.0, Limits())

    def _reset(self, share: float, shadow: float, limits: Limits) -> None:
        self.share, self.shadow, self.limits = share, shadow, limits
        self.version = ""
        self.served, self.other = Side(), Side()
        self.flips = Flips(self.language)
        self.skipped = 0

    async def start(self, candidate: str, share: float, shadow: float, limits: Limits) -> None:
        """Let ``candidate`` take a share of the requests, and score another share unseen. Counting starts anew, except
        where only the shares change.

        :raises ApiError: 404 where there is no such model; 409 where it has other labels than the one that answers.
        """
        async with self.models.use() as client:
            labels = (await client.info()).labels
        async with self.models.use(candidate) as client:
            found = (await client.classify(["hello"]))[0]  # what answers is seen before it must
        if candidate == self.models.active or tuple(found.scores) != labels:
            raise errors.ApiError(
                409,
                "FAILED_PRECONDITION",
                f"{candidate[:100]!r} has the labels {', '.join(found.scores)}, and {self.models.active!r}, which "
                f"answers, {', '.join(labels)}: a candidate is another model with the same labels.",
            )
        if (candidate, found.model_version) != (self.candidate, self.version):
            self._reset(share, shadow, limits)
        self.candidate, self.version, self.reason = candidate, found.model_version, ""
        self.share, self.shadow, self.limits = share, shadow, limits

    def stop(self, reason: str) -> None:
        """No request goes to the candidate from now on; what was counted stays."""
        if self.candidate is not None:
            log.warning("the candidate %s, version %s, is let go: %s", self.candidate, self.version, reason)
            self.candidate, self.reason = None, reason

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def answer(self, texts: Sequence[str], name: str | None, work: Work[T]) -> T:
        """What ``work`` answers, with the candidate's client or that of the model ``name``."""
        candidate = self.candidate
        if candidate is None or (name or self.models.active) != self.models.active or not texts:
            async with self.models.use(name) as client:
                return (await work(client))[0]
        if _draw(f"canary {self.version}", texts[0]) < self.share:
            start = time.perf_counter()
            try:
                async with self.models.use(candidate) as client:
                    answer, results = await work(Named(client, self.models.active))
            except (ToxicityError, errors.ApiError) as error:
                if isinstance(error, InvalidInput) or _is_the_callers(error):
                    raise
                self._failed(error)
            else:
                self._took(self.other, start)
                self._follow(self.models.active, texts, results, mine=False)
                return answer
        start = time.perf_counter()
        try:
            async with self.models.use(name) as client:
                answer, results = await work(client)
        except ToxicityError as error:
            if not isinstance(error, InvalidInput):
                self.served.requests += 1
                self.served.errors += 1
            raise
        self._took(self.served, start)
        self._follow(candidate, texts, results, mine=True)
        return answer

    def _took(self, side: Side, start: float) -> None:
        side.requests += 1
        side.times.append(time.perf_counter() - start)
        if side is self.other:
            self._judge()

    def _failed(self, error: Exception) -> None:
        self.other.requests += 1
        self.other.errors += 1
        if isinstance(error, (ModelNotFound, errors.ApiError)):
            self.stop("it is not loaded")
        self._judge()

    def _follow(self, other: str, texts: Sequence[str], results: Sequence[Result], mine: bool) -> None:
        """Score texts with the other version too, once they are answered.

        :param mine: the results are those of the version that is served.
        """
        if _draw(f"shadow {self.version}", texts[0]) >= self.shadow:
            return
        if len(self._tasks) >= MOST_SHADOWS:
            self.skipped += 1
            return

        async def compare() -> None:
            start = time.perf_counter()
            try:
                async with self.models.use(other) as client:
                    others = await client.classify(texts)
            except (ToxicityError, errors.ApiError) as error:
                if mine and self.candidate == other:
                    self._failed(error)
                return
            if mine and self.share == 0:  # else its times are those of requests that it answered
                self._took(self.other, start)
            versions = {r.model_version for r in (*results, *others)}
            for text, one, two in zip(texts, results, others, strict=True):
                if len(versions) == 2:  # else a version was changed meanwhile
                    self.flips.add(text, *((one, two) if mine else (two, one)))
            self._judge()

        task = asyncio.get_running_loop().create_task(compare())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _judge(self) -> None:
        """Let the candidate go when a limit is passed."""
        limits, other = self.limits, self.other
        if self.candidate is None:
            return
        if other.requests >= limits.least:
            rate = other.errors / other.requests
            if rate > limits.max_error_rate:
                self.stop(f"{other.errors} of {other.requests} requests failed, allowed is {limits.max_error_rate:.2%}")
                return
            # sorting is not for each request
            if self.served.requests >= limits.least and other.requests % 20 == 0:
                mine, theirs = self.served.ms(0.95), other.ms(0.95)
                if mine and theirs and theirs > limits.max_slower * mine:
                    self.stop(f"95% took up to {theirs:g} ms, allowed is {limits.max_slower:g} times {mine:g} ms")
                    return
        if self.flips.every.comments >= limits.least and self.flips.rate > limits.max_flip_rate:
            found, of = self.flips.every.flipped, self.flips.every.comments
            self.stop(f"{found} of {of} comments got another decision, allowed is {limits.max_flip_rate:.2%}")

    def status(self) -> dict[str, Any]:
        return {
            "active": self.models.active,
            "candidate": self.candidate,
            "version": self.version,
            "reason": self.reason,
            "share": self.share,
            "shadow": self.shadow,
            "limits": asdict(self.limits),
            "requests": {"served": self.served.to_dict(), "candidate": self.other.to_dict()},
            "skipped": self.skipped,
            "flips": self.flips.to_dict(),
        }

    def render(self) -> str:
        """For Prometheus."""
        flips = self.flips
        rows: list[tuple[str, str, str, list[tuple[str, float]]]] = [
            ("candidate", "gauge", "Whether there is a candidate.", [("", int(self.candidate is not None))]),
            ("share", "gauge", "Share of the requests that the candidate gets.", [("", self.share)]),
            (
                *("requests_total", "counter", "Requests, by who was to answer."),
                [('{side="served"}', self.served.requests), ('{side="candidate"}', self.other.requests)],
            ),
            (
                *("errors_total", "counter", "Of them, those that failed."),
                [('{side="served"}', self.served.errors), ('{side="candidate"}', self.other.errors)],
            ),
            ("compared_total", "counter", "Comments that both versions scored.", [("", flips.every.comments)]),
            ("flipped_total", "counter", "Of them, those with another decision.", [("", flips.every.flipped)]),
            (
                *("flips_total", "counter", "Other decisions, by label."),
                [(f'{{label="{label}"}}', group.flipped) for label, group in flips.labels.items()],
            ),
        ]
        lines = []
        for name, kind, text, values in rows:
            full = f"tritox_gateway_rollout_{name}"
            lines += [f"# HELP {full} {text}", f"# TYPE {full} {kind}"]
            lines += [f"{full}{labels} {value}" for labels, value in values]
        return "\n".join(lines) + "\n"


class Named:
    """A client whose results bear another model's name: callers of ``toxicity`` get its version, by that name."""

    def __init__(self, client: Client, name: str) -> None:
        self._client, self._name = client, name

    async def score(self, text: str, timeout: float | None = None) -> Result:
        return replace(await self._client.score(text, timeout), model=self._name)

    async def classify(self, texts: Sequence[str], timeout: float | None = None) -> list[Result]:
        return [replace(result, model=self._name) for result in await self._client.classify(texts, timeout)]

    async def info(self, timeout: float | None = None) -> ModelInfo:
        return replace(await self._client.info(timeout), name=self._name)

    def known(self, version: str) -> ModelInfo | None:
        return self._client.known(version)

    async def close(self, grace: float = 5.0) -> None:
        await self._client.close(grace)


def limits_of(values: dict[str, Any]) -> Limits:
    """The limits among the fields of a request; those that are not given are the defaults."""
    return Limits(**{f.name: values[f.name] for f in fields(Limits) if values.get(f.name) is not None})


def _is_the_callers(error: Exception) -> bool:
    return isinstance(error, errors.ApiError) and error.code != 404


def _draw(purpose: str, text: str) -> float:
    """A number in [0, 1) that hangs on the text alone; those of two purposes have nothing to do with each other."""
    digest = hashlib.sha256(f"{purpose}\0{text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
