"""Locust users that score comments over gRPC.

::

    locust -f loadtest/locustfile.py --headless --host 127.0.0.1:8001 --users 8 --run-time 30s --batch 16

``python -m loadtest run`` does the same with less typing. The options of ours are ``--traffic``, ``--batch``,
``--corpus``, ``--mix``, ``--corpus-seed``, ``--shape``, ``--slo``, ``--result`` and ``--report``. Users send again as
soon as they have an answer (a closed loop): that finds out how much a server can do. How long people wait at a given
rate, :mod:`loadtest.poisson` finds out.

With ``--master`` and ``--worker`` the load comes from several processes. The master tells the workers what to send,
adds up what they saw, and judges; a run in which a worker was lost does not count.

The process exits with 0 when all objectives are met, 1 when one is missed, 2 when the test could not run, 3 when it
does not count (INVALID).
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
from locust import LoadTestShape, User, constant, events, task
from locust.runners import MasterRunner, WorkerRunner

# isort: split
from grpc.experimental.gevent import init_gevent

# isort: split
import gevent

from client import Retry, ToxicityClient, ToxicityError
from client.results import ModelInfo
from loadtest import corpus, page, report, shapes, traffic
from loadtest.slo import DEFAULT_PATH, Sample, Slo, judge, read_slo
from loadtest.tally import Tally

init_gevent()

TIMEOUT_S, MEET_S = 10.0, 30.0
"""That a request may take, and the first questions about the model."""
STOP, DONE = "tritox-stop", "tritox-done"
"""From the master to its workers: end, and say what you saw; and their answer."""
logger = logging.getLogger(__name__)

comments: Iterator[str]
sizes: Iterator[int]
slo: Slo
model: ModelInfo
tally = Tally()
"""Of the whole run; in a worker, of what the master was not told yet. Locust's own statistics round to two digits."""
workers = 0
"""That took part in the run; ``done`` are those that said all they saw."""
done: set[str] = set()
outcome = ""


class Commenter(User):
    """Sends requests, one after the other, over a connection of its own."""

    wait_time = constant(0)

    def on_start(self) -> None:
        # each request is sent once: what the client would hide from its user is what is counted here
        self.client = ToxicityClient(self.host, timeout=TIMEOUT_S, retry=Retry(attempts=1))

    def on_stop(self) -> None:
        self.client.close()

    @task
    def classify(self) -> None:
        texts = list(itertools.islice(comments, next(sizes)))
        error: ToxicityError | None = None
        start_s, start = time.time(), time.perf_counter()
        try:
            self.client.classify(texts)
        except ToxicityError as raised:
            error = raised
        duration = time.perf_counter() - start
        kind = type(error).__name__ if error else None
        if kind and kind not in tally.errors:
            logger.warning("the first %s: %s", kind, error)
        tally.add(Sample(start_s, duration, len(texts), kind))
        self.environment.events.request.fire(
            request_type="gRPC",
            name=f"classify {len(texts)}",
            response_time=duration * 1000,
            response_length=0,
            exception=kind,  # not the error: its message holds the request id, so that Locust would count each as new
            context={},
        )


class Shape(LoadTestShape):
    """So many users as the plan says; see :mod:`loadtest.shapes`."""

    abstract = True  # so that Locust does not take it by itself: it is used where --shape says so
    use_common_options = True

    def __init__(self, plan: list[tuple[float, float]], spawn_rate: float) -> None:
        super().__init__()
        self.plan, self.spawn_rate = plan, spawn_rate

    def tick(self) -> tuple[int, float] | None:
        users = shapes.at(self.plan, self.get_run_time())
        return None if users is None else (max(1, round(users)), self.spawn_rate)


@events.init_command_line_parser.add_listener
def add_options(parser: argparse.ArgumentParser, **_: Any) -> None:
    # Texts, not paths: a master sends its options to its workers. Any: env_var is ConfigArgParse's
    group: Any = parser.add_argument_group("Tritox options")
    group.add_argument(
        "--traffic", choices=traffic.TRAFFIC, default="batch", help="one comment a request, --batch, or both"
    )
    group.add_argument("--batch", type=int, default=1, env_var="TRITOX_BATCH", help="comments in each request")
    group.add_argument("--corpus", env_var="TRITOX_CORPUS", help="text or CSV file of comments")
    group.add_argument("--mix", default="plain", help="plain, life, or shares of repeats, foreign, attacks")
    group.add_argument("--corpus-seed", type=int, default=0, help="of what is made up")
    group.add_argument("--shape", choices=shapes.SHAPES, default="steady", help="how the number of users changes")
    group.add_argument("--slo", default=str(DEFAULT_PATH), env_var="TRITOX_SLO", help="YAML file of objectives")
    group.add_argument("--result", help="JSON file to write")
    group.add_argument("--report", help="HTML file to write")


@events.init.add_listener
def prepare(environment: Any, runner: Any, web_ui: Any, **_: Any) -> None:
    """Read what the options name and meet the server, before any user starts."""
    global slo, model
    options = environment.parsed_options
    # At the end, requests under way may finish. To drop them would drop the slowest from the samples, and gRPC under
    # gevent can hang at exit when a greenlet was killed inside a call.
    environment.stop_timeout = max(environment.stop_timeout, TIMEOUT_S + 5)
    if isinstance(runner, WorkerRunner):
        runner.register_message(STOP, finish, concurrent=True)
        return
    if isinstance(runner, MasterRunner):
        runner.register_message(DONE, hear)
    try:
        slo = read_slo(Path(options.slo))
        read_traffic(options, seed=options.corpus_seed)  # fail now, not in the workers
        if options.shape != "steady":
            environment.shape_class = make_shape(options)
        for file in filter(None, (options.result, options.report)):
            Path(file).parent.mkdir(parents=True, exist_ok=True)  # fail now, not after the run
        with ToxicityClient(environment.host, timeout=MEET_S) as client:
            environment.host = client.url  # without --host, locust would stop
            model = client.info()
    except (ValueError, OSError, ToxicityError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    if web_ui is not None:
        # the report so far, beside Locust's own pages
        web_ui.app.add_url_rule("/tritox", "tritox", lambda: page.page(result(environment, over=False)))


def read_traffic(options: Any, seed: int | str) -> None:
    """:raises ValueError: for a wrong option."""
    global comments, sizes
    if options.batch < 1:
        raise ValueError(f"--batch is {options.batch}, must be at least 1")
    texts = corpus.read(Path(options.corpus)) if options.corpus else corpus.generate(seed=options.corpus_seed)
    comments = traffic.comments(texts, traffic.parse_mix(options.mix), seed)
    sizes = traffic.sizes(options.traffic, options.batch, seed)


def make_shape(options: Any) -> Shape:
    """:raises ValueError: without an end."""
    if not options.run_time:
        raise ValueError(f"--shape {options.shape} needs --run-time, such as 10m: how long it all takes")
    users, seconds = options.num_users or 1, float(options.run_time)
    options.run_time = None  # the shape ends the run
    return Shape(shapes.stages(options.shape, users, seconds), options.spawn_rate or 100)


@events.test_start.add_listener
def begin(environment: Any, **_: Any) -> None:
    global tally, workers
    runner, options = environment.runner, environment.parsed_options
    tally, workers = Tally(), runner.worker_count if isinstance(runner, MasterRunner) else 0
    done.clear()
    if isinstance(runner, WorkerRunner):  # its options have come with the order to start
        try:
            read_traffic(options, seed=f"{options.corpus_seed} {runner.worker_index}")
        except (ValueError, OSError) as error:
            sys.stderr.write(f"error: {error}\n")
            environment.process_exit_code = 2
            runner.quit()


# --- several processes


@events.report_to_master.add_listener
def tell(data: dict[str, Any], **_: Any) -> None:
    """A worker, every few seconds: what it saw since it last said so."""
    global tally
    data["tritox"], tally = tally.to_json(), Tally()


@events.worker_report.add_listener
def add(data: dict[str, Any], **_: Any) -> None:
    if "tritox" in data:
        tally.merge(Tally.from_json(data["tritox"]))


@events.test_stopping.add_listener
def gather(environment: Any, **_: Any) -> None:
    """The master: have all workers end, and wait for all that they saw. Locust itself waits half a second."""
    runner = environment.runner
    if not isinstance(runner, MasterRunner):
        return
    for client in runner.clients.all:
        runner.send_message(STOP, client_id=client.id)
    until = time.monotonic() + environment.stop_timeout + TIMEOUT_S
    while time.monotonic() < until and any(c.id not in done and c.state != "missing" for c in runner.clients.all):
        gevent.sleep(0.05)


def finish(environment: Any, **_: Any) -> None:
    """A worker: let the requests under way end, and say the rest."""
    environment.runner.stop()
    data: dict[str, Any] = {}
    tell(data)
    environment.runner.send_message(DONE, data)


def hear(msg: Any, **_: Any) -> None:
    """The master: a worker said all."""
    add(msg.data)
    done.add(msg.node_id)


# --- the verdict


def invalid(environment: Any, over: bool) -> str | None:
    """Why the run does not count; ``None`` where it does."""
    if environment.runner.exceptions:
        return "the load test itself failed: see the traceback above"
    if over and len(done) < workers:
        return f"only {len(done)} of {workers} workers said what they saw"
    return None


def result(environment: Any, over: bool) -> dict[str, Any]:
    """The content of a result file; of the run so far, where it is not over."""
    options, measured = environment.parsed_options, tally.measured()
    verdicts, reason = judge(slo, measured), invalid(environment, over)
    about = {
        "command": shlex.join(["locust", *sys.argv[1:]]),
        "endpoint": environment.host,
        "model": asdict(model),
        "load": f"closed loop, {options.shape}, up to {options.num_users or 1} users",
        "users": options.num_users,
        "workers": workers,
        "comments": tally.comments,
        "shape": options.shape,
        "traffic": options.traffic,
        "batch": options.batch,
        "corpus": str(options.corpus or f"generated, seed {options.corpus_seed}"),
        "mix": options.mix,
        "valid": reason is None,
        "invalid_reason": reason,
    }
    met = bool(tally.requests) and all(v.met for v in verdicts) and reason is None
    return report.result(measured, verdicts, met, about) | report.distribution(tally)


@events.quitting.add_listener
def verdict(environment: Any, **_: Any) -> None:
    """Judge the run, write it down, and set the exit code."""
    global outcome
    if isinstance(environment.runner, WorkerRunner):
        environment.process_exit_code = environment.process_exit_code or 0
        return
    if len(done) < workers:  # Ctrl-C or SIGTERM: the workers are still at it
        gather(environment)
    options, found, measured = environment.parsed_options, result(environment, over=True), tally.measured()
    outcome = report.table(measured, judge(slo, measured))
    if workers:
        outcome += f"\n{len(done)} of {workers} workers added up"
    if found["invalid_reason"]:
        outcome += f"\nINVALID: {found['invalid_reason']}, so this run does not count"
    if options.result:
        report.write_json(Path(options.result), found)
    if options.report:
        report.write_text(Path(options.report), page.page(found))
    environment.process_exit_code = 3 if not found["valid"] else 0 if found["slo_met"] else 1


@events.quit.add_listener
def say(**_: Any) -> None:
    """The verdict comes last, below Locust's own tables."""
    if outcome:
        sys.stderr.flush()
        sys.stdout.write(f"\n{outcome}\n")
