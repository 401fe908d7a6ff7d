"""The cascade's metrics, as Triton shows them on its metrics port.

To change a metric of Triton costs a call to another process, so counts are kept here and handed over once a second.
Histograms are counters with the label ``le``, as Prometheus stores them: Triton's own kind takes one value a call.

Stands beside the ``model.py`` that uses it; written there by the exporter: change
``export/templates/cascade_metrics.py`` instead.
"""

import threading
from collections import defaultdict
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

PREFIX = "tritox_cascade_"
EVERY_S = 1.0
SCORE_BOUNDS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
COUNTERS = {
    "comments_total": "Comments asked for, refused ones included",
    "cache_hits_total": "Comments answered from the cache",
    "cache_misses_total": "Different comments that the cache did not have",
    "coalesced_total": "Comments that waited for the same comment, in the same batch or already under way",
    "stage_comments_total": "Comments that a stage answered (label stage: the stage's name, or encoder)",
    "stage_failures_total": "Batches on which a stage failed, so that the next one took them",
    "encoder_batches_total": "Batches sent to the encoder",
    "encoder_failures_total": "Batches that the encoder refused",
    "encoder_us_total": "Microseconds that batches spent at the encoder, queueing there included",
    "wait_us_total": "Microseconds that comments waited here for their turn at the encoder",
    "truncated_total": "Comments answered of which not all was read",
    "refused_total": "Requests refused (label reason: invalid, full, deadline, cancelled, encoder)",
    "score_bucket": "Answered comments by score (label le: up to this score)",
    "score_count": "Answered comments",
    "score_sum": "Sum of the scores",
}
GAUGES = {
    "cache_bytes": "Bytes that the cache takes",
    "cache_entries": "Entries in the cache",
    "rows_in_flight": "Comments on their way to the encoder or in it",
}


Series = tuple[str, tuple[tuple[str, str], ...]]
"""A metric's name, and the labels that it has beyond those of all."""


class Metrics:
    """:param labels: of the scores, for their histograms; ``own`` are the labels that every metric has."""

    def __init__(self, labels: list[str], own: dict[str, str]) -> None:
        self.labels = labels
        self.own = own
        self.families = {name: _family(name, text, pb_utils.MetricFamily.COUNTER) for name, text in COUNTERS.items()}
        self.families |= {name: _family(name, text, pb_utils.MetricFamily.GAUGE) for name, text in GAUGES.items()}
        self.metrics: dict[Series, Any] = {}
        self.lock = threading.Lock()
        self.counts: defaultdict[Series, float] = defaultdict(float)
        self.scores: list[np.ndarray] = []
        for name in (*COUNTERS, *GAUGES):  # so that they are there from the start, as zeros
            if name not in ("stage_comments_total", "refused_total") and not name.startswith("score_"):
                self.metric(name, ())

    def add(self, name: str, count: float, **more: str) -> None:
        if count:
            with self.lock:
                self.counts[name, tuple(more.items())] += count

    def observe(self, scores: np.ndarray) -> None:
        """:param scores: (comments, labels), not to be changed afterwards."""
        with self.lock:
            self.scores.append(scores)

    def publish(self, gauges: dict[str, float]) -> None:
        """Hand what was counted since the last time over to Triton."""
        with self.lock:
            counts, self.counts = self.counts, defaultdict(float)
            scores, self.scores = self.scores, []
        if scores:
            counts.update(self.histogram(np.concatenate(scores)))
        for (name, more), count in counts.items():
            metric = self.metric(name, more)
            if count:
                metric.increment(count)
        for name, value in gauges.items():
            self.metric(name, ()).set(value)

    def histogram(self, scores: np.ndarray) -> dict[Series, float]:
        counts: dict[Series, float] = {}
        for label, column in zip(self.labels, scores.T, strict=True):
            up_to = np.searchsorted(np.sort(column), np.array(SCORE_BOUNDS, np.float32), side="right")
            for bound, count in zip((*map(str, SCORE_BOUNDS), "+Inf"), (*up_to, len(column)), strict=True):
                counts["score_bucket", (("label", label), ("le", bound))] = float(count)
            counts["score_count", (("label", label),)] = float(len(column))
            counts["score_sum", (("label", label),)] = float(np.nansum(column, dtype=np.float64))
        return counts

    def metric(self, name: str, more: tuple[tuple[str, str], ...]) -> Any:
        found = self.metrics.get((name, more))
        if found is None:
            found = self.metrics[name, more] = self.families[name].Metric(labels={**self.own, **dict(more)})
        return found


def _family(name: str, description: str, kind: Any) -> Any:
    return pb_utils.MetricFamily(name=PREFIX + name, description=description, kind=kind)
