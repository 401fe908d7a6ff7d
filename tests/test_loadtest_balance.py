"""What Envoy costs and what a loss looks like: the numbers made of calls, and a short real run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from loadtest.balance import Added, Load, Scaling, main, markdown, summary, verdicts
from loadtest.report import insert


def load(replicas: int, rate: float, cores: float) -> Load:
    return Load(replicas, rate, rate, cores, 0.3, 0.4, 0)


def calls(*slow: tuple[float, float], rate: int = 100) -> list[tuple[float, float]]:
    """From 5 s before the loss to 10 s after it, of 10 ms each, but for some that were due at a time."""
    return [(i / rate, 0.01) for i in range(-5 * rate, 10 * rate)] + list(slow)


def test_scaling_is_told_per_core_that_replicas_got() -> None:
    """Two replicas that share 1.4 cores do no worse for each core than one that has one of its own."""
    scaling = Scaling("cpu", load(1, 100, 1.0), load(2, 137, 1.4))
    assert scaling.raw == pytest.approx(1.37)
    assert scaling.accounted == pytest.approx(2 * (137 / 1.4) / 100)


def test_recovery_is_when_no_second_is_slow_any_more() -> None:
    well = summary("kill", 3, 300, 180, calls(), [], 250)
    assert (well.recovered_s, well.errors, well.error) == (0.0, 0, None)
    assert well.p99_after_ms == pytest.approx(10)
    slow = calls(*[(0.2 + i / 100, 0.9) for i in range(20)], *[(2.5, 0.8)] * 5)
    found = summary("kill", 3, 300, 180, slow, ["ServerUnavailable: x"], 250)
    assert found.recovered_s == 3.0 and found.errors == 1 and found.error == "ServerUnavailable: x"
    assert [p99 > 250 for begin, p99 in found.windows if 0 <= begin < 4] == [True, False, True, False]
    never = summary("kill", 3, 300, 180, calls(*[(8.5, 0.9)] * 20), [], 250)
    assert never.recovered_s is None


def test_before_the_loss_does_not_count_as_recovery() -> None:
    assert summary("kill", 3, 300, 180, calls(*[(-2.5, 3.0)] * 20), [], 250).recovered_s == 0.0


def result(**changes: Any) -> dict[str, Any]:
    scaling = Scaling("cpu", load(1, 100, 1.0), load(2, 137, 1.4))
    death = summary("kill", 3, 300, 180, calls(), [], 250)
    return {
        "machine": {"cpu": "a CPU", "cores": 2},
        "commit": "0123456789abcdef",
        "command": "python -m loadtest.balance",
        "p99_ms": 250,
        "verdicts": [asdict(v) for v in verdicts([scaling], Added(2.0, 2.6, 0.6, 100), [death])],
        "scaling": [asdict(scaling)],
        "deaths": [asdict(death)],
        **changes,
    }


def test_verdicts_and_the_table_of_them(tmp_path: Path) -> None:
    found = {v["name"]: v["met"] for v in result()["verdicts"]}
    assert found == {"min_scaling_cpu": True, "added_p50_ms": True, "kill_errors": True, "kill_recovery_s": True}
    slow = summary("kill", 3, 300, 180, calls(*[(8.5, 0.9)] * 20), ["x"], 250)
    missed = {v.name: v.met for v in verdicts([], Added(2.0, 3.6, 1.6, 100), [slow])}
    assert missed == {"added_p50_ms": False, "kill_errors": False, "kill_recovery_s": False}
    table = markdown(result())
    assert "| what Envoy adds at the median, with TLS before and behind it, ms | ≤ 1 | 0.6 | ok |" in table
    assert "one of 3 killed at 60% of their capacity" in table and "commit 0123456789ab" in table
    page, file = tmp_path / "page.md", tmp_path / "result.json"
    page.write_text("a\n<!-- balance -->\nold\n<!-- /balance -->\nb\n")
    file.write_text(json.dumps(result()))
    assert main(["--table", str(file), "--page", str(page)]) == 0
    assert page.read_text() == f"a\n<!-- balance -->\n{table}\n<!-- /balance -->\nb\n"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="must hold <!-- balance -->"):
        insert(page, "balance", table)
    assert main(["--table", str(file), "--page", str(page)]) == 2


@pytest.mark.slow
@pytest.mark.triton
def test_a_short_real_run(tmp_path: Path) -> None:
    file = tmp_path / "balance.json"
    options = ["--only", "latency", "--only", "loss", "--fault", "kill", "--seconds", "3", "--rounds", "2"]
    assert main([*options, "--requests", "50", "--json", str(file)]) in (0, 1)
    found = json.loads(file.read_text())
    assert {v["name"] for v in found["verdicts"]} == {"added_p50_ms", "kill_errors", "kill_recovery_s"}
    assert found["deaths"][0]["errors"] == 0 and found["deaths"][0]["requests"] > 100
