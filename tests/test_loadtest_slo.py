from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.slo import DEFAULT_PATH, InvalidSlo, Sample, Slo, judge, measure, percentile, read_slo


def samples(*durations_ms: float, comments: int = 1, error: str | None = None) -> list[Sample]:
    """Requests one after the other."""
    out, now = [], 100.0
    for ms in durations_ms:
        out.append(Sample(now, ms / 1000, comments, error))
        now += ms / 1000
    return out


def test_percentiles_are_exact_above_100_ms() -> None:
    measured = measure(samples(*[100.0 + i for i in range(1, 101)]))
    assert [measured.p50_ms, measured.p95_ms, measured.p99_ms, measured.max_ms] == pytest.approx([150, 195, 199, 200])


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (0.99, 4), (1.0, 4)])
def test_percentile_is_the_nearest_rank(share: float, value: float) -> None:
    assert percentile([1, 2, 3, 4], share) == value


def test_rates_count_what_succeeded() -> None:
    good, bad = samples(500, 500, comments=16), samples(250, 250, 250, 250, comments=16, error="ServerBusy")
    measured = measure(good + bad)
    assert (measured.requests, measured.failures, measured.errors) == (6, 4, {"ServerBusy": 4})
    assert measured.duration_s == pytest.approx(1.0)
    assert measured.requests_per_s == pytest.approx(2.0)
    assert measured.comments_per_s == pytest.approx(32.0)
    assert measured.error_rate == pytest.approx(4 / 6)
    assert measured.p50_ms == pytest.approx(500)


def test_each_objective_is_judged_on_its_own_side() -> None:
    measured = measure(samples(*[10.0] * 98, 50.0, 90.0, comments=2))
    slo = Slo(p50_ms=10.5, p95_ms=9.5, p99_ms=50.5, max_error_rate=0.0, min_requests_per_s=80, min_comments_per_s=1000)
    verdicts = {v.name: v.met for v in judge(slo, measured)}
    assert verdicts == {
        "p50_ms": True,
        "p95_ms": False,
        "p99_ms": True,
        "max_error_rate": True,
        "min_requests_per_s": True,  # 89.3
        "min_comments_per_s": False,  # 178.6
    }


def test_what_was_not_measured_is_missed() -> None:
    slo = Slo(p50_ms=1e9, max_error_rate=1.0, min_requests_per_s=0.001)
    assert [v.met for v in judge(slo, measure([]))] == [False, False, False]
    assert [v.met for v in judge(slo, measure(samples(1, 1, error="Timeout")))] == [False, True, False]


def test_only_what_is_set_is_judged() -> None:
    assert [v.name for v in judge(Slo(p95_ms=5), measure(samples(1)))] == ["p95_ms"]


def test_the_default_file_can_be_read() -> None:
    assert read_slo(DEFAULT_PATH).p95_ms is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p95: 100", "has the unknown key p95, must be of p50_ms, p95_ms"),
        ("p95_ms: fast", "p95_ms is 'fast', must be a number"),
        ("p95_ms: yes", "p95_ms is True, must be a number"),
        ("p95_ms: -1", "p95_ms is -1, must be a number of at least 0"),
        ("p95_ms: .nan", "p95_ms is nan"),
        ("p95_ms: .inf", "p95_ms is inf"),
        ("max_error_rate: 5", r"max_error_rate is 5, must be a share in \[0, 1\]"),
        ("p95_ms:", "no objective is set"),
        ("", "must hold lines such as"),
        ("- p95_ms", "must hold lines such as"),
        ("p95_ms: [", "is not YAML"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "slo.yaml"
    path.write_text(text)
    with pytest.raises(InvalidSlo, match=message) as caught:
        read_slo(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidSlo, match="none.yaml cannot be read .No such file"):
        read_slo(tmp_path / "none.yaml")
