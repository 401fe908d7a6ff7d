"""Locust users that score comments over gRPC.

::

    locust -f loadtest/locustfile.py --headless --host 127.0.0.1:8001 --users 8 --run-time 30s --batch 16

``python -m loadtest run`` does the same with less typing. The options of ours are ``--batch``, ``--corpus``,
``--corpus-seed``, ``--slo`` and ``--result``. Users send again as soon as they have an answer (a closed loop): that
finds out how much a server can do, not how long people wait at a given rate.

The process exits with 0 when all objectives are met, 1 when one is missed, 2 when the test could not run.
"""

# locust has no types
# mypy: disable-error-code="untyped-decorator"
from __future__ import annotations

import argparse
import itertools
import logging
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

# The order matters: importing locust patches the standard library for gevent, then gRPC must be told, then may be used
from locust import User, constant, events, task
from locust.runners import LocalRunner

# isort: split
from grpc.experimental.gevent import init_gevent

# isort: split
from client import ToxicityClient, ToxicityError
from client.results import ModelInfo
from loadtest import corpus, report
from loadtest.slo import DEFAULT_PATH, Sample, Slo, judge, measure, read_slo

init_gevent()

TIMEOUT_S = 10.0
logger = logging.getLogger(__name__)

comments: Iterator[str]
slo: Slo
model: ModelInfo
samples: list[Sample] = []
"""One for each request of the run. Locust's own statistics round what is above 100 ms to two digits."""
outcome = ""


class Commenter(User):
    """Sends batches of comments, one after the other, over a connection of its own."""

    wait_time = constant(0)

    def on_start(self) -> None:
        self.client = ToxicityClient(self.host, timeout=TIMEOUT_S)
        self.batch = self.environment.parsed_options.batch

    def on_stop(self) -> None:
        self.client.close()

    @task
    def classify(self) -> None:
        texts = list(itertools.islice(comments, self.batch))
        error: ToxicityError | None = None
        start = time.perf_counter()
        try:
            self.client.classify(texts)
        except ToxicityError as raised:
            error = raised
        duration = time.perf_counter() - start
        kind = type(error).__name__ if error else None
        if kind and all(s.error != kind for s in samples):
            logger.warning("the first %s: %s", kind, error)
        samples.append(Sample(start, duration, len(texts), kind))
        self.environment.events.request.fire(
            request_type="gRPC",
            name=f"classify {self.batch}",
            response_time=duration * 1000,
            response_length=0,
            exception=kind,  # not the error: its message holds the request id, so that Locust would count each as new
            context={},
        )


@events.init_command_line_parser.add_listener
def add_options(parser: argparse.ArgumentParser, **_: Any) -> None:
    group: Any = parser.add_argument_group("Tritox options")  # Any: env_var is ConfigArgParse's
    group.add_argument("--batch", type=int, default=1, env_var="TRITOX_BATCH", help="comments in each request")
    group.add_argument("--corpus", type=Path, env_var="TRITOX_CORPUS", help="text or CSV file of comments")
    group.add_argument("--corpus-seed", type=int, default=0, help="of made-up comments, when no --corpus is given")
    group.add_argument("--slo", type=Path, default=DEFAULT_PATH, env_var="TRITOX_SLO", help="YAML file of objectives")
    group.add_argument("--result", type=Path, help="JSON file to write")


@events.init.add_listener
def prepare(environment: Any, runner: Any, **_: Any) -> None:
    """Read what the options name and meet the server, before any user starts."""
    global comments, slo, model
    options = environment.parsed_options
    # At the end, requests under way may finish. To drop them would drop the slowest from the samples, and gRPC under
    # gevent can hang at exit when a greenlet was killed inside a call.
    environment.stop_timeout = max(environment.stop_timeout, TIMEOUT_S + 5)
    try:
        if not isinstance(runner, LocalRunner):
            raise ValueError("samples are kept in one process: run without --processes, --master and --worker")
        if options.batch < 1:
            raise ValueError(f"--batch is {options.batch}, must be at least 1")
        slo = read_slo(options.slo)
        texts = corpus.read(options.corpus) if options.corpus else corpus.generate(seed=options.corpus_seed)
        comments = itertools.cycle(texts)
        if options.result:
            options.result.parent.mkdir(parents=True, exist_ok=True)  # fail now, not after the run
        with ToxicityClient(environment.host) as client:
            environment.host = client.url  # without --host, locust would stop
            model = client.info()
    except (ValueError, OSError, ToxicityError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


@events.test_start.add_listener
def forget(**_: Any) -> None:
    samples.clear()


@events.quitting.add_listener
def verdict(environment: Any, **_: Any) -> None:
    """Judge the run, write it down, and set the exit code."""
    global outcome
    options = environment.parsed_options
    measured = measure(samples)
    verdicts = judge(slo, measured)
    outcome = report.table(measured, verdicts)
    if crashed := bool(environment.runner.exceptions):
        outcome += "\nthe load test itself failed, so this run does not count: see the traceback above"
    met = bool(samples) and all(v.met for v in verdicts) and not crashed
    if options.result:
        about = {
            "command": shlex.join(["locust", *sys.argv[1:]]),
            "endpoint": environment.host,
            "model": asdict(model),
            "users": options.num_users,
            "batch": options.batch,
            "corpus": str(options.corpus or f"generated, seed {options.corpus_seed}"),
        }
        report.write_json(options.result, report.result(measured, verdicts, met, about))
    environment.process_exit_code = 0 if met else 1


@events.quit.add_listener
def say(**_: Any) -> None:
    """The verdict comes last, below Locust's own tables."""
    sys.stderr.flush()
    sys.stdout.write(f"\n{outcome}\n")
