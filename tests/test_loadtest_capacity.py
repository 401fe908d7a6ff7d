"""The highest rate that meets the objectives, on simulated servers and a real stub, and the plan made of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtest import capacity
from loadtest.capacity import Found, Prices, Probe, counts, plan, read_prices, search, table
from loadtest.responder import Responder
from loadtest.slo import Slo, judge, measure

ATTEMPTS = 3
"""A machine that is busy with something else makes the stub server slower than it says."""
NOTHING = measure([])


def simulated(limit: float, generator: float = math.inf) -> Callable[[float], Probe]:
    """A server that meets its objectives up to ``limit``, loaded by a generator that can offer so much."""

    def probe(rate: float) -> Probe:
        return Probe(rate, rate <= limit, "too slow" if rate > generator else None, NOTHING, (), 0.1)

    return probe


@pytest.mark.parametrize("start", [1.0, 37.0, 900.0, 50_000.0])
@pytest.mark.parametrize("limit", [12.0, 400.0, 7919.0])
def test_the_search_finds_the_limit_from_anywhere(start: float, limit: float) -> None:
    probe = simulated(limit)
    rate, limited, tried = search(probe, probe, start, 0.05)
    assert 0.95 * limit <= rate <= limit and limited is None
    assert len(tried) <= capacity.MOST_PROBES + 1


def test_what_does_not_hold_for_longer_is_stepped_down() -> None:
    rate, _, tried = search(simulated(100), simulated(90), 80, 0.05)
    assert 0.85 * 90 <= rate <= 90 and tried[-1].met
    assert search(simulated(100), simulated(10), 80, 0.05)[0] == 0


def test_a_server_that_never_meets_its_objectives() -> None:
    rate, limited, tried = search(simulated(0), simulated(0), 100, 0.05)
    assert (rate, limited) == (0, None) and len(tried) < 10


def test_a_generator_that_is_too_slow_is_told_from_a_server() -> None:
    probe = simulated(1000, generator=300)
    rate, limited, _ = search(probe, probe, 100, 0.05)
    assert 280 <= rate <= 300 and limited == "too slow"
    said = table([Found(1, rate, limited)], None, 1.0)
    assert "INVALID: with 1 the generator set the limit, not the server: too slow" in said


def test_one_hiccup_of_the_generator_is_no_limit() -> None:
    seen = []

    def probe(rate: float) -> Probe:
        seen.append(rate)
        return Probe(rate, rate <= 100, "a hiccup" if len(seen) == 1 else None, NOTHING, (), 0.1)

    rate, limited, _ = search(probe, probe, 80, 0.05)
    assert 95 <= rate <= 100 and limited is None


def test_a_probe_must_keep_up() -> None:
    from test_loadtest_poisson import an_outcome

    slo, outcome = Slo(p99_ms=1000), an_outcome(1000, 1000, 0)
    assert Probe.of(1000, outcome, slo).met
    outcome.answered = 850
    found = Probe.of(1000, outcome, slo)
    assert not found.met and all(v.met for v in judge(slo, outcome.measured()))
    assert found.line().endswith("MISSED  a queue grows")


def a_plan(found: Found, prices: Prices | None = None, spare: int = 1) -> capacity.Plan:
    return plan(found, 10_000, utilisation=0.7, spare=spare, cores=2, gpus=0.5, comments=4, prices=prices)


def test_a_plan_counts_replicas_with_headroom_and_a_spare() -> None:
    made = a_plan(Found(2, 400, None))  # 200 each, 140 at 70%
    assert (made.needed, made.replicas, made.cores, made.gpus) == (72, 73, 146, 36.5)
    assert made.load_degraded == pytest.approx(10_000 / (72 * 200)) and made.load_degraded <= 0.7
    assert made.load == pytest.approx(10_000 / (73 * 200))
    assert made.per_million_comments is None
    assert a_plan(Found(1, 10_000 / 0.7, None), spare=0).replicas == 1


def test_cost_is_what_the_prices_say() -> None:
    made = a_plan(Found(2, 400, None), Prices("XYZ", core_hour=0.1, gpu_hour=2.0))
    assert made.per_hour == pytest.approx(146 * 0.1 + 36.5 * 2.0)
    assert made.per_million_comments == pytest.approx(made.per_hour / (10_000 * 4 * 3600 / 1e6))
    said = table([Found(1, 250, None), Found(2, 400, None)], made, 4.0)
    assert "XYZ for a million comments" in said
    assert said.splitlines()[2].split() == ["2", "400.0", "1600.0", "200.0", "80%"]
    assert "how 73 replicas scale is taken from 2" in said
    assert "no cost: give your prices" in table([Found(2, 400, None)], a_plan(Found(2, 400, None)), 4.0)


def test_replicas_are_doubled_up_to_all() -> None:
    assert [counts(n) for n in (1, 2, 3, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("core_hour: 1", "must hold lines such as"),
        ("currency: EUR\nhour: 1", "must hold lines such as"),
        ("currency: EUR\ncore_hour: cheap", "core_hour is 'cheap', must be a number of at least 0"),
        ("currency: [", "cannot be read as YAML"),
    ],
)
def test_wrong_prices(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prices(path)
    path.write_text("currency: EUR\ngpu_hour: 3\n")
    assert read_prices(path) == Prices("EUR", 0.0, 3.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--url", "127.0.0.1:1"], "127.0.0.1:1 cannot be reached"),
        (["--utilisation", "1.5"], "--utilisation is 1.5, must be at most 1"),
        (["--spare", "-1"], "--spare is -1, must be at least 0"),
        (["--url", "x:1", "--replicas", "2"], "--replicas starts servers, --url names some"),
        (["--prices", "x.yaml", "--core-hour", "1"], "--prices is a file with both prices"),
        (["--prices", "none.yaml"], "none.yaml cannot be read"),
    ],
)
def test_what_cannot_run_is_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert capacity.main(options) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1


def test_a_stub_is_searched_and_a_plan_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On any machine: a stub can be slower than it says, and never faster."""
    known = 500.0  # requests/s: four workers that take 8 ms
    slo, out = tmp_path / "slo.yaml", tmp_path / "x.json"
    slo.write_text("p99_ms: 5000\nmax_error_rate: 0\nmin_requests_per_s: 1000000\n")
    with Responder("model", service_s=4 / known, parallel=4) as stub:
        options = ["--url", stub.url, "--slo", str(slo), "--seconds", "0.4", "--settle", "0.05", "--json", str(out)]
        code = capacity.main([*options, "--start-rate", "350", "--precision", "0.5", "--target", "5000"])
    said, result = capsys.readouterr(), json.loads(out.read_text())
    (found,) = result["capacity"]
    probes = found["probes"]
    assert len(said.err.splitlines()) == 1 + len(probes) and stub.seen[0] >= 200
    assert any(not p["met"] for p in probes) and not any(p["met"] for p in probes if p["rate"] > 1.3 * known)
    last = probes[-1]  # a rate that was held for twice as long
    assert found["requests_per_s"] == (last["rate"] if last["met"] and not last["invalid"] else 0)
    plan = result["plan"]
    assert (plan is not None) is (found["requests_per_s"] > 0)
    assert code == (3 if not result["valid"] else 0 if plan else 1)
    assert "p99_ms" in result["slo"] and result["slo"]["min_requests_per_s"] is None  # the rate is what is searched
    if plan:
        assert plan["needed"] == math.ceil(5000 / (0.7 * found["requests_per_s"]))
        assert f"{plan['replicas']} with 1 to spare" in said.out


@pytest.mark.slow
def test_the_known_capacity_of_a_stub_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = 500.0  # requests/s: four workers that take 8 ms
    slo, out = tmp_path / "slo.yaml", tmp_path / "x.json"
    slo.write_text("p99_ms: 120\nmax_error_rate: 0\nmin_requests_per_s: 1000000\n")
    with Responder("model", service_s=4 / known, parallel=4) as stub:
        options = ["--url", stub.url, "--slo", str(slo), "--seconds", "1.5", "--settle", "0.3", "--json", str(out)]
        for _ in range(ATTEMPTS):
            code = capacity.main([*options, "--start-rate", "400", "--precision", "0.1", "--target", "5000"])
            said, result = capsys.readouterr().out, json.loads(out.read_text())
            (found,) = result["capacity"]
            if code == 0 and found["requests_per_s"] >= 0.9 * known:
                break
    assert code == 0, said
    assert found["requests_per_s"] == pytest.approx(known, rel=0.1)
    assert result["plan"]["needed"] == math.ceil(5000 / (0.7 * found["requests_per_s"]))
    assert found["probes"][-1]["met"] and any(not p["met"] for p in found["probes"])
    assert f"{result['plan']['replicas']} with 1 to spare" in said
