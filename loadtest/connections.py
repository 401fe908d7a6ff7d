"""Connections of the load generator: requests whose bytes are ready, answers taken apart as little as possible.

A gRPC client in Python spends more CPU on a comment than a good server does. Here a request's headers and body are
joined once, before the run, and an answer is cut out of the stream undecoded: some tens of microseconds for each.

gRPC runs over HTTP/2 (RFC 9113). Of its header compression (RFC 7541) we send four literals once, which the server
keeps, and one byte for each from then on. In our settings we forbid the server such a memory, so that each of its
header blocks can be read by itself.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from client import Credentials

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 4, 5
FRAME = struct.Struct(">HBBBI")
"""A frame's head: the length as 16 + 8 bits, type, flags, stream."""

MAX_WINDOW = 2**31 - 1
DEFAULT_WINDOW = 65535
DEFAULT_FRAME = 16384
READ_BYTES = 1 << 18
STATUS, STATUS_IN_HUFFMANS_CODE = b"grpc-status", b"\x9a\xca\xc8\xb2\x124\xda\x8f"
"""Triton writes the first, Envoy the second."""


class ConnectionFailed(OSError):
    """The server ended a connection, or said what this generator does not understand."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request.

    :param request: its number, as given to ``ask``.
    :param error: ``None`` for success, else the status and what the server said of it.
    :param body: a gRPC message without its length, or the body of an HTTP response.
    """

    request: int
    error: str | None
    body: bytes


class Connection:
    """One TCP connection. ``ask`` only queues; ``flush`` sends what the kernel takes.

    :ivar under_way: requests that have no answer yet.
    """

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None = None, server_name: str | None = None) -> None:
        self.socket: socket.socket = socket.create_connection((host, port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname=server_name or host)
        self.socket.setblocking(False)
        self.under_way = 0
        self._out = bytearray()
        self._in = bytearray()
        self._failure: ConnectionFailed | None = None

    def ask(self, request: int) -> None:
        raise NotImplementedError

    def receive(self) -> list[Answer]:
        """The answers that are complete by now.

        :raises ConnectionFailed: when the server closed the connection.
        """
        if self._failure is not None:
            raise self._failure
        while True:
            try:
                data = self.socket.recv(READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                break
            except OSError as error:
                raise ConnectionFailed(f"connection lost ({error.strerror})") from None
            if not data:
                raise ConnectionFailed("the server closed the connection")
            self._in += data
            if not isinstance(self.socket, ssl.SSLSocket):
                break  # what is left shows as readable, other than what TLS has read already
        answers: list[Answer] = []
        try:
            answers.extend(self._answers())
        except ConnectionFailed as error:
            if not answers:
                raise
            self._failure = error  # those that came before it are answers
        self.under_way -= len(answers)
        return answers

    def _answers(self) -> Iterator[Answer]:
        raise NotImplementedError

    def flush(self) -> bool:
        """Send; returns whether everything is sent."""
        if self._out:
            try:
                sent = self.socket.send(self._out)
            except (BlockingIOError, ssl.SSLWantWriteError):
                return False
            except OSError as error:
                raise ConnectionFailed(f"connection lost ({error.strerror})") from None
            del self._out[:sent]
        return not self._out

    def close(self) -> None:
        self.socket.close()


class HttpConnection(Connection):
    """HTTP/1.1, one request at a time. The server's answers must say their length."""

    def __init__(self, host: str, port: int, path: str, bodies: Sequence[bytes]) -> None:
        super().__init__(host, port)
        head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\nContent-Length: "
        self._requests = [head.encode() + b"%d\r\n\r\n" % len(body) + body for body in bodies]
        self._asked: deque[int] = deque()

    def ask(self, request: int) -> None:
        self._out += self._requests[request]
        self._asked.append(request)
        self.under_way += 1

    def _answers(self) -> Iterator[Answer]:
        while (end := self._in.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._in[:end]).lower()
            length = re.search(rb"\r\ncontent-length: *(\d+)", head)
            if length is None:
                raise ConnectionFailed(f"an answer without Content-Length ({head[:40]!r}) cannot be read")
            stop = end + 4 + int(length[1])
            if len(self._in) < stop:
                return
            body = bytes(self._in[end + 4 : stop])
            del self._in[:stop]
            status = head[9:12].decode()
            error = None if status == "200" else f"HTTP {status}: {body[:200].decode('utf-8', 'replace')}"
            yield Answer(self._asked.popleft(), error, body)


class GrpcConnection(Connection):
    """gRPC over HTTP/2, any number of unary calls at a time.

    :param bodies: messages, without gRPC's five bytes before them.
    """

    def __init__(
        self, host: str, port: int, path: str, bodies: Sequence[bytes], credentials: Credentials | None = None
    ) -> None:
        tls = None if credentials is None else context(credentials)
        super().__init__(host, port, tls, None if credentials is None else credentials.server_name)
        self._bodies = [framed(body) for body in bodies]
        # fields that the server is to keep get the numbers from 62 on, the last one the lowest
        kept = [_kept(4, path), _kept(1, f"{host}:{port}"), _kept(31, "application/grpc"), b"\x40\x02te\x08trailers"]
        for name, value in (credentials and credentials.headers()) or []:
            if name != "authorization":
                raise ValueError(f"this generator sends no header {name!r}")
            kept.append(_kept(23, value))
        self._fixed = b"\x83\x87" if tls else b"\x83\x86"  # POST, https or http
        self._fields = self._fixed + b"".join(kept)
        self._fields_again = self._fixed + bytes(0x80 | 61 + n for n in range(len(kept), 0, -1))
        self._next_stream = 1
        self._asked: dict[int, int] = {}  # request by stream
        self._bodies_in: dict[int, bytes] = {}
        self._statuses: dict[bytes, str | None] = {}
        self._waiting: deque[tuple[int, memoryview]] = deque()  # for room in the server's windows
        self._window, self._first_window = DEFAULT_WINDOW, DEFAULT_WINDOW
        self._windows: dict[int, int] = {}
        self._max_frame = DEFAULT_FRAME
        self._unacknowledged = 0
        settings = {HEADER_TABLE_SIZE: 0, ENABLE_PUSH: 0, INITIAL_WINDOW_SIZE: MAX_WINDOW}
        self._out += b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        self._frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *setting) for setting in settings.items()))
        self._frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", MAX_WINDOW - DEFAULT_WINDOW))

    def ask(self, request: int, body: bytes | None = None) -> None:
        """:param body: a framed message; by default that of the request's number. See :func:`framed`."""
        stream = self._next_stream
        self._next_stream += 2
        self._asked[stream] = request
        self.under_way += 1
        self._frame(HEADERS, END_HEADERS, stream, self._fields)
        self._fields = self._fields_again
        body = self._bodies[request] if body is None else body
        if not self._waiting and len(body) <= min(self._window, self._first_window, self._max_frame):
            self._window -= len(body)
            self._frame(DATA, END_STREAM, stream, body)
        else:
            self._windows[stream] = self._first_window
            self._waiting.append((stream, memoryview(body)))
            self._send_waiting()

    def _send_waiting(self) -> None:
        while self._waiting:
            stream, rest = self._waiting[0]
            size = min(len(rest), self._window, self._windows[stream], self._max_frame)
            if size <= 0:
                return
            self._frame(DATA, END_STREAM if size == len(rest) else 0, stream, rest[:size])
            self._window -= size
            self._windows[stream] -= size
            if size == len(rest):
                self._waiting.popleft()
                del self._windows[stream]
            else:
                self._waiting[0] = (stream, rest[size:])

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes | memoryview) -> None:
        self._out += FRAME.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream)
        self._out += payload

    def _answers(self) -> Iterator[Answer]:
        buffer, at, end = bytes(self._in), 0, len(self._in)
        while end - at >= 9:
            high, low, kind, flags, stream = FRAME.unpack_from(buffer, at)
            stop = at + 9 + (high << 8 | low)
            if stop > end:
                break
            payload = buffer[at + 9 : stop]
            at = stop
            if kind == DATA:
                self._acknowledge(len(payload))
                self._bodies_in[stream] = self._bodies_in.get(stream, b"") + _unpadded(payload, flags)
            elif kind == HEADERS:
                if not flags & END_HEADERS:
                    raise ConnectionFailed("response headers of more than one frame cannot be read")
                if flags & END_STREAM:
                    yield self._finish(stream, self._status(_unpadded(payload, flags)))
            elif kind == RST_STREAM and stream in self._asked:
                yield self._finish(stream, f"stream reset, HTTP/2 error {int.from_bytes(payload, 'big')}")
            elif kind not in (RST_STREAM, CONTINUATION):
                self._control(kind, flags, stream, payload)
        del self._in[:at]

    def _finish(self, stream: int, error: str | None) -> Answer:
        body = self._bodies_in.pop(stream, b"")
        if self._windows.pop(stream, None) is not None:  # refused before it was sent
            self._waiting = deque(item for item in self._waiting if item[0] != stream)
        if error is None and int.from_bytes(body[1:5], "big") != len(body) - 5:
            error = f"an answer of {len(body)} bytes is no gRPC message"
        return Answer(self._asked.pop(stream), error, body[5:])

    def _status(self, block: bytes) -> str | None:
        if block not in self._statuses:
            fields = dict(_fields(block))
            status = fields.get(STATUS) or fields.get(STATUS_IN_HUFFMANS_CODE, b"missing")
            message = fields.get(b"grpc-message", b"").decode("utf-8", "replace")
            self._statuses[block] = None if status == b"0" else f"gRPC status {status.decode()}: {message[:200]}"
        return self._statuses[block]

    def _acknowledge(self, size: int) -> None:
        self._unacknowledged += size
        if self._unacknowledged > MAX_WINDOW // 2:
            self._frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._unacknowledged))
            self._unacknowledged = 0

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == PING and not flags & ACK:
            self._frame(PING, ACK, 0, payload)
        elif kind == SETTINGS and not flags & ACK:
            for name, value in struct.iter_unpack(">HI", payload):
                if name == INITIAL_WINDOW_SIZE:
                    for number in self._windows:
                        self._windows[number] += value - self._first_window
                    self._first_window = value
                elif name == MAX_FRAME_SIZE:
                    self._max_frame = value
            self._frame(SETTINGS, ACK, 0, b"")
            self._send_waiting()
        elif kind == WINDOW_UPDATE:
            size = int.from_bytes(payload, "big")
            if stream == 0:
                self._window += size
            elif stream in self._windows:
                self._windows[stream] += size
            self._send_waiting()
        elif kind == GOAWAY:
            raise ConnectionFailed(
                f"the server sent GOAWAY: {payload[8:].decode('utf-8', 'replace') or payload[4:8]!r}"
            )


def _kept(name: int, value: str) -> bytes:
    """A header field with a name from HTTP/2's static table, to be kept by the server."""
    assert name < 63 and len(value) < 127, (name, value)
    return bytes([0x40 | name, len(value)]) + value.encode()


def _unpadded(payload: bytes, flags: int) -> bytes:
    if not flags & (PADDED | PRIORITY):
        return payload
    padding = payload[0] if flags & PADDED else 0
    start = (1 if flags & PADDED else 0) + (5 if flags & PRIORITY else 0)
    return payload[start : len(payload) - padding]


def _fields(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The literal fields of a header block; those of the static table (``:status`` and the like) are passed over.

    Text in Huffman's code stays as it is: the status itself is one character or two, which it does not shorten.
    """
    at = 0
    while at < len(block):
        first = block[at]
        if first & 0x80:
            _, at = integer(block, at, 7)
        elif first & 0xE0 == 0x20:  # a new size for the memory
            _, at = integer(block, at, 5)
        else:
            index, at = integer(block, at, 6 if first & 0x40 else 4)
            name = b""
            if not index:
                name, at = _text(block, at)
            value, at = _text(block, at)
            yield name, value


def _text(block: bytes, at: int) -> tuple[bytes, int]:
    length, at = integer(block, at, 7)
    return block[at : at + length], at + length


def integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    value, at = block[at] & (1 << bits) - 1, at + 1
    if value < (1 << bits) - 1:
        return value, at
    shift = 0
    while True:
        value += (block[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if not block[at - 1] & 0x80:
            return value, at


def context(credentials: Credentials) -> ssl.SSLContext | None:
    """TLS for HTTP/2, as gRPC would do it with these credentials.

    :raises OSError: when a file cannot be read.
    """
    if not credentials.tls:
        return None
    made = ssl.create_default_context(cafile=credentials.ca)
    made.set_alpn_protocols(["h2"])
    if credentials.certificate is not None:
        made.load_cert_chain(credentials.certificate, credentials.key)
    return made


def framed(message: bytes) -> bytes:
    """A gRPC message with its length before it."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def json_body(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
