"""``python -m loadtest run``: put a load on a server and judge what it makes of it."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCUSTFILE = Path(__file__).with_name("locustfile.py")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest", description="Load tests against a Tritox server.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="run Locust without its web page and judge the result",
        description="Exits with 0 when all objectives are met, 1 when one is missed, 2 when the test could not run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    run.add_argument("--url", help="host:port of the server's gRPC port; by default $TRITOX_URL, else 127.0.0.1:8001")
    run.add_argument("--users", type=_count, default=8, help="requests under way at the same time")
    run.add_argument("--spawn-rate", type=float, default=100.0, help="users to start per second")
    run.add_argument("--duration", type=_duration, default="30s", help="such as 30s or 2m")
    run.add_argument("--batch", type=_count, default=1, help="comments in each request")
    run.add_argument("--corpus", type=Path, help="text file, a comment a line, or CSV; by default made-up comments")
    run.add_argument("--seed", type=int, default=0, help="of the made-up comments")
    run.add_argument("--slo", type=Path, default=LOCUSTFILE.with_name("slo.yaml"), help="YAML file of objectives")
    run.add_argument("--json", type=Path, help="file to write the result to, such as results/laptop.json")
    arguments = parser.parse_args(argv)

    for module in ("locust", "yaml", "tritonclient"):
        if not _installed(module):
            sys.stderr.write(f"load tests need {module}: pip install -e '.[loadtest]' -c constraints.txt\n")
            return 2
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    # This process becomes Locust, so that Ctrl-C and other signals end the run as Locust does, with a verdict
    os.execve(sys.executable, [sys.executable, "-m", "locust", *locust_options(arguments)], environment)


def _installed(module: str) -> bool:
    """Looked up, not imported: importing locust would patch the standard library here for nothing."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _duration(text: str) -> str:
    """Locust's own syntax, less zero, which to Locust means forever."""
    if not re.fullmatch(r"(?=.*[1-9])(\d+h)?(\d+m)?(\d+s?)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 30s, 2m or 1h30m")
    return text


def locust_options(arguments: argparse.Namespace) -> list[str]:
    options = {
        "--locustfile": os.path.relpath(LOCUSTFILE),  # relative, as the command is written into the result
        "--users": arguments.users,
        "--spawn-rate": arguments.spawn_rate,
        "--run-time": arguments.duration,
        "--loglevel": "WARNING",
        "--batch": arguments.batch,
        "--corpus-seed": arguments.seed,
        "--slo": os.path.relpath(arguments.slo),
        "--host": arguments.url,
        "--corpus": arguments.corpus,
        "--result": arguments.json,
    }
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    return ["--headless", "--only-summary", *given]


if __name__ == "__main__":
    sys.exit(main())
