"""The blocking client."""

from __future__ import annotations

import math
import os
import time
import uuid
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from client import wire
from client.errors import InvalidInput, ModelNotFound, ServerUnavailable, Timeout, ToxicityError
from client.results import ModelInfo, Result

DEFAULT_URL = "127.0.0.1:8001"
PROBE_S = 2.0
"""Longest single question of ``wait_ready``: a server that hangs while it starts is asked again."""


class ToxicityClient:
    """Scores texts on a Triton server, over one gRPC connection. Threads may share it.

    :param url: ``host:port`` of the server's gRPC port; by default the environment's ``TRITOX_URL``, else
        ``127.0.0.1:8001``.
    :param model: the model's name on the server.
    :param timeout: seconds that a call may take when it does not say otherwise.

    Nothing is sent before the first call.
    """

    def __init__(self, url: str | None = None, *, model: str = "toxicity", timeout: float = 10.0) -> None:
        self.url = url or os.environ.get("TRITOX_URL") or DEFAULT_URL
        self.model = model
        self.timeout = timeout
        self._call(None)  # so that a wrong timeout is refused here
        if self.url.startswith(("http://", "https://", "grpc://")):
            raise InvalidInput(
                f"the url is {self.url!r}, must be host:port of the server's gRPC port, such as {DEFAULT_URL}",
                endpoint=self.url,
                model=model,
            )
        # Not tritonclient's InferenceServerClient: it closes its channel once more when it is deleted, which under
        # gevent miscounts the open channels and can hang the process at exit (grpcio 1.85).
        self._channel = grpc.insecure_channel(self.url, wire.CHANNEL_OPTIONS)
        self._server = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._closed = False
        self._latest: ModelInfo | None = None
        self._infos: dict[str, ModelInfo] = {}  # by version: during a roll-out, replies of two versions may alternate

    def classify(self, texts: Sequence[str], timeout: float | None = None) -> list[Result]:
        """A result for each text, in the same order.

        Lists longer than the server's ``max_batch_size`` are sent as several requests, one after the other.

        :param timeout: seconds for the whole call; by default the client's.
        :raises InvalidInput: when ``texts`` is a bare string or holds something that is no text; nothing was sent then.
        :raises Timeout: see ``client.errors`` for this and the other failures. There are no partial results.
        """
        call = self._call(timeout)
        rows = wire.encode(texts, call)
        if not rows:
            return []
        size = (self._latest or self._read_info(call)).max_batch_size
        results: list[Result] = []
        for start in range(0, len(rows), size):
            results += self._request(rows[start : start + size], call)
        return results

    def info(self, timeout: float | None = None) -> ModelInfo:
        """Labels, thresholds and limits, read from the server once and again when a reply has another version."""
        return self._latest or self._read_info(self._call(timeout))

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Return as soon as the model can answer.

        :raises Timeout: when it cannot within ``timeout`` seconds; the message says why.
        """
        call = self._call(timeout)
        reason = "no answer"
        while True:
            try:
                if self._ask(call, self._server.ModelReady, pb.ModelReadyRequest(name=self.model), PROBE_S).ready:
                    return
                reason = "the server answers, the model is not loaded"
            except Timeout:
                pass  # the last reason says more
            except (ServerUnavailable, ModelNotFound) as error:
                reason = str(error)
            if call.waited_s() + 0.1 >= call.limit_s:
                raise call.error(
                    Timeout, f"model {self.model!r} on {self.url} was not ready within {call.limit_s:g} s: {reason}"
                )
            time.sleep(0.1)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._channel.close()

    def __enter__(self) -> ToxicityClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, timeout: float | None) -> wire.Call:
        limit = self.timeout if timeout is None else timeout
        call = wire.Call(self.url, self.model, limit)
        if not (isinstance(limit, (int, float)) and math.isfinite(limit) and limit > 0):
            raise call.error(InvalidInput, f"timeout is {limit!r}, must be a positive number of seconds")
        return call

    def _request(self, rows: list[bytes], call: wire.Call) -> list[Result]:
        """Send at most ``max_batch_size`` texts and read the reply."""
        call.request_id = uuid.uuid4().hex
        try:
            response = self._ask(call, self._server.ModelInfer, wire.infer_request(rows, call))
        except InvalidInput:
            self._latest = None  # max_batch_size may have changed: the next call reads it again
            raise
        version = response.model_version
        info = self._infos.get(version) or self._read_info(call, version)
        return wire.read_results(response, len(rows), info, call)

    def _read_info(self, call: wire.Call, version: str | None = None) -> ModelInfo:
        """Ask for the config of ``version``, by default the latest, so that thresholds never lag behind the model."""
        if version is None:
            metadata = self._ask(call, self._server.ModelMetadata, pb.ModelMetadataRequest(name=self.model))
            version = wire.latest_version(metadata, call)
        response = self._ask(call, self._server.ModelConfig, pb.ModelConfigRequest(name=self.model, version=version))
        info = self._latest = self._infos[version] = wire.read_info(response.config, version, call)
        return info

    def _ask(self, call: wire.Call, rpc: Callable[..., Any], request: Any, at_most_s: float = math.inf) -> Any:
        """One remote call, with what is left of the user's time as its deadline."""
        if self._closed:
            raise call.error(ToxicityError, "the client is closed: make a new one")
        try:
            return rpc(request, timeout=min(call.left_s(), at_most_s))
        except grpc.RpcError as error:
            raise call.failed(error.code().name, error.details()) from error
