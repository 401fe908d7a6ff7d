"""``python -m serve.gateway``: Perspective API and a plain HTTP API in front of a Tritox server."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.server import is_loopback

if TYPE_CHECKING:
    import uvicorn

INSTALL = "pip install -e '.[gateway]' -c constraints.txt"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m serve.gateway",
        description="Answer Perspective API's calls, and plain HTTP ones, with the models of a Tritox server. Without "
        "keys it listens on this machine only, and takes any key.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument(
        "--triton", default=os.environ.get("TRITOX_URL") or "127.0.0.1:8001", help="host:port of Triton's gRPC port"
    )
    p.add_argument(
        "--control",
        default=os.environ.get("TRITOX_CONTROL_URL"),
        metavar="HOST:PORT,...",
        help="gRPC ports of all replicas, where --triton is a load balancer: models are listed and switched there, "
        "with the key in TRITOX_CONTROL_KEY. A name stands for each of its addresses (default: --triton)",
    )
    p.add_argument("--host", default="127.0.0.1", help="address to listen on")
    p.add_argument("--port", type=int, default=8080, help="0 takes a free port")
    p.add_argument("--model", default="toxicity", help="the model that answers where none is named")
    p.add_argument("--timeout", type=float, default=5.0, help="seconds that a request may take")
    p.add_argument(
        "--keys",
        type=Path,
        help="file of keys, one a line: KEY [name=...] [rate=...] [admin]; more keys, "
        "between commas, may be in the environment's TRITOX_GATEWAY_KEYS",
    )
    p.add_argument("--rate", type=float, default=0.0, help="requests a second of a key that has no rate; 0 for any")
    p.add_argument("--cors", action="append", default=[], metavar="ORIGIN", help="let pages of ORIGIN call, or of *")
    p.add_argument("--max-bytes", type=int, default=2 * 1024 * 1024, help="size of a body")
    p.add_argument("--max-under-way", type=int, default=1000, help="requests at a time; more are refused")
    p.add_argument("--languages", default="en", help="that the model knows, between commas")
    p.add_argument(
        "--drop-unsupported",
        action="store_true",
        help="leave out attributes that no label answers for, instead of an error",
    )
    p.add_argument("--policy", action="append", default=[], metavar="FILE", help="a policy beside the presets")
    p.add_argument(
        "--feedback",
        default="feedback.sqlite",
        metavar="FILE|URL",
        help="where suggested scores are kept: an SQLite file, a postgresql:// address, or none",
    )
    p.add_argument(
        "--records",
        metavar="FILE|URL",
        help="write each decision to an SQLite file or a postgresql:// address, with the text's hash by the key in "
        "TRITOX_RECORDS_KEY; a decision that cannot be written is not answered (default: nothing is written)",
    )
    p.add_argument("--record-texts", action="store_true", help="with --records: keep the texts, too")
    p.add_argument("--public-url", help="the gateway's address as its callers see it, for the discovery document")
    p.add_argument(
        "--control-key", type=Path, metavar="FILE", help="holds the servers' control key; else TRITOX_CONTROL_KEY"
    )
    p.add_argument(
        "--plain-port", type=int, help="with TLS: a port without it, which answers /healthz and /metrics and no more"
    )
    p.add_argument("--certificate", type=Path, help="PEM file, for TLS; with --certificate-key")
    p.add_argument("--certificate-key", type=Path, help="PEM file of its private key")
    p.add_argument("--ca", type=Path, help="PEM file: callers must have a certificate of this authority")
    p.add_argument("--quiet", action="store_true", help="no line for each request")
    return p


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        import uvicorn  # noqa: F401  (what is not installed is named below)

        from client.errors import InvalidInput
        from client.policy import PRESETS, InvalidPolicy, Policy
        from client.records import Records, RecordsFailed
        from serve.gateway.app import Settings, create
        from serve.gateway.feedback import Store, StoreFailed
        from serve.gateway.gate import InvalidKeys, Keys
        from serve.gateway.perspective import Rules
    except ModuleNotFoundError as error:
        sys.stderr.write(f"error: the gateway needs the package {error.name}: {INSTALL}\n")
        return 1
    if arguments.record_texts and not arguments.records:
        sys.stderr.write("error: --record-texts is for --records: name a file, or leave it out\n")
        return 2
    try:
        keys = Keys.read(arguments.keys, os.environ.get("TRITOX_GATEWAY_KEYS", ""), arguments.rate)
        policies = [Policy.read(name) for name in (*PRESETS, *arguments.policy)]
        control_key = os.environ.get("TRITOX_CONTROL_KEY") or None
        if arguments.control_key is not None:
            control_key = arguments.control_key.read_text(encoding="utf-8").strip()
    except (InvalidKeys, InvalidPolicy, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    for name in ("certificate", "certificate_key", "ca"):
        file = getattr(arguments, name)
        if file is not None and not os.access(file, os.R_OK):
            sys.stderr.write(f"error: --{name.replace('_', '-')} {file} cannot be read: name a PEM file\n")
            return 2
    if bool(arguments.certificate) != bool(arguments.certificate_key) or (arguments.ca and not arguments.certificate):
        sys.stderr.write("error: TLS needs --certificate and --certificate-key, and --ca goes with them\n")
        return 2
    if not keys and not is_loopback(arguments.host):
        sys.stderr.write(
            f"error: --host {arguments.host} lets other machines in, and there are no keys: give --keys a file, or "
            "TRITOX_GATEWAY_KEYS\n"
        )
        return 2
    logging.basicConfig(level=logging.WARNING if arguments.quiet else logging.INFO, format="%(asctime)s %(message)s")
    settings = Settings(
        triton=arguments.triton,
        control=arguments.control,
        control_key=control_key,
        model=arguments.model,
        timeout=arguments.timeout,
        keys=keys,
        cors=arguments.cors,
        max_bytes=arguments.max_bytes,
        rules=Rules(tuple(filter(None, arguments.languages.split(","))) or ("en",), arguments.drop_unsupported),
        public_url=arguments.public_url and arguments.public_url.rstrip("/") + "/",
        policies={policy.name: policy for policy in policies},
        max_under_way=arguments.max_under_way,
    )
    try:
        listening = listen(arguments.host, arguments.port)
        plain = None if arguments.plain_port is None else listen(arguments.host, arguments.plain_port)
        settings.feedback = None if arguments.feedback == "none" else Store(arguments.feedback)
        settings.records = Records(arguments.records, keep_text=arguments.record_texts) if arguments.records else None
    except (RecordsFailed, InvalidInput) as error:
        sys.stderr.write(f"error: --records: {error}\n")
        return 2
    except StoreFailed as error:
        sys.stderr.write(f"error: --feedback: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"error: cannot listen on {arguments.host}:{arguments.port} ({error.strerror})\n")
        return 2
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    scheme = "https" if arguments.certificate else "http"
    print(f"gateway: {scheme}://{shown}:{port} (docs at /docs), Triton {arguments.triton}", flush=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    for number in (signal.SIGINT, signal.SIGTERM):
        # uvicorn has its own while it runs: it ends what is under way, and passes the signal on
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        app = create(settings)
        if plain is not None:
            # a thread's server leaves signals alone, and ends with the process
            server = http_server(only(app, ("/healthz", "/metrics")), lifespan="off")
            threading.Thread(target=server.run, args=([plain],), daemon=True).start()
        tls = {"ssl_certfile": arguments.certificate, "ssl_keyfile": arguments.certificate_key}
        if arguments.ca is not None:
            tls |= {"ssl_ca_certs": str(arguments.ca), "ssl_cert_reqs": ssl.CERT_REQUIRED}
        http_server(app, **tls).run([listening])
    finally:
        if settings.feedback is not None:
            settings.feedback.close()
        if settings.records is not None:
            settings.records.close()
    return 0


def only(app: Any, paths: Sequence[str]) -> Any:
    """The application as far as these paths."""

    async def some(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] in paths:
            await app(scope, receive, send)
            return
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})

    return some


def http_server(app: Any, **options: Any) -> uvicorn.Server:
    """What answers with the application. It writes no log of requests, for that has queries, with their keys.

    :param options: of ``uvicorn.Config``.
    """
    import uvicorn

    logging.getLogger("uvicorn.access").disabled = True
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=15,
        **options,
    )
    return uvicorn.Server(config)


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    listening.listen(1024)  # who connects from now on waits for the server
    return listening


if __name__ == "__main__":
    sys.exit(main())
