"""Counters and times in the text format of Prometheus."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
SCORE_BOUNDS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
"""As the models have it among Triton's metrics; the compiled backend in NVIDIA's container has none."""


class Metrics:
    """Of one process, used by one event loop."""

    def __init__(self) -> None:
        self.under_way = 0
        self.texts = 0
        self.suggestions = 0
        self.switches = 0
        self.failed_switches = 0
        self.ready: dict[str, bool] = {}
        self._scores: dict[tuple[str, str, str], list[int]] = {}
        self._score_sums: Counter[tuple[str, str, str]] = Counter()
        self._requests: Counter[tuple[str, int, str]] = Counter()
        self._limited: Counter[str] = Counter()
        self._times: dict[str, list[int]] = defaultdict(lambda: [0] * (len(BUCKETS_S) + 1))
        self._seconds: Counter[str] = Counter()

    def request(self, route: str, status: int, key: str, seconds: float) -> None:
        self._requests[route, status, key] += 1
        self._times[route][bisect_left(BUCKETS_S, seconds)] += 1
        self._seconds[route] += seconds  # type: ignore[assignment]

    def scored(self, model: str, version: str, scores: Mapping[str, float]) -> None:
        """The answer for one text."""
        for label, score in scores.items():
            series = model, version, label
            if series not in self._scores:
                self._scores[series] = [0] * (len(SCORE_BOUNDS) + 1)
            self._scores[series][bisect_left(SCORE_BOUNDS, score)] += 1
            self._score_sums[series] += score  # type: ignore[assignment]

    def limited(self, key: str) -> None:
        self._limited[key] += 1

    def render(self) -> str:
        name = "tritox_gateway_requests_total"
        lines = [f"# HELP {name} Requests answered.", f"# TYPE {name} counter"]
        for (route, status, key), count in sorted(self._requests.items()):
            lines.append(f'{name}{{route="{route}",code="{status}",key="{key}"}} {count}')
        name = "tritox_gateway_request_seconds"
        lines += [f"# HELP {name} Time from the request to its answer.", f"# TYPE {name} histogram"]
        for route, counts in sorted(self._times.items()):
            lines += histogram(name, f'route="{route}"', BUCKETS_S, counts, self._seconds[route])
        name = "tritox_gateway_rate_limited_total"
        lines += [f"# HELP {name} Requests refused for the rate of their key.", f"# TYPE {name} counter"]
        lines += [f'{name}{{key="{key}"}} {count}' for key, count in sorted(self._limited.items())]
        name = "tritox_gateway_score"
        lines += [f"# HELP {name} Scores of texts.", f"# TYPE {name} histogram"]
        for (scorer, version, label), counts in sorted(self._scores.items()):
            own = f'model="{scorer}",version="{version}",label="{label}"'
            lines += histogram(name, own, SCORE_BOUNDS, counts, self._score_sums[scorer, version, label])
        name = "tritox_gateway_model_ready"
        lines += [f"# HELP {name} Whether the active model can answer.", f"# TYPE {name} gauge"]
        lines += [f'{name}{{model="{model}"}} {int(ready)}' for model, ready in self.ready.items()]
        for name, kind, text, value in (
            ("under_way", "gauge", "Requests not answered yet.", self.under_way),
            ("texts_total", "counter", "Texts scored.", self.texts),
            ("suggestions_total", "counter", "Suggested scores stored.", self.suggestions),
            ("switches_total", "counter", "Changes of the active model.", self.switches),
            ("switch_failures_total", "counter", "Changes that the model refused.", self.failed_switches),
        ):
            full = f"tritox_gateway_{name}"
            lines += [f"# HELP {full} {text}", f"# TYPE {full} {kind}", f"{full} {value}"]
        return "\n".join(lines) + "\n"


def histogram(name: str, own: str, bounds: Sequence[float], counts: Sequence[int], values: float) -> list[str]:
    """One series as Prometheus wants it.

    :param own: its labels. :param counts: between the bounds; one more for what is above. :param values: their sum.
    """
    totals = list(itertools.accumulate(counts))
    lines = [
        f'{name}_bucket{{{own},le="{bound}"}} {total}' for bound, total in zip((*bounds, "+Inf"), totals, strict=True)
    ]
    return [*lines, f"{name}_sum{{{own}}} {values:.6f}", f"{name}_count{{{own}}} {totals[-1]}"]
