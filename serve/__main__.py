"""``python -m serve``: start Triton on a model repository, until Ctrl-C or for as long as a command runs."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from serve.server import LOG_LEVELS, ServeError, TritonServer


class Stopped(Exception):
    """SIGINT or SIGTERM came."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m serve",
        description="Start a real Triton server on a model repository, wait until it is ready, stop it with Ctrl-C. "
        "With `-- COMMAND`, run the command against it (TRITOX_URL names the gRPC address) and stop when it ends.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--repository", type=Path, default=Path("model_repository"), help="Triton model repository")
    p.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for every one of this machine")
    p.add_argument("--grpc-port", type=int, default=8001, help="0 takes a free port")
    p.add_argument("--http-port", type=int, default=8000, help="0 takes a free port")
    p.add_argument("--metrics-port", type=int, default=8002, help="0 takes a free port")
    p.add_argument("--log-level", choices=LOG_LEVELS, default="warning", help="what of Triton's log to show")
    p.add_argument("--model-control", action="store_true", help="let callers load and unload models")
    p.add_argument(
        "--gateway",
        action="store_true",
        help="start the HTTP gateway with it (and --model-control), on port 8080; what follows -- are its options",
    )
    p.add_argument("command", nargs="*", metavar="-- COMMAND", help="run this once the server is ready")
    return p


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    server = TritonServer(
        arguments.repository,
        host=arguments.host,
        grpc_port=arguments.grpc_port,
        http_port=arguments.http_port,
        metrics_port=arguments.metrics_port,
        log_level=arguments.log_level,
        model_control=arguments.model_control or arguments.gateway,
    )
    if arguments.gateway:
        arguments.command = [sys.executable, "-m", "serve.gateway", *arguments.command]
    say = sys.stderr if arguments.command else sys.stdout
    try:
        print(f"starting Triton on {arguments.repository} ...", file=say, flush=True)
        with server:
            if arguments.command:
                return run(arguments.command, server.grpc_url)
            print(f"ready: gRPC {server.grpc_url}, HTTP {server.http_url}, metrics {server.metrics_url}", flush=True)
            print("stop it with Ctrl-C", flush=True)
            code = server.wait()
            sys.stderr.write(f"error: Triton ended by itself with exit code {code}\n")
            return 1
    except Stopped as stopped:
        print(f"stopped by {stopped}", file=say)
        return 128 + stopped.number if arguments.command else 0
    except ServeError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def run(command: list[str], url: str) -> int:
    """Run ``command`` with the server's address in TRITOX_URL; its exit code, or 127 when it cannot be started."""
    try:
        process = subprocess.Popen(command, env={**os.environ, "TRITOX_URL": url})
    except OSError as error:
        sys.stderr.write(f"error: cannot run {command[0]}: {error.strerror}\n")
        return 127
    try:
        code = process.wait()
    except Stopped as stopped:
        if stopped.number != signal.SIGINT:
            process.send_signal(stopped.number)
        try:  # Ctrl-C reached the command too, and it may end in its own way
            code = process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise stopped from None
    return code if code >= 0 else 128 - code  # as a shell reports a command that a signal ended


def _stop(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C must not break off the clean end
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(number)


if __name__ == "__main__":
    sys.exit(main())
