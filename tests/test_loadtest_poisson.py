"""The open loop from several processes, the stub server it is proven on, and the stall that only it shows."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
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
from loadtest.responder import LABELS, MAX_BATCH, SCORE, Responder
from loadtest.slo import Sample
from loadtest.tally import Tally

ATTEMPTS = 3
"""A machine that is busy with something else cannot offer a load: such a run says so, and is done again."""


@pytest.fixture(scope="module")
def stub() -> Iterator[Responder]:
    """One that answers at once."""
    with Responder("model") as stub:
        yield stub


@pytest.fixture(scope="module")
def slow_stub() -> Iterator[Responder]:
    """One that can do 100 requests a second."""
    with Responder("model", service_s=0.01) as stub:
        yield stub


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    """Two processes that take turns between requests of one comment and of four."""
    bodies = [body(["a lovely day"] * n, "toxicity", 30.0) for n in (1, 4)]
    with Crew(bodies, processes=2, timeout_s=30) as crew:
        yield crew


@pytest.fixture
def slo(tmp_path: Path) -> Path:
    path = tmp_path / "slo.yaml"
    path.write_text("p99_ms: 5000\nmax_error_rate: 0\n")
    return path


# --- the stub server


def test_the_stub_answers_a_real_client_and_counts(stub: Responder) -> None:
    before = stub.seen
    with ToxicityClient(stub.url, timeout=30) as client:
        client.wait_ready(30)
        assert (client.info().labels, client.info().max_batch_size) == (LABELS, MAX_BATCH)
        # timeouts that differ fill the client's table of headers until it throws the oldest out, the path among them
        rows = [1 + i % MAX_BATCH for i in range(150)]
        for i, size in enumerate(rows):
            results = client.classify(["x" * i] * size, timeout=30 + i / 100)
            assert len(results) == size and len({r.request_id for r in results}) == 1
        assert stub.seen == (before[0] + len(rows), before[1] + sum(rows))
        assert client.classify(["x" * 3_000_000])[0].scores == dict.fromkeys(LABELS, SCORE)
        texts = ["0.125", "1", "2", "nan", "", "0", "x", "-0.5", "0." + "1" * 20]
        scores = [result.scores for result in client.classify(texts)]
        told = [0.125, 1.0, SCORE, SCORE, SCORE, 0.0, SCORE, SCORE, SCORE]
        assert scores == [dict.fromkeys(LABELS, score) for score in told]
        with grpc.insecure_channel(stub.url) as channel, pytest.raises(grpc.RpcError) as caught:
            server = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            server.ModelStatistics(service_pb2.ModelStatisticsRequest(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(InvalidInput):
            client.classify("x")
        assert stub.seen[0] == before[0] + len(rows) + 2


def test_the_stub_takes_its_time_and_comes_back() -> None:
    with Responder("model", service_s=0.05, comment_s=0.02, parallel=2) as stub:
        url = stub.url
        with ToxicityClient(url, timeout=30) as client:
            client.info()
            start = time.perf_counter()
            client.classify(["x"] * 3)
            client.classify(["x"])
            assert 2 * 0.05 + 4 * 0.02 <= time.perf_counter() - start
            assert stub.seen == (2, 4)
            os.kill(stub.pid, signal.SIGSTOP)
            stub.kill()
            assert not stub.alive()
            stub.start()
            assert stub.alive() and stub.url == url
            client.classify(["x"])
            assert stub.seen == (3, 5)
        with pytest.raises(OSError, match=f"did not start on port {stub.port}"):
            Responder("model", port=stub.port).start()


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


def test_processes_add_up_to_what_the_stubs_saw(stub: Responder, slow_stub: Responder, crew: Crew) -> None:
    stubs = stub, slow_stub
    for _ in range(2):  # the processes are used again
        before = [each.seen for each in stubs]
        outcome = crew.run([each.url for each in stubs], [(200.0, 0.5), (100.0, 0.5)])
        requests, comments = (
            [each.seen[i] - was[i] for each, was in zip(stubs, before, strict=True)] for i in range(2)
        )
        measured = outcome.measured()
        assert measured.requests == outcome.due == outcome.lateness_ms.count == sum(requests)
        assert measured.requests == pytest.approx(150, rel=0.4) and measured.failures == 0
        assert abs(requests[0] - requests[1]) <= 2  # they take turns, in each process
        assert sum(comments) == pytest.approx(2.5 * sum(requests), abs=4)
    assert outcome.offered_per_s == pytest.approx(outcome.due) and len(outcome.cores) == 2
    assert 0 < sum(outcome.cores) < 2.5


def test_a_command_judges_and_writes(
    stub: Responder, slo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, web = tmp_path / "new/x.json", tmp_path / "x.html"
    options = ["--url", stub.url, "--seconds", "1", "--warmup", "0.4", "--traffic", "mixed", "--mix", "life"]
    options += ["--slo", str(slo), "--json", str(out), "--html", str(web), "--rate", "100"]
    before = stub.seen[0]
    code = poisson.main(options)
    said, result = capsys.readouterr().out, json.loads(out.read_text())
    assert stub.seen[0] - before > result["measured"]["requests"] > 50  # the warm-up is not measured
    assert code == ((0 if result["slo_met"] else 1) if result["valid"] else 3)
    assert ("INVALID" in said) is not result["valid"]
    assert result["open_loop"]["offered_per_s"] == pytest.approx(result["measured"]["requests"])
    assert len(result["open_loop"]["generator_cores"]) == 1
    assert sum(row["requests"] for row in result["timeline"]) == result["measured"]["requests"]
    assert result["percentiles_ms"]["100"] == result["measured"]["max_ms"]
    assert page.page(result) == web.read_text() and "<svg" in web.read_text()

    slo.write_text("p99_ms: 0.001\n")
    assert poisson.main([*options, "--seconds", "0.3"]) in (1, 3)
    assert "MISSED" in web.read_text()


def test_a_server_that_is_gone_fails_its_requests(crew: Crew) -> None:
    with socket.socket() as taken:  # but nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{taken.getsockname()[1]}"
        with Crew(crew.bodies) as alone, pytest.raises(poisson.GeneratorFailed, match=f"{url} cannot be reached"):
            alone.run([url], [(50.0, 0.2)])


@pytest.mark.slow
def test_three_thousand_a_second_are_offered_from_one_core(stub: Responder) -> None:
    with Crew([body(["x"], "toxicity", 10.0)]) as crew:
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


def test_more_than_a_process_can_send_is_invalid(stub: Responder, slo: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    options = ["--url", stub.url, "--rate", "100000", "--seconds", "0.1", "--warmup", "0.02", "--slo", str(slo)]
    assert poisson.main([*options, "--json", str(out)]) == 3
    result = json.loads(out.read_text())
    assert result["slo_met"] is False and page.verdict(result) == "INVALID"
    assert result["open_loop"]["sent_per_s"] < 0.9 * result["open_loop"]["offered_per_s"]


def test_a_queue_that_is_worked_off_later_is_no_throughput(slow_stub: Responder, crew: Crew) -> None:
    outcome = crew.run([slow_stub.url], [(200.0, 1.0)])  # twice what it can
    measured = outcome.measured()
    assert measured.requests == outcome.due and measured.requests_per_s <= 110
    assert measured.p99_ms is not None and measured.p99_ms > 500


# --- the stall


def test_a_stall_shows_in_the_open_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On any machine: how slow the rest is, can only make latencies longer."""
    out = tmp_path / "x.json"
    code = stall.main(["--seconds", "2", "--stall", "0.8", "--json", str(out)])
    said, result = capsys.readouterr().out, json.loads(out.read_text())
    closed, opened = result["closed_loop"], result["open_loop"]
    assert min(closed["max_ms"], opened["max_ms"]) >= 700  # both met it: the closed loop in a request of each user,
    assert opened["p99_ms"] > 600  # the open one in all that were due meanwhile
    assert opened["requests"] == pytest.approx(200, rel=0.4)
    assert result["shown_only_by_the_open_loop"] is (closed["p99_ms"] < 400)
    assert code == (3 if not result["valid"] else 0 if result["shown_only_by_the_open_loop"] else 1)
    assert said.splitlines()[7].split()[-1] == "yes"


@pytest.mark.slow
def test_a_closed_loop_hides_a_stall(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.json"
    for _ in range(ATTEMPTS):
        code = stall.main(["--seconds", "5", "--json", str(out)])
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
