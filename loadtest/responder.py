"""A server that does nothing: it shows how fast the load generator can be, and whether a load test tells the truth.

It speaks just enough gRPC and HTTP/1.1 for :mod:`loadtest.connections`, and answers what has arrived in one write. As a
``model`` it also answers real gRPC clients as Tritox's model does; counts what it saw; and, when told to, takes a fixed
time for each request and comment, so that its capacity is known: ``parallel / service_s`` requests a second.

A model's scores are made up: a text that is a number from 0 to 1 has that score, so that a test can see which answer
belongs to which text; any other has ``SCORE``.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import multiprocessing
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
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
    PADDED,
    PING,
    PRIORITY,
    READ_BYTES,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)
from loadtest.generator import Load, drive
from loadtest.hpack import Headers

PREFACE_BYTES = 24
LABELS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
MAX_BATCH = 64
SCORE = 0.25
LONGEST_NUMBER = 16
"""Bytes: a longer text is not looked at."""

Protocol = Literal["grpc", "http", "model"]


@dataclass(frozen=True)
class Settings:
    """:param body: of every answer; for ``grpc`` the message, for a ``model`` not used.
    :param service_s: that each request takes; ``parallel`` requests at a time, the others wait.
    :param comment_s: that each comment in it takes on top, as a ``model``. With both 0 it answers at once, as it always
        does where a client asks for no scores.
    """

    protocol: Protocol
    body: bytes = b""
    service_s: float = 0.0
    parallel: int = 1
    comment_s: float = 0.0


class Responder:
    """A process that answers on a port of 127.0.0.1 inside the block; 0 takes a free one.

    :ivar port: that it listens on, also after it was killed and started again; ``pid`` is its process.
    """

    def __init__(
        self,
        protocol: Protocol,
        body: bytes = b"",
        *,
        service_s: float = 0.0,
        comment_s: float = 0.0,
        parallel: int = 1,
        port: int = 0,
    ) -> None:
        self.settings = Settings(protocol, body, service_s, parallel, comment_s)
        self.port, self.pid = port, 0
        self._context = multiprocessing.get_context("spawn")
        self._seen: Any = self._context.Array("Q", 2, lock=False)

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def seen(self) -> tuple[int, int]:
        """Requests for scores that arrived, and comments in them; the latter only as a ``model``."""
        return self._seen[0], self._seen[1]

    def __enter__(self) -> Responder:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)  # one that stands still would not end
        self._process.terminate()
        self._process.join()

    def start(self) -> None:
        """Begin, or begin again on the same port.

        :raises OSError: when the port is taken.
        """
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Begin, and leave it to :meth:`wait` to wait until it listens: several may start at the same time."""
        self._pipe, there = self._context.Pipe()
        arguments = (there, self.settings, self.port, self._seen)
        self._process: Any = self._context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        self.pid = self._process.pid or 0
        there.close()

    def wait(self) -> None:
        """Until it listens.

        :raises OSError: when the port is taken.
        """
        try:
            self.port = self._pipe.recv()
        except EOFError:
            raise OSError(f"the stub server did not start on port {self.port}: see above") from None
        finally:
            self._pipe.close()

    def alive(self) -> bool:
        return bool(self._process.is_alive())

    def kill(self) -> None:
        """End at once, as a crash does; also one that stands still."""
        self._process.kill()
        self._process.join()

    def stall(self, seconds: float) -> None:
        """Stand still, with the connections open, as in a long garbage collection or a frozen disk."""
        os.kill(self.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(self.pid, signal.SIGCONT)


def ceiling(load: Load, body: bytes, seconds: float = 1.0) -> float:
    """Requests a second that a core of the load generator's could make of ``load`` if a server took no time.

    :param body: of an answer, as the server gives it.
    """
    with Responder(load.protocol, body) as responder:
        outcome = drive(replace(load, host="127.0.0.1", port=responder.port, warm_up_s=0.2, seconds=seconds))
    assert not outcome.errors, outcome.errors
    return outcome.requests / outcome.cpu_s


def _serve(pipe: Pipe, settings: Settings, port: int, seen: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    pipe.send(listener.getsockname()[1])
    poll = select.epoll()
    poll.register(listener.fileno(), select.EPOLLIN)
    reply = _model_reply(seen) if settings.protocol == "model" else None
    peers: dict[int, tuple[socket.socket, _Grpc | _Http]] = {}
    free = [0.0] * settings.parallel  # when each of the workers is done
    waiting: list[tuple[float, int, socket.socket, bytes]] = []  # a heap: by their ends, then as they came
    came = 0

    def close(number: int) -> None:
        poll.unregister(number)
        peers.pop(number)[0].close()

    while True:
        for number, _ in poll.poll(max(0.0, waiting[0][0] - time.perf_counter()) if waiting else None):
            if number == listener.fileno():
                peer, _ = listener.accept()
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if settings.protocol == "http":
                    talk: _Grpc | _Http = _Http(settings.body)
                else:
                    talk = _Grpc(settings.body, reply)
                peers[peer.fileno()] = peer, talk
                poll.register(peer.fileno(), select.EPOLLIN)
                peer.sendall(talk.greeting)
                continue
            peer, talk = peers[number]
            try:
                data = peer.recv(READ_BYTES)
                if not data:
                    close(number)
                    continue
                at_once, answers = talk.answer(data)
                if reply is None:
                    seen[0] += len(answers)
                now_s = time.perf_counter()
                for answer, comments in answers:
                    work_s = 0.0 if comments is None else settings.service_s + comments * settings.comment_s
                    if not work_s:
                        at_once += answer
                        continue
                    end_s = max(now_s, heapq.heappop(free)) + work_s
                    heapq.heappush(free, end_s)
                    heapq.heappush(waiting, (end_s, came := came + 1, peer, answer))
                if at_once:
                    peer.sendall(at_once)
            except OSError:  # the client went away
                close(number)
        now_s = time.perf_counter()
        while waiting and waiting[0][0] <= now_s:
            _, _, peer, answer = heapq.heappop(waiting)
            try:
                if peer.fileno() >= 0:
                    peer.sendall(answer)
            except OSError:
                close(peer.fileno())


Answer = tuple[bytes, "int | None"]
"""Its bytes, and how many comments it scores; ``None`` where the question was another one, which costs no time."""
Reply = Callable[[bytes, bytes], "Answer | None"]
"""From a call's path and its message to the answer's message; ``None`` for a method that there is not."""
UNIMPLEMENTED = b"\x00\x0bgrpc-status\x0212"


class _Grpc:
    """:param reply: makes the answers; without one, all are ``body``, and headers are not read."""

    def __init__(self, body: bytes, reply: Reply | None) -> None:
        self.rest = b""
        self.greeted = False
        settings = struct.pack(">HIHI", INITIAL_WINDOW_SIZE, MAX_WINDOW, MAX_FRAME_SIZE, 2**24 - 1)
        more = struct.pack(">I", MAX_WINDOW - 65535)
        self.greeting = _frame(SETTINGS, 0, 0, settings) + _frame(WINDOW_UPDATE, 0, 0, more)
        self.reply = reply
        self.headers = Headers()
        self.paths: dict[int, bytes] = {}  # by stream, as the messages that are not whole yet
        self.messages: dict[int, bytes] = {}
        self.fields = b"\x88\x0f\x10\x10application/grpc"
        self.status = b"\x00\x0bgrpc-status\x010"
        self.data = b"\0" + len(body).to_bytes(4, "big") + body

    def answer(self, data: bytes) -> tuple[bytes, list[Answer]]:
        """What to send at once, and the answers to the requests that are whole now."""
        buffer, out, answers, at = self.rest + data, [], [], 0
        if not self.greeted:
            if len(buffer) < PREFACE_BYTES:
                self.rest = buffer
                return b"", []
            self.greeted, at = True, PREFACE_BYTES
        while len(buffer) - at >= 9:
            high, low, kind, flags, stream = FRAME.unpack_from(buffer, at)
            stop = at + 9 + (high << 8 | low)
            if stop > len(buffer):
                break
            payload, at = buffer[at + 9 : stop], stop
            if kind == DATA:
                if self.reply is not None:
                    self.messages[stream] = self.messages.get(stream, b"") + payload
                if flags & END_STREAM:
                    answers.append(self._answer(stream))
                out.append(_frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", max(1, len(payload)))))
            elif kind == HEADERS and self.reply is not None:
                if not flags & END_HEADERS or flags & (PADDED | PRIORITY):
                    raise OSError("headers of more than one frame, padded or with a priority cannot be read")
                self.paths[stream] = self.headers.path(payload)
            elif kind == RST_STREAM:
                self.paths.pop(stream, None), self.messages.pop(stream, None)
            elif kind == PING and not flags & ACK:
                out.append(_frame(PING, ACK, 0, payload))
            elif kind == SETTINGS and not flags & ACK:
                out.append(_frame(SETTINGS, ACK, 0, b""))
        self.rest = buffer[at:]
        return b"".join(out), answers

    def _answer(self, stream: int) -> Answer:
        data = self.data
        comments: int | None = 0
        if self.reply is not None:
            answer = self.reply(self.paths.pop(stream), self.messages.pop(stream)[5:])
            if answer is None:
                return _frame(HEADERS, END_HEADERS | END_STREAM, stream, self.fields + UNIMPLEMENTED), None
            message, comments = answer
            data = b"\0" + len(message).to_bytes(4, "big") + message
        whole = (
            _frame(HEADERS, END_HEADERS, stream, self.fields)
            + _frame(DATA, 0, stream, data)
            + _frame(HEADERS, END_HEADERS | END_STREAM, stream, self.status)
        )
        return whole, comments


def _model_reply(seen: Any) -> Reply:
    """Answers as Tritox's model gives them; those to requests for scores are counted."""
    from tritonclient.grpc import service_pb2 as pb

    config = pb.ModelConfigResponse()
    config.config.name, config.config.max_batch_size = "toxicity", MAX_BATCH
    thresholds = dict.fromkeys(LABELS, 0.5)
    told = {
        "labels": json.dumps(LABELS),
        "thresholds": json.dumps(thresholds),
        "max_tokens": "128",
        "precision": "none",
    }
    for key, value in told.items():
        config.config.parameters[key].string_value = value
    fixed = {
        b"ModelMetadata": pb.ModelMetadataResponse(name="toxicity", versions=["1"]),
        b"ModelConfig": config,
        b"ModelReady": pb.ModelReadyResponse(ready=True),
        b"ServerReady": pb.ServerReadyResponse(ready=True),
        b"ServerLive": pb.ServerLiveResponse(live=True),
    }
    messages = {name: message.SerializeToString() for name, message in fixed.items()}
    same: dict[int, bytes] = {}  # answers in which every score is SCORE, by their comments

    def infer(scores: list[float]) -> bytes:
        rows = len(scores)
        response = pb.ModelInferResponse(model_name="toxicity", model_version="1")
        for name, datatype, width, raw in (
            ("scores", "FP32", len(LABELS), b"".join(struct.pack("<f", score) * len(LABELS) for score in scores)),
            ("truncated", "BOOL", 1, bytes(rows)),
        ):
            response.outputs.add(name=name, datatype=datatype, shape=[rows, width])
            response.raw_output_contents.append(raw)
        return bytes(response.SerializeToString())

    def reply(path: bytes, message: bytes) -> Answer | None:
        method = path.rpartition(b"/")[2]
        if method != b"ModelInfer":
            return (messages[method], None) if method in messages else None
        request = pb.ModelInferRequest.FromString(message)
        rows = request.inputs[0].shape[0] if request.inputs else 1
        seen[0] += 1
        seen[1] += rows
        numbers = _numbers(request.raw_input_contents[0] if request.raw_input_contents else b"")
        if numbers:
            found = infer([numbers.get(row, SCORE) for row in range(rows)])
        elif rows in same:
            found = same[rows]
        else:
            found = same[rows] = infer([SCORE] * rows)
        # messages that are joined are merged: this adds the field ``id``
        identity = request.id.encode()
        if len(identity) < 128:
            found += b"\x1a" + bytes([len(identity)]) + identity
        return found, rows

    return reply


def _numbers(content: bytes) -> dict[int, float]:
    """The texts that are a number from 0 to 1, by their row. Each text has its length before it."""
    found, at, row = {}, 0, 0
    while at < len(content):
        start = at + 4
        at = start + int.from_bytes(content[at:start], "little")
        if at - start <= LONGEST_NUMBER:
            try:
                number = float(content[start:at])
            except ValueError:
                number = -1.0
            if 0 <= number <= 1:
                found[row] = number
        row += 1
    return found


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return FRAME.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


class _Http:
    greeting = b""

    def __init__(self, body: bytes) -> None:
        self.rest = b""
        self.reply = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body

    def answer(self, data: bytes) -> tuple[bytes, list[Answer]]:
        buffer, count = self.rest + data, 0
        while (end := buffer.find(b"\r\n\r\n")) >= 0:
            length = int(buffer[:end].rpartition(b"Content-Length: ")[2])
            if len(buffer) < end + 4 + length:
                break
            buffer = buffer[end + 4 + length :]
            count += 1
        self.rest = buffer
        return b"", [(self.reply, 0)] * count


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m loadtest.responder",
        description="A stub server that answers as Tritox's model, with made-up scores, until Ctrl-C or SIGTERM; then "
        "says what it saw.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--port", type=int, default=8001, help="of 127.0.0.1; 0 takes a free one")
    p.add_argument("--service-ms", type=float, default=0.0, help="that each request takes")
    p.add_argument("--comment-us", type=float, default=0.0, help="that each comment in it takes on top")
    p.add_argument("--parallel", type=int, default=1, help="requests that are worked on at the same time")
    arguments = p.parse_args(argv)
    for name, least in (("service_ms", 0), ("comment_us", 0), ("parallel", 1)):
        if (value := getattr(arguments, name)) < least:
            p.error(f"--{name.replace('_', '-')} is {value:g}, must be at least {least}")
    done = False

    def end(*_: object) -> None:
        nonlocal done
        done = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    service_s, comment_s = arguments.service_ms / 1000, arguments.comment_us / 1e6
    try:
        with Responder(
            "model", service_s=service_s, comment_s=comment_s, parallel=arguments.parallel, port=arguments.port
        ) as responder:
            sys.stdout.write(f"ready: gRPC {responder.url}\n")
            sys.stdout.flush()
            while not done:
                time.sleep(0.1)
            requests, comments = responder.seen
    except OSError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"saw {requests} requests with {comments} comments\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
