"""What a real server does with more requests than it can answer in time."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import time
from collections.abc import Iterator
from types import ModuleType

import grpc
import pytest
from conftest import BATCH, BATCH_MS
from google.protobuf import text_format
from test_export_repository import SETTINGS
from tritonclient.grpc import model_config_pb2 as pb

from client import Retry, ServerBusy, ToxicityClient
from export.triton import TEMPLATES, InvalidSettings, render
from loadtest.open_loop import Body, Generator, body
from serve.server import TritonServer


def bodies(timeout_s: float = 30.0, rows: int = 1) -> Iterator[Body]:
    return itertools.repeat(body(["the article needs a source"] * rows, "toxicity", timeout_s))


def load(server: TritonServer, users: int, seconds: float, timeout_s: float = 30.0) -> list[tuple[str, float]]:
    """Status and seconds of each request of so many users who ask one after the other."""

    async def run() -> list[tuple[str, float]]:
        async with Generator(server.grpc_url, timeout_s=30) as generator:
            sent = await generator.closed(bodies(timeout_s), users, seconds)
        return [(s.error or "OK", s.duration_s) for s in sent.samples]

    return asyncio.run(run())


@pytest.mark.triton
def test_beyond_the_bound_requests_are_refused_at_once_and_the_others_answered_in_time(
    slow_server: TritonServer,
) -> None:
    alone = len(load(slow_server, 2 * BATCH, 3))  # what it answers when all are patient; it learns how fast it is
    answers = load(slow_server, 80, 3)
    assert {status for status, _ in answers} == {"OK", "UNAVAILABLE"}
    good = sorted(seconds for status, seconds in answers if status == "OK")
    refused = sorted(seconds for status, seconds in answers if status == "UNAVAILABLE")
    # were all 80 let in, each would wait this long; Triton's own bound answers a tenth of what is possible
    waits_s = 80 / BATCH * BATCH_MS / 1000
    assert len(good) > alone / 2
    assert good[len(good) // 2] < 0.6 * waits_s
    assert refused[len(refused) // 2] < good[len(good) // 2]
    # and it is itself again as soon as they are gone
    after = load(slow_server, 1, 1)
    assert all(status == "OK" for status, _ in after) and min(seconds for _, seconds in after) < waits_s / 2


@pytest.mark.triton
def test_the_client_says_busy_and_what_to_do(slow_server: TritonServer) -> None:
    load(slow_server, 40, 1.5)

    async def ask_among_many() -> ServerBusy:
        async with Generator(slow_server.grpc_url, timeout_s=30) as generator:
            others = asyncio.create_task(generator.closed(bodies(), 80, 2.0))
            await asyncio.sleep(1.0)
            with ToxicityClient(slow_server.grpc_url, retry=Retry(attempts=1)) as client:
                client.info()
                start = time.perf_counter()
                while time.perf_counter() - start < 0.8:
                    try:
                        await asyncio.to_thread(client.classify, ["you idiot"])
                    except ServerBusy as error:
                        await others
                        return error
        raise AssertionError("no request was refused")

    error = asyncio.run(ask_among_many())
    assert "is busy" in str(error) and "Exceeds maximum queue size" in str(error) and "try again later" in str(error)
    assert error.waited_s < 0.5


@pytest.mark.triton
def test_what_cannot_be_answered_in_its_own_time_is_refused(slow_server: TritonServer) -> None:
    """A request that gives itself 1 ms is refused while any work waits, long before the server's own bound."""
    load(slow_server, 40, 1.5)

    async def run() -> list[str | None]:
        async with Generator(slow_server.grpc_url, timeout_s=30) as generator:
            others = asyncio.create_task(generator.closed(bodies(), 6, 1.5))
            await asyncio.sleep(0.3)
            hasty = await generator.closed(bodies(timeout_s=0.001), 1, 1.0)
            patient = await others
        assert {s.error for s in patient.samples} == {None}
        return [s.error for s in hasty.samples]

    assert "UNAVAILABLE" in asyncio.run(run())


@pytest.mark.triton
def test_a_large_request_is_answered_where_nothing_waits(slow_server: TritonServer) -> None:
    with ToxicityClient(slow_server.grpc_url) as client:
        assert len(client.classify(["fine"] * 10 * BATCH)) == 10 * BATCH  # ten requests, one after the other
        with grpc.insecure_channel(slow_server.grpc_url) as channel:
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            infer(next(bodies(rows=BATCH)).raw, timeout=10)


# --- the parts


@pytest.fixture(scope="module")
def admission() -> ModuleType:
    spec = importlib.util.spec_from_file_location("admission", TEMPLATES / "admission.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_wait_is_the_work_that_waits_over_the_speed(admission: ModuleType) -> None:
    line = admission.Line()
    for i in range(21):
        line.looked(work=500.0, done=100.0, now_s=1 + i * 0.1)  # 1000 a second
    assert line.wait_s(3.0) == pytest.approx(0.5)
    assert line.wait_s(3.2) == pytest.approx(0.3)  # what must have been done since the last look
    line.work += 400
    assert line.wait_s(3.2) == pytest.approx(0.7)
    line.looked(work=0.0, done=0.0, now_s=3.3)
    assert line.wait_s(3.3) == 0


def test_nothing_is_known_at_first_and_a_stuck_model_is_found_out(admission: ModuleType) -> None:
    line = admission.Line()
    line.looked(work=1000.0, done=0.0, now_s=1.0)
    line.looked(work=1000.0, done=1.0, now_s=1.1)
    assert line.wait_s(1.1) == 0
    stuck = admission.Line()
    for i in range(40):
        stuck.looked(work=10.0, done=0.0, now_s=1 + i * 0.1)
    assert stuck.wait_s(5.0) == float("inf")
    stuck.looked(work=0.0, done=0.0, now_s=5.1)  # whatever it was, nothing waits now
    assert stuck.wait_s(5.1) == 0


def test_pending_requests_are_read_over_all_versions(admission: ModuleType) -> None:
    text = (
        b"# HELP nv_inference_pending_request_count ...\n# TYPE nv_inference_pending_request_count gauge\n"
        b'nv_inference_pending_request_count{model="m_encoder",version="1"} 3\n'
        b'nv_inference_pending_request_count{model="m_encoder",version="2"} 4\n'
        b'nv_inference_pending_request_count{model="m",version="1"} 0\n'
        b'nv_inference_request_success{model="m",version="1"} 70\n'
    )
    assert admission.read(text) == {"m_encoder": 7, "m": 0}


def test_a_bound_of_zero_refuses_nothing(admission: ModuleType) -> None:
    check = admission.Admission({"name": "m", "parameters": {"max_queue_ms": {"string_value": "0"}}})
    check.entry.looked(1e9, 1.0, 1.0)
    assert check.refusals([0, 1]) == [None, None]


def test_without_metrics_nothing_is_refused_and_that_is_said_once(
    admission: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITOX_METRICS_URL", "http://127.0.0.1:1/metrics")
    check = admission.Admission({"name": "m", "parameters": {"max_queue_ms": {"string_value": "100"}}})
    said, deadline = "", time.monotonic() + 10
    while not said and time.monotonic() < deadline:
        assert check.refusals([0]) == [None]
        time.sleep(0.05)
        said = capsys.readouterr().err
    assert said.startswith("m: http://127.0.0.1:1/metrics cannot be read") and said.count("\n") == 1


@pytest.mark.parametrize("kind", ["transformer", "linear"])
def test_the_bound_is_in_the_configuration_of_the_entry(kind: str) -> None:
    from dataclasses import replace

    configs = render(replace(SETTINGS, kind=kind, max_queue_ms=700), 1)
    entry = "m_tokenizer" if kind == "transformer" else "m_encoder"
    for name, text in configs.items():
        config = text_format.Parse(text, pb.ModelConfig())
        found = config.parameters["max_queue_ms"].string_value if "max_queue_ms" in config.parameters else None
        assert found == ("700" if name == entry else None)
        # Triton's own bound stalls its batcher for 500 ms: see export/templates/admission.py
        assert not config.dynamic_batching.HasField("default_queue_policy")
    with pytest.raises(InvalidSettings, match="max_queue_ms is -1, must be at least 0"):
        replace(SETTINGS, max_queue_ms=-1)
