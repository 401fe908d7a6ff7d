"""``python -m loadtest run``: put a load on a server and judge what it makes of it."""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
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
    run.add_argument("--users", type=int, default=8, help="requests under way at the same time")
    run.add_argument("--spawn-rate", type=float, default=100.0, help="users to start per second")
    run.add_argument("--duration", default="30s", help="such as 30s or 2m")
    run.add_argument("--batch", type=int, default=1, help="comments in each request")
    run.add_argument("--corpus", type=Path, help="text file, a comment a line, or CSV; by default made-up comments")
    run.add_argument("--seed", type=int, default=0, help="of the made-up comments")
    run.add_argument("--slo", type=Path, default=LOCUSTFILE.with_name("slo.yaml"), help="YAML file of objectives")
    run.add_argument("--json", type=Path, help="file to write the result to, such as results/laptop.json")
    arguments = parser.parse_args(argv)

    for module in ("locust", "yaml"):
        if importlib.util.find_spec(module) is None:
            sys.stderr.write(f"load tests need {module}: pip install -e '.[loadtest]' -c constraints.txt\n")
            return 2
    # A process of its own: Locust patches the standard library of the process it runs in
    command = [sys.executable, "-m", "locust", *locust_options(arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    try:
        code = subprocess.run(command, env=environment, check=False).returncode
    except KeyboardInterrupt:  # Locust had it too and has ended
        return 130
    return code if code in (0, 1) else 2


def locust_options(arguments: argparse.Namespace) -> list[str]:
    options = {
        "--locustfile": LOCUSTFILE,
        "--users": arguments.users,
        "--spawn-rate": arguments.spawn_rate,
        "--run-time": arguments.duration,
        "--stop-timeout": "15s",  # let requests under way finish: to drop them would drop the slowest
        "--loglevel": "WARNING",
        "--batch": arguments.batch,
        "--corpus-seed": arguments.seed,
        "--slo": arguments.slo,
        "--host": arguments.url,
        "--corpus": arguments.corpus,
        "--result": arguments.json,
    }
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    return ["--headless", "--only-summary", *given]


if __name__ == "__main__":
    sys.exit(main())
