"""What the fuzzer sends is found again by its numbers, and what it must notice it notices."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from loadtest.connections import framed
from loadtest.fuzz import Outcome, Sample, growth, main, markdown, shots_of, verdicts
from loadtest.fuzz_doors import Report, Shooter, read, shoot_alone
from loadtest.fuzz_shots import (
    ANALYZE,
    DOORS,
    GATEWAY,
    GRPC,
    HTTP,
    JSON,
    SERVICE,
    TEXTS,
    Shot,
    asked_of_parts,
    infer,
    make,
    of_no_rows,
    pb,
    post,
    right_gateway,
    uncountable,
)

SCORES = np.linspace(0, 1, 6 * len(TEXTS), dtype=np.float32).reshape(-1, 6)

# --- what is sent


def test_a_shot_is_a_function_of_its_numbers() -> None:
    for index in range(300):
        assert make(7, 1, index) == make(7, 1, index)
    assert [make(7, 1, i).data for i in range(9)] != [make(7, 0, i).data for i in range(9)]
    assert [make(7, 1, i).data for i in range(9)] != [make(8, 1, i).data for i in range(9)]


def test_all_doors_and_kinds_are_shot_at() -> None:
    shots = [make(1, 0, index) for index in range(2000)]
    assert {shot.door for shot in shots} == set(DOORS)
    assert len({(shot.door, shot.kind) for shot in shots}) > 20
    right = [shot for shot in shots if shot.places]
    assert 0.15 < len(right) / len(shots) < 0.25 and {shot.read for shot in right} == {
        *("grpc", "stream", "http", "predict", "analyze")
    }
    assert all(SERVICE in shot.path for shot in right if shot.door == "grpc")


def test_callers_reach_less_and_are_impatient() -> None:
    shots = [make(1, 0, index, "callers") for index in range(1000)]
    assert {shot.door for shot in shots} == {"grpc", "gateway"}
    grpc = [shot for shot in shots if shot.door == "grpc"]
    assert not any(shot.path.endswith("ModelStreamInfer") for shot in grpc)
    assert any(list(asked_of_parts(shot.data)) for shot in grpc), "Envoy's to refuse"
    assert sum(shot.kind == "cancelled" for shot in grpc) > 20
    assert any((b"grpc-timeout", b"5m") in shot.headers for shot in grpc)


def test_triton_s_http_gets_no_chunks() -> None:
    """It dies of them, and is closed to callers: see docker/README.md."""
    shots = [make(1, 0, index) for index in range(2000)]
    chunked = {shot.door for shot in shots if b"transfer-encoding: chunked" in shot.data.lower()}
    assert chunked == {"gateway"}


def test_every_kind_can_be_made() -> None:
    import random

    for kinds in (GRPC, HTTP, GATEWAY):
        for make_one in kinds:
            for seed in range(50):
                assert make_one(random.Random(seed)).kind


def test_what_envoy_lets_nobody_ask_is_told_from_the_rest() -> None:
    request = infer([b"a"])
    right = framed(request.SerializeToString())
    assert not list(asked_of_parts(right)) and not list(asked_of_parts(b"\0\0\0\0\4nope"))
    request.model_name = "toxicity_encoder"
    for shape, countable, rows in (([1, 5], True, True), ([0, 5], True, False), ([1, 2**62], False, True)):
        request.inputs[0].shape[:] = shape
        (asked,) = asked_of_parts(right + framed(request.SerializeToString()))
        assert (not uncountable(asked), not of_no_rows(asked)) == (countable, rows)


# --- what comes back


def test_answers_are_read_from_all_doors() -> None:
    reply = pb.ModelInferResponse()
    reply.outputs.add(name="truncated")
    reply.outputs.add(name="scores")
    reply.raw_output_contents.extend([b"\0", SCORES[3].tobytes()])
    assert (read("grpc", framed(reply.SerializeToString()), 1, 6) == SCORES[3]).all()
    head = {"outputs": [{"name": "x", "parameters": {"binary_data_size": 1}}]}
    head["outputs"].append({"name": "scores", "parameters": {"binary_data_size": 24}})
    body = json.dumps(head).encode() + b"\0" + SCORES[4].tobytes()
    assert (read("http", body, 1, 6) == SCORES[4]).all()
    with pytest.raises(ValueError, match="no scores"):
        read("http", b'{"outputs": []}', 1, 6)


class Stub:
    """A gateway that answers each request with what ``answer`` makes of it; ``None`` closes, ``b""`` says nothing."""

    def __init__(self, answer: Callable[[bytes], bytes | None]) -> None:
        self.answer = answer
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            self.threads.append(threading.Thread(target=self._serve, args=(connection,), daemon=True))
            self.threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(1 << 16):
                answer = self.answer(data)
                if answer is None:
                    return
                connection.sendall(answer)

    def close(self) -> None:
        self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()
        for thread in self.threads:
            thread.join(5)


@pytest.fixture
def stub(request: pytest.FixtureRequest) -> Iterator[Stub]:
    found = Stub(request.param)
    yield found
    found.close()


def ok(scores: np.ndarray) -> bytes:
    body = json.dumps({"results": [{"scores": dict(zip("abcdef", scores.tolist(), strict=True))}]}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


ASKED = Shot("gateway", "right", post("/predict", b"{}", JSON), places=(5,), read="predict")
TORN = Shot("gateway", "JSON", post(ANALYZE, b"{"))


def outcome(stub: Stub, shot: Shot) -> Report:
    address = stub.listening.getsockname()
    return shoot_alone(shot, {"grpc": address, "http": address, "gateway": address}, SCORES, 0.5)


@pytest.mark.parametrize(
    ("stub", "shot", "what"),
    [
        (lambda _: ok(SCORES[5]), ASKED, None),
        (lambda _: ok(SCORES[6]), ASKED, "wrong"),
        (lambda _: b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n", ASKED, "wrong"),
        (lambda _: b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n", TORN, None),
        (lambda _: b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", TORN, None),
        (lambda _: b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", TORN, "error"),
        (lambda _: b"", TORN, "hang"),
        (lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", TORN, "hang"),
        (lambda _: None, TORN, "lost"),
    ],
    indirect=["stub"],
)
def test_what_a_gateway_may_not_do_is_noticed(stub: Stub, shot: Shot, what: str | None) -> None:
    found = outcome(stub, shot)
    assert found.done == 1 and [trouble.what for trouble in found.troubles] == ([what] if what else [])
    assert found.right == (1 if shot is ASKED and what is None else 0)


BUSY_ONCE = iter([b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", ok(SCORES[5])])


BROKEN = b'{"error":"incomplete string data for inference input"}'
BESIDE_ONCE = iter([b"HTTP/1.1 400 Bad\r\nContent-Length: %d\r\n\r\n" % len(BROKEN) + BROKEN, ok(SCORES[5])])


@pytest.mark.parametrize("stub", [lambda _: next(BESIDE_ONCE)], indirect=True)
def test_a_right_request_that_fails_with_its_batch_is_sent_again_and_counted(stub: Stub) -> None:
    found = outcome(stub, ASKED)
    assert (found.right, found.again, found.beside, found.troubles) == (1, 0, 1, [])


@pytest.mark.parametrize("stub", [lambda _: next(BUSY_ONCE)], indirect=True)
def test_a_right_request_that_is_refused_is_sent_again(stub: Stub) -> None:
    found = outcome(stub, ASKED)
    assert (found.right, found.again, found.troubles) == (1, 1, [])


@pytest.mark.parametrize("stub", [lambda _: ok(SCORES[5])], indirect=True)
def test_the_ring_says_what_was_sent_last(stub: Stub) -> None:
    address = stub.listening.getsockname()
    shooter = Shooter(
        *(1, 4, range(3), {"grpc": address, "http": address, "gateway": address}, SCORES, 1, lambda _: True),
        shot_of=lambda *_: ASKED,
    )
    assert shooter.run().right == 3
    assert [(entry["worker"], entry["index"], entry["over"]) for entry in shooter.ring] == [
        (4, i, "ok") for i in range(3)
    ]


# --- what is made of it


def samples(*memory: int) -> list[Sample]:
    return [Sample(float(i), {"triton 1": size}, 100, 0) for i, size in enumerate(memory)]


def test_growth_is_of_the_last_tenth_over_that_behind_the_warm_up() -> None:
    assert growth(samples(*[1] * 20, *[100] * 80), "memory") == 0
    assert growth(samples(*[100] * 90, *[120] * 10), "memory") == pytest.approx(0.2)
    assert growth(samples(1, 2), "memory") is None
    assert growth(samples(*[1] * 100), "descriptors") == 0


def test_verdicts_and_their_table(tmp_path: Path) -> None:
    well = Outcome(Report(done=9, right=3), 1.0, samples(*[100] * 20), ready=True, right_after=True, canaries={"a": 0})
    assert all(verdict.met for verdict in verdicts(well))
    bad = Outcome(Report(done=9), 1.0, samples(*[100] * 18, 200, 200), dead=["triton x (process 1)"], canaries={"a": 2})
    bad.total.counts.update(hang=1, wrong=2)
    missed = {verdict.name for verdict in verdicts(bad) if not verdict.met}
    assert missed == {
        *("crashes", "hangs", "wrong_answers", "min_right_answers", "min_ready_and_right_at_the_end"),
        *("comments_in_logs", "memory_growth"),
    }
    result = {
        "machine": {"cpu": "a CPU", "cores": 2},
        "commit": "0123456789abcdef",
        "command": "python -m loadtest.fuzz",
        "verdicts": [{"name": v.name, "target": v.target, "measured": v.measured, "met": v.met} for v in verdicts(bad)],
        "kinds": {"grpc: right": {"ok": 5, "connection closed: x": 2}, "http: JSON": {"http 400": 4}},
        "failed_beside_a_broken_one_and_sent_again": 8,
        "requests": 9,
        "seconds": 60.0,
        "right": 3,
        "slowest_s": 1.25,
    }
    table = markdown(result)
    assert "| hangs | ≤ 0 | 1 | **missed** |" in table and "gRPC 5, Triton's HTTP 4" in table
    page, file = tmp_path / "page.md", tmp_path / "result.json"
    page.write_text("a\n<!-- fuzz -->\nold\n<!-- /fuzz -->\n")
    file.write_text(json.dumps(result))
    assert main(["--table", str(file), "--page", str(page)]) == 0
    assert page.read_text() == f"a\n<!-- fuzz -->\n{table}\n<!-- /fuzz -->\n"


def test_shots_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shots_of("1/2/3") == [(1, 2, 3)] and shots_of("1/0/3-5") == [(1, 0, 3), (1, 0, 4), (1, 0, 5)]
    file = tmp_path / "crash.json"
    entries = [{"seed": 1, "worker": 0, "index": i, "over": "ok" if i < 2 else None} for i in range(3)]
    file.write_text(json.dumps({"dead": [], "shots": entries}))
    assert shots_of(str(file)) == [(1, 0, 2), (1, 0, 0), (1, 0, 1)]
    assert main(["--replay", "nothing"]) == 2
    assert "is no SEED/WORKER/INDEX" in capsys.readouterr().err


def test_a_right_request_of_the_gateway_is_one() -> None:
    import random

    paths = {right_gateway(random.Random(seed)).data.split(b" ")[1] for seed in range(20)}
    assert paths == {b"/predict", f"{ANALYZE}?key=a".encode()}


@pytest.mark.slow
@pytest.mark.triton
def test_a_short_real_run(tmp_path: Path) -> None:
    file = tmp_path / "fuzz.json"
    assert main(["--requests", "20000", "--json", str(file), "--crash", str(tmp_path / "crash.json")]) in (0, 1)
    found = json.loads(file.read_text())
    met = {verdict["name"]: verdict["met"] for verdict in found["verdicts"]}
    assert met.pop("memory_growth") in (True, False) and all(met.values())  # too short for memory to be flat
    assert found["requests"] == 20_000 and found["right"] > 3000
