"""Counters among Triton's own metrics.

Stands beside the ``model.py`` that counts with it, in its version folder. Written there by the exporter: change
``export/templates/counters.py`` instead.
"""

import threading
from collections.abc import Mapping

import triton_python_backend_utils as pb_utils

SECONDS_BETWEEN = 0.25


class Counters:
    """Counters that all instances of a model add to.

    :param names: with what each counts.
    :param labels: of all of them.
    """

    def __init__(self, names: Mapping[str, str], labels: Mapping[str, str]) -> None:
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
        """Each counter costs a message to Triton, so they are sent a few times a second, and not with every call."""
        while not self.stopped.wait(SECONDS_BETWEEN):
            with self.lock:
                counts, self.waiting = self.waiting, dict.fromkeys(self.waiting, 0)
            for name, count in counts.items():
                if count:
                    self.metrics[name].increment(count)

    def stop(self) -> None:
        self.stopped.set()
        self.thread.join()
