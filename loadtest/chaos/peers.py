"""``python -m loadtest.chaos.peers``: connections that do nothing, kept by a process of its own until its input ends.

It says when they are open, and at the end how many the other side had closed by then, each as a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import select
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SPARE = 200
"""File descriptors for other things."""


def most_files() -> int:
    """How many files this process may have open, after asking for as many as it is allowed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Peers:
    """That process, as a context manager.

    :param count: connections to each of ``addresses``, over TLS.
    """

    def __init__(
        self, addresses: list[tuple[str, int]], count: int, ca: Path, pair: tuple[Path, Path] | None = None
    ) -> None:
        self.command = ["--count", str(count), "--ca", str(ca)]
        for host, port in addresses:
            self.command += ["--to", f"{host}:{port}"]
        if pair is not None:
            self.command += ["--certificate", str(pair[0]), "--key", str(pair[1])]

    def __enter__(self) -> Peers:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "loadtest.chaos.peers", *self.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def said(self) -> dict[str, Any]:
        """Its next line: ``open``, ``wanted``, ``seconds`` and ``error`` first, then ``closed``."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        return dict(json.loads(line)) if line else {"open": 0, "closed": 0, "error": "it ended"}

    def end(self) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.close()
        return self.said()


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m loadtest.chaos.peers", description=__doc__)
    p.add_argument("--to", action="append", required=True, metavar="HOST:PORT")
    p.add_argument("--count", type=int, required=True, help="connections to each")
    p.add_argument("--ca", type=Path, required=True)
    p.add_argument("--certificate", type=Path)
    p.add_argument("--key", type=Path)
    arguments = p.parse_args()
    context = ssl.create_default_context(cafile=str(arguments.ca))
    # HTTP/1.1: a connection of HTTP/2 has to answer pings, or is taken for a dead one
    context.set_alpn_protocols(["http/1.1"] if arguments.certificate is None else ["h2"])
    if arguments.certificate is not None:
        context.check_hostname = False  # a service's certificate has its name, not its address
        context.load_cert_chain(arguments.certificate, arguments.key)
    start, opened, error = time.monotonic(), [], ""
    most_files()
    try:
        for address in arguments.to:
            host, _, port = address.rpartition(":")
            for _ in range(arguments.count):
                raw = socket.create_connection((host, int(port)), timeout=10)
                opened.append(context.wrap_socket(raw, server_hostname=host))
    except OSError as failure:
        error = f"{type(failure).__name__}: {failure}"
    wanted = arguments.count * len(arguments.to)
    first = {"open": len(opened), "wanted": wanted, "seconds": time.monotonic() - start, "error": error}
    sys.stdout.write(json.dumps(first) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    poll = select.poll()
    for each in opened:
        poll.register(each, select.POLLRDHUP | select.POLLHUP)
    sys.stdout.write(json.dumps({"closed": len(poll.poll(0))}) + "\n")
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
