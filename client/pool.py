"""Which server, and which connection to it, a request goes to. Nothing here sends anything.

::

            stalls, or times out            the probe fails
    up ───────────────────────▶ suspect ───────────────────▶ down ──┐ probed again, a little later each time
    ▲◀──────── the probe is answered ──┘                      │ ▲───┘
    ▲◀──────────────────────────────── the probe is answered ─┘
     └── connection lost: down at once
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Generic, TypeVar

C = TypeVar("C")
CROWDED = 16
"""Requests under way on each open connection when one more is opened."""
PROBE_TIMEOUT_S = 1.0
FIRST_PROBE_S, LAST_PROBE_S = 0.1, 1.0


@dataclass(eq=False, slots=True)
class Lane(Generic[C]):
    """One connection. ``open_s`` is when it was opened, ``under_way`` how many requests wait for its answer."""

    channel: C
    under_way: int = 0


@dataclass(eq=False, slots=True)
class Endpoint(Generic[C]):
    """One server, and what is known about it."""

    target: str
    lanes: list[Lane[C]] = field(default_factory=list)
    under_way: int = 0
    up: bool = True
    suspect: bool = False
    probing: bool = False
    down_since: float = 0.0
    probe_at: float = 0.0
    pause_s: float = FIRST_PROBE_S


class Pool(Generic[C]):
    """Endpoints with their connections: picks, and keeps score.

    Of two live servers at random, the one with fewer requests under way is taken: as good as the least loaded of all,
    and many clients do not run after the same one.

    :param open_lane: opens a connection to a target.
    :param probe: asks an endpoint, without waiting, whether it can answer, and reports to :meth:`probed`.
    :param connections: to each server at most; opened as they are needed.
    """

    def __init__(
        self,
        targets: Collection[str],
        connections: int,
        open_lane: Callable[[str], C],
        probe: Callable[[Endpoint[C]], None],
    ) -> None:
        self.endpoints: list[Endpoint[C]] = [Endpoint(target) for target in targets]
        self.connections = connections
        self._open_lane, self._probe = open_lane, probe
        self._lock = threading.Lock()

    def take(self, avoid: Collection[Endpoint[C]] = ()) -> tuple[Endpoint[C], Lane[C]]:
        """The endpoint and connection for a request; give them back with :meth:`release`.

        :param avoid: endpoints that this request was sent to before.
        """
        with self._lock:
            if len(self.endpoints) == 1:
                endpoint, due = self.endpoints[0], []
            else:
                now = time.monotonic()
                due = [e for e in self.endpoints if not e.up and not e.probing and now >= e.probe_at]
                for each in due:
                    each.probing = True
                endpoint = self._choose(avoid)
            lane = self._lane(endpoint)
            endpoint.under_way += 1
            lane.under_way += 1
        for each in due:
            self._probe(each)
        return endpoint, lane

    def _choose(self, avoid: Collection[Endpoint[C]]) -> Endpoint[C]:
        up = [e for e in self.endpoints if e.up]
        fresh = [e for e in up if e not in avoid]
        # when nobody is known to be up, anybody may have come back
        among = [e for e in fresh if not e.suspect] or fresh or up
        among = among or [e for e in self.endpoints if e not in avoid] or self.endpoints
        if len(among) == 1:
            return among[0]
        one, other = random.sample(among, 2)
        return one if one.under_way <= other.under_way else other

    def _lane(self, endpoint: Endpoint[C]) -> Lane[C]:
        lane = min(endpoint.lanes, key=lambda each: each.under_way, default=None)
        if lane is None or (lane.under_way >= CROWDED and len(endpoint.lanes) < self.connections):
            lane = Lane(self._open_lane(endpoint.target))
            endpoint.lanes.append(lane)
        return lane

    def lane(self, endpoint: Endpoint[C]) -> Lane[C]:
        """A connection for a question that does not count as a request."""
        with self._lock:
            return self._lane(endpoint)

    def release(self, endpoint: Endpoint[C], lane: Lane[C]) -> None:
        with self._lock:
            endpoint.under_way -= 1
            lane.under_way -= 1

    def others_up(self, than: Collection[Endpoint[C]]) -> bool:
        """Whether a server is up that is none of these."""
        return any(e.up and e not in than for e in self.endpoints)

    def answered(self, endpoint: Endpoint[C]) -> None:
        """An answer came, whatever it says."""
        if not endpoint.up or endpoint.suspect:
            with self._lock:
                endpoint.up, endpoint.suspect, endpoint.pause_s = True, False, FIRST_PROBE_S

    def lost(self, endpoint: Endpoint[C]) -> None:
        """Its connection broke, or could not be made."""
        with self._lock:
            now = time.monotonic()
            if endpoint.up:
                endpoint.up, endpoint.down_since = False, now
            endpoint.probe_at = max(endpoint.probe_at, now + endpoint.pause_s)

    def doubt(self, endpoint: Endpoint[C]) -> None:
        """It has not answered for long: ask whether it still can."""
        with self._lock:
            if len(self.endpoints) == 1 or endpoint.probing or not endpoint.up:
                return
            endpoint.suspect = endpoint.probing = True
        self._probe(endpoint)

    def probed(self, endpoint: Endpoint[C], alive: bool) -> None:
        """What came of a probe."""
        with self._lock:
            endpoint.probing = False
            now = time.monotonic()
            if alive:
                endpoint.up, endpoint.suspect, endpoint.pause_s = True, False, FIRST_PROBE_S
                return
            if endpoint.up:
                endpoint.up, endpoint.down_since = False, now
            endpoint.suspect = False
            endpoint.probe_at = now + endpoint.pause_s * random.uniform(0.5, 1.0)
            endpoint.pause_s = min(endpoint.pause_s * 2, LAST_PROBE_S)

    def channels(self) -> list[C]:
        with self._lock:
            return [lane.channel for endpoint in self.endpoints for lane in endpoint.lanes]


class Budget:
    """Extra requests are paid from it, and each answered request adds a share of one."""

    def __init__(self, share: float, most: float) -> None:
        self.share, self.most = share, most
        self.left = most
        self._lock = threading.Lock()

    def earn(self) -> None:
        with self._lock:
            self.left = min(self.most, self.left + self.share)

    def spend(self) -> bool:
        """Whether there was one left."""
        with self._lock:
            if self.left < 1:
                return False
            self.left -= 1
            return True


class Latencies:
    """Recent durations of requests of about the same size, for their 95th percentile."""

    KEPT, ENOUGH, EVERY = 200, 20, 16

    def __init__(self) -> None:
        self._recent: dict[int, list[float]] = {}
        self._p95: dict[int, float] = {}
        self._count = 0

    def add(self, rows: int, seconds: float) -> None:
        size = rows.bit_length()
        recent = self._recent.setdefault(size, [])
        if len(recent) < self.KEPT:
            recent.append(seconds)
        else:
            recent[self._count % self.KEPT] = seconds
        self._count += 1
        if len(recent) >= self.ENOUGH and (self._count % self.EVERY == 0 or size not in self._p95):
            self._p95[size] = sorted(recent)[int(len(recent) * 0.95)]

    def p95(self, rows: int) -> float | None:
        """``None`` while too few are known."""
        return self._p95.get(rows.bit_length())
