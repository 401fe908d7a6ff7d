"""``python -m serve``: start Triton on a model repository, until Ctrl-C or for as long as a command runs."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from serve.server import LOG_LEVELS, SelfTestFailed, ServeError, Tls, TritonServer, is_loopback
from serve.watchdog import LOOK_S, RESTARTS, WITHIN_S, GaveUp, Watchdog


class Stopped(Exception):
    """SIGINT or SIGTERM came."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m serve",
        description="Start a real Triton server on a model repository, wait until it is ready, stop it with Ctrl-C. "
        "With `-- COMMAND`, run the command against it (TRITOX_URL names the gRPC address) and stop when it ends. "
        "Where Triton ends by itself, or the process of a model does, it is started anew. "
        "Exit codes: 0 stopped, 1 it was started anew too often, 2 it could not be started, 3 a model failed its "
        "self-test; or that of the command.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--repository", type=Path, default=Path("model_repository"), help="Triton model repository")
    p.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for every one of this machine")
    p.add_argument("--http-host", help="address of HTTP alone, which has no TLS (default: --host)")
    p.add_argument("--metrics-host", help="address of metrics alone (default: --host)")
    p.add_argument("--grpc-port", type=int, default=8001, help="0 takes a free port")
    p.add_argument("--http-port", type=int, default=8000, help="0 takes a free port")
    p.add_argument("--metrics-port", type=int, default=8002, help="0 takes a free port")
    p.add_argument("--log-level", choices=LOG_LEVELS, default="warning", help="what of Triton's log to show")
    p.add_argument("--model-control", action="store_true", help="let callers load and unload models")
    p.add_argument("--unverified", action="store_true", help="also serve files that are not as they were exported")
    p.add_argument(
        "--shield",
        action="store_true",
        help="keep calls that are cancelled from Triton, of which 24.10 can die; takes some 30 us of CPU a request",
    )
    p.add_argument(
        "--ready-file",
        type=Path,
        help="exists while the server runs and every model has passed its self-test; for a startup probe",
    )
    p.add_argument(
        "--restarts",
        type=int,
        default=RESTARTS,
        help=f"how often Triton may be started anew within {WITHIN_S / 60:.0f} minutes; 0 for not at all",
    )
    p.add_argument(
        "--drain",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="at SIGTERM, say to load balancers that it is not ready, and go on to answer for so long; takes "
        "--model-control",
    )
    p.add_argument(
        "--control-key",
        type=Path,
        metavar="FILE",
        help="holds the key without which nobody loads, unloads and lists models; else TRITOX_CONTROL_KEY",
    )
    p.add_argument("--certificate", type=Path, help="PEM file, for mutual TLS on gRPC's port; with --key and --ca")
    p.add_argument("--key", type=Path, help="PEM file of the certificate's private key")
    p.add_argument("--ca", type=Path, help="PEM file of the authority whose certificates callers must have")
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
    try:
        if arguments.drain and not arguments.model_control:
            raise ServeError(f"--drain {arguments.drain:g} takes --model-control, by which Triton is told: give both")
        tls, control_key = read_tls(arguments), read_control_key(arguments)
    except ServeError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    server = TritonServer(
        arguments.repository,
        host=arguments.host,
        grpc_port=arguments.grpc_port,
        http_port=arguments.http_port,
        metrics_port=arguments.metrics_port,
        log_level=arguments.log_level,
        model_control=arguments.model_control or arguments.gateway,
        http_host=arguments.http_host,
        metrics_host=arguments.metrics_host,
        tls=tls,
        control_key=control_key,
        verify=not arguments.unverified,
        shield=arguments.shield,
    )
    if arguments.gateway:
        arguments.command = [sys.executable, "-m", "serve.gateway", *arguments.command]
    say = sys.stderr if arguments.command else sys.stdout
    try:
        print(f"starting Triton on {arguments.repository} ...", file=say, flush=True)
        with ready_file(arguments.ready_file) as ready, server:
            ready(True)
            watchdog = Watchdog(server, arguments.restarts, ready)
            if arguments.command:
                return run(arguments.command, server.grpc_url, control_key, watchdog)
            print(f"ready: gRPC {server.grpc_url}, HTTP {server.http_url}, metrics {server.metrics_url}", flush=True)
            print("stop it with Ctrl-C", flush=True)
            try:
                watchdog.watch()
            except Stopped as stopped:
                if arguments.drain and stopped.number == signal.SIGTERM:
                    ready(False)
                    server.drain(arguments.drain)
                raise
    except Stopped as stopped:
        print(f"stopped by {stopped}", file=say)
        return 128 + stopped.number if arguments.command else 0
    except ServeError as error:
        sys.stderr.write(f"error: {error}\n")
        return 3 if isinstance(error, SelfTestFailed) else 1 if isinstance(error, GaveUp) else 2


@contextlib.contextmanager
def ready_file(path: Path | None) -> Iterator[Callable[[bool], None]]:
    """What writes the file, or removes it; before and afterwards it is not there.

    :raises ServeError: when it cannot be written.
    """

    def set_ready(yes: bool) -> None:
        if path is None:
            return
        try:
            if yes:
                path.touch()
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise ServeError(f"--ready-file {path} cannot be written ({error.strerror}): name another place") from None

    set_ready(True)  # a place that cannot be written to is said at once
    set_ready(False)
    try:
        yield set_ready
    finally:
        with contextlib.suppress(ServeError):
            set_ready(False)


def read_tls(arguments: argparse.Namespace) -> Tls | None:
    """:raises ServeError: when only some of the files are given."""
    files = [arguments.certificate, arguments.key, arguments.ca]
    if not any(files):
        return None
    if not all(files):
        raise ServeError("mutual TLS needs --certificate, --key and --ca: give all three, or none")
    return Tls(*files)


def read_control_key(arguments: argparse.Namespace) -> str | None:
    """:raises ServeError: when the file cannot be read, or other machines could change models without a key."""
    key = os.environ.get("TRITOX_CONTROL_KEY") or None
    if arguments.control_key is not None:
        try:
            key = str(arguments.control_key.read_text(encoding="utf-8").strip())
        except (OSError, UnicodeDecodeError) as error:
            raise ServeError(f"--control-key {arguments.control_key} cannot be read ({error})") from None
    if key is None and arguments.gateway:
        key = secrets.token_hex(16)  # the gateway is told, nobody else needs it
    hosts = (arguments.host, arguments.http_host or arguments.host)
    if key is None and arguments.model_control and not all(map(is_loopback, hosts)):
        raise ServeError(
            f"--model-control on {arguments.host} lets other machines load and unload models, and there is no key: "
            "give --control-key a file, or TRITOX_CONTROL_KEY"
        )
    return key


def run(command: list[str], url: str, control_key: str | None, watchdog: Watchdog) -> int:
    """Run ``command`` with the server's address in TRITOX_URL; its exit code, or 127 when it cannot be started.

    :raises ServeError: when the server cannot be kept up; the command has been ended.
    """
    environment = {**os.environ, "TRITOX_URL": url}
    if control_key is not None:
        environment["TRITOX_CONTROL_KEY"] = control_key
    try:
        process = subprocess.Popen(command, env=environment)
    except OSError as error:
        sys.stderr.write(f"error: cannot run {command[0]}: {error.strerror}\n")
        return 127
    try:
        code = watched(process, watchdog)
    except ServeError:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
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


def watched(process: subprocess.Popen[bytes], watchdog: Watchdog) -> int:
    """The exit code of a command during which the server is looked after."""
    while True:
        try:
            return process.wait(timeout=LOOK_S)
        except subprocess.TimeoutExpired:
            watchdog.look()


def _stop(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C must not break off the clean end
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(number)


if __name__ == "__main__":
    sys.exit(main())
