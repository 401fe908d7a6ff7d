"""Counters among Triton's own metrics.

Stands beside the ``model.py`` that counts with it, in its version folder. Written there by the exporter: change
``export/templates/counters.py`` instead.
"""

import itertools
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

SECONDS_BETWEEN = 0.25
TICKS_BETWEEN_HISTOGRAMS = 12


class Counters:
    """Counters that all instances of a model add to.

    :param names: with what each counts.
    :param labels: of all of them.
    :param histograms: that are sent with them.
    """

    def __init__(
        self, names: Mapping[str, str], labels: Mapping[str, str], histograms: Sequence["Histogram"] = ()
    ) -> None:
        self.histograms = histograms
        self.families = []  # a metric lives as long as its family
        self.metrics = {}
        for name, text in names.items():
            family = pb_utils.MetricFamily(name=name, description=text, kind=pb_utils.MetricFamily.COUNTER)
            self.families.append(family)
            self.metrics[name] = family.Metric(labels=dict(labels))
        self.waiting = dict.fromkeys(names, 0)
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.send, daemon=True)
        self.thread.start()

    def add(self, **counts: int) -> None:
        with self.lock:
            for name, count in counts.items():
                self.waiting[name] += count

    def send(self) -> None:
        """Each counter costs a message to Triton, so they are sent a few times a second, and not with every call;
        histograms, which are many, every few seconds.
        """
        for tick in itertools.count(1):
            if self.stopped.wait(SECONDS_BETWEEN):
                return
            with self.lock:
                counts, self.waiting = self.waiting, dict.fromkeys(self.waiting, 0)
            for name, count in counts.items():
                if count:
                    self.metrics[name].increment(count)
            if tick % TICKS_BETWEEN_HISTOGRAMS == 0:
                for histogram in self.histograms:
                    histogram.send()

    def stop(self) -> None:
        self.stopped.set()
        self.thread.join()


class Histogram:
    """How many values are up to each bound: counters with the label ``le``, as Prometheus stores a histogram. (Triton's
    own kind takes one value a call.) They are there from the start, as zeros.

    :param bounds: ascending; one more counts all values.
    """

    def __init__(self, name: str, text: str, bounds: Sequence[float], labels: Mapping[str, str]) -> None:
        self.bounds = np.array(bounds)
        self.families = {  # a metric lives as long as its family
            part: pb_utils.MetricFamily(
                name=f"{name}_{part}", description=f"{text}: {part}", kind=pb_utils.MetricFamily.COUNTER
            )
            for part in ("bucket", "count", "sum")
        }
        self.metrics: list[Any] = [
            *(self.families["bucket"].Metric(labels={**labels, "le": str(le)}) for le in (*bounds, "+Inf")),
            *(self.families[part].Metric(labels=dict(labels)) for part in ("count", "sum")),
        ]
        self.waiting: list[np.ndarray] = []
        self.lock = threading.Lock()

    def observe(self, values: np.ndarray) -> None:
        """:param values: not to be changed afterwards. *Shape:* ``(values,)``"""
        with self.lock:
            self.waiting.append(values)

    def send(self) -> None:
        with self.lock:
            waiting, self.waiting = self.waiting, []
        if not waiting:
            return
        values = np.concatenate(waiting)
        up_to = np.searchsorted(np.sort(values), self.bounds, side="right")
        counts = (*up_to.tolist(), len(values), len(values), float(values.sum()))
        for metric, count in zip(self.metrics, counts, strict=True):
            if count:
                metric.increment(count)
