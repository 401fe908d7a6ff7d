"""Refuses requests at once when those before them fill the time that a request may wait.

Triton's own bound (``default_queue_policy``) is of no use in 2.51, the server of the container 24.10: a model with any
such policy forms no batch ahead of time and then overlooks that an instance became free, for up to 500 ms, until
another request comes; with a time limit its throughput decays (server issue 8870). And it counts requests, where a
request of 64 comments is 64 times the work. So the model that all requests enter through asks Triton's metrics how
many wait, and knows how much work they are::

    work that waits (pending requests, each with its tokens) / work done a second = the wait that a request would have

Beyond ``max_queue_ms``, or the request's own ``timeout``, the request is refused with UNAVAILABLE before it is read.
One large request is no overload: until half a second has passed in which the line was never short, 2.5 times as much
may wait. Between two looks at the metrics, what was let in is added and what must have been done is taken off. Where nothing
waits, nothing is refused, however large.

Stands beside the ``model.py`` that asks it, in its version folder. Written there by the exporter: change
``export/templates/admission.py`` instead.
"""

import http.client
import math
import os
import re
import threading
import time
import urllib.parse
from collections import deque
from itertools import islice
from typing import Any

import numpy as np

LOOK_S = 0.05
"""Between two looks at the metrics, while requests come or wait. A look costs Triton about 0.2 ms of CPU."""
MEMORY_S = 2.0
"""How long ago work was done that still counts for the speed: its weight falls to 1/e after so many seconds."""
LEARN_S = 0.2
"""The speed is not known until so much time was spent with requests waiting. Nothing is refused until then."""
STUCK_S = 2.0
"""A model that finishes nothing for so long, while requests wait, is taken to be stuck: it has the speed 0."""
BURST, PATIENCE_S, SHORT = 2.5, 0.5, 0.25
"""While the line was short (a share of the longest wait) in the last seconds, so many times the longest wait is fine."""
METRICS_URL = "http://127.0.0.1:8002/metrics"
SAMPLE = re.compile(
    rb'nv_inference_(pending_request_count|request_success|request_failure)\{model="([^"]+)"([^}]*)\} (\d+)'
)


class Line:
    """Requests that wait for one model, and how fast it works them off.

    Work is in whatever unit :meth:`joined` is told, such as tokens.
    """

    def __init__(self) -> None:
        self.latest: deque[int] = deque(maxlen=10_000)
        self.each = 1.0  # work of a request, on average over those that wait
        self.work = 0.0
        self._looked_s = 0.0
        self._pending, self._finished = 0, 0
        self._done = self._busy_s = 0.0

    def joined(self, work: int) -> None:
        """A request got in line."""
        self.latest.append(work)
        self.work += work

    def looked(self, pending: int, finished: int, now_s: float) -> None:
        """What the metrics say.

        :param pending: requests that wait now.
        :param finished: requests that ever ended.
        """
        passed_s = now_s - self._looked_s
        # requests end in the order in which they came, so those that wait are the latest
        waiting = list(islice(reversed(self.latest), max(1, pending)))
        if waiting:
            self.each = sum(waiting) / len(waiting)
        if pending and self._pending and self._looked_s:  # all of the time between was spent working
            fade = math.exp(-passed_s / MEMORY_S)
            self._done = self._done * fade + (finished - self._finished) * self.each
            self._busy_s = self._busy_s * fade + passed_s
        self._looked_s, self._pending, self._finished = now_s, pending, finished
        self.work = pending * self.each

    def wait_s(self, now_s: float, more: int = 0) -> float:
        """Seconds that a request which joins now would wait; 0 while the speed is not known.

        :param more: requests that are about to join before it.
        """
        if self._busy_s < LEARN_S or (not self._done and self._busy_s < STUCK_S):
            return 0.0
        left = self.work + more * self.each - self._done / self._busy_s * (now_s - self._looked_s)
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
        self.entry, self.behind = Line(), Line()
        self.lines = {config["name"]: self.entry} | ({behind: self.behind} if behind else {})
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
        passed = 0
        with self.lock:
            now_s = time.monotonic()
            for timeout_us in timeouts_us:
                wait_s = self.entry.wait_s(now_s) + self.behind.wait_s(now_s, more=passed)
                if wait_s <= self.max_wait_s * SHORT:
                    self.short_s = now_s
                patient = now_s - self.short_s < PATIENCE_S
                limit_s = min(self.max_wait_s * (BURST if patient else 1), timeout_us / 1e6 or math.inf)
                if wait_s <= limit_s:
                    found.append(None)
                    passed += 1
                else:
                    found.append(
                        f"Exceeds maximum queue size: what waits before it takes {wait_s * 1000:.0f} ms, it may wait "
                        f"{limit_s * 1000:.0f} ms; send it again later, or less at a time"
                    )
        return found

    def admitted(self, work: list[int]) -> None:
        """The requests that go on to the model behind, each with its work."""
        self.work_came.set()  # so that somebody looks again when they are there
        with self.lock:
            for each in work:
                self.behind.joined(each)

    def _watch(self, metrics: urllib.parse.SplitResult) -> None:
        connection = http.client.HTTPConnection(metrics.hostname or "127.0.0.1", metrics.port, timeout=2)
        while True:
            self.work_came.wait()
            self.work_came.clear()
            try:
                connection.request("GET", metrics.path)
                found = read(connection.getresponse().read())
            except (OSError, http.client.HTTPException):
                connection.close()
                time.sleep(1)
                continue
            with self.lock:
                now_s = time.monotonic()
                for name, line in self.lines.items():
                    line.looked(*found.get(name, (0, 0)), now_s)
                    if found.get(name, (0, 0))[0]:
                        self.work_came.set()
            time.sleep(LOOK_S)


def read(metrics: bytes) -> dict[str, tuple[int, int]]:
    """By model, the requests that wait and those that ended, from Triton's metrics; over all its versions.

    A request that was cancelled while it waited took no work, and does not count as ended.
    """
    found: dict[str, tuple[int, int]] = {}
    for raw in metrics.splitlines():
        match = SAMPLE.match(raw)
        if match is None or b'reason="CANCELED"' in match[3]:
            continue
        name = match[2].decode()
        pending, ended = found.get(name, (0, 0))
        if match[1] == b"pending_request_count":
            pending += int(match[4])
        else:
            ended += int(match[4])
        found[name] = (pending, ended)
    return found


def tokens_of(responses: list[Any]) -> list[int]:
    """The tokens in each response that goes on; ids below 0 are padding that costs nothing."""
    ids = (response.output_tensors()[0].as_numpy() for response in responses if not response.has_error())
    return [int(np.count_nonzero(each >= 0)) for each in ids]
