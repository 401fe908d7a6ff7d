"""``python -m loadtest.balance``: what Envoy costs, how replicas scale behind it, and what callers see when one dies.

Everything is real: Tritons with mutual TLS, and Envoy with the configuration that ships. Three questions:

*Scaling.* A closed loop keeps one replica busy, then two, each of one thread. Where the machine has no cores to spare,
the generator and Envoy take from the replicas what they need, more with two than with one; so the CPU time of the
replicas is measured, and scaling is told per core that they got: ``2 * (rate2 / cores2) / (rate1 / cores1)``. Beside it
the same with a model that waits instead of computing: there cores do not matter, and what was measured stands as it is.

*Latency.* One caller, straight to a replica and through Envoy in turns; the difference of the medians.

*A replica dies* at a share of the capacity of all: callers with retries must see no error, and the p99 of each second
is to be within the objective soon.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import shlex
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from client import AsyncToxicityClient, Credentials, ToxicityError
from loadtest import corpus, processes, report, traffic
from loadtest.contenders import ContenderFailed, configure
from loadtest.credentials import of_caller, of_service
from loadtest.generator import GeneratorFailed
from loadtest.open_loop import Body, Generator, body
from loadtest.overload import positive
from loadtest.slo import Verdict, percentile
from serve import certificates
from serve.envoy import Envoy, read_config
from serve.server import ServeError, Tls, TritonServer

MIN_SCALING, MAX_ADDED_MS, MAX_RECOVERY_S = 1.8, 1.0, 3.0
MOST_ERRORS = 0
KEY = "0123456789abcdef-loadtest"
LABELS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
USERS = 4
"""Of the closed loop, for each replica: enough that it never waits for work, and too few for its queue to refuse."""
WARM_UP_S = 2.0
WINDOW_S = 1.0
FAULTS = {"kill": signal.SIGKILL, "hang": signal.SIGSTOP}

PACED = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        return config

    def execute(self, requests):
        time.sleep({seconds})
        replies = []
        for request in requests:
            rows = len(pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy())
            tensors = [
                pb_utils.Tensor("scores", np.full((rows, {labels}), 0.5, np.float32)),
                pb_utils.Tensor("truncated", np.zeros((rows, 1), bool)),
            ]
            replies.append(pb_utils.InferenceResponse(tensors))
        return replies
"""
PACED_CONFIG = """
name: "toxicity"
backend: "python"
max_batch_size: 32
input [{{ name: "TEXT" data_type: TYPE_STRING dims: [1] }}]
output [{{ name: "scores" data_type: TYPE_FP32 dims: [{labels}] }}]
output [{{ name: "truncated" data_type: TYPE_BOOL dims: [1] }}]
instance_group [{{ kind: KIND_CPU count: 1 }}]
parameters {{ key: "labels" value {{ string_value: '{names}' }} }}
parameters {{ key: "thresholds" value {{ string_value: '{thresholds}' }} }}
parameters {{ key: "max_tokens" value {{ string_value: "128" }} }}
"""


def write_paced(repository: Path, seconds: float) -> None:
    """A repository with a model that takes so long for a request, one after the other, and needs no CPU for it."""
    model = repository / "toxicity"
    (model / "1").mkdir(parents=True)
    (model / "1/model.py").write_text(PACED.format(seconds=seconds, labels=len(LABELS)), encoding="utf-8")
    thresholds = json.dumps(dict.fromkeys(LABELS, 0.5))
    config = PACED_CONFIG.format(labels=len(LABELS), names=json.dumps(LABELS), thresholds=thresholds)
    (model / "config.pbtxt").write_text(config, encoding="utf-8")


@dataclass
class Fleet:
    """Replicas, and the credentials of a caller at Envoy's door and of a service at theirs."""

    servers: list[TritonServer]
    secrets: Path

    @property
    def caller(self) -> Credentials:
        return of_caller(self.secrets, KEY)

    @property
    def service(self) -> Credentials:
        return of_service(self.secrets)

    def cpu_s(self) -> float:
        return sum(processes.cpu_s(pid) for server in self.servers for pid in server.pids)

    def envoy(self, count: int, threads: int) -> Envoy:
        """Envoy in front of the first so many replicas, without limits of callers' rates."""
        config = read_config()
        door = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        rates = next(each["typed_config"] for each in door["http_filters"] if each["name"] == "rates")
        for bucket in (rates["token_bucket"], *(each["token_bucket"] for each in rates["descriptors"])):
            bucket.update(max_tokens=1_000_000, tokens_per_fill=1_000_000)
        addresses = [("127.0.0.1", server.ports["grpc"]) for server in self.servers[:count]]
        return Envoy(addresses, self.secrets / "envoy", self.secrets / "keys", threads=threads, config=config)


@contextlib.contextmanager
def fleet(repository: Path, count: int) -> Iterator[Fleet]:
    """:raises ServeError: when a server does not start."""
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tritox-balance-")))
        secrets = scratch / "secrets"
        (secrets / "keys").mkdir(parents=True)
        (secrets / "keys/keys.txt").write_text(f"{KEY} name=loadtest\n", encoding="utf-8")
        certificates.make(secrets, ["127.0.0.1"])
        tls = Tls(secrets / "triton/cert.pem", secrets / "triton/key.pem", secrets / "triton/ca.pem")
        servers = []
        for _ in range(count):
            server = TritonServer(
                repository, grpc_port=0, http_port=0, metrics_port=0, log_level="error", tls=tls, shield=True
            )
            servers.append(stack.enter_context(server))
        yield Fleet(servers, secrets)


@contextlib.contextmanager
def paced(milliseconds: float, count: int) -> Iterator[Fleet]:
    with tempfile.TemporaryDirectory(prefix="tritox-paced-") as scratch:
        write_paced(Path(scratch) / "repository", milliseconds / 1000)
        with fleet(Path(scratch) / "repository", count) as running:
            yield running


@dataclass(frozen=True)
class Load:
    """A closed loop that was kept up for a while.

    :ivar replica_cores: cores that all replicas together used; so for the others.
    """

    replicas: int
    requests_per_s: float
    comments_per_s: float
    replica_cores: float
    envoy_cores: float
    generator_cores: float
    failed: int


def keep_busy(running: Fleet, count: int, bodies: Sequence[Body], seconds: float) -> Load:
    """The rate of so many replicas behind Envoy.

    :raises GeneratorFailed: when requests fail.
    """
    with running.envoy(count, threads=1) as envoy:

        async def run() -> Load:
            async with Generator(envoy.url, channels=2, timeout_s=30, credentials=running.caller) as generator:
                await generator.closed(itertools.cycle(bodies), USERS * count, WARM_UP_S)
                before = running.cpu_s(), processes.cpu_s(envoy.pid), time.process_time(), time.perf_counter()
                sent = await generator.closed(itertools.cycle(bodies), USERS * count, seconds)
                after = running.cpu_s(), processes.cpu_s(envoy.pid), time.process_time(), time.perf_counter()
            passed = after[3] - before[3]
            replicas, proxy, own = ((after[i] - before[i]) / passed for i in range(3))
            answered = len(sent.good) / passed
            failed = len(sent.samples) - len(sent.good) - len(sent.refused)
            if failed:
                raise GeneratorFailed(f"{failed} of {len(sent.samples)} requests failed: {sent.details}")
            comments = sum(sample.comments for sample in sent.good) / passed
            return Load(count, answered, comments, replicas, proxy, own, failed)

        return asyncio.run(run())


@dataclass(frozen=True)
class Scaling:
    """One replica and two.

    :ivar raw: as measured. :ivar accounted: per core that the replicas got; see above.
    """

    what: str
    one: Load
    two: Load

    @property
    def raw(self) -> float:
        return self.two.requests_per_s / self.one.requests_per_s

    @property
    def accounted(self) -> float:
        per_core = [load.requests_per_s / load.replica_cores for load in (self.one, self.two)]
        return 2 * per_core[1] / per_core[0]


def scaling(running: Fleet, what: str, bodies: Sequence[Body], seconds: float, rounds: int) -> Scaling:
    """In turns, so that what else this machine does hits both alike; the medians of the rounds."""
    found: dict[int, list[Load]] = {1: [], 2: []}
    for _ in range(rounds):
        for count in (1, 2):
            load = keep_busy(running, count, bodies, seconds)
            say(
                f"{what}, {count}: {load.requests_per_s:.1f} requests/s; cores: replicas {load.replica_cores:.2f}, "
                f"Envoy {load.envoy_cores:.2f}, generator {load.generator_cores:.2f}"
            )
            found[count].append(load)
    return Scaling(what, *(_median(loads) for loads in found.values()))


def _median(loads: Sequence[Load]) -> Load:
    values = {name: statistics.median(getattr(load, name) for load in loads) for name in asdict(loads[0])}
    return Load(**values | {"replicas": loads[0].replicas, "failed": sum(load.failed for load in loads)})


@dataclass(frozen=True)
class Added:
    """Medians in milliseconds, over all rounds, and the median of the rounds' differences."""

    direct_ms: float
    envoy_ms: float
    added_ms: float
    requests: int


def added(running: Fleet, bodies: Sequence[Body], requests: int, rounds: int) -> Added:
    """One caller, one request at a time, straight to a replica and by way of Envoy, both with TLS."""
    direct_url = running.servers[0].grpc_url

    async def medians(url: str, credentials: Credentials, count: int) -> list[float]:
        async with Generator(url, channels=1, timeout_s=30, credentials=credentials) as generator:
            seconds: list[float] = []
            source = itertools.cycle(bodies)
            sent = await generator.closed(source, 1, 0.2)
            while len(seconds) < count:
                sent = await generator.closed(source, 1, 0.25)
                if not sent.good:
                    raise GeneratorFailed(f"no request to {url} was answered: {sent.details}")
                seconds += [sample.duration_s for sample in sent.good]
            return seconds[:count]

    with running.envoy(1, threads=1) as envoy:
        ways: list[tuple[str, Credentials]] = [(direct_url, running.service), (envoy.url, running.caller)]
        found: list[list[list[float]]] = [[], []]
        for number in range(rounds):
            for way in (0, 1) if number % 2 == 0 else (1, 0):
                found[way].append(asyncio.run(medians(*ways[way], requests)))
    middle = [[1000 * statistics.median(each) for each in way] for way in found]
    differences = [through - straight for straight, through in zip(*middle, strict=True)]
    direct_ms, envoy_ms = (statistics.median(each) for each in middle)
    made = Added(direct_ms, envoy_ms, statistics.median(differences), requests * rounds)
    say(f"one caller: {made.direct_ms:.2f} ms straight, {made.envoy_ms:.2f} ms through Envoy")
    return made


@dataclass(frozen=True)
class Death:
    """What callers saw of a replica that was lost.

    :ivar recovered_s: from then until the p99 of every further second was within the objective; ``None``: it never was.
    :ivar windows: seconds since the loss (negative: before), and the p99 in milliseconds of the requests that were due
        in the second that began then.
    """

    fault: str
    replicas: int
    capacity_per_s: float
    rate_per_s: float
    requests: int
    errors: int
    error: str | None
    p99_before_ms: float | None
    p99_after_ms: float | None
    recovered_s: float | None
    windows: list[tuple[float, float]]


def lose(running: Fleet, fault: str, share: float, seconds: float, p99_ms: float, body_texts: Sequence[str]) -> Death:
    """:param share: of all replicas' capacity, that is asked for. :param seconds: before the loss, and twice after."""
    bodies = [body([text], "toxicity", 30.0) for text in body_texts]
    count = len(running.servers)
    capacity = keep_busy(running, count, bodies, max(3.0, seconds / 3)).requests_per_s
    rate = share * capacity
    victim = running.servers[-1]
    calls: list[tuple[float, float]] = []
    errors: list[str] = []

    async def go(url: str) -> float:
        rng = random.Random(1)
        lost_at = 0.0
        async with AsyncToxicityClient(url, credentials=running.caller, timeout=10) as client:
            await client.classify([body_texts[0]])

            async def ask(due: float, text: str) -> None:
                try:
                    await client.classify([text])
                except ToxicityError as error:
                    errors.append(f"{type(error).__name__}: {error}")
                calls.append((due, time.monotonic() - due))

            start = due = time.monotonic()
            tasks: set[asyncio.Task[None]] = set()
            for text in itertools.cycle(body_texts):
                due += rng.expovariate(rate)
                if due > start + 3 * seconds:
                    break
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if not lost_at and due > start + seconds:
                    lost_at = time.monotonic()
                    for pid in itertools.chain(*map(processes.tree, victim.pids)):
                        os.kill(pid, FAULTS[fault])
                task = asyncio.create_task(ask(due, text))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)
        return lost_at

    with running.envoy(count, threads=1) as envoy:
        lost_at = asyncio.run(go(envoy.url))
    for pid in itertools.chain(*map(processes.tree, victim.pids)):
        os.kill(pid, signal.SIGCONT)
    return summary(fault, count, capacity, rate, [(due - lost_at, took) for due, took in calls], errors, p99_ms)


def summary(
    fault: str,
    replicas: int,
    capacity: float,
    rate: float,
    calls: Sequence[tuple[float, float]],
    errors: Sequence[str],
    p99_ms: float,
) -> Death:
    """:param calls: when each was due, in seconds since the loss, and the seconds that it took."""
    windows = []
    first, last = min(due for due, _ in calls), max(due for due, _ in calls)
    begin = -WINDOW_S * int(-first / WINDOW_S)
    while begin + WINDOW_S <= last:
        inside = sorted(1000 * took for due, took in calls if begin <= due < begin + WINDOW_S)
        if inside:
            windows.append((begin, percentile(inside, 0.99) or 0.0))
        begin += WINDOW_S
    late = [begin + WINDOW_S for begin, p99 in windows if begin >= 0 and p99 > p99_ms]
    end = max(late, default=0.0)
    recovered = None if late and end >= windows[-1][0] + WINDOW_S else end
    before, after = (
        sorted(1000 * took for due, took in calls if low <= due < high) for low, high in ((-1e9, 0), (end, 1e9))
    )
    return Death(
        fault,
        replicas,
        capacity,
        rate,
        len(calls),
        len(errors),
        errors[0] if errors else None,
        percentile(before, 0.99),
        percentile(after, 0.99),
        recovered,
        windows,
    )


def verdicts(scalings: Sequence[Scaling], latency: Added | None, deaths: Sequence[Death]) -> list[Verdict]:
    found = []
    for each in scalings:
        value = each.accounted if each.what == "cpu" else each.raw
        found.append(Verdict(f"min_scaling_{each.what}", MIN_SCALING, value, value >= MIN_SCALING))
    if latency is not None:
        met = latency.added_ms <= MAX_ADDED_MS
        found.append(Verdict("added_p50_ms", MAX_ADDED_MS, latency.added_ms, met))
    for death in deaths:
        found.append(Verdict(f"{death.fault}_errors", MOST_ERRORS, death.errors, death.errors <= MOST_ERRORS))
        seconds = death.recovered_s
        met = seconds is not None and seconds <= MAX_RECOVERY_S
        found.append(Verdict(f"{death.fault}_recovery_s", MAX_RECOVERY_S, seconds, met))
    return found


def markdown(result: dict[str, Any]) -> str:
    """The table of a result file, for docs."""
    lines = ["| what | target | measured | |", "|---|---:|---:|---|"]
    names = {
        "min_scaling_cpu": "1 → 2 replicas of one thread, per core that they got",
        "min_scaling_waiting": "1 → 2 replicas of a model that waits, as measured",
        "added_p50_ms": "what Envoy adds at the median, with TLS before and behind it, ms",
    }
    for death in result["deaths"]:
        what = {"kill": "killed", "hang": "stopped where it is"}[death["fault"]]
        share = death["rate_per_s"] / death["capacity_per_s"]
        names[f"{death['fault']}_errors"] = (
            f"one of {death['replicas']} {what} at {share:.0%} of their capacity: errors of {death['requests']}"
        )
        names[f"{death['fault']}_recovery_s"] = f"the same: seconds until p99 is within {result['p99_ms']:g} ms"
    for verdict in result["verdicts"]:
        sign = "≥" if verdict["name"].startswith("min_") else "≤"
        value = "never" if verdict["measured"] is None else f"{verdict['measured']:.3g}"
        word = "ok" if verdict["met"] else "**missed**"
        lines.append(f"| {names[verdict['name']]} | {sign} {verdict['target']:g} | {value} | {word} |")
    machine, commit = result["machine"], (result["commit"] or "unknown")[:12]
    lines += ["", f"{machine['cpu']}, {machine['cores']} cores; commit {commit}; `{result['command']}`."]
    for each in result["scaling"]:
        one, two = each["one"], each["two"]
        lines[-1] += (
            f" {'Real model' if each['what'] == 'cpu' else 'Waiting model'}: {one['requests_per_s']:.1f} and "
            f"{two['requests_per_s']:.1f} requests/s; cores of replicas, Envoy, generator: "
            f"{one['replica_cores']:.2f}, {one['envoy_cores']:.2f}, {one['generator_cores']:.2f} with one, "
            f"{two['replica_cores']:.2f}, {two['envoy_cores']:.2f}, {two['generator_cores']:.2f} with two."
        )
    return "\n".join(lines)


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m loadtest.balance",
        description="What Envoy costs, how replicas scale behind it, and what callers see when one of them dies. Exits "
        "with 0 when all objectives are met, 1 when one is missed, 2 when the test could not run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--repository", type=Path, default=Path("model_repository"), help="of the model that computes")
    p.add_argument("--seconds", type=positive, default=10.0, help="of each load")
    p.add_argument("--rounds", type=traffic.whole, default=3, help="of each comparison, in turns")
    p.add_argument("--requests", type=traffic.whole, default=500, help="of one caller, in each round")
    p.add_argument("--comments", type=traffic.whole, default=8, help="in each request to the model that computes")
    p.add_argument("--wait-ms", type=positive, default=20.0, help="that the model that waits takes for a request")
    p.add_argument("--share", type=positive, default=0.6, help="of the capacity, at which a replica is lost")
    p.add_argument("--replicas", type=traffic.whole, default=3, help="of which one is lost")
    p.add_argument("--fault", choices=FAULTS, action="append", help="how it is lost; by default both, one by one")
    p.add_argument("--p99-ms", type=positive, default=250.0, help="objective of the second after a loss")
    p.add_argument("--only", choices=("scaling", "latency", "loss"), action="append", help="of the three questions")
    p.add_argument("--json", type=Path, help="file to write the result to")
    p.add_argument("--table", type=Path, metavar="FILE", help="measure nothing: write this result's table into --page")
    p.add_argument("--page", type=Path, default=Path("docker/README.md"), help="that has a place for the table")
    return p


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """:raises ServeError: :raises GeneratorFailed: :raises ContenderFailed: when it cannot be measured."""
    parts = arguments.only or ["scaling", "latency", "loss"]
    texts = corpus.generate(seed=0)
    rng = random.Random(0)
    scalings: list[Scaling] = []
    latency: Added | None = None
    deaths: list[Death] = []

    def bodies(comments: int) -> list[Body]:
        return [body(rng.sample(texts, comments), "toxicity", 30.0) for _ in range(256)]

    if "scaling" in parts:
        with tempfile.TemporaryDirectory(prefix="tritox-balance-") as scratch:
            repository = Path(scratch) / "repository"
            shutil.copytree(arguments.repository, repository, ignore=shutil.ignore_patterns("__pycache__"))
            configure(repository, "toxicity", {"instances": 1, "intra_op_threads": 1, "tokenizers": 1})
            with fleet(repository, 2) as running:
                scalings.append(
                    scaling(running, "cpu", bodies(arguments.comments), arguments.seconds, arguments.rounds)
                )
        with paced(arguments.wait_ms, 2) as running:
            scalings.append(scaling(running, "waiting", bodies(1), arguments.seconds, arguments.rounds))
    if "latency" in parts:
        with paced(1.0, 1) as running:
            latency = added(running, bodies(1), arguments.requests, arguments.rounds)
    if "loss" in parts:
        for fault in arguments.fault or FAULTS:
            with paced(arguments.wait_ms, arguments.replicas) as running:
                death = lose(running, fault, arguments.share, arguments.seconds, arguments.p99_ms, texts[:500])
                say(
                    f"{fault}: {death.requests} requests at {death.rate_per_s:.1f}/s, {death.errors} errors, "
                    f"p99 within {arguments.p99_ms:g} ms after {death.recovered_s} s"
                )
                deaths.append(death)
    met: list[Verdict] = verdicts(scalings, latency, deaths)
    return {
        "p99_ms": arguments.p99_ms,
        "verdicts": [asdict(verdict) for verdict in met],
        "scaling": [asdict(each) | {"raw": each.raw, "accounted": each.accounted} for each in scalings],
        "latency": None if latency is None else asdict(latency),
        "deaths": [asdict(death) for death in deaths],
    }


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        if arguments.table is not None:
            report.insert(arguments.page, "balance", markdown(json.loads(arguments.table.read_text(encoding="utf-8"))))
            return 0
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)  # fail now, not after the run
        found = measure(arguments)
    except ModuleNotFoundError as error:
        sys.stderr.write(f"error: this needs the package {error.name}: {certificates.INSTALL}\n")
        return 2
    except (ServeError, GeneratorFailed, ContenderFailed, ToxicityError, OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    command = shlex.join(["python", "-m", "loadtest.balance", *(sys.argv[1:] if argv is None else argv)])
    result = {**report.origin(), "command": command, **found}
    if arguments.json:
        report.write_json(arguments.json, result)
    judged = [Verdict(**verdict) for verdict in found["verdicts"]]
    sys.stdout.write("\n".join(report.verdict_lines(judged)) + "\n")
    return 0 if all(verdict.met for verdict in judged) else 1


if __name__ == "__main__":
    sys.exit(main())
