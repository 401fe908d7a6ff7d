"""Between Python values and Triton's messages. Nothing here sends anything."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterable, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Any, TypeVar

import numpy as np
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2 as pb

from client.errors import (
    AccessDenied,
    ClientClosed,
    InvalidInput,
    InvalidReply,
    ModelNotFound,
    ServerBusy,
    ServerUnavailable,
    Timeout,
    ToxicityError,
)
from client.results import ModelInfo, Result, Timing

CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", triton.MAX_GRPC_MESSAGE_SIZE),
    ("grpc.max_receive_message_length", triton.MAX_GRPC_MESSAGE_SIZE),
    # a client owns its connection; gRPC's default shares one among all channels of a process to the same server
    ("grpc.use_local_subchannel_pool", 1),
    # a server that restarts is found again within a second; gRPC's default grows to two minutes
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # no pause, in spite of its name: how long a connection may take until it stands, by default 20 s. A far or busy
    # server takes a while; what is refused is known at once
    ("grpc.min_reconnect_backoff_ms", 5000),
]

BROKEN_NEIGHBOUR = "incomplete string"
"""Triton's Python backend says so of a request whose strings end early, to all requests that it joined with it (seen on
2.51). Ours never end early: so it was another's, and is sent again."""


def channel_options(keepalive_s: float = 0.0, server_name: str | None = None) -> list[tuple[str, Any]]:
    """How gRPC is to keep a connection.

    :param keepalive_s: the pause between two checks of a connection under a request; 0 for none. gRPC checks at most
        twice between two requests, so that a server which counts checks, as Triton does, bears it.
    :param server_name: that the server's certificate must hold.
    """
    options: list[tuple[str, Any]] = list(CHANNEL_OPTIONS)
    if keepalive_s:
        options += [
            ("grpc.keepalive_time_ms", max(1, int(keepalive_s * 1000))),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.max_pings_without_data", 2),
        ]
    if server_name:
        options.append(("grpc.ssl_target_name_override", server_name))
    return options


E = TypeVar("E", bound=ToxicityError)


@dataclass(slots=True)
class Call:
    """One call of the user: whom it asks, how long it may take, and the request under way. Errors are made from it.

    :param limit_s: seconds for the whole call, however many requests it takes.
    :param tries: how often the request under way was sent.
    :param request_s: how long the try took that was answered.
    :param patient: a busy server is asked again until the time is up.
    """

    endpoint: str
    model: str
    limit_s: float
    request_id: str | None = None
    started: float = field(default_factory=time.monotonic)
    tries: int = 0
    request_s: float = 0.0
    patient: bool = False

    def part(self) -> Call:
        """For one of several requests of the same call: they share its time."""
        return replace(self, request_id=None, tries=0)

    def waited_s(self) -> float:
        return time.monotonic() - self.started

    def left_s(self) -> float:
        """Seconds until the deadline.

        :raises Timeout: when none are left.
        """
        left = self.limit_s - self.waited_s()
        if left <= 0:
            raise self.timeout()
        return left

    def error(self, kind: type[E], message: str, remedy: str = "") -> E:
        return kind(
            message,
            endpoint=self.endpoint,
            model=self.model,
            request_id=self.request_id,
            waited_s=self.waited_s(),
            tries=self.tries,
            remedy=remedy,
        )

    def timeout(self) -> Timeout:
        return self.error(
            Timeout,
            f"{self.endpoint} did not answer within {self.limit_s:g} s",
            "give the call a longer timeout, or fewer texts",
        )

    def closed(self) -> ClientClosed:
        return self.error(ClientClosed, "the client is closed", "make a new one")

    def failed(self, code: str, detail: str | None) -> ToxicityError:
        """The error for a gRPC status such as ``UNAVAILABLE`` and the text that came with it."""
        detail = " ".join((detail or "").split())  # a traceback of a Python backend has many lines
        where = f"model {self.model!r} on {self.endpoint}"
        if code == "DEADLINE_EXCEEDED":
            return self.timeout()
        # Triton says "unknown model" with NOT_FOUND or UNAVAILABLE, and refuses for a full queue with UNAVAILABLE
        if code == "NOT_FOUND" or "unknown model" in detail:
            return self.error(
                ModelNotFound, f"no {where} ({detail})", "check the name, or wait until it is loaded (wait_ready)"
            )
        if code == "RESOURCE_EXHAUSTED" or "maximum queue size" in detail or "Request timeout expired" in detail:
            return self.error(ServerBusy, f"{where} is busy ({detail})", "try again later, or send less at a time")
        # a connection that is reset while a request is under way may show as INTERNAL
        if code == "UNAVAILABLE" or (code == "INTERNAL" and "RST_STREAM" in detail):
            return self.error(
                ServerUnavailable,
                f"{self.endpoint} cannot be reached ({detail})",
                "is the server running (`python -m serve`), and is this its gRPC port?",
            )
        if code == "INVALID_ARGUMENT" and BROKEN_NEIGHBOUR in detail:
            return self.error(
                ServerBusy, f"{where} failed a whole batch ({detail})", "another caller's request was broken"
            )
        if code == "INVALID_ARGUMENT":
            return self.error(InvalidInput, f"{where} refused the request ({detail})", "change the texts or the model")
        if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            return self.error(
                AccessDenied, f"{where} refused the caller ({code}: {detail})", "check the credentials' token"
            )
        return self.error(ToxicityError, f"{where} failed with {code} ({detail})", "the server's log says more")


def check_texts(texts: object, call: Call) -> None:
    """:raises InvalidInput: when ``texts`` is one text, or nothing that holds texts in an order."""
    if isinstance(texts, (str, bytes)):
        raise call.error(InvalidInput, f"texts is a single {type(texts).__name__}", "wrap it in a list, [text]")
    if isinstance(texts, (Mapping, Set)) or not isinstance(texts, (Iterable, AsyncIterable)):
        raise call.error(InvalidInput, f"texts is a {type(texts).__name__}, must be a list of str", "give a list")


def encode(texts: Iterable[str], call: Call) -> list[bytes]:
    """The texts as UTF-8.

    :raises InvalidInput: naming the first text that is none.
    """
    check_texts(texts, call)
    rows, error = encode_until_bad(texts, call)
    if error is not None:
        raise error
    return rows


def encode_one(text: str, call: Call) -> bytes:
    """:raises InvalidInput: when it is no text."""
    if isinstance(text, str):
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise _unspeakable("text", text, error, call) from None
    raise call.error(InvalidInput, f"text is a {type(text).__name__}, must be a str", "classify() takes lists")


def encode_until_bad(texts: Iterable[str], call: Call, first: int = 0) -> tuple[list[bytes], InvalidInput | None]:
    """The texts as UTF-8, up to the first that is none, and the error for that one.

    :param first: the number of the first text, for the message.
    """
    rows: list[bytes] = []
    for i, text in enumerate(texts, first):
        if not isinstance(text, str):
            found = f"texts[{i}] is a {type(text).__name__}, must be a str"
            return rows, call.error(InvalidInput, found, "drop or convert it")
        try:
            rows.append(text.encode())
        except UnicodeEncodeError as error:
            return rows, _unspeakable(f"texts[{i}]", text, error, call)
    return rows, None


def _unspeakable(name: str, text: str, error: UnicodeEncodeError, call: Call) -> InvalidInput:
    return call.error(
        InvalidInput,
        f"{name} holds a lone surrogate, {text[error.start]!r} at position {error.start}, which UTF-8 cannot express",
        "replace it, e.g. text.encode('utf-8', 'replace').decode()",
    )


def infer_request(rows: list[bytes], call: Call) -> pb.ModelInferRequest:
    """A request with the one input ``TEXT``. *Shape:* ``(texts, 1)``. What is left of the call's time goes with it.

    :raises Timeout: when none is left.
    """
    tensor = pb.ModelInferRequest.InferInputTensor(name="TEXT", datatype="BYTES", shape=[len(rows), 1])
    content = b"".join(len(row).to_bytes(4, "little") + row for row in rows)
    request = pb.ModelInferRequest(
        model_name=call.model, id=call.request_id, inputs=[tensor], raw_input_contents=[content]
    )
    # gRPC's own deadline is not shown to models; with this the server refuses at once what it cannot answer in time
    request.parameters["timeout"].int64_param = max(1, int(call.left_s() * 1e6))
    return request


def read_results(response: pb.ModelInferResponse, texts: int, info: ModelInfo, call: Call) -> list[Result]:
    """A result for each of the ``texts`` of one request. They share the request's timing.

    :raises InvalidReply: when an output is missing, has another shape, or a score is no probability.
    """
    reply = triton.InferResult(response)
    scores = _output(reply, "scores", (texts, len(info.labels)), "f", call)
    truncated = _output(reply, "truncated", (texts, 1), "b", call)
    if not ((scores >= 0) & (scores <= 1)).all():  # also false for NaN
        bad = scores[~((scores >= 0) & (scores <= 1))][0]
        raise call.error(
            InvalidReply,
            f"{call.endpoint} gave the score {bad}, must lie in [0, 1]",
            "the model on the server is broken: `python -m export.repository rollback`",
        )
    timing = Timing(call.waited_s(), 0.0, call.request_s, call.tries)
    labels, name, version, request_id = info.labels, info.name, info.version, call.request_id or ""
    thresholds = np.array([info.thresholds[label] for label in labels])
    above = scores.astype(np.float64) >= thresholds
    nothing = (~above.any(axis=1)).tolist()
    results = []
    for row, marks, none, cut in zip(scores.tolist(), above.tolist(), nothing, truncated[:, 0].tolist(), strict=True):
        flagged = () if none else tuple(compress(labels, marks))
        results.append(Result(dict(zip(labels, row)), flagged, cut, name, version, request_id, timing))  # noqa: B905
    return results


def _output(reply: triton.InferResult, name: str, shape: tuple[int, int], kind: str, call: Call) -> np.ndarray:
    """One output tensor; ``kind`` is numpy's letter, ``f`` for floats and ``b`` for booleans."""
    try:
        tensor = reply.as_numpy(name)
        found = "nothing" if tensor is None else f"{tensor.dtype} {tensor.shape}"
        if tensor is not None and tensor.shape == shape and tensor.dtype.kind == kind:
            return np.asarray(tensor)
    except ValueError as error:  # the bytes do not fill the shape that is stated
        found = str(error)
    raise call.error(
        InvalidReply,
        f"{call.endpoint} gave {found} for the output {name!r}, must be {shape}",
        f"is {call.model!r} a model that `python -m export` wrote?",
    )


def latest_version(metadata: Any, call: Call) -> str:
    """The version that answers when none is asked for, from Triton's ``ModelMetadataResponse``."""
    versions = [v for v in metadata.versions if v.isdecimal()]
    if not versions:
        raise call.error(
            InvalidReply,
            f"{call.endpoint} lists the versions {list(metadata.versions)} of {call.model!r}, must be whole numbers",
            "name its folders 1, 2, ...",
        )
    return str(max(versions, key=int))


def read_info(config: Any, version: str, call: Call) -> ModelInfo:
    """The labels, thresholds and limits in a Triton ``ModelConfig``.

    :raises InvalidReply: when it lacks one of them.
    """
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    try:
        labels = tuple(map(str, json.loads(parameters["labels"])))
        thresholds = {label: float(json.loads(parameters["thresholds"])[label]) for label in labels}
        max_tokens = int(parameters["max_tokens"])
        provenance = json.loads(parameters.get("provenance", "{}"))
        release, normalizer = (str(provenance.get(key, "")) for key in ("model_version", "normalizer"))
        if not labels or config.max_batch_size < 1:
            raise ValueError(f"{len(labels)} labels, max_batch_size {config.max_batch_size}, must be at least 1")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise call.error(
            InvalidReply,
            f"the config of model {call.model!r} on {call.endpoint} is not one of Tritox's ({reason})",
            "its parameters must hold labels, thresholds and max_tokens, as `python -m export` writes them",
        ) from None
    return ModelInfo(
        call.model,
        version,
        labels,
        thresholds,
        max_tokens,
        config.max_batch_size,
        parameters.get("precision", ""),
        release,
        normalizer,
    )
