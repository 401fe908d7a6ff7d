"""``python -m serve.shield``: stands before Triton's gRPC port, and keeps calls that end early from it.

Triton 24.10 (2.51) dies of a call that is cancelled in the moment of its answer: the thread that is told of the
cancellation and the one that answers free the same call twice (its issue 8034, mended in 25.04). So nobody cancels
here: a caller's frame ``RST_STREAM`` for a request that is complete is not passed on, and where a caller closes his
connection, the one behind it stays open until its requests are answered. Nobody reads those answers. All other bytes
pass as they came, in both directions; of HTTP/2 (RFC 9113) only the heads of frames are looked at.

What it does not keep away is a deadline: Triton itself ends a call when the header ``grpc-timeout`` says so. Envoy
takes that header away (docker/envoy.yaml). And it believes the frames: broken ones end Triton's side of a connection,
with all of its calls, so callers whom nobody knows belong before Envoy, which reads and writes HTTP/2 anew.

The price is that Triton works on requests that nobody waits for any more, up to what its queues take.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import resource
import signal
import ssl
import struct
import sys
from pathlib import Path
from typing import cast

FRAME = struct.Struct(">HBBBI")
"""The head of a frame: the length as 16 + 8 bits, type, flags, stream."""
DATA, HEADERS, RST_STREAM, WINDOW_UPDATE = 0, 1, 3, 8
END_STREAM = 1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HOLD_S = 60.0
"""How long requests of a caller who has left are waited for."""
HANDSHAKE_S = 5.0
LAST_S = 1.0
"""At the end: what Triton answered last still has to get to callers."""
LISTENING = "listening"
"""What it prints once it takes callers."""


class Calls:
    """Those of one connection, by what goes through.

    :ivar under_way: streams of requests that are complete, and not answered yet.
    :ivar whole: what was passed on ends with a frame, so that another may follow.
    """

    def __init__(self) -> None:
        self.under_way: set[int] = set()
        self._asked, self._answered = _Frames(len(PREFACE)), _Frames(0)
        self._begin: bytes | None = b""  # until the preface is there
        self._raw = False

    @property
    def whole(self) -> bool:
        return not (self._asked.left or self._asked.head or self._raw)

    def asked(self, data: bytes) -> bytes:
        """What of the caller's bytes is Triton's. Less than a frame's head is kept for the next time."""
        if self._begin is not None:
            self._begin += data[: len(PREFACE)]
            if not self._begin.startswith(PREFACE[: len(self._begin)]):
                self._raw = True  # no HTTP/2: Triton will say so
            if self._raw or len(self._begin) >= len(PREFACE):
                self._begin = None
        if self._raw:
            return data
        frames, data = self._asked, self._asked.begin(data)
        at = begin = 0  # of what is to be passed on next
        parts = []
        while True:
            at = frames.skip(data, at)
            if frames.keep:
                begin = at
            if frames.left or len(data) - at < FRAME.size:
                break
            frames.keep = False
            high, low, kind, flags, stream = FRAME.unpack_from(data, at)
            frames.left = high << 8 | low
            if kind <= HEADERS:
                if flags & END_STREAM:
                    self.under_way.add(stream)
            elif kind == RST_STREAM and stream in self.under_way:
                parts.append(data[begin:at])
                frames.keep = True
            at += FRAME.size
        end = frames.end(data, at)
        if not begin and end == len(data):
            return data
        parts.append(data[begin:end])
        return b"".join(parts)

    def answered(self, data: bytes) -> int:
        """Look at Triton's bytes. Returns how much of them counts towards HTTP/2's flow control."""
        frames, at, size = self._answered, 0, 0
        data = frames.begin(data)
        while True:
            at = frames.skip(data, at)
            if frames.left or len(data) - at < FRAME.size:
                break
            high, low, kind, flags, stream = FRAME.unpack_from(data, at)
            frames.left = high << 8 | low
            if kind == DATA:
                size += frames.left
            if (kind <= HEADERS and flags & END_STREAM) or kind == RST_STREAM:
                self.under_way.discard(stream)
            at += FRAME.size
        frames.end(data, at)
        return size


class _Frames:
    """Where in a stream of frames one direction is.

    :ivar left: bytes of the current frame that are still to come. :ivar head: the beginning of the next one's head.
    :ivar keep: the current frame is not to be passed on.
    """

    def __init__(self, left: int) -> None:
        self.left, self.head, self.keep = left, b"", False

    def begin(self, data: bytes) -> bytes:
        if self.head:
            data, self.head = self.head + data, b""
        return data

    def skip(self, data: bytes, at: int) -> int:
        step = min(self.left, len(data) - at)
        self.left -= step
        return at + step

    def end(self, data: bytes, at: int) -> int:
        """Keep what is less than a head; returns where that begins."""
        if self.left:
            return len(data)
        self.head = data[at:]
        return at


class _Side(asyncio.Protocol):
    """One of the two connections: what comes is looked at and goes to the other, no faster than that takes it."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _Side | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()


class _Triton(_Side):
    """Begins once the caller is there, and may outlive him."""

    def __init__(self, caller: _Caller) -> None:
        super().__init__()
        self.other = self._caller = caller
        self.calls = caller.calls
        caller.other = self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        if self._caller.transport is None:  # he has left already, and Triton has heard nothing of him
            self.transport.close()
            return
        self.transport.write(self._caller.early)
        self._caller.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        size = self.calls.answered(data)
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)
            return
        assert self.transport is not None
        if not self.calls.under_way:
            self.transport.close()
        elif size and self.calls.whole:  # the caller would have made room for more
            self.transport.write(FRAME.pack(0, 4, WINDOW_UPDATE, 0, 0) + size.to_bytes(4, "big"))

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()  # once what was written is sent


class _Caller(_Side):
    """:ivar early: what came before there was a connection to Triton: reading may go on for a moment."""

    def __init__(self, shield: Shield) -> None:
        super().__init__()
        self.shield, self.calls, self.early = shield, Calls(), b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        self.transport.pause_reading()
        self.shield.begin(self)

    def data_received(self, data: bytes) -> None:
        passed = self.calls.asked(data)
        if self.other is None or self.other.transport is None:
            self.early += passed
        elif passed:
            self.other.transport.write(passed)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self.shield.callers.discard(self)
        behind = None if self.other is None else self.other.transport
        if behind is None:
            return
        if not self.calls.under_way:
            behind.close()
            return
        behind.resume_reading()
        asyncio.get_running_loop().call_later(HOLD_S, behind.abort)


class Shield:
    """:param triton: host and port of gRPC there, which is not encrypted."""

    def __init__(self, triton: tuple[str, int]) -> None:
        self.triton = triton
        self.callers: set[_Caller] = set()
        self._begun: set[asyncio.Task[None]] = set()

    async def serve(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> asyncio.Server:
        """:raises OSError: when it cannot listen there."""
        return await asyncio.get_running_loop().create_server(
            lambda: _Caller(self),
            host,
            port,
            ssl=tls,
            backlog=1024,
            ssl_handshake_timeout=None if tls is None else HANDSHAKE_S,
        )

    def begin(self, caller: _Caller) -> None:
        self.callers.add(caller)
        task = asyncio.ensure_future(self._connect(caller))
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)

    async def _connect(self, caller: _Caller) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: _Triton(caller), *self.triton)
        except OSError:  # it has just ended
            if caller.transport is not None:
                caller.transport.abort()


def mutual_tls(certificate: Path, key: Path, ca: Path) -> ssl.SSLContext:
    """For callers with a certificate of ``ca`` alone.

    :raises OSError: when a file cannot be read. :raises ssl.SSLError: when they do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(ca)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2"])
    return context


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m serve.shield",
        description="Pass gRPC on to Triton, other than that a call ended early; `python -m serve --shield` starts it.",
    )
    p.add_argument("--host", default="127.0.0.1", help="address to listen on")
    p.add_argument("--port", type=int, required=True, help="port to listen on")
    p.add_argument("--triton-port", type=int, required=True, help="Triton's gRPC port on this machine's loopback")
    p.add_argument("--certificate", type=Path, help="PEM file, for mutual TLS; with --key and --ca")
    p.add_argument("--key", type=Path, help="PEM file of the certificate's private key")
    p.add_argument("--ca", type=Path, help="PEM file of the authority whose certificates callers must have")
    return p


async def run(arguments: argparse.Namespace) -> None:
    """Until SIGTERM or SIGINT."""
    files = (arguments.certificate, arguments.key, arguments.ca)
    tls = mutual_tls(*files) if all(files) else None
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    shield = Shield(("127.0.0.1", arguments.triton_port))
    server = await shield.serve(arguments.host, arguments.port, tls)
    sys.stdout.write(f"{LISTENING}\n")
    sys.stdout.flush()
    await ended.wait()
    server.close()
    until = asyncio.get_running_loop().time() + LAST_S
    while shield.callers and asyncio.get_running_loop().time() < until:  # Triton's end is that of its connections
        await asyncio.sleep(0.01)


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two for each connection
    try:
        import uvloop
    except ModuleNotFoundError:
        runner = asyncio.run
    else:
        runner = uvloop.run
    try:
        runner(run(arguments))
    except (OSError, ValueError) as error:  # of TLS, too
        sys.stderr.write(f"error: the shield cannot listen on {arguments.host}:{arguments.port}: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
