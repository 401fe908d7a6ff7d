"""A histogram with logarithmic buckets: small, exact to a stated share, and merged without loss over processes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

ERROR = 0.005
"""By default a percentile is off by at most this share of itself."""
LOWEST = 1e-3
"""What is smaller counts as this much."""


class Histogram:
    """Counts of values, such as latencies in ms.

    :param error: the relative error of percentiles. Two histograms merge only with the same one.
    :ivar lowest: the smallest value, exact, as are ``highest``, ``count`` and ``total``.
    """

    __slots__ = ("_buckets", "_scale", "count", "error", "highest", "lowest", "total")

    def __init__(self, error: float = ERROR) -> None:
        if not 0 < error < 1:
            raise ValueError(f"the error is {error}, must be a share between 0 and 1, such as {ERROR}")
        self.error = error
        self._scale = 1 / math.log((1 + error) / (1 - error))
        self._buckets: dict[int, int] = {}
        self.count, self.total = 0, 0.0
        self.lowest, self.highest = math.inf, -math.inf

    def add(self, value: float, count: int = 1) -> None:
        bucket = math.ceil(math.log(max(value, LOWEST)) * self._scale)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + count
        self.count += count
        self.total += value * count
        self.lowest = min(self.lowest, value)
        self.highest = max(self.highest, value)

    def merge(self, other: Histogram) -> None:
        """Add the other's values. The order of merging makes no difference to a percentile.

        :raises ValueError: when the other was made with another error.
        """
        if other.error != self.error:
            raise ValueError(f"histograms with the errors {self.error} and {other.error} do not merge: use one")
        for bucket, count in other._buckets.items():
            self._buckets[bucket] = self._buckets.get(bucket, 0) + count
        self.count += other.count
        self.total += other.total
        self.lowest = min(self.lowest, other.lowest)
        self.highest = max(self.highest, other.highest)

    def percentile(self, share: float) -> float | None:
        """The nearest rank, as :func:`loadtest.slo.percentile`, within ``error``; ``None`` where nothing was added."""
        if not self.count:
            return None
        rank = max(1, math.ceil(share * self.count))
        if rank in (1, self.count):  # these are known
            return self.lowest if rank == 1 else self.highest
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                break
        # of a bucket from g^(i-1) to g^i, the value that is off by the same share on both sides
        middle = math.exp(bucket / self._scale) * (1 - self.error)
        return min(max(middle, self.lowest), self.highest)

    def share_within(self, limit: float) -> float:
        """The share of values that are at most ``limit``; 1 where there are none."""
        if not self.count:
            return 1.0
        last = math.ceil(math.log(max(limit, LOWEST)) * self._scale)
        return sum(count for bucket, count in self._buckets.items() if bucket <= last) / self.count

    def to_json(self) -> dict[str, Any]:
        """For a message or a file; see :meth:`from_json`. Keys are texts, as in JSON."""
        buckets = {str(bucket): count for bucket, count in sorted(self._buckets.items())}
        ends = [self.lowest, self.highest] if self.count else None
        return {"error": self.error, "buckets": buckets, "total": self.total, "ends": ends}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Histogram:
        made = cls(value["error"])
        made._buckets = {int(bucket): count for bucket, count in value["buckets"].items()}
        made.count, made.total = sum(made._buckets.values()), value["total"]
        if value["ends"]:
            made.lowest, made.highest = value["ends"]
        return made
