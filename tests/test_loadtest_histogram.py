"""Percentiles from buckets, and what is added up over processes."""

from __future__ import annotations

import json
import random

import pytest

from loadtest.histogram import ERROR, Histogram
from loadtest.slo import Sample, measure, percentile
from loadtest.tally import ROWS, Tally

SHARES = (0.0, 0.01, 0.5, 0.9, 0.99, 0.999, 1.0)


def filled(values: list[float]) -> Histogram:
    made = Histogram()
    for value in values:
        made.add(value)
    return made


@pytest.mark.parametrize("seed", range(3))
def test_percentiles_are_within_the_stated_error(seed: int) -> None:
    rng = random.Random(seed)
    values = [rng.lognormvariate(1, 2) for _ in range(20_000)]
    made, ordered = filled(values), sorted(values)
    for share in SHARES:
        assert made.percentile(share) == pytest.approx(percentile(ordered, share), rel=ERROR * 1.0001), share
    assert (made.lowest, made.highest, made.count) == (ordered[0], ordered[-1], 20_000)
    assert len(made.to_json()["buckets"]) < 2000


def test_parts_in_any_order_are_the_whole() -> None:
    rng = random.Random(4)
    values = [rng.expovariate(0.1) for _ in range(8000)]
    parts = [filled(values[i::8]) for i in range(8)]
    rng.shuffle(parts)
    merged = Histogram()
    for part in parts:
        merged.merge(Histogram.from_json(json.loads(json.dumps(part.to_json()))))
    whole = filled(values)
    assert merged.to_json() | {"total": 0} == whole.to_json() | {"total": 0}
    assert merged.total == pytest.approx(whole.total)
    assert [merged.percentile(s) for s in SHARES] == [whole.percentile(s) for s in SHARES]


def test_ends_and_nothing() -> None:
    assert Histogram().percentile(0.5) is None and Histogram().share_within(1) == 1
    empty = Histogram.from_json(Histogram().to_json())
    empty.merge(Histogram())
    assert empty.percentile(0.99) is None
    one = filled([7.0])
    assert [one.percentile(s) for s in SHARES] == [7.0] * len(SHARES)
    assert filled([0.0, -1.0]).percentile(0.0) == -1.0  # a clock that was set back
    assert filled([1.0, 10.0, 100.0, 1000.0]).share_within(50) == 0.5


def test_histograms_of_other_errors_do_not_merge() -> None:
    with pytest.raises(ValueError, match="0.005 and 0.1 do not merge"):
        Histogram().merge(Histogram(0.1))
    with pytest.raises(ValueError, match="the error is 1, must be a share between 0 and 1"):
        Histogram(1)


def test_a_tally_says_what_the_samples_say() -> None:
    rng = random.Random(1)
    samples = [
        Sample(1000 + 9 * rng.random(), rng.expovariate(50), rng.choice((1, 16)), rng.choice((None, None, "Timeout")))
        for _ in range(6000)
    ]
    parts = [Tally() for _ in range(3)]
    for i, sample in enumerate(samples):
        parts[i % 3].add(sample)
    merged = Tally()
    for part in parts:
        merged.merge(Tally.from_json(json.loads(json.dumps(part.to_json()))))
    exact, got = measure(samples), merged.measured()
    assert (got.requests, got.failures, got.errors) == (exact.requests, exact.failures, exact.errors)
    assert (got.duration_s, got.comments_per_s) == (exact.duration_s, exact.comments_per_s)
    for name in ("p50_ms", "p95_ms", "p99_ms"):
        assert getattr(got, name) == pytest.approx(getattr(exact, name), rel=ERROR * 1.0001)
    assert got.max_ms == exact.max_ms
    rows = merged.timeline()
    assert sum(r["requests"] for r in rows) == 6000 and sum(r["failures"] for r in rows) == exact.failures
    assert [r["at_s"] for r in rows] == list(range(9))
    assert merged.measured(window_s=100).requests_per_s == pytest.approx((6000 - exact.failures) / 100)


def test_a_long_run_has_a_short_timeline() -> None:
    tally = Tally()
    for at in range(0, 10_000, 10):
        tally.add(Sample(at, 0.01, 1))
    rows = tally.timeline()
    assert len(rows) <= ROWS and sum(r["requests"] for r in rows) == 1000
    assert sum(r["seconds"] for r in rows) == 9991


def test_an_empty_tally() -> None:
    again = Tally.from_json(json.loads(json.dumps(Tally().to_json())))
    assert again.timeline() == [] and again.measured() == measure([])
