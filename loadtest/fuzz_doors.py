"""How :mod:`loadtest.fuzz` sends its shots: raw connections, many shots under way, and what became of each.

Nothing here is kinder to a server than an attacker is: no client library refuses to send what is wrong.
"""

from __future__ import annotations

import json
import re
import select
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import hpack
import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from client import Credentials
from client.wire import BROKEN_NEIGHBOUR
from loadtest.connections import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME,
    HEADERS,
    RST_STREAM,
    Answer,
    Connection,
    ConnectionFailed,
    GrpcConnection,
    context,
)
from loadtest.fuzz_shots import ATTRIBUTES, Door, Shot, make

CANCEL = b"\0\0\0\x08"
UNDER_WAY: dict[Door, int] = {"grpc": 12, "http": 4, "gateway": 4}
"""Of a worker, at each door."""
SHARED = 2
"""Connections of a worker that its gRPC calls share."""
TOLERANCE = 1e-5
MOST_TRIES = 20
"""Of a right request that is refused as the server is busy: it is sent again."""
AGAIN_S = 0.1
MOST_TROUBLES = 50
RING = 400
"""The last shots that a worker remembers."""
BUSY = ("grpc 14", "grpc 8", "http 503", "http 429")
Addresses = Mapping[Door, tuple[str, int]]


class GrpcShots(GrpcConnection):
    """Calls of any method, with any metadata and messages, on one connection; they can be cancelled."""

    def __init__(self, host: str, port: int, credentials: Credentials | None = None) -> None:
        super().__init__(host, port, "/", (), credentials)
        self.shots: dict[int, int] = {}  # streams by the shots' numbers
        self._headers: dict[int, bytes] = {}  # blocks that go on
        self._decoder = hpack.Decoder()

    def shoot(self, number: int, shot: Shot) -> None:
        stream = self._next_stream
        self._next_stream += 2
        self._asked[stream] = number
        self.shots[number] = stream
        self.under_way += 1
        fields = [(b":authority", b"localhost"), (b":path", shot.path.encode()), (b"te", b"trailers")]
        fields += [(b"content-type", b"application/grpc"), *shot.headers]
        block = self._fixed + b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)
        parts = [block[at : at + self._max_frame] for at in range(0, len(block), self._max_frame)]
        for place, part in enumerate(parts):
            flags = END_HEADERS if place == len(parts) - 1 else 0
            self._frame(CONTINUATION if place else HEADERS, flags, stream, part)
        if len(shot.data) <= min(self._window, self._first_window, self._max_frame) and not self._waiting:
            self._window -= len(shot.data)
            self._frame(DATA, END_STREAM, stream, shot.data)
        else:
            self._windows[stream] = self._first_window
            self._waiting.append((stream, memoryview(shot.data)))
            self._send_waiting()

    def leave(self, number: int) -> None:
        """Cancel a call; nothing is heard of it any more."""
        stream = self.shots.pop(number)
        del self._asked[stream]
        self.under_way -= 1
        self._bodies_in.pop(stream, None)
        self._headers.pop(stream, None)
        if self._windows.pop(stream, None) is not None:
            self._waiting = deque(item for item in self._waiting if item[0] != stream)
        self._frame(RST_STREAM, 0, stream, CANCEL)

    def _answers(self) -> Iterator[Answer]:
        buffer, at, end = bytes(self._in), 0, len(self._in)
        while end - at >= FRAME.size:
            high, low, kind, flags, stream = FRAME.unpack_from(buffer, at)
            stop = at + FRAME.size + (high << 8 | low)
            if stop > end:
                break
            payload = buffer[at + FRAME.size : stop]
            at = stop
            if kind == DATA:
                self._acknowledge(len(payload))
                if stream in self._asked:
                    self._bodies_in[stream] = self._bodies_in.get(stream, b"") + payload
                    if flags & END_STREAM:  # no gRPC, which ends with headers
                        yield self._done(stream, "no gRPC")
            elif kind in (HEADERS, CONTINUATION):
                ends = bool(flags & END_STREAM) if kind == HEADERS else self._headers.get(stream, b"")[:1] == b"1"
                block = (b"1" if ends else b"0") + self._headers.pop(stream, b"0")[1:] + payload
                if not flags & END_HEADERS:
                    self._headers[stream] = block
                elif ends and stream in self._asked:
                    yield self._done(stream, self._status_of(block[1:]), block[1:])
            elif kind == RST_STREAM:
                if stream in self._asked:
                    yield self._done(stream, f"reset {int.from_bytes(payload, 'big')}")
            else:
                self._control(kind, flags, stream, payload)
        del self._in[:at]

    def _done(self, stream: int, status: str | None, block: bytes = b"") -> Answer:
        """:param block: of the last headers, which hold the message of an error."""
        body = self._bodies_in.pop(stream, b"")
        if status is not None:
            body += self._fields_of(block).get(b"grpc-message", b"")
        if self._windows.pop(stream, None) is not None:  # refused before it was sent
            self._waiting = deque(item for item in self._waiting if item[0] != stream)
            self._frame(RST_STREAM, 0, stream, CANCEL)
        number = self._asked.pop(stream)
        del self.shots[number]
        return Answer(number, status, body)

    def _status_of(self, block: bytes) -> str | None:
        """The number of gRPC's status; ``None`` for success."""
        fields = self._fields_of(block)
        status = fields.get(b"grpc-status")
        if status is None:
            return f"http/2 {fields.get(b':status', b'without a status').decode()}"
        return None if status == b"0" else f"grpc {status.decode()}"

    def _fields_of(self, block: bytes) -> dict[bytes, bytes]:
        """Each block by itself, as our settings want it."""
        return {bytes(name): bytes(value) for name, value in self._decoder.decode(block, raw=True)}


def _text(value: bytes) -> bytes:
    """With its length, as HPACK writes it."""
    length = len(value)
    if length < 127:
        return bytes([length]) + value
    found, length = bytearray([127]), length - 127
    while length >= 128:
        found.append(length & 127 | 128)
        length >>= 7
    return bytes([*found, length]) + value


class HttpShots(Connection):
    """One shot at a time over HTTP/1.1."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self.number = -1
        self.used = 0
        self.closes = False
        self._head = False

    def shoot(self, number: int, shot: Shot) -> None:
        self.number = number
        self.used += 1
        self.under_way = 1
        self._head = shot.data.startswith(b"HEAD ")
        self._out += shot.data

    @property
    def silent(self) -> bool:
        """Nothing was heard of the shot that is under way."""
        return not self._in

    def _answers(self) -> Iterator[Answer]:
        while (end := self._in.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._in[:end]).lower()
            status, stop = head[9:12].decode("latin-1"), end + 4
            if status.startswith("1"):
                del self._in[:stop]
                continue
            length = re.search(rb"\r\ncontent-length: *(\d+)", head)
            body = b""
            if self._head or status in ("204", "304"):
                pass
            elif b"\r\ntransfer-encoding: chunked" in head:
                stop = self._in.find(b"0\r\n\r\n", end + 4) + 5
                if stop < 5:
                    return
                body = bytes(self._in[end + 4 : stop])
            elif length is not None:
                stop += int(length[1])
                if len(self._in) < stop:
                    return
                body = bytes(self._in[end + 4 : stop])
            self.closes = b"\r\nconnection: close" in head
            del self._in[:stop]
            if self.under_way:
                yield Answer(self.number, None if status == "200" else f"http {status}", body)
            return


class RawShot(Connection):
    """Bytes of HTTP/2 that need no answer."""

    def __init__(self, host: str, port: int, number: int, data: bytes, credentials: Credentials | None = None) -> None:
        tls = None if credentials is None else context(credentials)
        super().__init__(host, port, tls, None if credentials is None else credentials.server_name)
        self.number = number
        self.under_way = 1
        self._out += data

    def _answers(self) -> Iterator[Answer]:
        self._in.clear()
        return iter(())


@dataclass
class Trouble:
    """A shot that did what none may.

    :ivar what: ``hang``, ``wrong``, ``error``, ``lost``.
    """

    what: str
    worker: int
    index: int
    kind: str
    detail: str


@dataclass
class Report:
    """What a worker's shots came to.

    :ivar outcomes: by door, kind and answer.
    :ivar right: shots with a known answer that were answered rightly.
    :ivar again: refusals, as the server was busy, that were sent again.
    :ivar beside: right shots that failed because Triton joined them with a broken one, and that were sent again.
    :ivar counts: of troubles; only the first are kept.
    """

    done: int = 0
    outcomes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    right: int = 0
    again: int = 0
    beside: int = 0
    slowest_s: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    troubles: list[Trouble] = field(default_factory=list)


@dataclass(slots=True)
class Sent:
    index: int
    shot: Shot
    connection: Any
    at: float
    tries: int = 1


class Shooter:
    """One worker.

    :param indexes: of the shots.
    :param scores: of each of ``fuzz_shots.TEXTS``.
    :param deadline_s: within which every shot must be over.
    :param credentials: for gRPC.
    :param tell: is given the report about once a second; when it returns ``False`` the worker ends.
    """

    def __init__(
        self,
        seed: int,
        worker: int,
        indexes: Sequence[int],
        addresses: Addresses,
        scores: np.ndarray,
        deadline_s: float,
        tell: Callable[[Report], bool],
        shot_of: Callable[[int, int, int], Shot] = make,
        credentials: Credentials | None = None,
    ) -> None:
        self.seed, self.worker, self.addresses, self.scores = seed, worker, addresses, scores
        self.deadline_s, self.tell, self.shot_of = deadline_s, tell, shot_of
        self.credentials = credentials
        self.report = Report()
        self.ring: deque[dict[str, Any]] = deque(maxlen=RING)
        self.under_way: dict[int, Sent] = {}
        self.poll = select.epoll()
        self.places: dict[int, Any] = {}  # connections by their file numbers
        self.grpc: list[GrpcShots] = []
        self.idle: dict[Door, list[HttpShots]] = {"http": [], "gateway": []}
        self.count: dict[Door, int] = {"grpc": 0, "http": 0, "gateway": 0}
        self.waiting: dict[Door, deque[tuple[int, Shot, int]]] = {door: deque() for door in self.count}
        self.later: deque[tuple[float, int, Shot, int]] = deque()  # to be sent again
        self.leaving: list[tuple[float, int]] = []
        self.indexes = iter(indexes)

    def run(self) -> Report:
        said = looked = time.perf_counter()
        more = True
        try:
            while more or self.under_way or self.later or any(self.waiting.values()):
                while more and all(len(queue) < 8 for queue in self.waiting.values()):
                    index = next(self.indexes, None)
                    if index is None:
                        more = False
                        break
                    shot = self.shot_of(self.seed, self.worker, index)
                    self.waiting[shot.door].append((index, shot, 1))
                    self._send_waiting()
                self._send_waiting()
                now = time.perf_counter()
                wait_s = 0.0005 if self.leaving else 0.01
                for number, events in self.poll.poll(wait_s):
                    if number in self.places:
                        self._serve(self.places[number], events)
                now = time.perf_counter()
                while self.later and self.later[0][0] <= now:
                    _, index, shot, tries = self.later.popleft()
                    self.waiting[shot.door].append((index, shot, tries))
                self._leave(now)
                if now - looked > 0.2:
                    looked = now
                    self._look(now)
                if now - said > 1.0:
                    said = now
                    if not self.tell(self.report):
                        break
        finally:
            for connection in self.places.values():
                connection.close()
            self.poll.close()
        return self.report

    # --- sending

    def _send_waiting(self) -> None:
        for door, queue in self.waiting.items():
            while queue and self.count[door] < UNDER_WAY[door]:
                index, shot, tries = queue.popleft()
                self._send(index, shot, tries)

    def _send(self, index: int, shot: Shot, tries: int) -> None:
        host, port = self.addresses[shot.door]
        if tries == 1:
            self.ring.append(
                {"worker": self.worker, "index": index, "door": shot.door, "kind": shot.kind, "over": None}
            )
        connection: Any
        try:
            if shot.door == "grpc" and shot.alone:
                connection = RawShot(host, port, index, shot.data, self.credentials)
                self._add(connection)
            elif shot.door == "grpc":
                while len(self.grpc) < SHARED:
                    self.grpc.append(GrpcShots(host, port, self.credentials))
                    self._add(self.grpc[-1])
                connection = min(self.grpc, key=lambda each: each.under_way)
                connection.shoot(index, shot)
            else:
                idle = self.idle[shot.door]
                if idle and not shot.alone:
                    connection = idle.pop()
                else:
                    connection = HttpShots(host, port)
                    self._add(connection)
                connection.shoot(index, shot)
        except OSError as error:
            self.report.done += 1
            self._trouble("lost", index, shot, f"no connection ({error})")
            return
        now = time.perf_counter()
        self.under_way[index] = Sent(index, shot, connection, now, tries)
        self.count[shot.door] += 1
        if shot.leave_s is not None:
            self.leaving.append((now + shot.leave_s, index))
        self._flush(connection)

    def _add(self, connection: Any) -> None:
        self.places[connection.socket.fileno()] = connection
        self.poll.register(connection.socket.fileno(), select.EPOLLIN)

    def _remove(self, connection: Any) -> None:
        number = connection.socket.fileno()
        if number in self.places:
            self.poll.unregister(number)
            del self.places[number]
        connection.close()
        if connection in self.grpc:
            self.grpc.remove(connection)
        for idle in self.idle.values():
            if connection in idle:
                idle.remove(connection)

    def _flush(self, connection: Any) -> None:
        if connection.socket.fileno() not in self.places:
            return  # its shot is over
        try:
            events = select.EPOLLIN if connection.flush() else select.EPOLLIN | select.EPOLLOUT
        except ConnectionFailed:
            return  # the end of what was sent to us says so, too, and may hold an answer before it
        self.poll.modify(connection.socket.fileno(), events)

    # --- what comes back

    def _serve(self, connection: Any, events: int) -> None:
        try:
            if events & ~select.EPOLLOUT:
                for answer in connection.receive():
                    self._answered(answer)
            self._flush(connection)
        except ConnectionFailed as error:
            self._closed(connection, str(error))

    def _answered(self, answer: Answer) -> None:
        sent = self.under_way[answer.request]
        shot = sent.shot
        status = answer.error or "ok"
        if shot.places:
            beside = BROKEN_NEIGHBOUR.encode() in answer.body
            if (answer.error in BUSY or beside) and sent.tries < MOST_TRIES:
                self.report.again += not beside
                self.report.beside += beside
                self._free(sent)
                self.later.append((time.perf_counter() + AGAIN_S, sent.index, shot, sent.tries + 1))
                return
            wrong = f"answered {answer.error}: {answer.body[:200]!r}" if answer.error else self.wrong(shot, answer.body)
            if wrong:
                self._trouble("wrong", sent.index, shot, wrong)
            else:
                self.report.right += 1
        elif shot.door == "gateway" and status.startswith("http 5") and status not in ("http 503", "http 501"):
            self._trouble("error", sent.index, shot, status)
        self._over(sent, status)

    def wrong(self, shot: Shot, body: bytes) -> str:
        """What is wrong with an answer whose scores are known; empty when nothing is."""
        try:
            found = read(shot.read, body, len(shot.places), self.scores.shape[1])
        except (ValueError, KeyError, IndexError, TypeError, DecodeError) as error:
            return f"an answer that cannot be read ({type(error).__name__}: {error})"
        expected = self.scores[list(shot.places)]
        if found.shape != expected.shape:
            return f"scores of the shape {found.shape}, must be {expected.shape}"
        off = float(np.abs(found - expected).max())
        return "" if off <= TOLERANCE else f"a score is off by {off:.6f}"

    def _closed(self, connection: Any, why: str) -> None:
        """The server closed a connection. Who asked for it by his bytes has his answer; others must ask again, once."""
        self._remove(connection)
        if isinstance(connection, GrpcShots):
            lost = [self.under_way[number] for number in connection.shots]
            for sent in lost:
                self._again(sent, why)
            return
        sent_one = self.under_way.get(connection.number)
        if sent_one is None or sent_one.connection is not connection:
            return  # idle: HTTP servers may end these
        if sent_one.shot.alone:
            self._over(sent_one, "closed")
        else:
            self._again(sent_one, why)

    def _again(self, sent: Sent, why: str) -> None:
        if sent.tries > 2:
            self._trouble("lost", sent.index, sent.shot, why)
            self._over(sent, "lost")
            return
        self.report.outcomes[sent.shot.door, sent.shot.kind, f"connection closed: {why}"] += 1
        del self.under_way[sent.index]
        self.count[sent.shot.door] -= 1
        self.waiting[sent.shot.door].append((sent.index, sent.shot, sent.tries + 1))

    def _leave(self, now: float) -> None:
        if not self.leaving:
            return
        due, self.leaving = [i for at, i in self.leaving if at <= now], [(at, i) for at, i in self.leaving if at > now]
        for index in due:
            sent = self.under_way.get(index)
            if sent is None:
                continue
            if isinstance(sent.connection, GrpcShots):
                sent.connection.leave(index)
                self._flush(sent.connection)
            self._over(sent, "left")

    def _look(self, now: float) -> None:
        """Hangs: what is not over by its deadline."""
        for sent in list(self.under_way.values()):
            if now - sent.at > self.deadline_s:
                self._trouble("hang", sent.index, sent.shot, f"no answer within {self.deadline_s:g} s")
                if isinstance(sent.connection, GrpcShots):
                    sent.connection.leave(sent.index)
                else:
                    self._remove(sent.connection)
                self._over(sent, "hang")

    def _free(self, sent: Sent) -> None:
        del self.under_way[sent.index]
        self.count[sent.shot.door] -= 1
        connection = sent.connection
        if isinstance(connection, GrpcShots):
            return
        connection.number, connection.under_way = -1, 0
        whole = (
            isinstance(connection, HttpShots) and not sent.shot.alone and connection.silent and not connection.closes
        )
        if whole and connection.socket.fileno() in self.places:
            self.idle[sent.shot.door].append(connection)
        else:
            self._remove(connection)

    def _over(self, sent: Sent, status: str) -> None:
        self._free(sent)
        took_s = time.perf_counter() - sent.at
        self.report.done += 1
        self.report.slowest_s = max(self.report.slowest_s, took_s)
        self.report.outcomes[sent.shot.door, sent.shot.kind, status] += 1
        for entry in reversed(self.ring):
            if entry["index"] == sent.index:
                entry["over"] = status
                break

    def _trouble(self, what: str, index: int, shot: Shot, detail: str) -> None:
        self.report.counts[what] += 1
        if len(self.report.troubles) < MOST_TROUBLES:
            self.report.troubles.append(Trouble(what, self.worker, index, f"{shot.door}, {shot.kind}", detail[:300]))


def read(how: str, body: bytes, count: int, labels: int) -> np.ndarray:
    """The scores in an answer. *Shape:* ``(count, labels)``

    :raises ValueError: :raises KeyError: when there are none.
    """
    if how in ("grpc", "stream"):
        if int.from_bytes(body[1:5], "big") != len(body) - 5:
            raise ValueError(f"{len(body)} bytes are no single message")
        if how == "grpc":
            reply = pb.ModelInferResponse.FromString(body[5:])
        else:
            whole = pb.ModelStreamInferResponse.FromString(body[5:])
            if whole.error_message:
                raise ValueError(whole.error_message[:200])
            reply = whole.infer_response
        names = [output.name for output in reply.outputs]
        return np.frombuffer(reply.raw_output_contents[names.index("scores")], np.float32).reshape(-1, labels)
    if how == "http":
        try:
            value, rest = json.loads(body), b""
        except ValueError:  # JSON, and binary data behind it
            text = body.decode("latin-1")
            value, end = json.JSONDecoder().raw_decode(text)
            rest = body[end:]
        for output in value["outputs"]:
            size = output.get("parameters", {}).get("binary_data_size", 0)
            if output["name"] == "scores":
                data = np.frombuffer(rest[:size], np.float32) if size else np.array(output["data"], np.float32)
                return data.reshape(-1, labels)
            rest = rest[size:]
        raise ValueError("no scores")
    value = json.loads(body)
    if how == "predict":
        return np.array([list(result["scores"].values()) for result in value["results"]], np.float32)
    scores = value["attributeScores"]
    return np.array([[scores[name]["summaryScore"]["value"] for name in ATTRIBUTES]], np.float32)


def shoot_alone(
    shot: Shot, addresses: Addresses, scores: np.ndarray, deadline_s: float, credentials: Credentials | None = None
) -> Report:
    """One shot, with nothing beside it."""
    return Shooter(0, 0, [0], addresses, scores, deadline_s, lambda report: True, lambda *_: shot, credentials).run()
