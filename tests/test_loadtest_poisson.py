"""The open loop from several processes, the stub server it is proven on, and the stall that only it shows."""

from __future__ import annotations

import json
import time
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from client import InvalidInput, ToxicityClient
from loadtest import page, poisson, stall
from loadtest.histogram import Histogram
from loadtest.hpack import STATIC, Headers
from loadtest.open_loop import body
from loadtest.poisson import Crew, Outcome
from loadtest.responder import LABELS, MAX_BATCH, Responder
from loadtest.slo import Sample
from loadtest.tally import Tally

ATTEMPTS = 3
"""A machine that is busy with something else cannot offer a load: such a run says so, and is done again."""


@pytest.fixture
def slo(tmp_path: Path) -> Path:
    path = tmp_path / "slo.yaml"
    path.write_text("p99_ms: 5000\nmax_error_rate: 0\n")
    return path


# --- the stub server


def test_the_stub_answers_a_real_client_and_counts() -> None:
    with Responder("model") as stub, ToxicityClient(stub.url) as client:
        client.wait_ready(30)
        assert (client.info().labels, client.info().max_batch_size) == (LABELS, MAX_BATCH)
        # timeouts that differ fill the client's table of headers until it throws the oldest out, the path among them
        rows = [1 + i % MAX_BATCH for i in range(150)]
        for i, size in enumerate(rows):
            results = client.classify(["x" * i] * size, timeout=20 + i / 100)
            assert len(results) == size and len({r.request_id for r in results}) == 1
        assert stub.seen == (len(rows), sum(rows))
        assert client.classify(["x" * 3_000_000])[0].scores == dict.fromkeys(LABELS, 0.25)
        with grpc.insecure_channel(stub.url) as channel, pytest.raises(grpc.RpcError) as caught:
            server = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            server.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(InvalidInput):
            client.classify("x")
        assert stub.seen[0] == len(rows) + 1


def test_the_stub_takes_its_time() -> None:
    with Responder("model", service_s=0.05, parallel=2) as stub, ToxicityClient(stub.url) as client:
        client.wait_ready(30)
        client.info()
        start = time.perf_counter()
        for _ in range(4):
            client.classify(["x"])
        assert 0.2 <= time.perf_counter() - start


def test_headers_are_read_as_they_were_written() -> None:
    assert (len(STATIC), STATIC[30], STATIC[60]) == (61, b"content-type", b"www-authenticate")
    headers = Headers()
    kept = b"\x83\x86\x44\x02/a\x40\x01k\x01v"  # two of the static table, a path and a field to keep
    assert headers.path(kept) == b"/a"
    assert headers.path(b"\x83\x86\xbf\xbe") == b"/a"  # by their numbers: the newest is 62
    assert headers.path(b"\x83\x86\x04\x02/b") == b"/b"  # not to keep
    with pytest.raises(OSError, match="without a path"):
        headers.path(b"\x83")
    with pytest.raises(OSError, match="the header field 64 was never sent"):
        headers.path(b"\xc0")
    headers.path(b"\x44\x02/c" + b"\x20")  # a table of no size forgets all
    with pytest.raises(OSError, match="62 was never sent"):
        headers.path(b"\xbe")


# --- several processes


def test_processes_add_up_to_what_the_stub_saw() -> None:
    bodies = [body(["a lovely day"] * n, "toxicity", 10.0) for n in (1, 4)]
    with Responder("model") as first, Responder("model") as second, Crew(bodies, processes=2, timeout_s=30) as crew:
        for _ in range(2):  # the processes are used again
            before = [stub.seen[0] for stub in (first, second)]
            outcome = crew.run([first.url, second.url], [(200.0, 1.0), (100.0, 0.5)])
            counts = [stub.seen[0] - was for stub, was in zip((first, second), before, strict=True)]
            measured = outcome.measured()
            assert measured.requests == outcome.due == outcome.lateness_ms.count == sum(counts)
            assert measured.requests == pytest.approx(250, rel=0.4) and measured.failures == 0
            assert abs(counts[0] - counts[1]) <= 2  # they take turns, in each process
        assert outcome.offered_per_s == pytest.approx(outcome.due / 1.5) and len(outcome.cores) == 2
        assert 0 < sum(outcome.cores) < 2
        assert first.seen[1] + second.seen[1] == pytest.approx(2.5 * (first.seen[0] + second.seen[0]), rel=0.1)


def test_a_command_judges_and_writes(slo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, web = tmp_path / "new/x.json", tmp_path / "x.html"
    with Responder("model") as stub:
        options = ["--url", stub.url, "--seconds", "1.5", "--warmup", "0.5", "--traffic", "mixed", "--mix", "life"]
        options += ["--slo", str(slo), "--json", str(out), "--html", str(web), "--rate", "100"]
        code = poisson.main(options)
        said, result = capsys.readouterr().out, json.loads(out.read_text())
        assert stub.seen[0] > result["measured"]["requests"] > 100 * 1.5 / 2  # the warm-up is not measured
        assert code == ((0 if result["slo_met"] else 1) if result["valid"] else 3)
        assert ("INVALID" in said) is not result["valid"]
        assert result["open_loop"]["offered_per_s"] == pytest.approx(result["measured"]["requests"] / 1.5)
        assert len(result["open_loop"]["generator_cores"]) == 1
        assert sum(row["requests"] for row in result["timeline"]) == result["measured"]["requests"]
        assert result["percentiles_ms"]["100"] == result["measured"]["max_ms"]
        assert page.page(result) == web.read_text() and "<svg" in web.read_text()

        slo.write_text("p99_ms: 0.001\n")
        assert poisson.main(options) in (1, 3)
        assert "MISSED" in web.read_text()


def test_a_server_that_is_gone_fails_its_requests() -> None:
    with Responder("model") as stub, Crew([body(["x"], "toxicity", 1.0)]) as crew:
        stub.kill()
        with pytest.raises(poisson.GeneratorFailed, match=f"{stub.url} cannot be reached"):
            crew.run([stub.url], [(50.0, 0.2)])


def test_three_thousand_a_second_are_offered_from_one_core() -> None:
    with Responder("model") as stub, Crew([body(["x"], "toxicity", 10.0)]) as crew:
        for _ in range(ATTEMPTS):
            outcome = crew.run([stub.url], [(3300.0, 1.0)], 0.3)
            # in CPU, which what else the machine does changes little: so many a second would fill a core
            ceiling = outcome.due / (outcome.cores[0] * outcome.seconds)
            if ceiling >= 3000 and outcome.due >= 3000:
                break
        assert outcome.due >= 3000 and ceiling >= 3000
        assert outcome.tally.requests == outcome.due and not outcome.tally.errors


# --- what makes a run invalid


def an_outcome(due: int, sent: int, late: int) -> Outcome:
    tally = Tally()
    for i in range(due):
        tally.add(Sample(1000 + i / due, 0.01, 1))
    return Outcome(1.0, tally, due, sent, late, Histogram(), due, due, [0.5])


def test_a_load_that_was_not_offered_is_invalid() -> None:
    assert an_outcome(1000, 990, 40).invalid() is None
    assert "only 970.0 of the 1000.0 requests/s that were due were sent" in (an_outcome(1000, 970, 0).invalid() or "")
    assert "only 94.0% of the requests left within 100 ms" in (an_outcome(1000, 1000, 60).invalid() or "")
    assert "no request was due" in (Outcome(1.0).invalid() or "")


def test_more_than_a_process_can_send_is_invalid(slo: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    with Responder("model") as stub:
        options = ["--url", stub.url, "--rate", "200000", "--seconds", "0.3", "--warmup", "0.1", "--slo", str(slo)]
        assert poisson.main([*options, "--json", str(out)]) == 3
    result = json.loads(out.read_text())
    assert result["slo_met"] is False and page.verdict(result) == "INVALID"
    assert result["open_loop"]["sent_per_s"] < 0.9 * result["open_loop"]["offered_per_s"]


def test_a_queue_that_is_worked_off_later_is_no_throughput() -> None:
    with Responder("model", service_s=0.01) as stub, Crew([body(["x"], "toxicity", 10.0)]) as crew:
        outcome = crew.run([stub.url], [(200.0, 1.0)])  # twice what it can
        measured = outcome.measured()
    assert measured.requests == outcome.due and measured.requests_per_s <= 110
    assert measured.p99_ms is not None and measured.p99_ms > 500


# --- the stall


def test_a_stall_shows_in_the_open_loop_and_not_in_the_closed_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.json"
    for _ in range(ATTEMPTS):
        code = stall.main(["--seconds", "3", "--rate", "200", "--json", str(out)])
        said, result = capsys.readouterr().out, json.loads(out.read_text())
        if code == 0:
            break
    assert code == 0, said
    closed, opened = result["closed_loop"], result["open_loop"]
    assert closed["p99_ms"] < 500 < 900 < closed["max_ms"]  # it happened, and two requests saw it
    assert opened["p99_ms"] > 800
    assert said.splitlines()[-1].split()[-2:] == ["no", "yes"]


def test_a_stall_longer_than_half_the_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        stall.main(["--seconds", "1"])
    assert "--stall is 1, must be at most half of --seconds" in capsys.readouterr().err


def test_what_cannot_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["--url", "127.0.0.1:1"], "127.0.0.1:1 cannot be reached"),
        (["--slo", "none.yaml"], "none.yaml cannot be read"),
        (["--corpus", str(tmp_path / "none.txt")], "none.txt cannot be read"),
    ):
        assert poisson.main(["--rate", "1", *options]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and message in said and said.count("\n") == 1
