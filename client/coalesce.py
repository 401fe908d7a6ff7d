"""Single comments of concurrent callers, joined into requests. Nothing here waits or sends anything."""

from __future__ import annotations

import time
from collections import deque
from typing import Generic, TypeVar

from client import wire
from client.errors import ToxicityError
from client.options import Batching
from client.results import Result, Timing

BYTES_A_TOKEN = 4


class Waiting:
    """One caller's comment.

    :ivar waits: it is still in the queue.
    :ivar gone: its caller does not wait for it any more.
    """

    __slots__ = ("call", "error", "gone", "queued_s", "result", "row", "since", "tokens", "waits")

    def __init__(self, row: bytes, call: wire.Call) -> None:
        self.row, self.call = row, call
        self.since = time.monotonic()
        self.queued_s = 0.0
        self.tokens = 0
        self.waits = True
        self.gone = False
        self.result: Result | None = None
        self.error: ToxicityError | None = None

    def answer(self, result: Result) -> None:
        timing = Timing(self.call.waited_s(), self.queued_s, result.timing.request_s, result.timing.tries)
        self.result = Result(
            result.scores,
            result.flagged,
            result.truncated,
            result.model,
            result.model_version,
            result.request_id,
            timing,
        )

    def fail(self, error: ToxicityError) -> None:
        self.error = error.for_caller(self.call.waited_s())

    def outcome(self) -> Result:
        """:raises ToxicityError: what became of the request, or Timeout when nothing has yet."""
        if self.result is not None:
            return self.result
        raise self.error or self.call.timeout()


W = TypeVar("W", bound=Waiting)


class Queue(Generic[W]):
    """First come, first served.

    :ivar most_rows: the server's limit, once it is known.
    :ivar most_tokens: that the model reads of a comment, once it is known.
    """

    def __init__(self, limits: Batching) -> None:
        self.limits = limits
        self.most_rows = limits.size
        self.most_tokens = limits.tokens
        self.under_way = 0
        self._left_behind = False  # by a batch that was full, when no more could be sent
        self._queue: deque[W] = deque()
        self._tokens = self._bytes = 0

    def __len__(self) -> int:
        return len(self._queue)

    def learn(self, max_batch_size: int, max_tokens: int) -> None:
        """What the server says about the model."""
        self.most_rows, self.most_tokens = min(self.limits.size, max_batch_size), max_tokens

    def add(self, entry: W) -> bool:
        """Whether the entry is the first, and so has to see to it that the queue is sent after the delay."""
        entry.tokens = min(len(entry.row) // BYTES_A_TOKEN + 2, self.most_tokens)
        self._queue.append(entry)
        self._tokens += entry.tokens
        self._bytes += len(entry.row)
        return len(self._queue) == 1

    def full(self) -> bool:
        """Whether a limit is reached, and a request may be sent."""
        if not self._queue or self.under_way >= self.limits.in_flight:
            return False
        return (
            self._left_behind
            or len(self._queue) >= self.most_rows
            or self._tokens >= self.limits.tokens
            or self._bytes >= self.limits.bytes
        )

    def due(self) -> bool:
        """Whether to send now: nothing is under way, a limit is reached, or the first has waited as long as it may."""
        if not self._queue or self.under_way >= self.limits.in_flight:
            return False
        if self.under_way == 0 or self.full():
            return True
        return time.monotonic() - self._queue[0].since >= self.limits.delay_ms / 1000

    def take(self) -> list[W]:
        """A batch; those whose caller has left are dropped. It counts as under way until :meth:`done`."""
        batch: list[W] = []
        tokens = size = 0
        now = time.monotonic()
        while self._queue and len(batch) < self.most_rows:
            entry = self._queue[0]
            if batch and (tokens + entry.tokens > self.limits.tokens or size + len(entry.row) > self.limits.bytes):
                break
            self._queue.popleft()
            self._tokens -= entry.tokens
            self._bytes -= len(entry.row)
            entry.waits = False
            entry.queued_s = now - entry.since
            if not entry.gone:
                batch.append(entry)
                tokens += entry.tokens
                size += len(entry.row)
        if batch:
            self.under_way += 1
        self._left_behind = bool(self._queue) and self.under_way >= self.limits.in_flight
        return batch

    def done(self) -> None:
        self.under_way -= 1


def common(batch: list[W], endpoint: str, model: str) -> wire.Call:
    """The call that carries a batch. It may take as long as the most patient caller waits; the others leave before."""
    return wire.Call(endpoint, model, max(0.001, *(entry.call.limit_s - entry.call.waited_s() for entry in batch)))
