"""The shield passes gRPC on as it is, and keeps calls that end early from what stands behind it."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from unittest.mock import Mock

import grpc
import pytest
from conftest import ROOT

from client import Credentials
from serve import certificates
from serve.envoy import Envoy
from serve.server import Tls, reserve_ports
from serve.shield import (
    DATA,
    END_STREAM,
    FRAME,
    HEADERS,
    LISTENING,
    PREFACE,
    RST_STREAM,
    Calls,
    Shield,
    _Caller,
    _Triton,
    main,
)

CANCEL = b"\0\0\0\x08"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return FRAME.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


# --- bytes


@pytest.mark.parametrize("seed", range(300))
def test_all_is_passed_but_the_end_of_a_complete_request_however_it_is_cut(seed: int) -> None:
    rng = random.Random(seed)
    sent, expected, complete = PREFACE, PREFACE, set()
    for _ in range(rng.randrange(1, 30)):
        kind, stream = rng.choice((DATA, HEADERS, RST_STREAM, RST_STREAM, 4, 6, 8, 9)), rng.randrange(1, 9)
        flags = rng.choice((0, END_STREAM, 4, END_STREAM | 4))
        whole = frame(kind, flags, stream, CANCEL if kind == RST_STREAM else rng.randbytes(rng.randrange(40)))
        sent += whole
        if kind == RST_STREAM and stream in complete:
            continue
        expected += whole
        if kind in (DATA, HEADERS) and flags & END_STREAM:
            complete.add(stream)
    calls, passed = Calls(), b""
    while sent:
        size = rng.randrange(1, rng.choice((3, 12, 200)))
        passed += calls.asked(sent[:size])
        sent = sent[size:]
    assert passed == expected and calls.under_way == complete and calls.whole


@pytest.mark.parametrize("cut", [1, 5, 9, 1000])
def test_a_request_is_under_way_until_its_answer_ends(cut: int) -> None:
    calls = Calls()
    calls.asked(PREFACE + b"".join(frame(HEADERS, END_STREAM, stream, b"ask") for stream in (1, 3, 5)))
    answers = frame(HEADERS, 4, 1, b"ok") + frame(DATA, 0, 1, b"12345") + frame(HEADERS, END_STREAM | 4, 1, b"end")
    answers += frame(RST_STREAM, 0, 3, CANCEL) + frame(HEADERS, 4, 5, b"ok")
    counted = sum(calls.answered(answers[at : at + cut]) for at in range(0, len(answers), cut))
    assert calls.under_way == {5} and counted == 5
    assert calls.asked(frame(RST_STREAM, 0, 1, CANCEL)), "one that is answered may be ended"
    assert calls.asked(frame(RST_STREAM, 0, 5, CANCEL)) == b""


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 3, b"PRI * HTTP/2.0\r\n\r\nXX" * 3, b"\x16\x03"]
)
@pytest.mark.parametrize("cut", [1, 10, 1000])
def test_what_is_no_http_2_is_left_to_triton(data: bytes, cut: int) -> None:
    calls = Calls()
    assert b"".join(calls.asked(data[at : at + cut]) for at in range(0, len(data), cut)) == data
    assert not calls.under_way and not calls.whole


# --- connections


class Server(grpc.GenericRpcHandler):
    """Answers any call with what it was asked, after ``wait_s``; health checks at once.

    :ivar ended: for each call, whether it was still wanted when it was answered. :ivar left_s: its time, as it said.
    """

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.ended: list[bool] = []
        self.left_s: list[float | None] = []
        self.headers: set[str] = set()
        self.begun = threading.Semaphore(0)
        self.wait_s = 0.5
        self.server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[self])
        address = "127.0.0.1:0"
        port = (
            self.server.add_secure_port(address, credentials) if credentials else self.server.add_insecure_port(address)
        )
        self.port = port
        self.server.start()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        if details.method == "/grpc.health.v1.Health/Check":
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"\x08\x01")
        return grpc.unary_unary_rpc_method_handler(self.answer)

    def answer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.left_s.append(context.time_remaining())
        self.headers |= {name for name, _ in context.invocation_metadata()}
        self.begun.release()
        time.sleep(self.wait_s)
        self.ended.append(context.is_active())
        return request

    def stop(self) -> None:
        self.server.stop(None).wait()


@contextlib.contextmanager
def shield(triton_port: int, *options: str) -> Iterator[int]:
    port = reserve_ports("127.0.0.1", {"grpc": 0})["grpc"]
    command = [sys.executable, "-m", "serve.shield", f"--port={port}", f"--triton-port={triton_port}", *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline().strip() == LISTENING
        yield port
    finally:
        process.terminate()
        assert process.wait(10) == 0
        process.stdout.close()  # type: ignore[union-attr]


def until(what: object, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.stop()


def test_a_cancelled_call_goes_on_behind_it_and_others_are_answered(server: Server) -> None:
    with shield(server.port) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/a/b")
        cancelled = [call.future(b"cancelled") for _ in range(3)]
        right = call.future(b"right" * 100_000)
        for _ in range(4):
            assert server.begun.acquire(timeout=10)
        for each in cancelled:
            each.cancel()
        assert right.result(timeout=10) == b"right" * 100_000
        until(lambda: len(server.ended) == 4)
        assert server.ended == [True] * 4
        assert call(b"and again", timeout=10) == b"and again"


def test_without_it_the_call_is_cancelled(server: Server) -> None:
    """What the test above would see otherwise."""
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = channel.unary_unary("/a/b").future(b"cancelled")
        assert server.begun.acquire(timeout=10)
        call.cancel()
        until(lambda: server.ended == [False])


def test_a_caller_who_leaves_ends_no_call_that_is_under_way(server: Server) -> None:
    with shield(server.port) as port:
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        call = channel.unary_unary("/a/b")
        under_way = [call.future(b"x" * 200_000) for _ in range(3)]  # more than a window of HTTP/2 holds
        for _ in under_way:
            assert server.begun.acquire(timeout=10)
        channel.close()
        until(lambda: len(server.ended) == 3)
        assert server.ended == [True] * 3


def test_a_caller_who_leaves_before_there_is_a_connection_for_him_is_not_spoken_of() -> None:
    """The moment is too short to be met from outside."""
    caller, transport = _Caller(Shield(("127.0.0.1", 1))), Mock()
    caller.data_received(PREFACE + frame(HEADERS, END_STREAM, 1, b"ask"))
    _Triton(caller).connection_made(transport)
    transport.close.assert_called_once_with()
    transport.write.assert_not_called()


def test_where_nothing_stands_behind_it_callers_are_told_at_once() -> None:
    port = reserve_ports("127.0.0.1", {"grpc": 0})["grpc"]
    with shield(port) as front, socket.create_connection(("127.0.0.1", front)) as connection:
        connection.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""


def test_a_port_that_is_taken_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main([f"--port={taken.getsockname()[1]}", "--triton-port=1"]) == 2
    assert "error: the shield cannot listen on 127.0.0.1:" in capfd.readouterr().err


def test_behind_envoy_neither_deadlines_nor_cancelled_calls_reach_the_server(tmp_path: Path) -> None:
    """Envoy ends a call at its deadline, and nobody tells Triton: neither by a header nor by a frame."""
    certificates.make(tmp_path, ["localhost"])
    (tmp_path / "keys/keys.txt").write_text("0123456789abcdef-site name=site\n")
    certificates.make(tmp_path, ["localhost"])
    files = Tls(*(tmp_path / "triton" / name for name in ("cert.pem", "key.pem", "ca.pem")))
    options = [f"--certificate={files.certificate}", f"--key={files.key}", f"--ca={files.ca}"]
    server = Server()
    try:
        with (
            shield(server.port, *options) as port,
            Envoy([("127.0.0.1", port)], tmp_path / "envoy", tmp_path / "keys") as envoy,
        ):
            caller = Credentials(ca=tmp_path / "callers/ca.pem", token="0123456789abcdef-site")
            with grpc.secure_channel(f"localhost:{envoy.ports['door']}", caller.channel()) as channel:
                call = channel.unary_unary("/inference.GRPCInferenceService/ModelReady")
                told = {"metadata": [*caller.headers(), ("x-of-caller", "1")], "wait_for_ready": True}
                assert call(b"", timeout=10, **told) == b""
                with pytest.raises(grpc.RpcError) as error:
                    call(b"", timeout=0.3, **told)
                assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
                cancelled = call.future(b"", timeout=10, **told)
                for _ in range(3):
                    assert server.begun.acquire(timeout=10)
                cancelled.cancel()
                until(lambda: len(server.ended) == 3)
        assert server.ended == [True] * 3 and all(left_s is None or left_s > 1e6 for left_s in server.left_s)
        assert not server.headers & {"x-of-caller", "authorization", "user-agent", "grpc-timeout"}
    finally:
        server.stop()
