"""What a run came to, added up as it goes: bounded in memory however long it lasts, and merged over processes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from loadtest.histogram import Histogram
from loadtest.slo import Measured, Sample

COARSE = 0.02
"""The error of each second's percentiles; those of the whole run have the histogram's own."""
ROWS = 300
"""A timeline has about so many rows at most: those of a long run cover several seconds."""


class Tally:
    """Requests of one process, or of many.

    :ivar latency_ms: of requests that succeeded.
    :ivar comments: in them.
    :ivar first_s: when the first request began; ``last_s`` when the last one ended.
    """

    def __init__(self) -> None:
        self.latency_ms = Histogram()
        self.errors: Counter[str] = Counter()
        self.comments = 0
        self.first_s, self.last_s = math.inf, -math.inf
        self._seconds: dict[int, _Second] = {}

    @property
    def requests(self) -> int:
        return self.latency_ms.count + self.errors.total()

    def add(self, sample: Sample) -> None:
        """:param sample: with ``start_s`` since 1970, which all processes share."""
        self.first_s = min(self.first_s, sample.start_s)
        self.last_s = max(self.last_s, sample.start_s + sample.duration_s)
        second = self._seconds.setdefault(int(sample.start_s), _Second())
        if sample.error is None:
            self.latency_ms.add(sample.duration_s * 1000)
            self.comments += sample.comments
            second.latency_ms.add(sample.duration_s * 1000)
        else:
            self.errors[sample.error] += 1
            second.failures += 1

    def merge(self, other: Tally) -> None:
        self.latency_ms.merge(other.latency_ms)
        self.errors.update(other.errors)
        self.comments += other.comments
        self.first_s, self.last_s = min(self.first_s, other.first_s), max(self.last_s, other.last_s)
        for at_s, second in other._seconds.items():
            self._seconds.setdefault(at_s, _Second()).merge(second)

    def measured(self, window_s: float | None = None) -> Measured:
        """:param window_s: what rates are over; by default from the first request's start to the last one's end."""
        failures, requests = self.errors.total(), self.requests
        duration_s = self.last_s - self.first_s if requests else 0.0
        over_s = duration_s if window_s is None else window_s
        return Measured(
            requests=requests,
            failures=failures,
            errors=dict(self.errors),
            duration_s=duration_s,
            p50_ms=self.latency_ms.percentile(0.50),
            p95_ms=self.latency_ms.percentile(0.95),
            p99_ms=self.latency_ms.percentile(0.99),
            max_ms=self.latency_ms.percentile(1.0),
            error_rate=failures / requests if requests else None,
            requests_per_s=self.latency_ms.count / over_s if over_s else 0.0,
            comments_per_s=self.comments / over_s if over_s else 0.0,
        )

    def timeline(self) -> list[dict[str, Any]]:
        """Rows of equal length: ``at_s`` from the start, ``seconds``, requests and failures that began in them, p50 and
        p99 of those that succeeded.
        """
        if not self._seconds:
            return []
        begin, end = min(self._seconds), max(self._seconds) + 1
        width, rows = math.ceil((end - begin) / ROWS), []
        for start in range(begin, end, width):
            whole = _Second()
            for at_s in range(start, start + width):
                if at_s in self._seconds:
                    whole.merge(self._seconds[at_s])
            row = {"at_s": start - begin, "seconds": min(width, end - start)}
            row |= {"requests": whole.latency_ms.count + whole.failures, "failures": whole.failures}
            rows.append(row | {f"p{p}_ms": whole.latency_ms.percentile(p / 100) for p in (50, 99)})
        return rows

    def to_json(self) -> dict[str, Any]:
        """For a message between processes; see :meth:`from_json`."""
        return {
            "latency_ms": self.latency_ms.to_json(),
            "errors": dict(self.errors),
            "comments": self.comments,
            "ends": [self.first_s, self.last_s] if self.requests else None,
            "seconds": {str(at_s): [s.failures, s.latency_ms.to_json()] for at_s, s in self._seconds.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Tally:
        made = cls()
        made.latency_ms = Histogram.from_json(value["latency_ms"])
        made.errors = Counter(value["errors"])
        made.comments = value["comments"]
        if value["ends"]:
            made.first_s, made.last_s = value["ends"]
        for at_s, (failures, latency_ms) in value["seconds"].items():
            made._seconds[int(at_s)] = _Second(failures, Histogram.from_json(latency_ms))
        return made


class _Second:
    __slots__ = ("failures", "latency_ms")

    def __init__(self, failures: int = 0, latency_ms: Histogram | None = None) -> None:
        self.failures, self.latency_ms = failures, latency_ms or Histogram(COARSE)

    def merge(self, other: _Second) -> None:
        self.failures += other.failures
        self.latency_ms.merge(other.latency_ms)
