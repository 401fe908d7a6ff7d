"""What the served model promises, asked of a real Triton over raw gRPC."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from conftest import LABELS
from tritonclient.utils import InferenceServerException

from serve.server import TritonServer

pytestmark = pytest.mark.triton

NEIGHBOUR_TOLERANCE = 0.1
"""INT8 takes the range of activations over a whole batch, so a score moves a little with its neighbours (README)."""

LONG = "This article was merged after a long discussion on its talk page, see the archive. " * 40


class Raw:
    """One connection, and the scores of whatever bytes are sent."""

    def __init__(self, url: str) -> None:
        self.client = grpcclient.InferenceServerClient(url)

    def __call__(self, texts: list[str | bytes], model: str = "toxicity") -> tuple[np.ndarray, np.ndarray]:
        rows = [t.encode() if isinstance(t, str) else t for t in texts]
        return self.send(np.array(rows, object).reshape(-1, 1), "BYTES", model)

    def send(self, array: np.ndarray, datatype: str, model: str = "toxicity") -> tuple[np.ndarray, np.ndarray]:
        tensor = grpcclient.InferInput("TEXT", list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        reply = self.client.infer(model, [tensor], client_timeout=60)
        return reply.as_numpy("scores"), reply.as_numpy("truncated")


@pytest.fixture
def raw(server: TritonServer) -> Raw:
    return Raw(server.grpc_url)


def test_a_text_scores_the_same_alone_in_a_batch_and_beside_a_long_neighbour(raw: Raw) -> None:
    texts = ["You are a complete idiot.", "Thank you, that helps a lot!", "shut up, nobody likes you", "ok"]
    alone = np.concatenate([raw([text])[0] for text in texts])
    together = raw(texts)[0]
    beside_long = np.concatenate([raw([text, LONG])[0][:1] for text in texts])
    assert alone.shape == (4, len(LABELS))
    np.testing.assert_allclose(together, alone, atol=NEIGHBOUR_TOLERANCE)
    np.testing.assert_allclose(beside_long, alone, atol=NEIGHBOUR_TOLERANCE)
    assert np.array_equal(raw(texts)[0], together)  # the same batch gives the same scores


def test_disguised_insults_score_as_plain_ones(raw: Raw) -> None:
    plain, *disguised = raw(
        [
            "You are such an idiot",
            "You are such an 1d10t",
            "You are such an i d i o t",
            "You are such an \u0456di\u043et",
        ]
    )[0]
    assert plain[0] > 0.8
    for scores in disguised:
        np.testing.assert_allclose(scores, plain, atol=0.1)


def test_the_starter_model_tells_an_insult_from_thanks(raw: Raw) -> None:
    scores = raw(["You are a complete idiot.", "Thank you, that helps a lot!"])[0]
    toxic, insult = LABELS.index("toxic"), LABELS.index("insult")
    assert scores[0, toxic] > 0.8 and scores[0, insult] > 0.5
    assert scores[1].max() < 0.05


@pytest.mark.parametrize(
    ("text", "is_truncated"),
    [
        ("", False),
        (" \t\n ", False),
        ("🙂👍🏽🇩🇪" * 10, False),
        ("nul\0inside", False),
        ("\0", False),
        ("مرحبا ยินดี 你好", False),
        ("word " * 126, False),  # 126 and two special tokens: exactly what the model reads
        ("word " * 127, True),
        ("you idiot " * 10_000, True),  # 100 kB
        ("x" * 100_000, True),
        (" " * 100_000 + "you idiot", True),
    ],
    ids=["empty", "space", "emoji", "nul", "only-nul", "scripts", "128", "129", "100kB", "one-word", "spaces"],
)
def test_every_text_has_a_defined_score_and_truncation_is_reported(raw: Raw, text: str, is_truncated: bool) -> None:
    scores, truncated = raw([text])
    assert scores.shape == (1, len(LABELS)) and truncated.shape == (1, 1)
    assert np.isfinite(scores).all() and (scores >= 0).all() and (scores <= 1).all()
    assert bool(truncated[0, 0]) is is_truncated
    assert np.array_equal(raw([text])[0], scores)


def test_truncated_text_scores_as_its_beginning(raw: Raw) -> None:
    start = "you are an idiot and " * 30
    np.testing.assert_array_equal(raw([start + "thanks " * 5000])[0], raw([start + "hello"])[0])


@pytest.mark.parametrize("bad", [b"\xff\xfe", b"caf\xe9", "é".encode()[:1], b"\xed\xa0\x80"])
def test_invalid_utf8_is_refused_with_its_row(raw: Raw, bad: bytes) -> None:
    with pytest.raises(InferenceServerException) as error:
        raw(["fine", "fine too", bad])
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert "TEXT row 2 is not valid UTF-8" in error.value.message()


def wrong_dtype(raw: Raw) -> None:
    raw.send(np.zeros((1, 1), np.float32), "FP32")


def wrong_shape(raw: Raw) -> None:
    raw.send(np.array([[b"a", b"b"]], object), "BYTES")


def no_rows(raw: Raw) -> None:
    raw([])


def too_many_rows(raw: Raw) -> None:
    raw(["x"] * 65)


def unknown_model(raw: Raw) -> None:
    raw(["x"], model="nope")


def bad_utf8(raw: Raw) -> None:
    raw([b"\xff"])


FAULTS = {
    wrong_dtype: ("INVALID_ARGUMENT", "data-type is 'FP32'.*expects 'BYTES'"),
    wrong_shape: ("INVALID_ARGUMENT", r"Expected \[-1,1\], got \[1,2\]"),
    no_rows: ("INVALID_ARGUMENT", "expected 1 string elements.*got 0"),
    too_many_rows: ("INVALID_ARGUMENT", "batch-size must be <= 64"),
    unknown_model: ("NOT_FOUND", "unknown model: 'nope'"),
    bad_utf8: ("INVALID_ARGUMENT", "TEXT row 0 is not valid UTF-8: byte 0xff at offset 0 of 1"),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_bad_requests_get_a_clear_error_and_the_server_answers_on(raw: Raw, fault) -> None:  # noqa: ANN001
    status, message = FAULTS[fault]
    with pytest.raises(InferenceServerException, match=message) as error:
        fault(raw)
    assert error.value.status() == f"StatusCode.{status}"
    assert raw(["still there"])[0].shape == (1, len(LABELS))


def test_bad_requests_hurt_none_beside_them(server: TritonServer) -> None:
    """Good and bad requests at once, from many connections, so that they meet in the tokenizer's batches."""
    texts = ["You are a complete idiot.", "Thank you, that helps a lot!"]
    expected = Raw(server.grpc_url)(texts)[0]
    failures: list[str] = []

    def good() -> None:
        raw = Raw(server.grpc_url)
        for _ in range(15):
            try:
                scores = raw(texts)[0]
                if not np.allclose(scores, expected, atol=NEIGHBOUR_TOLERANCE):
                    failures.append(f"scores moved to {scores}")
            except InferenceServerException as error:
                failures.append(str(error))

    def bad() -> None:
        raw = Raw(server.grpc_url)
        for i in range(15):
            try:
                list(FAULTS)[i % len(FAULTS)](raw)
                failures.append("a bad request was answered")
            except InferenceServerException:
                pass

    threads = [threading.Thread(target=work) for work in (good, bad) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_requests_are_batched(server: TritonServer) -> None:
    """Concurrent requests of one comment reach the encoder in fewer executions than requests."""
    client = grpcclient.InferenceServerClient(server.grpc_url)

    def encoder_counts() -> tuple[int, int]:
        stats = client.get_inference_statistics("toxicity_encoder").model_stats[0]
        return stats.inference_count, stats.execution_count

    before = encoder_counts()

    def work() -> None:
        raw = Raw(server.grpc_url)
        for _ in range(12):
            raw(["a short comment of the usual kind"])

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    inferences, executions = (b - a for a, b in zip(before, encoder_counts(), strict=True))
    assert inferences == 16 * 12
    assert executions < inferences / 1.5
