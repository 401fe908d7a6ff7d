"""What both clients do, whichever way they wait.

The work of a call is written once, as *steps*: a generator that starts requests and yields when there is nothing to do
but wait. The blocking client waits with a thread, the asynchronous one with its event loop; neither decides anything.
"""

from __future__ import annotations

import math
import random
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal, TypeVar

import grpc
from tritonclient.grpc import service_pb2 as pb

from client import wire
from client.errors import InvalidInput, ModelNotFound, ServerBusy, ServerUnavailable, Timeout, ToxicityError
from client.options import Batching, Credentials, Hedge, Retry, endpoints
from client.pool import PROBE_TIMEOUT_S, Budget, Endpoint, Lane, Latencies, Pool
from client.results import ModelInfo, Result

T = TypeVar("T")
PROBE_S = 2.0
"""Longest single question of ``wait_ready``: a server that hangs while it starts is asked again."""
GLANCE_S = 0.05
"""How often a request that stalls looks whether its server was found dead."""
LATE_S = 1.0
"""gRPC ends a request at its deadline; should it ever not, we do so long after."""
LOOKS = 5
LOOK_S = 0.02
"""How often a version is looked up that is gone at the next question, since another one takes over; and the first
pause, each further one is twice as long."""
SERVICE = "/inference.GRPCInferenceService/"
METHODS = {
    "ModelInfer": (pb.ModelInferRequest, pb.ModelInferResponse),
    "ModelReady": (pb.ModelReadyRequest, pb.ModelReadyResponse),
    "ModelMetadata": (pb.ModelMetadataRequest, pb.ModelMetadataResponse),
    "ModelConfig": (pb.ModelConfigRequest, pb.ModelConfigResponse),
}
COMPRESSION = {None: None, "gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}


class Line:
    """One gRPC channel to a server and the methods that are called on it."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.methods: dict[str, Any] = {
            name: channel.unary_unary(
                SERVICE + name,
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )
            for name, (request, response) in METHODS.items()
        }


class Flight:
    """One request on its way.

    :ivar code: gRPC's status when it failed, else ``None``; ``reply`` is the answer then.
    :ivar given_up: its server was found dead, and the request was sent elsewhere.
    """

    __slots__ = ("cancel", "code", "detail", "done", "endpoint", "given_up", "lane", "reply", "started", "took_s")

    def __init__(self, endpoint: Endpoint[Line], lane: Lane[Line]) -> None:
        self.endpoint, self.lane = endpoint, lane
        self.started = time.monotonic()
        self.took_s = 0.0
        self.done = self.given_up = False
        self.reply: Any = None
        self.code: str | None = None
        self.detail = ""
        self.cancel: Callable[[], Any] | None = None

    def land(self, reply: Any, code: str | None = None, detail: str | None = None) -> None:
        """It was answered, or failed."""
        self.took_s = time.monotonic() - self.started
        self.reply, self.code, self.detail = reply, code, detail or ""
        self.done = True


class Turn(ABC):
    """What a call waits with, for one or more flights."""

    @abstractmethod
    def send(self, flight: Flight, method: str, request: Any, timeout_s: float, alone: bool) -> None:
        """Start a request and return.

        :param alone: nothing else will be waited for meanwhile, so it may as well start when it is waited for.
        """


Wait = tuple["Turn | None", "float | None"]
"""Wait until a flight of this turn lands, or for so many seconds; without a turn, just pause."""
Steps = Generator[Wait, None, T]


class BaseClient(ABC):
    """Scores texts on one or more Triton servers.

    :param url: ``host:port`` of a server's gRPC port, several with commas between them, or a list; by default the
        environment's ``TRITOX_URL``, else ``127.0.0.1:8001``.
    :param model: the model's name on the servers.
    :param timeout: seconds that a call may take when it does not say otherwise.
    :param credentials: TLS, mutual TLS, a token; by default those of the environment
        (:meth:`client.options.Credentials.from_environment`), else none, and nothing is encrypted.
    :param retry: when a request is sent again; ``Retry(attempts=1)`` never does.
    :param hedge: send late requests once more; off by default.
    :param batching: how ``score`` joins the comments of concurrent callers.
    :param in_flight: requests that ``classify`` and ``stream`` have under way at once; by default two for each server.
    :param connections: to each server, at most; further ones are opened when those that are open are crowded.
    :param compression: ``"gzip"`` or ``"deflate"`` for requests; for slow networks, it costs both sides CPU.
    :param keepalive_s: an idle connection under a request is checked so often; 0 never does.
    :param stall_s: with several servers, one that has not answered for so long is asked whether it still can.

    Nothing is sent before the first call.
    """

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        *,
        model: str = "toxicity",
        timeout: float = 10.0,
        credentials: Credentials | None = None,
        retry: Retry | None = None,
        hedge: Hedge | None = None,
        batching: Batching | None = None,
        in_flight: int | None = None,
        connections: int = 4,
        compression: Literal["gzip", "deflate"] | None = None,
        keepalive_s: float = 30.0,
        stall_s: float = 0.5,
    ) -> None:
        targets = endpoints(url)
        self.url = ",".join(targets)
        self.model = model
        self.timeout = timeout
        self._call(None)  # so that a wrong timeout is refused here
        self.credentials, self.hedge = credentials or Credentials.from_environment(), hedge
        self.retry, self.batching = retry or Retry(), batching or Batching()
        self.in_flight = in_flight or 2 * len(targets)
        self.connections, self.stall_s = connections, stall_s
        if compression not in COMPRESSION:
            raise InvalidInput(f"compression is {compression!r}, must be gzip, deflate or None", remedy="change it")
        for name, value, least in (
            ("connections", connections, 1),
            ("in_flight", self.in_flight, 1),
            ("keepalive_s", keepalive_s, 0),
            ("stall_s", stall_s, 0),
        ):
            if not isinstance(value, (int, float)) or value < least:
                raise InvalidInput(f"{name} is {value!r}, must be at least {least}", remedy="change it")
        self._compression = COMPRESSION[compression]
        self._options = wire.channel_options(keepalive_s, self.credentials.server_name if self.credentials else None)
        self._secure = self._channel_credentials()
        self._pool: Pool[Line] = Pool(targets, connections, self._open_lane, self._probe)
        self._several = len(targets) > 1
        self._retries = Budget(self.retry.budget, self.retry.reserve)
        self._hedges = Budget(hedge.budget if hedge else 0.0, 10.0)
        self._latencies = Latencies()
        self._closed = False  # to new calls
        self._shut = False  # the connections are closed
        self._latest: ModelInfo | None = None
        self._infos: dict[str, ModelInfo] = {}  # by version: during a roll-out, replies of two versions may alternate
        self._prepare()

    # --- what the two clients do differently

    @abstractmethod
    def _prepare(self) -> None: ...

    @abstractmethod
    def _open_lane(self, target: str) -> Line: ...

    @abstractmethod
    def _turn(self) -> Turn: ...

    @abstractmethod
    def _probe(self, endpoint: Endpoint[Line]) -> None:
        """Ask whether an endpoint's model is ready, in the background; the pool is told."""

    # --- the steps of a call

    def _call(self, timeout: float | None, patient: bool = False) -> wire.Call:
        limit = self.timeout if timeout is None else timeout
        call = wire.Call(self.url, self.model, limit, patient=patient)
        if not (isinstance(limit, (int, float)) and math.isfinite(limit) and limit > 0):
            raise call.error(InvalidInput, f"timeout is {limit!r}, must be a positive number of seconds")
        return call

    def _begin(self, timeout: float | None, patient: bool = False) -> wire.Call:
        """A call of the user.

        :raises ClientClosed: after ``close()``, although what was under way then may go on.
        """
        call = self._call(timeout, patient)
        if self._closed:
            raise call.closed()
        return call

    def _score(self, rows: list[bytes], call: wire.Call) -> Steps[list[Result]]:
        """Results of texts, in as many requests as the server's limit asks for, one after the other."""
        size = (self._latest or (yield from self._read_info(call))).max_batch_size
        results: list[Result] = []
        for start in range(0, len(rows), size):
            part = call if len(rows) <= size else call.part()
            results += yield from self._request(rows[start : start + size], part)
        return results

    def _request(self, rows: list[bytes], call: wire.Call) -> Steps[list[Result]]:
        """Send at most ``max_batch_size`` texts and read the reply."""
        call.request_id = uuid.uuid4().hex
        for look in range(LOOKS):
            try:
                response = yield from self._ask("ModelInfer", lambda: wire.infer_request(rows, call), call, len(rows))
            except InvalidInput:
                self._latest = None  # max_batch_size may have changed: the next call reads it again
                raise
            version = response.model_version
            try:
                info = self._infos.get(version) or (yield from self._read_info(call, version))
            except ModelNotFound:
                # another version took over since, or takes over behind a load balancer, server by server: the texts
                # are scored again, for nobody asked knows this version's thresholds
                if look == LOOKS - 1:
                    raise
                yield None, LOOK_S * 2**look
                continue
            break
        return wire.read_results(response, len(rows), info, call)

    def _info(self, call: wire.Call) -> Steps[ModelInfo]:
        return self._latest or (yield from self._read_info(call))

    def _read_info(self, call: wire.Call, version: str | None = None) -> Steps[ModelInfo]:
        """Ask for the config of ``version``, by default the latest, so that thresholds never lag behind the model."""
        asked = call.part()
        asked.request_id = call.request_id
        for look in range(LOOKS):
            number = version or (yield from self._latest_version(asked))
            try:
                config = yield from self._config(number, asked)
            except ModelNotFound:
                if version is not None or look == LOOKS - 1:
                    raise
                yield None, LOOK_S * 2**look  # another version took over between the two questions
                continue
            break
        info = self._latest = self._infos[number] = wire.read_info(config, number, asked)
        return info

    def _latest_version(self, call: wire.Call) -> Steps[str]:
        question = pb.ModelMetadataRequest(name=self.model)
        return wire.latest_version((yield from self._ask("ModelMetadata", lambda: question, call)), call)

    def _config(self, version: str, call: wire.Call) -> Steps[Any]:
        question = pb.ModelConfigRequest(name=self.model, version=version)
        return (yield from self._ask("ModelConfig", lambda: question, call)).config

    def known(self, version: str) -> ModelInfo | None:
        """What the server said about a version that it answered with; nothing is asked."""
        return self._infos.get(version)

    def _wait_ready(self, call: wire.Call) -> Steps[None]:
        reason = "no answer"
        while True:
            reasons = yield from self._ready(call)
            if reasons is None:
                return
            reason = reasons or reason  # when nobody answered, the last reason says more
            if call.waited_s() + 0.1 >= call.limit_s:
                raise call.error(
                    Timeout, f"model {self.model!r} on {self.url} was not ready within {call.limit_s:g} s: {reason}"
                )
            yield None, 0.1

    def _ready(self, call: wire.Call) -> Steps[str | None]:
        """Ask every server whether the model is ready: ``None`` when one says so, else why it is not."""
        turn, flights, reason = self._turn(), [], ""
        try:
            until = time.monotonic() + min(PROBE_S, max(0.001, call.limit_s - call.waited_s()))
            for endpoint in self._pool.endpoints:
                self._check_open(call)
                flight = Flight(endpoint, self._pool.lane(endpoint))
                request = pb.ModelReadyRequest(name=self.model)
                turn.send(flight, "ModelReady", request, until - time.monotonic(), alone=not self._several)
                flights.append(flight)
            while flights and (left := until + LATE_S - time.monotonic()) > 0:
                yield turn, left
                for flight in [f for f in flights if f.done]:
                    flights.remove(flight)
                    asked = call.part()
                    asked.endpoint = flight.endpoint.target
                    if flight.code is None and flight.reply.ready:
                        self._pool.answered(flight.endpoint)
                        return None
                    if flight.code is None:
                        reason = "the server answers, the model is not loaded"
                        continue
                    error = self._error(flight, asked)
                    if not isinstance(error, (ServerUnavailable, ModelNotFound)):
                        raise error
                    if not isinstance(error, Timeout):
                        reason = str(error)
            return reason
        finally:
            for flight in flights:
                if flight.cancel:
                    flight.cancel()

    # --- one request, sent as often as it takes

    def _ask(self, method: str, request: Callable[[], Any], call: wire.Call, rows: int = 0) -> Steps[Any]:
        """The reply to a request.

        :param request: makes it, for each try anew: what is left of the time goes with it.
        :param rows: texts in it; 0 is no scoring, and is not hedged.
        """
        hedging = self.hedge is not None and rows > 0
        turn = self._turn()
        flights: list[Flight] = []
        sent_to: list[Endpoint[Line]] = []
        call.tries = 0
        hedged = won = False

        def send() -> None:
            self._check_open(call)
            left = call.left_s()
            message = request()
            endpoint, lane = self._pool.take(sent_to)
            flight = Flight(endpoint, lane)
            flights.append(flight)
            sent_to.append(endpoint)
            call.endpoint, call.tries = endpoint.target, call.tries + 1
            turn.send(flight, method, message, left, alone=not (self._several or hedging))

        try:
            send()
            while True:
                yield turn, self._patience(flights, call, hedging and not hedged, rows)
                failed: Flight | None = None
                for flight in [f for f in flights if f.done]:
                    self._pool.release(flight.endpoint, flight.lane)
                    flights.remove(flight)
                    if flight.code is None:
                        call.endpoint, call.request_s = flight.endpoint.target, flight.took_s
                        self._won(flight, rows)
                        won = True
                        return flight.reply
                    failed = flight
                if failed is not None:
                    error = self._lost(failed, call)
                    if any(not flight.given_up for flight in flights):
                        continue  # the other one may still be answered
                    pause = self._pause(error, call, sent_to)
                    if pause is None:
                        raise self._final(error, failed, call, sent_to)
                    if pause:
                        yield None, pause
                    send()
                    continue
                left = call.limit_s - call.waited_s()
                if left <= 0:
                    for flight in flights:
                        self._pool.doubt(flight.endpoint)
                    if left < -LATE_S:
                        raise call.timeout()
                    continue
                if hedging and not hedged and self._is_late(flights[0], rows):
                    hedged = True
                    if self._hedges.spend():
                        send()
                elif self._several and call.tries < self.retry.attempts and self._dead(flights, call):
                    send()
        finally:
            for flight in flights:
                self._pool.release(flight.endpoint, flight.lane)
                # One that was overtaken ends by itself: it may be answered at any moment, and to cancel a call in the
                # moment of its answer ends Triton 24.10 (server issue 8034).
                if flight.cancel and (flight.given_up or not won):
                    flight.cancel()

    def _check_open(self, call: wire.Call) -> None:
        if self._shut:
            raise call.closed()

    def _patience(self, flights: list[Flight], call: wire.Call, may_hedge: bool, rows: int) -> float | None:
        """How long to wait before something else than an answer is to be considered."""
        left = call.limit_s - call.waited_s()
        if not (self._several or may_hedge):
            return max(left, 0) + LATE_S
        waits = [left if left > 0 else left + LATE_S + GLANCE_S]
        age = time.monotonic() - flights[0].started
        if may_hedge and (delay := self._hedge_delay(rows)) is not None:
            waits.append(delay - age)
        if self._several:
            stall = self._stall(call)
            waits += [max(stall - (time.monotonic() - f.started), GLANCE_S) for f in flights]
        return max(0.0, min(waits))

    def _stall(self, call: wire.Call) -> float:
        """A short deadline leaves less time to find out that a server is dead."""
        return min(self.stall_s, call.limit_s / 4)

    def _hedge_delay(self, rows: int) -> float | None:
        assert self.hedge is not None
        return self._latencies.p95(rows) if self.hedge.delay_s is None else self.hedge.delay_s

    def _is_late(self, flight: Flight, rows: int) -> bool:
        delay = self._hedge_delay(rows)
        return delay is not None and time.monotonic() - flight.started >= delay

    def _dead(self, flights: list[Flight], call: wire.Call) -> bool:
        """Look after flights that stall. True when none is left whose server may still answer, and another is up."""
        now = time.monotonic()
        for flight in flights:
            if now - flight.started < self._stall(call):
                continue
            if flight.endpoint.up:
                self._pool.doubt(flight.endpoint)
            flight.given_up = not flight.endpoint.up
        self._pool.look()
        return all(f.given_up for f in flights) and self._pool.others_up([f.endpoint for f in flights])

    def _won(self, flight: Flight, rows: int) -> None:
        self._pool.answered(flight.endpoint)
        self._retries.earn()
        if self.hedge is not None and rows:
            self._hedges.earn()
            self._latencies.add(rows, flight.took_s)

    def _lost(self, flight: Flight, call: wire.Call) -> ToxicityError:
        """The error of a flight that failed; the pool is told what it says about the server."""
        call.endpoint = flight.endpoint.target
        error = self._error(flight, call)
        if type(error) is ServerUnavailable:
            self._pool.lost(flight.endpoint)
        elif type(error) is Timeout:
            self._pool.doubt(flight.endpoint)
        elif type(error) is not ModelNotFound:
            self._pool.answered(flight.endpoint)
        return error

    def _error(self, flight: Flight, call: wire.Call) -> ToxicityError:
        if flight.code == "CANCELLED" and self._shut:
            return call.closed()
        return call.failed(flight.code or "UNKNOWN", flight.detail)

    def _pause(self, error: ToxicityError, call: wire.Call, sent_to: list[Endpoint[Line]]) -> float | None:
        """Seconds to wait before the request is sent again; ``None`` when it must not be."""
        elsewhere = self._several and self._pool.others_up(sent_to)
        if isinstance(error, ModelNotFound):  # another server may have loaded it already
            return 0.0 if elsewhere and call.tries < self.retry.attempts else None
        if not isinstance(error, ServerUnavailable) or isinstance(error, Timeout):
            return None
        waits = call.patient and isinstance(error, ServerBusy)
        if call.tries >= self.retry.attempts and not waits:
            return None
        if elsewhere and not isinstance(error, ServerBusy):
            return 0.0
        if not waits and not self._retries.spend():
            return None
        most = min(self.retry.cap_s, self.retry.base_s * 2 ** min(call.tries, 20))
        pause = random.uniform(0, most)
        return pause if pause < call.limit_s - call.waited_s() else None

    def _final(
        self, error: ToxicityError, flight: Flight, call: wire.Call, sent_to: list[Endpoint[Line]]
    ) -> ToxicityError:
        """The error as the caller gets it: it says how often, and where, the request was sent."""
        if call.tries < 2 or isinstance(error, Timeout):
            return error
        targets = dict.fromkeys(endpoint.target for endpoint in sent_to)
        call.endpoint = ",".join(targets)
        return call.failed(flight.code or "UNKNOWN", f"{flight.detail}; sent {call.tries} times")

    # --- connections

    def _channel_credentials(self) -> Any:
        return None if self.credentials is None else self.credentials.channel()

    def _arguments(self, timeout_s: float) -> dict[str, Any]:
        """What every gRPC call is given."""
        arguments: dict[str, Any] = {"timeout": timeout_s}
        if self.credentials is not None and (headers := self.credentials.headers()):
            arguments["metadata"] = headers
        if self._compression is not None:
            arguments["compression"] = self._compression
        return arguments

    def _probe_arguments(self) -> tuple[Any, dict[str, Any]]:
        return pb.ModelReadyRequest(name=self.model), self._arguments(PROBE_TIMEOUT_S)


def split(rows: list[bytes], size: int) -> list[list[int]]:
    """The texts' positions, in requests of at most ``size`` texts of about the same length, the longest first."""
    if len(rows) <= size:
        return [list(range(len(rows)))]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]), reverse=True)
    return [order[start : start + size] for start in range(0, len(order), size)]


def join(parts: list[list[int]], results: list[list[Result]]) -> list[Result]:
    """The results of :func:`split`'s requests, in the order of the texts."""
    placed: list[Any] = [None] * sum(map(len, parts))
    for part, found in zip(parts, results, strict=True):
        for position, result in zip(part, found, strict=True):
            placed[position] = result
    return placed
