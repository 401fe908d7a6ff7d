"""``python -m loadtest run``: put a load on a server and judge what it makes of it, from one process or many.

``python -m loadtest dry-run`` does so against a stub server that counts, and compares the counts.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from loadtest.shapes import SHAPES
from loadtest.traffic import whole
from serve.server import die_with_parent

ROOT = Path(__file__).parents[1]
LOCUSTFILE = Path(__file__).with_name("locustfile.py")
NEEDED = ("locust", "yaml", "tritonclient")
MASTER_PORT, WEB_PORT = 5557, 8089


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    for module in NEEDED:
        if not _installed(module):
            sys.stderr.write(f"load tests need {module}: pip install -e '.[loadtest]' -c constraints.txt\n")
            return 2
    if arguments.command == "dry-run":
        return dry_run(arguments)
    environment = _environment()
    if arguments.workers:
        arguments.master, arguments.expect_workers, arguments.port = True, arguments.workers, _free_port()
        options = worker_options(f"127.0.0.1:{arguments.port}")
        for _ in range(arguments.workers):
            command = [sys.executable, "-m", "locust", *options]
            # not in this session, so that Ctrl-C reaches the master alone, which ends them in good order
            subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=die_with_parent
            )
    # This process becomes Locust, so that Ctrl-C and other signals end the run as Locust does, with a verdict
    options = worker_options(arguments.worker) if arguments.worker else locust_options(arguments)
    os.execve(sys.executable, [sys.executable, "-m", "locust", *options], environment)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m loadtest", description="Load tests against a Tritox server.")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="run Locust and judge the result",
        description="Exits with 0 when all objectives are met, 1 when one is missed, 2 when the test could not run, 3 "
        "when it does not count (INVALID): a worker was lost.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    run.add_argument("--url", help="host:port of the server's gRPC port; by default $TRITOX_URL, else 127.0.0.1:8001")
    run.add_argument("--users", type=whole, default=8, help="requests under way at the same time")
    run.add_argument("--spawn-rate", type=float, default=100.0, help="users to start per second")
    run.add_argument("--duration", type=_duration, default="30s", help="such as 30s or 2m")
    run.add_argument("--shape", choices=SHAPES, default="steady", help="how the number of users changes")
    run.add_argument(
        "--traffic",
        choices=("single", "batch", "mixed"),
        default="batch",
        help="one comment a request, --batch, or both",
    )
    run.add_argument("--batch", type=whole, default=1, help="comments in each request")
    run.add_argument("--corpus", type=Path, help="text file, a comment a line, or CSV; by default made-up comments")
    run.add_argument("--mix", default="plain", help="plain, life, or shares of repeats, foreign, attacks")
    run.add_argument("--seed", type=int, default=0, help="of what is made up")
    run.add_argument("--slo", type=Path, default=LOCUSTFILE.with_name("slo.yaml"), help="YAML file of objectives")
    run.add_argument("--json", type=Path, help="file to write the result to, such as results/laptop.json")
    run.add_argument("--html", type=Path, help="file to write the report to")
    run.add_argument(
        "--web", type=int, nargs="?", const=WEB_PORT, metavar="PORT", help="watch it live in a browser, until Ctrl-C"
    )
    many = run.add_argument_group("several processes").add_mutually_exclusive_group()
    many.add_argument("--workers", type=whole, help="start so many processes here, and add up what they saw")
    many.add_argument("--master", action="store_true", help="wait for --expect-workers on other machines")
    many.add_argument("--worker", metavar="HOST[:PORT]", help="of a master; it says what to send, and to whom")
    run.add_argument("--expect-workers", type=whole, default=1, help="of a master")
    run.add_argument("--port", type=int, default=MASTER_PORT, help="of a master")
    dry = commands.add_parser(
        "dry-run",
        help="show that several processes add up: against a stub server that counts",
        description="Exits with 0 when the counts are equal to what the stub server saw.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    dry.add_argument("--workers", type=whole, default=8)
    dry.add_argument("--users", type=whole, default=16, help="of all workers together")
    dry.add_argument("--duration", type=_duration, default="5s", help="such as 30s or 2m")
    dry.add_argument("--service-ms", type=float, default=20.0, help="that the stub server takes for each request")
    return p


def dry_run(arguments: argparse.Namespace) -> int:
    """Count on both sides of the wire."""
    from loadtest.responder import Responder

    with (
        tempfile.TemporaryDirectory(prefix="tritox-dry-run-") as folder,
        Responder("model", service_s=arguments.service_ms / 1000, parallel=arguments.users) as responder,
    ):
        slo, out = Path(folder) / "slo.yaml", Path(folder) / "result.json"
        slo.write_text("max_error_rate: 0\n")
        options = ["--workers", str(arguments.workers), "--users", str(arguments.users), "--traffic", "mixed"]
        options += ["--duration", arguments.duration, "--mix", "life", "--url", responder.url]
        command = [sys.executable, "-m", "loadtest", "run", *options, "--slo", str(slo), "--json", str(out)]
        code = subprocess.run(command, env=_environment(), stdin=subprocess.DEVNULL, check=False).returncode
        if code:
            return code
        result, seen = json.loads(out.read_text(encoding="utf-8")), responder.seen
    told = result["measured"]["requests"], result["comments"]
    print(f"{'':<12}{'requests':>12}{'comments':>12}")
    for name, counts in ((f"{result['workers']} workers", told), ("stub server", seen)):
        print(f"{name:<12}{counts[0]:>12}{counts[1]:>12}")
    print("equal" if told == seen else "NOT EQUAL: what the workers saw was not added up rightly")
    return 0 if told == seen and result["workers"] == arguments.workers else 1


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _installed(module: str) -> bool:
    """Looked up, not imported: importing locust would patch the standard library here for nothing."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _duration(text: str) -> str:
    """Locust's own syntax, less zero, which to Locust means forever."""
    if not re.fullmatch(r"(?=.*[1-9])(\d+h)?(\d+m)?(\d+s?)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 30s, 2m or 1h30m")
    return text


def worker_options(master: str) -> list[str]:
    """A worker gets all other options from its master."""
    host, _, port = master.partition(":")
    where = [f"--master-host={host}", f"--master-port={port or MASTER_PORT}"]
    return [f"--locustfile={os.path.relpath(LOCUSTFILE)}", "--worker", "--loglevel=WARNING", *where]


def locust_options(arguments: argparse.Namespace) -> list[str]:
    options = {
        "--locustfile": os.path.relpath(LOCUSTFILE),  # relative, as the command is written into the result
        "--users": arguments.users,
        "--spawn-rate": arguments.spawn_rate,
        "--run-time": arguments.duration,
        "--loglevel": "WARNING",
        "--traffic": arguments.traffic,
        "--batch": arguments.batch,
        "--mix": arguments.mix,
        "--shape": arguments.shape,
        "--corpus-seed": arguments.seed,
        "--slo": os.path.relpath(arguments.slo),
        "--host": arguments.url,
        "--corpus": arguments.corpus,
        "--result": arguments.json,
        "--report": arguments.html,
    }
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    if arguments.master:
        given += ["--master", f"--master-bind-port={arguments.port}", f"--expect-workers={arguments.expect_workers}"]
        if arguments.workers:
            given.append("--master-bind-host=127.0.0.1")
    if arguments.web is None:
        return ["--headless", "--only-summary", *given]
    return ["--autostart", "--web-host=127.0.0.1", f"--web-port={arguments.web}", *given]


if __name__ == "__main__":
    sys.exit(main())
