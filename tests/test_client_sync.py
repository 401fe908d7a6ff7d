"""The client against a stub server over real gRPC, for what a real server cannot be made to do; then a real one."""

from __future__ import annotations

import asyncio
import json
import pickle
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)
from tritonclient.utils import deserialize_bytes_tensor

from client import (
    AsyncToxicityClient,
    ClientClosed,
    InvalidInput,
    InvalidReply,
    ModelNotFound,
    ServerBusy,
    ServerUnavailable,
    Timeout,
    ToxicityClient,
    ToxicityError,
)

LABELS = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]


class Stub(GRPCInferenceServiceServicer):
    """Answers as the ``toxicity`` model does. The text "0.7" scores 0.7 for every label; other texts score 0.

    ``parameters``, ``version`` and ``max_batch_size`` may be changed while it runs; ``fault`` is called with the
    request and gRPC's context before each inference, ``reply`` with the answer before it is sent, ``looked`` once the
    version was asked for.
    """

    def __init__(self) -> None:
        self.version = "1"
        self.max_batch_size = 64
        self.thresholds = dict.fromkeys(LABELS, 0.5)
        self.parameters = {"labels": json.dumps(LABELS), "max_tokens": "128", "precision": "int8"}
        self.fault: Callable[[Any, Any], None] = lambda request, context: None
        self.reply: Callable[[Any], None] = lambda response: None
        self.looked: Callable[[], None] = lambda: None
        self.requests: list[Any] = []
        self.config_reads = 0
        self.ready = True
        self.grpc_url = ""

    def start(self) -> grpc.Server:
        server = grpc.server(ThreadPoolExecutor(16))
        add_GRPCInferenceServiceServicer_to_server(self, server)
        self.grpc_url = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        return server

    def ModelReady(self, request: Any, context: Any) -> Any:
        return pb.ModelReadyResponse(ready=self.ready)

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        self.known(request.name, context)
        response = pb.ModelMetadataResponse(name=request.name, versions=[self.version])
        self.looked()
        return response

    def ModelConfig(self, request: Any, context: Any) -> Any:
        self.known(request.name, context)
        if request.version != self.version:
            context.abort(grpc.StatusCode.NOT_FOUND, f"'toxicity' version {request.version} is not at ready state")
        self.config_reads += 1
        response = pb.ModelConfigResponse()
        response.config.max_batch_size = self.max_batch_size
        for key, value in ({"thresholds": json.dumps(self.thresholds)} | self.parameters).items():
            response.config.parameters[key].string_value = value
        return response

    def ModelInfer(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        self.fault(request, context)
        self.known(request.model_name, context)
        texts = [row.decode() for row in deserialize_bytes_tensor(request.raw_input_contents[0])]
        if len(texts) > self.max_batch_size:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"batch-size must be <= {self.max_batch_size}")
        scores = [[float(text) if text[:1] in ("0", "1") else 0.0] * len(LABELS) for text in texts]
        response = pb.ModelInferResponse(model_name=request.model_name, model_version=self.version, id=request.id)
        for name, datatype, array in (
            ("scores", "FP32", np.array(scores, np.float32)),
            ("truncated", "BOOL", np.array([[len(text) > 500] for text in texts])),
        ):
            response.outputs.add(name=name, datatype=datatype, shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        self.reply(response)
        return response

    @staticmethod
    def known(name: str, context: Any) -> None:
        if name != "toxicity":
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")


@pytest.fixture
def stub() -> Iterator[Stub]:
    stub = Stub()
    server = stub.start()
    yield stub
    server.stop(None).wait()


@pytest.fixture
def client(stub: Stub) -> Iterator[ToxicityClient]:
    with ToxicityClient(stub.grpc_url, timeout=5) as client:
        yield client


def abort(status: grpc.StatusCode, detail: str) -> Callable[[Any, Any], None]:
    return lambda request, context: context.abort(status, detail)


# --- what comes back


def test_a_list_of_one_gives_a_list_of_one(client: ToxicityClient) -> None:
    (result,) = client.classify(["0.5"])
    assert result.scores == dict.fromkeys(LABELS, 0.5)
    assert list(result.scores) == LABELS
    assert result.flagged == tuple(LABELS)  # at the threshold counts
    assert (result.truncated, result.model, result.model_version) == (False, "toxicity", "1")


def test_order_is_kept_over_several_requests(stub: Stub) -> None:
    texts = [f"{i / 1000:.3f}" for i in range(150)]
    with ToxicityClient(stub.grpc_url, in_flight=1) as client:
        results = client.classify(texts)
    assert [f"{r.scores['toxic']:.3f}" for r in results] == texts
    assert [r.inputs[0].shape[0] for r in stub.requests] == [64, 64, 22]
    assert [results[0].request_id, results[149].request_id] == [stub.requests[0].id, stub.requests[2].id]
    assert len({r.id for r in stub.requests}) == 3


def test_texts_arrive_byte_for_byte(stub: Stub, client: ToxicityClient) -> None:
    texts = ["", " ", "a\x00b\x00", "Grüße 👩‍👩‍👧 שלום", "line\nline\r\n", "x" * 100_000]
    results = client.classify(texts)
    assert [row.decode() for row in deserialize_bytes_tensor(stub.requests[0].raw_input_contents[0])] == texts
    assert [r.truncated for r in results] == [False] * 5 + [True]


def test_an_empty_list_asks_nobody() -> None:
    with ToxicityClient("127.0.0.1:1") as client:
        assert client.classify([]) == []


def test_a_score_is_compared_with_its_own_threshold(stub: Stub, client: ToxicityClient) -> None:
    stub.thresholds = dict(zip(LABELS, (0.1, 0.9, 0.2, 0.8, 0.3, 0.7), strict=True))
    assert client.classify(["0.5"])[0].flagged == ("toxic", "obscene", "insult")


def test_info_is_read_once(stub: Stub, client: ToxicityClient) -> None:
    for _ in range(3):
        client.classify(["0.5"])
    info = client.info()
    assert stub.config_reads == 1
    assert (info.labels, info.max_tokens, info.max_batch_size, info.precision) == (tuple(LABELS), 128, 64, "int8")


def test_thresholds_follow_a_new_model_version(stub: Stub, client: ToxicityClient) -> None:
    assert client.classify(["0.6"])[0].flagged == tuple(LABELS)
    stub.version, stub.thresholds = "2", dict.fromkeys(LABELS, 0.7)
    (result,) = client.classify(["0.6"])
    assert (result.flagged, result.model_version) == ((), "2")
    assert client.info().version == "2"


def test_a_version_that_goes_between_two_questions_is_not_missed(stub: Stub, client: ToxicityClient) -> None:
    stub.looked = lambda: setattr(stub, "version", "2")
    assert client.info().version == "2"
    turns = iter(map(str, range(3, 99)))
    stub.looked = lambda: setattr(stub, "version", next(turns))
    with ToxicityClient(stub.grpc_url, timeout=5) as other, pytest.raises(ModelNotFound):
        other.info()  # one that changes at every look is given up


def test_a_version_that_goes_while_it_answers_is_asked_no_more(stub: Stub, client: ToxicityClient) -> None:
    """Its thresholds are not to be had any more, so the one that took over answers."""
    client.info()
    stub.version = "2"

    def go(response: Any) -> None:
        if response.model_version == "2":
            stub.version, stub.thresholds = "3", dict.fromkeys(LABELS, 0.7)

    stub.reply = go
    (result,) = client.classify(["0.6"])
    assert (result.model_version, result.flagged) == ("3", ())
    assert len(stub.requests) == 2


def test_a_smaller_batch_limit_is_learnt_after_the_first_refusal(stub: Stub, client: ToxicityClient) -> None:
    client.classify(["0.6"] * 20)
    stub.max_batch_size = 8
    with pytest.raises(InvalidInput, match="must be <= 8"):
        client.classify(["0.6"] * 20)
    assert len(client.classify(["0.6"] * 20)) == 20


def test_threads_may_share_a_client(client: ToxicityClient) -> None:
    texts = [f"{i / 100:.2f}" for i in range(100)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda text: client.classify([text])[0], texts))
    assert [f"{r.scores['toxic']:.2f}" for r in results] == texts


# --- what cannot be sent


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("hello", "texts is a single str: wrap it in a list"),
        (b"hello", "texts is a single bytes: wrap it in a list"),
        (None, "texts is a NoneType, must be a list"),
        ({"a": 1}, "texts is a dict, must be a list"),
        (["a", 3], r"texts\[1\] is a int, must be a str"),
        (["a", "b", None], r"texts\[2\] is a NoneType, must be a str"),
        (["a", "b\ud800"], r"texts\[1\] holds a lone surrogate, '\\ud800' at position 1"),
    ],
)
def test_texts_that_cannot_be_sent_are_refused_here(
    stub: Stub, client: ToxicityClient, texts: Any, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        client.classify(texts)
    assert isinstance(caught.value, ValueError)
    assert caught.value.request_id is None
    assert stub.requests == []


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "10"])
def test_a_timeout_must_be_positive(timeout: Any) -> None:
    with pytest.raises(InvalidInput, match="timeout is .* must be a positive number of seconds"):
        ToxicityClient(timeout=timeout)


def test_an_http_address_is_refused() -> None:
    with pytest.raises(InvalidInput, match="must be host:port of the server's gRPC port"):
        ToxicityClient("http://127.0.0.1:8000")


def test_the_url_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITOX_URL", "example.test:9")
    with ToxicityClient() as client, ToxicityClient("127.0.0.1:7") as named:
        assert (client.url, named.url) == ("example.test:9", "127.0.0.1:7")
    monkeypatch.delenv("TRITOX_URL")
    with ToxicityClient() as client:
        assert client.url == "127.0.0.1:8001"


# --- what the server, or the way to it, does wrong


@pytest.mark.parametrize(
    ("status", "detail", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", ServerUnavailable),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many", ServerBusy),
        (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size", ServerBusy),
        (grpc.StatusCode.UNAVAILABLE, "Request timeout expired", ServerBusy),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", Timeout),
        (grpc.StatusCode.INVALID_ARGUMENT, "unexpected shape", InvalidInput),
        (grpc.StatusCode.INVALID_ARGUMENT, "incomplete string data for inference input 'TEXT'", ServerBusy),
        (grpc.StatusCode.NOT_FOUND, "gone", ModelNotFound),
        (grpc.StatusCode.UNAVAILABLE, "Request for unknown model: 'toxicity' has no available versions", ModelNotFound),
        (grpc.StatusCode.INTERNAL, "Traceback:\n  a\n  b", ToxicityError),
    ],
)
def test_a_grpc_status_becomes_an_error_class(
    stub: Stub, client: ToxicityClient, status: grpc.StatusCode, detail: str, kind: type[ToxicityError]
) -> None:
    stub.fault = abort(status, detail)
    with pytest.raises(ToxicityError) as caught:
        client.classify(["0.5"])
    error = caught.value
    assert type(error) is kind
    assert (error.endpoint, error.model, error.request_id) == (stub.grpc_url, "toxicity", stub.requests[0].id)
    assert 0 < error.waited_s < 5
    assert stub.grpc_url in str(error) and "\n" not in str(error)


def test_an_unknown_model(stub: Stub) -> None:
    with (
        ToxicityClient(stub.grpc_url, model="nope") as client,
        pytest.raises(ModelNotFound, match="'nope'.*check the name"),
    ):
        client.classify(["0.5"])


def test_nobody_listens() -> None:
    with ToxicityClient("127.0.0.1:1") as client:
        with pytest.raises(ServerUnavailable, match="127.0.0.1:1 cannot be reached .*python -m serve") as caught:
            client.classify(["0.5"])
    assert caught.value.waited_s < 5


def test_one_deadline_covers_all_requests_of_a_call(stub: Stub) -> None:
    left: list[float] = []

    def slow(request: Any, context: Any) -> None:
        left.append(context.time_remaining())
        time.sleep(0.3)

    stub.fault, stub.max_batch_size = slow, 1
    with ToxicityClient(stub.grpc_url, in_flight=1) as client:
        client.info()
        start = time.monotonic()
        with pytest.raises(Timeout, match="did not answer within 0.8 s") as caught:
            client.classify(["0.5"] * 10, timeout=0.8)
    assert 0.7 < caught.value.waited_s <= time.monotonic() - start < 2
    # the server was told what is left each time
    assert 2 <= len(left) <= 3 and left[0] < 0.85
    assert all(later < earlier - 0.25 for earlier, later in zip(left, left[1:], strict=False))


def _drop(name: str) -> Callable[[Any], None]:
    def change(response: Any) -> None:
        index = [o.name for o in response.outputs].index(name)
        del response.outputs[index], response.raw_output_contents[index]

    return change


def _scores(array: Any, dtype: Any = np.float32, datatype: str = "FP32") -> Callable[[Any], None]:
    def change(response: Any) -> None:
        values = np.array(array, dtype)
        del response.outputs[0].shape[:]
        response.outputs[0].shape.extend(values.shape)
        response.outputs[0].datatype = datatype
        response.raw_output_contents[0] = values.tobytes()

    return change


def _cut_short(response: Any) -> None:
    response.raw_output_contents[0] = response.raw_output_contents[0][:-4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("scores"), "gave nothing for the output 'scores'"),
        (_drop("truncated"), "gave nothing for the output 'truncated'"),
        (_scores([[0.5] * 5] * 2), r"gave float32 \(2, 5\) for the output 'scores', must be \(2, 6\)"),
        (_scores([[0.5] * 6]), r"must be \(2, 6\)"),
        (_scores([[1] * 6] * 2, np.int32, "INT32"), "gave int32"),
        (_scores([[0.5] * 6, [float("nan")] * 6]), "gave the score nan"),
        (_scores([[0.5] * 6, [1.5] * 6]), "gave the score 1.5"),
        (_cut_short, "cannot reshape"),
    ],
)
def test_a_malformed_reply(stub: Stub, client: ToxicityClient, change: Callable[[Any], None], message: str) -> None:
    stub.reply = change
    with pytest.raises(InvalidReply, match=message):
        client.classify(["0.5", "0.6"])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"labels": ""}, "Expecting value"),
        ({"labels": "[]"}, "0 labels"),
        ({"thresholds": '{"toxic": 0.5}'}, "no 'severe_toxic'"),
        ({"max_tokens": "many"}, "many"),
    ],
)
def test_a_model_that_is_not_ours(stub: Stub, client: ToxicityClient, parameters: dict[str, str], message: str) -> None:
    stub.parameters |= parameters
    with pytest.raises(InvalidReply, match=f"is not one of Tritox's .*{message}.*must hold labels, thresholds"):
        client.info()


# --- life cycle


def test_wait_ready_waits_for_a_server_that_starts_late(stub: Stub, client: ToxicityClient) -> None:
    stub.ready = False
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.wait_ready, 5)
        time.sleep(0.3)
        assert not waiting.done()
        stub.ready = True
        waiting.result(timeout=2)


@pytest.mark.parametrize(("url", "reason"), [("127.0.0.1:1", "cannot be reached"), (None, "the model is not loaded")])
def test_wait_ready_says_why_it_gave_up(stub: Stub, url: str | None, reason: str) -> None:
    stub.ready = False
    with (
        ToxicityClient(url or stub.grpc_url) as client,
        pytest.raises(Timeout, match=f"not ready within 0.4 s: .*{reason}"),
    ):
        client.wait_ready(0.4)


def test_a_server_that_comes_back_is_found_again() -> None:
    stub = Stub()
    server = stub.start()
    with ToxicityClient(stub.grpc_url) as client:
        client.classify(["0.5"])
        server.stop(None).wait()
        with pytest.raises(ServerUnavailable):
            client.classify(["0.5"])
        again = grpc.server(ThreadPoolExecutor(4))
        add_GRPCInferenceServiceServicer_to_server(stub, again)
        again.add_insecure_port(stub.grpc_url)
        again.start()
        client.wait_ready(5)
        assert len(client.classify(["0.5"])) == 1
        again.stop(None).wait()


def test_a_closed_client_says_so(stub: Stub) -> None:
    client = ToxicityClient(stub.grpc_url)
    client.close()
    client.close()
    with pytest.raises(ToxicityError, match="the client is closed"):
        client.classify(["0.5"])


def test_errors_and_results_survive_a_process_boundary(client: ToxicityClient) -> None:
    error = ServerBusy("full", endpoint="a:1", model="m", request_id="r", waited_s=2.0)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.endpoint, copy.waited_s) == (ServerBusy, "full", "a:1", 2.0)
    results = client.classify(["0.5"])
    assert pickle.loads(pickle.dumps(results)) == results


# --- streams


def test_a_stream_keeps_the_order_and_reads_no_further_than_it_must(stub: Stub) -> None:
    stub.max_batch_size = 8
    read = 0

    def source() -> Iterator[str]:
        nonlocal read
        for i in range(500):
            read += 1
            yield f"{i / 1000:.3f}"

    with ToxicityClient(stub.grpc_url, in_flight=3) as client:
        for count, result in enumerate(client.stream(source())):
            assert f"{result.scores['toxic']:.3f}" == f"{count / 1000:.3f}"
            assert read <= (count // 8 + 4) * 8
    assert read == 500


def test_a_stream_ends_with_the_first_text_that_cannot_be_sent(client: ToxicityClient) -> None:
    with pytest.raises(InvalidInput, match="texts is a single str"):
        client.stream("hello")
    seen = []
    with pytest.raises(InvalidInput, match=r"texts\[2\] is a int"):
        for result in client.stream(["0.1", "0.2", 3, "0.4"]):  # type: ignore[list-item]
            seen.append(result)
    assert len(seen) == 2
    assert list(client.stream([])) == []


def test_close_lets_calls_finish_and_refuses_new_ones(stub: Stub) -> None:
    stub.fault = lambda request, context: time.sleep(0.4)
    client = ToxicityClient(stub.grpc_url)
    client.info()
    with ThreadPoolExecutor(2) as pool:
        calls = pool.submit(client.classify, ["0.1"]), pool.submit(client.score, "0.1")
        time.sleep(0.2)
        client.close()
        assert calls[0].result()[0].scores == calls[1].result().scores
    for ask in (lambda: client.score("0.1"), lambda: client.stream(["0.1"]), client.info, client.wait_ready):
        with pytest.raises(ClientClosed, match="the client is closed: make a new one"):
            ask()


# --- a real server


@pytest.mark.triton
def test_a_real_server_keeps_the_order_of_a_long_list(server: Any) -> None:
    # which texts were cut says where each one went, whatever the model makes of them
    texts = [f"The train leaves at {i} o'clock" + " and then it stops" * (i % 7 == 0) * 100 for i in range(150)]
    with ToxicityClient(server.grpc_url, timeout=60) as client:
        assert client.info().max_batch_size < len(texts)
        results = client.classify(texts)
        assert [i for i, r in enumerate(results) if r.truncated] == list(range(0, 150, 7))
        alone = client.classify([texts[77]])[0]
    assert alone.scores == pytest.approx(results[77].scores, abs=0.05)  # dynamic INT8 sees its neighbours


@pytest.mark.triton
def test_a_real_server_reads_only_the_beginning_of_a_long_text(server: Any) -> None:
    with ToxicityClient(server.grpc_url, timeout=60) as client:
        short, long, nothing = client.classify(["hello there", "hello there " * 1000, ""])
    assert (short.truncated, long.truncated, nothing.truncated) == (False, True, False)


@pytest.mark.triton
def test_a_real_server_has_no_such_model(server: Any) -> None:
    with ToxicityClient(server.grpc_url, model="nope") as client, pytest.raises(ModelNotFound, match="nope"):
        client.classify(["hello"])


@pytest.mark.triton
def test_a_real_server_answers_single_comments_and_streams_of_both_clients(server: Any) -> None:
    texts = [f"The train leaves at {i} o'clock, you idiot" for i in range(40)]
    with ToxicityClient(server.grpc_url, timeout=60) as client, ThreadPoolExecutor(20) as pool:
        expected = [r.scores["toxic"] for r in client.stream(texts)]
        joined = list(pool.map(client.score, texts))
    assert [r.scores["toxic"] for r in joined] == pytest.approx(expected, abs=0.05)
    assert len({r.request_id for r in joined}) < len(texts)

    async def go() -> list[float]:
        async with AsyncToxicityClient(server.grpc_url, timeout=60, keepalive_s=0.1, compression="gzip") as client:
            await client.wait_ready(60)
            return [r.scores["toxic"] for r in await asyncio.gather(*map(client.score, texts))]

    assert asyncio.run(go()) == pytest.approx(expected, abs=0.05)
