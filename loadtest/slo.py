"""Service level objectives, what was measured, and the verdict of one on the other."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

DEFAULT_PATH = Path(__file__).with_name("slo.yaml")


class InvalidSlo(ValueError):
    """A file of objectives holds an unknown key or a value that is no limit."""


@dataclass(frozen=True)
class Slo:
    """Limits on what :class:`Measured` holds; ``None`` is not judged. The content of a file such as ``slo.yaml``.

    :param p50_ms: at most this many milliseconds for half of the requests; so on for 95% and 99%.
    :param max_error_rate: failed requests, as a share of all, in [0, 1].
    """

    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    max_error_rate: float | None = None
    min_requests_per_s: float | None = None
    min_comments_per_s: float | None = None

    def __post_init__(self) -> None:
        limits = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        if not limits:
            raise InvalidSlo(f"no objective is set: set at least one of {', '.join(f.name for f in fields(self))}")
        for name, value in limits.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
                raise InvalidSlo(f"{name} is {value!r}, must be a number of at least 0")
        if limits.get("max_error_rate", 0) > 1:
            raise InvalidSlo(f"max_error_rate is {self.max_error_rate}, must be a share in [0, 1]: 0.01 for 1%")


def read_slo(path: Path) -> Slo:
    """:raises InvalidSlo: naming the file, the key, and what it must be."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidSlo(f"{path} cannot be read ({error.strerror}): give a YAML file such as {DEFAULT_PATH}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidSlo(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    known = [f.name for f in fields(Slo)]
    if not isinstance(raw, dict):
        raise InvalidSlo(f"{path} must hold lines such as `p95_ms: 500`, with the keys {', '.join(known)}")
    unknown = [str(key) for key in raw if key not in known]
    if unknown:
        raise InvalidSlo(f"{path} has the unknown key {', '.join(unknown)}, must be of {', '.join(known)}")
    try:
        return Slo(**raw)
    except InvalidSlo as error:
        raise InvalidSlo(f"{path}: {error}") from None


@dataclass(frozen=True, slots=True)
class Sample:
    """One request.

    :param start_s: on any clock that all samples share.
    :param error: the name of the error's class; ``None`` for a request that succeeded.
    """

    start_s: float
    duration_s: float
    comments: int
    error: str | None = None


@dataclass(frozen=True)
class Measured:
    """What a run came to. Latencies are of requests that succeeded, ``None`` where none did.

    :param duration_s: from the first request's start to the last one's end.
    :param requests_per_s: requests that succeeded, as are ``comments_per_s``.
    :param error_rate: failed requests, as a share of all; ``None`` where there were none at all.
    """

    requests: int
    failures: int
    errors: dict[str, int]
    duration_s: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    error_rate: float | None
    requests_per_s: float
    comments_per_s: float


def measure(samples: Sequence[Sample]) -> Measured:
    good = [s for s in samples if s.error is None]
    times_ms = sorted(s.duration_s * 1000 for s in good)
    duration = max(s.start_s + s.duration_s for s in samples) - min(s.start_s for s in samples) if samples else 0.0
    failures = len(samples) - len(good)
    return Measured(
        requests=len(samples),
        failures=failures,
        errors=dict(Counter(s.error for s in samples if s.error is not None)),
        duration_s=duration,
        p50_ms=percentile(times_ms, 0.50),
        p95_ms=percentile(times_ms, 0.95),
        p99_ms=percentile(times_ms, 0.99),
        max_ms=percentile(times_ms, 1.0),
        error_rate=failures / len(samples) if samples else None,
        requests_per_s=len(good) / duration if duration else 0.0,
        comments_per_s=sum(s.comments for s in good) / duration if duration else 0.0,
    )


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value that at least ``share`` of the values do not exceed (nearest rank): one that was measured."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


@dataclass(frozen=True)
class Verdict:
    """One objective: ``measured`` must be at most ``target``, or at least where ``name`` begins with ``min_``."""

    name: str
    target: float
    measured: float | None
    met: bool


def judge(slo: Slo, measured: Measured) -> list[Verdict]:
    """A verdict for each objective that is set. What could not be measured is not met."""
    verdicts = []
    for name in (f.name for f in fields(slo)):
        target = getattr(slo, name)
        if target is None:
            continue
        value = getattr(measured, name.removeprefix("max_").removeprefix("min_"))
        met = value is not None and (value >= target if name.startswith("min_") else value <= target)
        verdicts.append(Verdict(name, float(target), value, met))
    return verdicts
