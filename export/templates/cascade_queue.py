"""The comments that wait for the encoder: in a fair order, and joined to batches of like length.

Fair: each request's comments are numbered by the work before them in that request, and requests are served by these
numbers (start-time fair queueing). So a request of 64 long comments delays a request of one by about one comment, and
no comment waits for ever, since the numbers of later requests begin at the number that is being served.

Of like length: a batch takes the comment whose turn it is, and of those that follow the ones nearest to it in length,
up to a budget of rows and of characters (rows times the longest, as a padded batch costs): no batch is slow enough that
everyone waits for it.

Stands beside the ``model.py`` that uses it; written there by the exporter: change
``export/templates/cascade_queue.py`` instead.
"""

import heapq
from typing import Any

LOOK_AHEAD = 4
"""Batches' worth of comments among which the ones of like length are sought."""


class Row:
    """A comment on its way to the encoder.

    :ivar key: what it is known by in the cache.
    :ivar raw: the UTF-8 that is sent.
    :ivar cost: characters that are read of it.
    :ivar waiters: who waits for its scores: pairs of a reply and a row number in it.
    :ivar value: its scores, once they are there.
    :ivar gone: it will get none: the encoder failed, or everyone who waited has gone.
    """

    __slots__ = ("cost", "gone", "key", "raw", "since", "value", "waiters")

    def __init__(self, key: str | bytes, raw: bytes, cost: int, since: float) -> None:
        self.key = key
        self.raw = raw
        self.cost = cost
        self.since = since
        self.waiters: list[tuple[Any, int]] = []
        self.value: bytes | None = None
        self.gone = False


class FairQueue:
    """Not safe for several threads by itself: its user holds a lock."""

    def __init__(self) -> None:
        self.heap: list[tuple[int, int, Row]] = []
        self.served = 0  # the number whose turn it is
        self.count = 0

    def __len__(self) -> int:
        return len(self.heap)

    def add(self, rows: list[Row]) -> None:
        """The comments of one request."""
        turn = self.served
        for row in rows:
            self.count += 1
            heapq.heappush(self.heap, (turn, self.count, row))
            turn += row.cost + 1

    def take(self, max_rows: int, max_characters: int) -> list[Row]:
        """The next batch, shortest first; at least one comment, where there is any."""
        ahead = [heapq.heappop(self.heap) for _ in range(min(LOOK_AHEAD * max_rows, len(self.heap)))]
        if not ahead:
            return []
        self.served = ahead[0][0]
        by_length = sorted(ahead, key=lambda entry: entry[2].cost)
        costs = [entry[2].cost for entry in by_length]
        low = by_length.index(ahead[0])
        high = low + 1
        while high - low < max_rows:
            room = max_characters // (high - low + 1)  # how long the longest of one more may be
            below = low > 0 and costs[high - 1] <= room
            above = high < len(costs) and costs[high] <= room
            if above and (not below or costs[high] - costs[high - 1] <= costs[low] - costs[low - 1]):
                high += 1
            elif below:
                low -= 1
            else:
                break
        for entry in (*by_length[:low], *by_length[high:]):
            heapq.heappush(self.heap, entry)
        return [entry[2] for entry in by_length[low:high]]
