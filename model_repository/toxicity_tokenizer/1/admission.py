"""Refuses requests at once when those before them fill the time that a request may wait.

Triton's own bound (``default_queue_policy``) is of no use in 2.51, the server of the container 24.10: a model with any
such policy forms no batch ahead of time and then overlooks that an instance became free, for up to 500 ms, until
another request comes; with a time limit its throughput decays (server issue 8870). And it counts requests, where a
request of 64 comments is 64 times the work. Nor does a deadline help: once a request waits for the second model of an
ensemble, it is computed even where its client has gone. So the model that all requests enter through asks Triton's
metrics how many wait, and knows how much work they are::

    work that waits (pending requests, each with its tokens) / work done a second = the wait that a request would have

Beyond ``max_queue_ms``, or the request's own ``timeout``, the request is refused with UNAVAILABLE before it is read.
One large request is no overload: until half a second has passed in which the line was never short, twice as much
may wait; and where nothing waits, nothing is refused, however large. Between two looks at the metrics, what was let in
is added, and what must have been done is taken off.

Stands beside the ``model.py`` that asks it, in its version folder. Written there by the exporter: change
``export/templates/admission.py`` instead.
"""

import http.client
import math
import os
import re
import sys
import threading
import time
import urllib.parse
from collections import deque
from typing import Any

LOOK_S = 0.05
"""Between two looks at the metrics, while requests come or wait. A look costs Triton about 0.2 ms of CPU."""
MEMORY_S = 3.0
"""How long ago work was done that still counts for the speed: its weight falls to 1/e after so many seconds."""
LEARN_S = 0.5
"""The speed is not known until so much time was spent with requests waiting. Nothing is refused until then."""
STUCK_S = 2.0
"""A model that finishes nothing for so long, while requests wait, is taken to be stuck: it has the speed 0."""
BURST, PATIENCE_S, SHORT = 2.0, 0.5, 0.25
"""So many times the longest wait is fine while the line was short, a share of the longest wait, not so long ago."""
GATHER_S, GATHERED = 0.025, 16
"""A call of fewer requests ends so much later where the line is half full: all that came meanwhile are one call then,
which costs less, and so refusals do. Those that were let in wait anyway."""
METRICS_URL = "http://127.0.0.1:8002/metrics"
PENDING = re.compile(rb'nv_inference_pending_request_count\{model="([^"]+)"[^}]*\} (\d+)')


class Line:
    """Work that waits for one model, and how fast the model takes it up. In whatever unit it is told in."""

    def __init__(self) -> None:
        self.work = 0.0
        self._looked_s = self._last = 0.0
        self._done = self._busy_s = 0.0

    def looked(self, work: float, done: float, now_s: float) -> None:
        """What waits now, and what was taken up since the last look."""
        passed_s = now_s - self._looked_s
        if work and self._last:  # all of the time between was spent working
            fade = math.exp(-passed_s / MEMORY_S)
            self._done = self._done * fade + done
            self._busy_s = self._busy_s * fade + passed_s
        self.work = self._last = work
        self._looked_s = now_s

    def wait_s(self, now_s: float) -> float:
        """Seconds that what joins now would wait; 0 while the speed is not known."""
        if self._busy_s < LEARN_S or (not self._done and self._busy_s < STUCK_S):
            return 0.0
        left = self.work - self._done / self._busy_s * (now_s - self._looked_s)
        if left <= 0:
            return 0.0
        return left * self._busy_s / self._done if self._done else math.inf


class Admission:
    """The check at the entry of an ensemble.

    :param config: of the model that asks. Its parameter ``max_queue_ms`` is the longest wait; 0 refuses nothing.
    :param behind: the model behind it, where there is one. Its work is told by :meth:`admitted`; in the line of the
        asking model each request is one unit.
    """

    def __init__(self, config: dict[str, Any], behind: str | None = None) -> None:
        self.max_wait_s = int(config.get("parameters", {}).get("max_queue_ms", {}).get("string_value", 0)) / 1000
        # each instance of the asking model sees its part of the requests, and counts with its part of those that wait
        self.share = 1 / max(1, sum(group.get("count", 1) for group in config.get("instance_group", [])))
        self.gathered = min(GATHERED, config.get("max_batch_size", GATHERED))
        self.names = config["name"], behind
        self.entry, self.behind = Line(), Line()
        self.seen = 0  # requests since the last look
        self.waiting: deque[int] = deque()  # the work of those that went on; the latest of them wait
        self.each = 0.0  # their mean
        self.short_s = 0.0  # when the line was short last
        self.lock = threading.Lock()
        self.work_came = threading.Event()
        if self.max_wait_s:
            metrics = urllib.parse.urlsplit(os.environ.get("TRITOX_METRICS_URL", METRICS_URL))
            threading.Thread(target=self._watch, args=(metrics,), daemon=True).start()

    def refusals(self, timeouts_us: list[int]) -> list[str | None]:
        """For each request of one call, why it is refused, or ``None``; in order.

        :param timeouts_us: what each is willing to wait; 0 for the default.
        """
        if not self.max_wait_s:
            return [None] * len(timeouts_us)
        self.work_came.set()
        found: list[str | None] = []
        with self.lock:
            now_s = time.monotonic()
            self.seen += len(timeouts_us)
            told = self.behind.work
            for timeout_us in timeouts_us:
                wait_s = self.entry.wait_s(now_s) + self.behind.wait_s(now_s)
                if wait_s <= self.max_wait_s * SHORT:
                    self.short_s = now_s
                patient = now_s - self.short_s < PATIENCE_S
                limit_s = min(self.max_wait_s * (BURST if patient else 1), timeout_us / 1e6 or math.inf)
                if wait_s <= limit_s:
                    found.append(None)
                    self.behind.work += self.each  # those after it in this call come behind it
                else:
                    found.append(
                        f"Exceeds maximum queue size: what waits before it takes {wait_s * 1000:.0f} ms, it may wait "
                        f"{limit_s * 1000:.0f} ms; send it again later, or less at a time"
                    )
            self.behind.work = told
        if wait_s > self.max_wait_s / 2 and len(found) < self.gathered:
            time.sleep(GATHER_S)
        return found

    def admitted(self, work: list[int]) -> None:
        """The requests of a call that go on to the model behind, each with its work."""
        if self.max_wait_s:
            self.work_came.set()  # so that somebody looks again when they are there
            with self.lock:
                self.waiting.extend(work)
                self.behind.work += sum(work)

    def looked(self, at_entry: int, behind: int, now_s: float) -> None:
        """How many requests wait for either model, as the metrics say."""
        with self.lock:
            self.entry.looked(at_entry * self.share, self.seen, now_s)
            self.seen = 0
            # requests are taken up in the order in which they came, so those that wait are the latest
            waiting, done = math.ceil(behind * self.share), 0
            while len(self.waiting) > waiting:
                done += self.waiting.popleft()
            if self.waiting:
                self.each = sum(self.waiting) / len(self.waiting)
            self.behind.looked(waiting * self.each, done, now_s)

    def _watch(self, metrics: urllib.parse.SplitResult) -> None:
        connection = http.client.HTTPConnection(metrics.hostname or "127.0.0.1", metrics.port, timeout=2)
        said = False
        while True:
            self.work_came.wait()
            self.work_came.clear()
            try:
                connection.request("GET", metrics.path)
                pending = read(connection.getresponse().read())
            except (OSError, http.client.HTTPException) as error:
                if not said:
                    sys.stderr.write(
                        f"{self.names[0]}: {metrics.geturl()} cannot be read ({error}), so no request is refused, "
                        "however many wait: let TRITOX_METRICS_URL name Triton's metrics\n"
                    )
                    said = True
                connection.close()
                time.sleep(1)
                continue
            at_entry, behind = (pending.get(name or "", 0) for name in self.names)
            self.looked(at_entry, behind, time.monotonic())
            if at_entry or behind:
                self.work_came.set()
            time.sleep(LOOK_S)


def read(metrics: bytes) -> dict[str, int]:
    """By model, the requests that wait, from Triton's metrics; over all versions of the model."""
    found: dict[str, int] = {}
    for name, count in PENDING.findall(metrics):
        found[name.decode()] = found.get(name.decode(), 0) + int(count)
    return found
