"""Counters and times in the text format of Prometheus."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict

BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """Of one process, used by one event loop."""

    def __init__(self) -> None:
        self.under_way = 0
        self.texts = 0
        self.suggestions = 0
        self.switches = 0
        self._requests: Counter[tuple[str, int, str]] = Counter()
        self._limited: Counter[str] = Counter()
        self._times: dict[str, list[int]] = defaultdict(lambda: [0] * (len(BUCKETS_S) + 1))
        self._seconds: Counter[str] = Counter()

    def request(self, route: str, status: int, key: str, seconds: float) -> None:
        self._requests[route, status, key] += 1
        self._times[route][bisect_left(BUCKETS_S, seconds)] += 1
        self._seconds[route] += seconds  # type: ignore[assignment]

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
            total = 0
            for bound, count in zip((*BUCKETS_S, "+Inf"), counts, strict=True):
                total += count
                lines.append(f'{name}_bucket{{route="{route}",le="{bound}"}} {total}')
            lines.append(f'{name}_sum{{route="{route}"}} {self._seconds[route]:.6f}')
            lines.append(f'{name}_count{{route="{route}"}} {total}')
        name = "tritox_gateway_rate_limited_total"
        lines += [f"# HELP {name} Requests refused for the rate of their key.", f"# TYPE {name} counter"]
        lines += [f'{name}{{key="{key}"}} {count}' for key, count in sorted(self._limited.items())]
        for name, kind, text, value in (
            ("under_way", "gauge", "Requests not answered yet.", self.under_way),
            ("texts_total", "counter", "Texts scored.", self.texts),
            ("suggestions_total", "counter", "Suggested scores stored.", self.suggestions),
            ("switches_total", "counter", "Changes of the active model.", self.switches),
        ):
            full = f"tritox_gateway_{name}"
            lines += [f"# HELP {full} {text}", f"# TYPE {full} {kind}", f"{full} {value}"]
        return "\n".join(lines) + "\n"
