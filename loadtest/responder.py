"""A server that does nothing: every request gets the same answer. It shows how fast the load generator can be.

It speaks just enough gRPC and HTTP/1.1 for :mod:`loadtest.connections`, and answers what has arrived in one write.
"""

from __future__ import annotations

import multiprocessing
import select
import socket
import struct
from dataclasses import replace
from multiprocessing.connection import Connection as Pipe
from typing import Any, Literal

from loadtest.connections import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    MAX_WINDOW,
    READ_BYTES,
    SETTINGS,
    WINDOW_UPDATE,
)
from loadtest.generator import Load, drive

PREFACE_BYTES = 24


class Responder:
    """A process that answers on a free port of 127.0.0.1 inside the block.

    :param body: of every answer; for gRPC the message.
    :ivar port: that it listens on; ``pid`` is its process.
    """

    def __init__(self, protocol: Literal["grpc", "http"], body: bytes) -> None:
        self.protocol, self.body = protocol, body
        self.port = self.pid = 0

    def __enter__(self) -> Responder:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        self._process: Any = context.Process(target=_serve, args=(there, self.protocol, self.body), daemon=True)
        self._process.start()
        self.pid = self._process.pid or 0
        there.close()
        self.port = here.recv()
        here.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()


def ceiling(load: Load, body: bytes, seconds: float = 1.0) -> float:
    """Requests a second that a core of the load generator's could make of ``load`` if a server took no time.

    :param body: of an answer, as the server gives it.
    """
    with Responder(load.protocol, body) as responder:
        outcome = drive(replace(load, host="127.0.0.1", port=responder.port, warm_up_s=0.2, seconds=seconds))
    assert not outcome.errors, outcome.errors
    return outcome.requests / outcome.cpu_s


def _serve(pipe: Pipe, protocol: str, body: bytes) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    pipe.send(listener.getsockname()[1])
    poll = select.epoll()
    poll.register(listener.fileno(), select.EPOLLIN)
    peers: dict[int, tuple[socket.socket, _Grpc | _Http]] = {}
    while True:
        for number, _ in poll.poll():
            if number == listener.fileno():
                peer, _ = listener.accept()
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                peers[peer.fileno()] = peer, (_Grpc(body) if protocol == "grpc" else _Http(body))
                poll.register(peer.fileno(), select.EPOLLIN)
                continue
            peer, talk = peers[number]
            data = peer.recv(READ_BYTES)
            if not data:
                poll.unregister(number)
                del peers[number]
                peer.close()
            elif answer := talk.answer(data):
                peer.sendall(answer)


class _Grpc:
    def __init__(self, body: bytes) -> None:
        self.rest = b""
        self.greeted = False
        fields = b"\x88\x0f\x10\x10application/grpc"
        status = b"\x00\x0bgrpc-status\x010"
        data = b"\0" + len(body).to_bytes(4, "big") + body
        self.parts = ((HEADERS, END_HEADERS, fields), (DATA, 0, data), (HEADERS, END_HEADERS | END_STREAM, status))

    def answer(self, data: bytes) -> bytes:
        buffer, out, at = self.rest + data, [], 0
        if not self.greeted:
            if len(buffer) < PREFACE_BYTES:
                self.rest = buffer
                return b""
            self.greeted, at = True, PREFACE_BYTES
            settings = struct.pack(">HIHI", INITIAL_WINDOW_SIZE, MAX_WINDOW, MAX_FRAME_SIZE, 2**24 - 1)
            out += [
                _frame(SETTINGS, 0, 0, settings),
                _frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", MAX_WINDOW - 65535)),
            ]
        while len(buffer) - at >= 9:
            high, low, kind, flags, stream = FRAME.unpack_from(buffer, at)
            stop = at + 9 + (high << 8 | low)
            if stop > len(buffer):
                break
            if kind == DATA:
                if flags & END_STREAM:
                    out += [_frame(*part[:2], stream, part[2]) for part in self.parts]
                out.append(_frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", max(1, stop - at - 9))))
            elif kind == SETTINGS and not flags & ACK:
                out.append(_frame(SETTINGS, ACK, 0, b""))
            at = stop
        self.rest = buffer[at:]
        return b"".join(out)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return FRAME.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


class _Http:
    def __init__(self, body: bytes) -> None:
        self.rest = b""
        self.reply = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body

    def answer(self, data: bytes) -> bytes:
        buffer, count = self.rest + data, 0
        while (end := buffer.find(b"\r\n\r\n")) >= 0:
            length = int(buffer[:end].rpartition(b"Content-Length: ")[2])
            if len(buffer) < end + 4 + length:
                break
            buffer = buffer[end + 4 + length :]
            count += 1
        self.rest = buffer
        return self.reply * count
