"""``python -m loadtest run`` and plain ``locust``, as processes, against a stub server and a real one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from test_client_sync import Stub, stub  # noqa: F401  (a fixture)

from loadtest.__main__ import main
from loadtest.processes import tree
from loadtest.responder import Responder

ROOT = Path(__file__).parents[1]
EASY = "p99_ms: 10000\nmax_error_rate: 0\nmin_requests_per_s: 0.1\n"
UNREACHABLE = "p99_ms: 0.001\nmin_comments_per_s: 1000000000\n"


def run(*command: str, cwd: Path = ROOT, timeout: int = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=timeout,
        check=False,
    )


@pytest.fixture
def slo(tmp_path: Path) -> Path:
    path = tmp_path / "slo.yaml"
    path.write_text(EASY)
    return path


def table(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The last word of each line of the verdict table, by objective."""
    lines = [line.split() for line in done.stdout.splitlines()]
    return {words[0]: words[-1] for words in lines if words and words[-1] in ("ok", "MISSED")}


def test_objectives_that_are_met(stub: Stub, slo: Path, tmp_path: Path) -> None:  # noqa: F811
    out, inside, most = tmp_path / "new/folder/x.json", 0, 0
    lock = threading.Lock()

    def slow(request: Any, context: Any) -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.15)
        with lock:
            inside -= 1

    stub.fault = slow
    done = run(
        *("loadtest", "run", "--url", stub.grpc_url, "--users", "4", "--duration", "2s", "--batch", "3"),
        *("--slo", str(slo), "--json", str(out)),
        cwd=tmp_path,
        PYTHONPATH=str(ROOT),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert table(done) == {"p99_ms": "ok", "max_error_rate": "ok", "min_requests_per_s": "ok"}
    assert "classify 3" in done.stderr  # Locust's own table names the batch
    assert most == 4, "users must wait for their answers at the same time"

    result = json.loads(out.read_text())
    assert [f.name for f in out.parent.iterdir()] == ["x.json"]
    measured = result["measured"]
    assert measured["requests"] == len(stub.requests)  # none was cut off at the end
    assert measured["comments_per_s"] == pytest.approx(3 * measured["requests_per_s"])
    assert 150 <= measured["p50_ms"] < 10_000 and measured["p50_ms"] <= measured["p99_ms"] <= measured["max_ms"]
    assert result["slo_met"] is True and [v["met"] for v in result["slo"]] == [True] * 3
    assert result["machine"]["cores"] == os.cpu_count() and result["machine"]["cpu"]
    assert (result["model"]["version"], result["endpoint"], result["users"]) == ("1", stub.grpc_url, 4)
    assert "--batch=3" in result["command"]
    assert len(result["commit"].removesuffix("-dirty")) == 40


def test_plain_locust_fails_when_an_objective_is_missed(stub: Stub, slo: Path) -> None:  # noqa: F811
    slo.write_text(UNREACHABLE)
    done = run(
        *("locust", "-f", "loadtest/locustfile.py", "--headless", "--run-time", "1s", "--slo", str(slo)),
        TRITOX_URL=stub.grpc_url,
        TRITOX_BATCH="5",
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert table(done) == {"p99_ms": "MISSED", "min_comments_per_s": "MISSED"}
    assert {r.inputs[0].shape[0] for r in stub.requests} == {5}


def test_failures_are_counted_by_class(stub: Stub, slo: Path, tmp_path: Path) -> None:  # noqa: F811
    def refuse_every_other(request: Any, context: Any) -> None:
        time.sleep(0.01)
        if len(stub.requests) % 2:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    stub.fault = refuse_every_other
    out = tmp_path / "x.json"
    slo.write_text("max_error_rate: 0.9")
    done = run(
        *("loadtest", "run", "--url", stub.grpc_url, "--users", "1", "--duration", "1s"),
        *("--slo", str(slo), "--json", str(out)),
    )
    measured = json.loads(out.read_text())["measured"]
    assert measured["error_rate"] == pytest.approx(0.5, abs=0.1)
    assert measured["errors"] == {"ServerBusy": measured["failures"]}
    assert f"{measured['failures']} x ServerBusy" in done.stdout
    # our objective allows it; Locust by itself would exit with 1 after any failure
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_request_at_all_is_a_failure(stub: Stub, slo: Path) -> None:  # noqa: F811
    slo.write_text("max_error_rate: 1")
    done = run(
        *("locust", "-f", "loadtest/locustfile.py", "--headless", "--users", "0", "--run-time", "1s"),
        *("--slo", str(slo), "--host", stub.grpc_url),
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no request was made" in done.stdout and stub.requests == []


def test_a_server_that_is_not_there() -> None:
    done = run("loadtest", "run", "--url", "127.0.0.1:1", "--duration", "1s")
    assert done.returncode == 2
    assert done.stderr.startswith("error: 127.0.0.1:1 cannot be reached") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--slo", "none.yaml", "error: none.yaml cannot be read"),
        ("--corpus", "none.txt", "error: none.txt cannot be read"),
    ],
)
def test_a_file_that_is_not_there(option: str, value: str, message: str) -> None:
    done = run("loadtest", "run", "--url", "127.0.0.1:1", option, value)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(message)


def test_eight_workers_add_up_to_what_the_stub_saw() -> None:
    done = run("loadtest", "dry-run", "--workers", "8", "--users", "16", "--duration", "2s", timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    words = [line.split() for line in done.stdout.splitlines()]
    (told,) = (w[2:] for w in words if w[:2] == ["8", "workers"])
    (seen,) = (w[2:] for w in words if w[:2] == ["stub", "server"])
    assert told == seen and int(seen[0]) >= 16 and int(seen[1]) > int(seen[0])
    assert "8 of 8 workers added up" in done.stdout and words[-1] == ["equal"]


def test_a_run_that_lost_a_worker_does_not_count(slo: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    with Responder("model", service_s=0.02, parallel=8) as responder:
        options = ["--workers", "2", "--users", "4", "--duration", "2s", "--slo", str(slo), "--json", str(out)]
        command = [sys.executable, "-m", "loadtest", "run", "--url", responder.url, *options]
        master = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        until = time.monotonic() + 60
        while responder.seen[0] < 4 and time.monotonic() < until:
            time.sleep(0.05)
        assert responder.seen[0] >= 4
        worker = next(pid for pid in tree(master.pid) if b"--worker" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(worker, signal.SIGKILL)
        said, _ = master.communicate(timeout=120)
    assert master.returncode == 3
    assert "INVALID: only 1 of 2 workers said what they saw" in said
    result = json.loads(out.read_text())
    assert (result["valid"], result["slo_met"]) == (False, False)


def test_a_shape_changes_the_users(slo: Path, tmp_path: Path) -> None:
    out, web = tmp_path / "x.json", tmp_path / "x.html"
    # so slow that on any machine the users set the rate
    with Responder("model", service_s=0.2, parallel=64) as responder:
        options = ["--shape", "spike", "--users", "20", "--duration", "5s", "--traffic", "single", "--html", str(web)]
        done = run("loadtest", "run", "--url", responder.url, *options, "--slo", str(slo), "--json", str(out))
        seen = responder.seen
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert (result["measured"]["requests"], result["comments"]) == seen and seen[0] == seen[1]
    rates = [row["requests"] for row in result["timeline"]]
    peak = rates.index(max(rates))
    assert 1 <= peak < len(rates) - 1 and max(rates) > 1.5 * max(rates[0], rates[-1])
    assert "MET: all objectives are met" in web.read_text()


def test_a_shape_needs_an_end(stub: Stub) -> None:  # noqa: F811
    done = run(
        "locust",
        "-f",
        "loadtest/locustfile.py",
        "--headless",
        "--shape",
        "ramp",
        "--host",
        stub.grpc_url,
        "--loglevel=ERROR",
    )
    assert (done.returncode, done.stderr) == (
        2,
        "error: --shape ramp needs --run-time, such as 10m: how long it all takes\n",
    )


def test_the_live_page_shows_the_run_so_far(slo: Path) -> None:
    with Responder("model", service_s=0.02, parallel=8) as responder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        options = ["--users", "2", "--duration", "60s", "--slo", str(slo), "--web", str(port)]
        command = [sys.executable, "-m", "loadtest", "run", "--url", responder.url, *options]
        running = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        until = time.monotonic() + 60
        while responder.seen[0] < 20 and time.monotonic() < until:
            time.sleep(0.05)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/tritox", timeout=20) as reply:
            live = reply.read().decode()
        running.send_signal(signal.SIGTERM)
        said, _ = running.communicate(timeout=60)
        assert "closed loop, steady, up to 2 users" in live and "objectives" in live
        assert "p99_ms" in said and running.returncode in (0, 1)


def test_workers_and_master_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--workers", "2", "--worker", "somewhere"])
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [[], ["run", "--users", "0"], ["run", "--batch", "x"], ["run", "--duration", "0s"], ["run", "--duration", "soon"]],
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m loadtest" in capsys.readouterr().err


def test_missing_locust_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "locust" else object())
    assert main(["run"]) == 2
    assert capsys.readouterr().err == "load tests need locust: pip install -e '.[loadtest]' -c constraints.txt\n"


def test_no_file_shadows_locust() -> None:
    assert not (ROOT / "loadtest/locust.py").exists()


# --- a real server


@pytest.mark.triton
@pytest.mark.parametrize(("objectives", "code"), [(EASY, 0), (UNREACHABLE, 1)])
def test_a_real_server_is_judged(server: Any, slo: Path, tmp_path: Path, objectives: str, code: int) -> None:
    slo.write_text(objectives)
    out = tmp_path / "x.json"
    done = run(
        *("loadtest", "run", "--users", "4", "--duration", "3s", "--slo", str(slo), "--json", str(out)),
        TRITOX_URL=server.grpc_url,
    )
    assert done.returncode == code, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert result["slo_met"] is (code == 0)
    assert result["measured"]["requests"] > 0 and result["measured"]["failures"] == 0
