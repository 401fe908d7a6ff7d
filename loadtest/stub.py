"""``python -m loadtest.stub``: a server that answers as a Tritox model does, and costs next to nothing.

What the client itself costs, and how it takes a server's death, is seen best beside a server that has no work of its
own. It speaks HTTP/2 as far as gRPC clients go, without reading their headers: the four questions that a client asks
differ in their messages, too, and the answer to "is it ready" and "which versions" is one that both can read.

Every label's score is 0.5, except that a text which is a number from 0 to 1 has that score: so can a test see which
answer belongs to which text.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import struct
import sys
import time
from collections import defaultdict
from multiprocessing.connection import Connection as Pipe
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

LABELS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
MAX_BATCH_SIZE = 64
PREFACE_BYTES = 24
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
WINDOW = 2**31 - 1
HEAD = b"\x88\x0f\x10\x10application/grpc"
TRAILER = b"\x00\x0bgrpc-status\x010"
READY_AND_VERSIONS = b"\x08\x01\x12\x011"
"""Field 1 is true, as a ModelReadyResponse has it, field 2 is "1", as a ModelMetadataResponse; each skips the other."""


class StubModel:
    """A process that serves the model ``toxicity`` on a port of 127.0.0.1 inside the block.

    :param request_s: that a request takes, however many are under way.
    :param comment_s: that a comment takes, one after the other: the server's capacity is its inverse. 0 is no limit.
    :ivar url: its ``host:port``; ``pid`` is its process.
    """

    def __init__(self, request_s: float = 0.0, comment_s: float = 0.0, port: int = 0) -> None:
        self.request_s, self.comment_s, self.port = request_s, comment_s, port
        self.url, self.pid = "", 0

    def __enter__(self) -> StubModel:
        self.start()
        return self

    def start(self) -> None:
        """Begin, or begin again on the same port."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Begin, and leave the waiting until it listens to :meth:`wait`: several may start at the same time."""
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process: Any = context.Process(
            target=serve, args=(there, self.request_s, self.comment_s, self.port), daemon=True
        )
        self._process.start()
        there.close()
        self.pid = self._process.pid or 0

    def wait(self) -> None:
        """Until it listens."""
        self.port = self._pipe.recv()
        self.url = f"127.0.0.1:{self.port}"
        self._pipe.close()

    def alive(self) -> bool:
        return bool(self._process.is_alive())

    def kill(self) -> None:
        """End at once, as a crash does."""
        self._process.kill()
        self._process.join()

    def __exit__(self, *_: object) -> None:
        self.kill()


def serve(pipe: Pipe | None, request_s: float, comment_s: float, port: int) -> None:
    """Serve until the process ends; the port is told through the pipe, else printed."""

    async def run() -> None:
        model = _Model(request_s, comment_s)
        server = await asyncio.get_running_loop().create_server(lambda: _Talk(model), "127.0.0.1", port)
        number = server.sockets[0].getsockname()[1]
        if pipe is None:
            sys.stdout.write(f"127.0.0.1:{number}\n")
            sys.stdout.flush()
        else:
            pipe.send(number)
        await server.serve_forever()

    asyncio.run(run())


class _Model:
    def __init__(self, request_s: float, comment_s: float) -> None:
        self.request_s, self.comment_s = request_s, comment_s
        self.free_at = 0.0
        config = pb.ModelConfigResponse()
        config.config.max_batch_size = MAX_BATCH_SIZE
        thresholds = json.dumps(dict.fromkeys(LABELS, 0.5))
        for key, value in {"labels": json.dumps(LABELS), "thresholds": thresholds, "max_tokens": "128"}.items():
            config.config.parameters[key].string_value = value
        self.config = config.SerializeToString()
        self.plain: dict[int, bytes] = {}

    def reply(self, message: bytes) -> tuple[bytes, float]:
        """The answer, and how many seconds it takes."""
        request = pb.ModelInferRequest.FromString(message)
        if not request.inputs:
            # a ModelConfigRequest always names the version, and has it where this message has it
            return (self.config if request.model_version else READY_AND_VERSIONS), 0.0
        rows, content = request.inputs[0].shape[0], request.raw_input_contents[0]
        wait_s = self.request_s
        if self.comment_s:
            now = time.monotonic()
            self.free_at = max(now, self.free_at) + rows * self.comment_s
            wait_s += self.free_at - now
        numbers = None if len(content) > 12 * rows else _numbers(content)
        if numbers is None:
            if rows not in self.plain:
                self.plain[rows] = _answer(np.full(rows, 0.5, np.float32))
            return self.plain[rows], wait_s
        return _answer(np.array(numbers, np.float32)), wait_s


def _numbers(content: bytes) -> list[float] | None:
    values, at = [], 0
    while at < len(content):
        size = int.from_bytes(content[at : at + 4], "little")
        try:
            values.append(float(content[at + 4 : at + 4 + size]))
        except ValueError:
            return None
        at += 4 + size
    return values


def _answer(scores: np.ndarray) -> bytes:
    response = pb.ModelInferResponse(model_name="toxicity", model_version="1")
    columns = np.repeat(scores[:, None], len(LABELS), axis=1)
    for name, datatype, array in (("scores", "FP32", columns), ("truncated", "BOOL", np.zeros((len(scores), 1), bool))):
        response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        response.raw_output_contents.append(array.tobytes())
    data: bytes = response.SerializeToString()
    return data


class _Talk(asyncio.Protocol):
    """One connection."""

    def __init__(self, model: _Model) -> None:
        self.model = model
        self.rest = b""
        self.greeted = False
        self.bodies: dict[int, bytes] = defaultdict(bytes)
        self.out: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        buffer, at = self.rest + data, 0
        if not self.greeted:
            if len(buffer) < PREFACE_BYTES:
                self.rest = buffer
                return
            self.greeted, at = True, PREFACE_BYTES
            settings = struct.pack(">HIHI", 4, WINDOW, 5, 2**24 - 1)  # initial window, largest frame
            window = struct.pack(">I", WINDOW - 65535)
            self.out += [_frame(SETTINGS, 0, 0, settings), _frame(WINDOW_UPDATE, 0, 0, window)]
        while len(buffer) - at >= 9:
            stop = at + 9 + int.from_bytes(buffer[at : at + 3], "big")
            if stop > len(buffer):
                break
            kind, flags = buffer[at + 3], buffer[at + 4]
            stream = int.from_bytes(buffer[at + 5 : at + 9], "big")
            self.take(kind, flags, stream, buffer[at + 9 : stop])
            at = stop
        self.rest = buffer[at:]
        self.write()

    def take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            self.bodies[stream] += payload
            if payload:
                self.out.append(_frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", len(payload))))
            if flags & END_STREAM:
                reply, wait_s = self.model.reply(self.bodies.pop(stream)[5:])
                if wait_s:
                    asyncio.get_running_loop().call_later(wait_s, self.answer_late, stream, reply)
                else:
                    self.answer(stream, reply)
        elif kind == SETTINGS and not flags & ACK:
            self.out.append(_frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self.out.append(_frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM:
            self.bodies.pop(stream, None)

    def answer(self, stream: int, reply: bytes) -> None:
        body = b"\0" + len(reply).to_bytes(4, "big") + reply
        self.out += [
            _frame(HEADERS, END_HEADERS, stream, HEAD),
            _frame(DATA, 0, stream, body),
            _frame(HEADERS, END_HEADERS | END_STREAM, stream, TRAILER),
        ]

    def answer_late(self, stream: int, reply: bytes) -> None:
        self.answer(stream, reply)
        self.write()

    def write(self) -> None:
        if self.out and not self.transport.is_closing():
            self.transport.write(b"".join(self.out))
        self.out = []


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.stub", description="Serve a model that does nothing. Prints its host:port."
    )
    parser.add_argument("--port", type=int, default=0, help="by default a free one")
    parser.add_argument("--request-ms", type=float, default=0.0, help="that a request takes (default: %(default)g)")
    parser.add_argument("--comment-us", type=float, default=0.0, help="that a comment takes, one after the other")
    arguments = parser.parse_args(argv)
    try:
        serve(None, arguments.request_ms / 1000, arguments.comment_us / 1e6, arguments.port)
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
