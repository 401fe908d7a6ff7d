"""The chaos suite: what it makes of calls, and one real SIGKILL."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, ROOT

from loadtest.chaos.__main__ import main
from loadtest.chaos.callers import DEADLINE_S, SLACK_S, SLOW_S, Call, Golden, read_golden
from loadtest.chaos.scenarios import SCENARIOS, MemoryLimit, cut_within, fill, flip, small_disk
from loadtest.chaos.verdict import Check, Limits, Record, markdown, recovery


def calls(*others: Call, seconds: int = 10) -> list[Call]:
    """Of both ways, all well, ten a second each, and others."""
    return [Call(way, n / 10, 0.01) for n in range(10 * seconds) for way in ("grpc", "http")] + list(others)


def record(*others: Call, since: float = 2.0, **limits: Any) -> Record:
    made = Record("x", "a fault", Limits(**limits), whole_s=1.0, compared=16)
    made.see(calls(*others), since, 10.0)
    return made


def test_callers_who_notice_nothing() -> None:
    well = record()
    assert (well.verdict, well.missed(), well.recovery_s, well.errors) == ("held", [], 0.0, {})


@pytest.mark.parametrize(
    ("bad", "missed"),
    [
        (Call("grpc", 3, 0.1, wrong="off by 0.1"), "1 calls with a wrong score"),
        (Call("http", 3, DEADLINE_S + SLACK_S + 0.1), "1 calls went beyond their deadline"),
        (Call("http", 3, float("inf")), "1 calls went beyond their deadline"),
        (Call("grpc", 3, 0.1, "ServerBusy: x"), "1 errors at callers of grpc, allowed are 0"),
        (Call("http", 3, 0.1, "503 x"), "1 errors at callers of http, allowed are 0"),
        (Call("http", 3, 0.1, "500 x", clear=False), "1 errors do not tell callers to come again"),
        (Call("grpc", 5, SLOW_S + 0.1), "callers were served well after 4.6 s, allowed are 3 s"),
        (Call("grpc", 9.5, 0.1, "x"), "callers were served well never, allowed are 3 s"),
    ],
)
def test_each_ill_is_missed(bad: Call, missed: str) -> None:
    found = record(bad)
    assert found.verdict == "missed" and any(text.startswith(missed) for text in found.missed())


def test_errors_that_are_allowed_must_be_clear_and_end() -> None:
    error = Call("http", 3, 0.1, "503 x")
    assert record(error, http_errors=None).verdict == "held"
    assert record(error, error, http_errors=1).verdict == "missed"
    assert record(replace(error, clear=False), http_errors=None).verdict == "missed"
    assert record(error, since=2.0, http_errors=None, recovery_s=1.0).verdict == "missed"


def test_what_was_not_seen_is_not_held() -> None:
    few = Record("x", "a fault", Limits(), whole_s=1.0, compared=16)
    few.see(calls(seconds=1)[:19], 0.2, 2.0)
    assert few.missed() == ["only 19 calls, of 20 at least"]
    broken = record()
    broken.whole_s = None
    assert broken.missed() == ["the fleet was whole never, allowed are 30 s"]
    broken = record()
    broken.checks.append(Check("it says so", False, "silence"))
    assert broken.missed() == ["not so: it says so (silence)"]
    broken = record()
    broken.compared, broken.compared_wrong = 0, 0
    assert broken.missed() == ["no golden comment was scored afterwards"]
    nothing = Record("x", "a fault", Limits(), whole_s=1.0, compared=16)
    nothing.see([], 2.0, 10.0)
    assert nothing.recovery_s is None and nothing.verdict == "missed"


def test_recovery_counts_from_the_fault_to_the_end_of_the_last_bad_call() -> None:
    assert recovery(calls(), 2.0, 10.0) == 0.0
    assert recovery(calls(Call("grpc", 1.0, 0.1, "before")), 2.0, 10.0) == 0.0
    assert recovery(calls(Call("grpc", 1.9, 0.6, "began before")), 2.0, 10.0) == pytest.approx(0.5)
    assert recovery(calls(Call("grpc", 3.0, 2.0)), 2.0, 10.0) == pytest.approx(3.0)
    assert recovery(calls(Call("grpc", 8.0, float("inf"))), 2.0, 10.0) is None
    assert recovery([Call("grpc", 3.0, 0.1, "x")], 2.0, 10.0) is None


def test_a_golden_comment_is_compared_score_by_score() -> None:
    golden = Golden(["a", "b"], [[0.1, 0.9], [0.5, 0.5]], 1e-3)
    assert golden.wrong(0, [0.1, 0.9005]) is None
    assert golden.wrong(0, [0.5, 0.5]) == "golden comment 0 is off by 0.4000"
    assert golden.wrong(1, [0.5]) == "1 scores instead of 2"
    shipped = read_golden(REPOSITORY)
    assert len(shipped.texts) == len(shipped.scores) > 10 and shipped.tolerance == pytest.approx(0.04)


def test_the_table_and_its_place(tmp_path: Path) -> None:
    bad = record(Call("grpc", 3, 0.1, wrong="off"))
    bad.checks.append(Check("it says why", True, "in words"))
    skipped = Record("y", "a clock", Limits(), skipped="no libfaketime")
    result = {
        "machine": {"cpu": "a CPU", "cores": 2},
        "commit": "0123456789abcdef",
        "command": "python -m loadtest.chaos",
        "seconds": 12.3,
        "scenarios": [each.to_json() for each in (record(http_errors=None), bad, skipped)],
    }
    result = json.loads(json.dumps(result))
    table = markdown(result)
    assert "| a fault | 200 | 0 | 0 | 0 (≤ 0) | 0 (any) | 0.0 s (≤ 3) | 1.0 s (≤ 30) | ok |" in table
    assert "**missed:** 1 calls with a wrong score" in table
    assert "| skipped: no libfaketime |" in table and "- **a fault:** it says why: in words." in table
    page, file = tmp_path / "page.md", tmp_path / "result.json"
    page.write_text("a\n<!-- chaos -->\nold\n<!-- /chaos -->\nb\n")
    file.write_text(json.dumps(result))
    assert main(["--table", str(file), "--page", str(page)]) == 0
    assert page.read_text() == f"a\n<!-- chaos -->\n{table}\n<!-- /chaos -->\nb\n"
    page.write_text("nothing")
    assert main(["--table", str(file), "--page", str(page)]) == 2


def test_the_page_holds_the_results_table() -> None:
    file, page = ROOT / "loadtest/results/chaos.json", (ROOT / "docker/CHAOS.md").read_text()
    inside = page.split("<!-- chaos -->\n")[1].split("\n<!-- /chaos -->")[0]
    if file.exists():
        result = json.loads(file.read_text())
        assert inside == markdown(result)
        assert [each["name"] for each in result["scenarios"]] == [scenario.name for scenario in SCENARIOS]
    else:
        assert inside.startswith("Not measured yet")


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [each.name for each in SCENARIOS]
    assert main(["--replicas", "1"]) == 2
    assert "--replicas is 1, must be at least 2" in capsys.readouterr().err


def test_a_file_is_damaged_and_a_disk_filled(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(bytes(300))
    assert flip(file) == bytes(300)
    assert len(file.read_bytes()) == 300 and file.read_bytes() != bytes(300)
    with small_disk(tmp_path / "disk", 1) as made:
        if not made:
            pytest.skip("only root may mount a small disk")
        fill(tmp_path / "disk", spare=100_000)
        (tmp_path / "disk/small").write_bytes(bytes(50_000))
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "disk/large").write_bytes(bytes(200_000))


def test_connections_that_are_cut_are_counted() -> None:
    (ours, theirs), (kept, other) = socket.socketpair(), socket.socketpair()
    theirs.close()
    cut, last_s = cut_within([ours, kept], 0.3, b"x")
    assert cut == 1 and 0 <= last_s < 0.3
    for each in (ours, kept, other):
        each.close()


def test_a_memory_limit_ends_who_goes_beyond_it() -> None:
    import subprocess
    import sys

    grow = "import sys; print(flush=True); sys.stdin.readline(); x = b'x' * (200 << 20); print(len(x))"
    with subprocess.Popen([sys.executable, "-c", grow], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        process.stdout.readline()
        with MemoryLimit([process.pid], 16 << 20) as limit:
            assert not limit.hit()
            process.stdin.write(b"\n")
            process.stdin.close()
            assert process.wait(20) != 0
            assert limit.hit()


@pytest.mark.slow
@pytest.mark.triton
def test_a_short_real_run(tmp_path: Path) -> None:
    file = tmp_path / "chaos.json"
    assert main(["--scenario", "triton-killed", "--replicas", "2", "--json", str(file)]) == 0
    (found,) = json.loads(file.read_text())["scenarios"]
    assert found["verdict"] == "held" and found["wrong"] == found["hung"] == 0
    assert found["calls"] > 50 and found["compared"] == 4 * 16
