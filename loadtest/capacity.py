"""``python -m loadtest.capacity``: the highest rate that meets the objectives, and what a target rate needs and costs.

The rate is searched in an open loop (:mod:`loadtest.poisson`): doubled or halved until objectives are missed, then
halved in between, then held for longer. The same is done for one replica and for several, so that the plan rests on how
they scale here, not on hope. Prices are inputs: without them no cost is told.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import math
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from client import ToxicityError
from loadtest import report, traffic
from loadtest.contenders import ContenderFailed, configure
from loadtest.generator import GeneratorFailed
from loadtest.open_loop import Body, Generator
from loadtest.overload import meet, positive
from loadtest.poisson import Crew, Outcome, add_options, make_bodies
from loadtest.slo import Measured, Slo, Verdict, judge, read_slo
from serve.server import ServeError, TritonServer

MOST_PROBES, MOST_STEPS_DOWN = 24, 6
LOWEST_RATE = 1.0
"""Requests a second: below this a server is taken to meet its objectives at no rate."""
MIN_REQUESTS = 100
"""That a rate is tried with: a slow server is watched for longer."""
MIN_ANSWERED = 0.9
"""Of what was due, answered before the end: less, and a queue grows."""
GUESS_USERS, GUESS_S, GUESS_SHARE = 32, 2.0, 0.7
"""A closed loop says where to begin."""


@dataclass(frozen=True)
class Probe:
    """A rate that was tried.

    :param rate: requests a second. :param met: all objectives, and the server kept up. :param invalid: see
        :meth:`loadtest.poisson.Outcome.invalid`.
    """

    rate: float
    met: bool
    invalid: str | None
    measured: Measured
    verdicts: Sequence[Verdict]
    generator_cores: float

    @classmethod
    def of(cls, rate: float, outcome: Outcome, slo: Slo) -> Probe:
        measured = outcome.measured()
        verdicts = judge(slo, measured)
        kept_up = outcome.answered >= MIN_ANSWERED * outcome.due
        met = kept_up and all(v.met for v in verdicts)
        return cls(rate, met, outcome.invalid(), measured, verdicts, sum(outcome.cores))

    def line(self) -> str:
        p99 = "-" if self.measured.p99_ms is None else f"{self.measured.p99_ms:.1f}"
        word = "INVALID" if self.invalid else "met" if self.met else "MISSED"
        missed = ", ".join(v.name for v in self.verdicts if not v.met)
        why = self.invalid or ("" if self.met else missed or "a queue grows")
        return f"{self.rate:>10.1f} requests/s  p99 {p99:>8} ms  {word:<8}{why}".rstrip()


@dataclass
class Found:
    """What a search came to, for so many replicas.

    :ivar rate: the highest that met the objectives, requests a second; 0 where none did.
    :ivar limited: why the generator, and not the server, may have set it.
    """

    replicas: int
    rate: float
    limited: str | None
    probes: list[Probe] = field(default_factory=list)

    @property
    def generator_cores(self) -> float:
        return max((p.generator_cores for p in self.probes if p.met), default=0.0)


def search(
    probe: Callable[[float], Probe], confirm: Callable[[float], Probe], start: float, precision: float
) -> tuple[float, str | None, list[Probe]]:
    """The highest rate that meets the objectives, whether the generator set it, and all that was tried.

    :param confirm: as ``probe``, for longer. :param precision: of the result, as a share of it.
    """
    tried: list[Probe] = []
    low, high, limited = 0.0, math.inf, None
    rate = start
    while len(tried) < MOST_PROBES and rate >= LOWEST_RATE and high > low * (1 + precision):
        tried.append(found := probe(rate))
        if found.invalid:
            tried.append(found := probe(rate))  # once more: a hiccup of this machine is no limit
        if found.invalid or not found.met:
            high, limited = rate, found.invalid
        else:
            low = rate
        rate = 2 * low if math.isinf(high) else math.sqrt(low * high) if low else high / 2
    for _ in range(MOST_STEPS_DOWN if low else 0):
        tried.append(found := confirm(low))
        if found.met and not found.invalid:
            return low, limited, tried
        limited = found.invalid
        low *= 1 - precision
    return 0.0, limited, tried


@dataclass(frozen=True)
class Prices:
    """What an hour costs, in any currency; the user's own numbers."""

    currency: str
    core_hour: float = 0.0
    gpu_hour: float = 0.0


def read_prices(path: Path) -> Prices:
    """:raises ValueError: naming the file and what it must hold."""
    form = "lines such as `currency: EUR`, `core_hour: <price>`, `gpu_hour: <price>`"
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as YAML ({' '.join(str(error).split())}): give {form}") from None
    if not isinstance(raw, dict) or not set(raw) <= {"currency", "core_hour", "gpu_hour"} or "currency" not in raw:
        raise ValueError(f"{path} must hold {form}")
    for name in ("core_hour", "gpu_hour"):
        value = raw.get(name, 0.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ValueError(f"{path}: {name} is {value!r}, must be a number of at least 0")
    return Prices(str(raw["currency"]), float(raw.get("core_hour", 0.0)), float(raw.get("gpu_hour", 0.0)))


@dataclass(frozen=True)
class Plan:
    """What a target rate needs.

    :param per_replica: requests a second that one of several replicas was measured to make.
    :param needed: replicas that carry the target at no more than the utilisation; ``replicas`` with the spare ones.
    :param load: of each replica when all are up, as a share of ``per_replica``; ``load_degraded`` when the spare ones
        are lost.
    """

    target: float
    per_replica: float
    utilisation: float
    spare: int
    needed: int
    replicas: int
    cores: float
    gpus: float
    load: float
    load_degraded: float
    currency: str | None
    per_hour: float | None
    per_million_comments: float | None


def plan(
    found: Found,
    target: float,
    *,
    utilisation: float,
    spare: int,
    cores: float,
    gpus: float,
    comments: float,
    prices: Prices | None,
) -> Plan:
    """:param cores: of a replica, as ``gpus``. :param comments: in a request, on average."""
    per_replica = found.rate / found.replicas
    needed = math.ceil(target / (per_replica * utilisation) - 1e-9)
    replicas = needed + spare
    per_hour = None if prices is None else replicas * (cores * prices.core_hour + gpus * prices.gpu_hour)
    return Plan(
        target,
        per_replica,
        utilisation,
        spare,
        needed,
        replicas,
        replicas * cores,
        replicas * gpus,
        target / (replicas * per_replica),
        target / (needed * per_replica),
        None if prices is None else prices.currency,
        per_hour,
        None if per_hour is None else per_hour / (target * comments * 3600) * 1e6,
    )


def counts(most: int) -> list[int]:
    """How many replicas are measured: one, doubled, up to all."""
    return sorted({min(2**i, most) for i in range(most.bit_length() + 1)})


@contextlib.contextmanager
def local_replicas(repository: Path, model: str, count: int) -> Iterator[list[str]]:
    """Servers here, each with one encoder of one thread, and each on a core of its own where there are enough.

    :raises ServeError: when one does not start.
    """
    cores = sorted(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tritox-capacity-"))) / "repository"
        shutil.copytree(repository, folder, ignore=shutil.ignore_patterns("__pycache__"))
        configure(folder, model, {"instances": 1, "intra_op_threads": 1, "tokenizers": 1})
        urls = []
        for index in range(count):
            server = TritonServer(folder, grpc_port=0, http_port=0, metrics_port=0, log_level="error")
            if count <= len(cores):
                os.sched_setaffinity(0, {cores[index]})  # what is started now stays there
            try:
                stack.enter_context(server)
            finally:
                os.sched_setaffinity(0, cores)
            urls.append(server.grpc_url)
        yield urls


def guess(urls: Sequence[str], bodies: Sequence[Body], timeout_s: float) -> float:
    """Requests a second to begin with.

    :raises ValueError: when nothing was answered.
    """

    async def run() -> float:
        async with Generator(urls, timeout_s=timeout_s) as generator:
            sent = await generator.closed(itertools.cycle(bodies), GUESS_USERS * len(urls), GUESS_S)
            if not sent.good:
                raise ValueError(f"no request was answered: {sent.details or 'no answer in time'}")
            end_s = max(s.start_s + s.duration_s for s in sent.good)
            return len(sent.good) / (end_s - sent.start_s)

    return GUESS_SHARE * asyncio.run(run())


def measure(crew: Crew, urls: Sequence[str], slo: Slo, arguments: argparse.Namespace) -> Found:
    """The capacity of these servers together."""

    def probe(rate: float, times: float = 1.0) -> Probe:
        seconds = times * max(arguments.seconds, MIN_REQUESTS / rate)
        outcome = crew.run(urls, [(rate, seconds)], arguments.settle)
        found = Probe.of(rate, outcome, slo)
        sys.stderr.write(f"{found.line()}\n")
        return found

    sys.stderr.write(f"{len(urls)} replica{'s' if len(urls) > 1 else ''}:\n")
    start = arguments.start_rate or guess(urls, crew.bodies, arguments.timeout)
    rate, limited, tried = search(probe, lambda rate: probe(rate, 2.0), start, arguments.precision)
    return Found(len(urls), rate, limited, tried)


def table(found: Sequence[Found], made: Plan | None, comments: float) -> str:
    first = found[0]
    lines = [f"{'replicas':>8}{'requests/s':>12}{'comments/s':>12}{'each':>10}{'scaling':>9}"]
    for f in found:
        scaling = f"{f.rate / (f.replicas * first.rate):.0%}" if first.rate else "-"
        each = f.rate / f.replicas
        lines.append(f"{f.replicas:>8}{f.rate:>12.1f}{f.rate * comments:>12.1f}{each:>10.1f}{scaling:>9}")
    for f in found:
        if f.limited:
            lines.append(f"INVALID: with {f.replicas} the generator set the limit, not the server: {f.limited}")
    if made is None:
        lines.append("no rate met the objectives, so that nothing can be planned")
        return "\n".join(lines)
    gpus = f" and {made.gpus:g} GPUs" if made.gpus else ""
    lines += [
        f"{made.target:g} requests/s ({made.target * comments:g} comments/s) need {made.needed} replicas at "
        f"{made.utilisation:.0%} of what was measured, {made.replicas} with {made.spare} to spare: {made.cores:g} cores"
        f"{gpus}; each then runs at {made.load:.0%}, and at {made.load_degraded:.0%} without the spare",
    ]
    if made.replicas > found[-1].replicas:
        lines.append(
            f"how {made.replicas} replicas scale is taken from {found[-1].replicas}: measure more, each with a --url"
        )
    if made.per_million_comments is None:
        lines.append("no cost: give your prices with --prices, or --core-hour and --gpu-hour")
    else:
        lines.append(
            f"cost: {made.per_hour:.4g} {made.currency} an hour, {made.per_million_comments:.4g} {made.currency} for a "
            "million comments at the target, at the prices that were given"
        )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m loadtest.capacity",
        description="Find the highest rate that meets the objectives, for one replica and for several, and plan "
        "for a target. Exits with 0 when there is a plan, 1 when no rate met the objectives, 2 when the test could not "
        "run, 3 when the generator set the limit, and not the server (INVALID).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--replicas", type=traffic.whole, help="start so many servers of one thread here; instead of --url")
    p.add_argument("--repository", type=Path, default=Path("model_repository"), help="of those servers")
    p.add_argument("--seconds", type=positive, default=10.0, help="of each rate that is tried")
    p.add_argument("--settle", type=positive, default=2.0, help="seconds at each rate before it is measured")
    p.add_argument("--precision", type=positive, default=0.05, help="of the rate, as a share of it")
    p.add_argument("--start-rate", type=positive, help="to begin with; by default what a closed loop says")
    p.add_argument("--target", type=positive, default=10_000.0, help="requests a second to plan for")
    p.add_argument("--utilisation", type=positive, default=0.7, help="of what was measured, at most, without the spare")
    p.add_argument("--spare", type=int, default=1, help="replicas that may be lost (N+1)")
    p.add_argument("--cores-per-replica", type=positive, default=1.0)
    p.add_argument("--gpus-per-replica", type=float, default=0.0)
    p.add_argument("--prices", type=Path, help="YAML file with currency, core_hour and gpu_hour: your own")
    p.add_argument("--core-hour", type=float, help="your price; instead of --prices")
    p.add_argument("--gpu-hour", type=float, help="your price; instead of --prices")
    p.add_argument("--currency", default="", help="of these prices")
    add_options(p)
    return p


def check(arguments: argparse.Namespace) -> tuple[Slo, Prices | None]:
    """:raises ValueError: naming the option."""
    for name, limit in (("utilisation", 1.0), ("precision", 0.5)):
        if getattr(arguments, name) > limit:
            raise ValueError(f"--{name} is {getattr(arguments, name):g}, must be at most {limit:g}")
    for name in ("spare", "gpus_per_replica", "core_hour", "gpu_hour"):
        if (getattr(arguments, name) or 0) < 0:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(arguments, name):g}, must be at least 0")
    if arguments.replicas and arguments.url:
        raise ValueError("--replicas starts servers, --url names some: give one of the two")
    slo = replace(read_slo(arguments.slo), min_requests_per_s=None, min_comments_per_s=None)  # the rate is searched
    by_flag = arguments.core_hour is not None or arguments.gpu_hour is not None
    if arguments.prices and by_flag:
        raise ValueError("--prices is a file with both prices: leave --core-hour and --gpu-hour out")
    if by_flag:
        return slo, Prices(arguments.currency, arguments.core_hour or 0.0, arguments.gpu_hour or 0.0)
    return slo, read_prices(arguments.prices) if arguments.prices else None


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        slo, prices = check(arguments)
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)  # fail now, not after the run
        texts = traffic.read_texts(arguments)
        with contextlib.ExitStack() as stack:
            urls = arguments.url or [None]
            if arguments.replicas:
                servers = local_replicas(arguments.repository, arguments.model, arguments.replicas)
                urls = stack.enter_context(servers)
            met = [meet(url, arguments.model) for url in urls]
            bodies = make_bodies(arguments, texts, arguments.model, min(info.max_batch_size for _, info in met))
            options = {"processes": arguments.processes, "channels": arguments.channels, "seed": arguments.seed}
            crew = stack.enter_context(Crew(bodies, timeout_s=arguments.timeout, **options))
            found = [measure(crew, [url for url, _ in met[:n]], slo, arguments) for n in counts(len(met))]
    except (ValueError, OSError, ToxicityError, GeneratorFailed, ServeError, ContenderFailed) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    comments = sum(b.comments for b in bodies) / len(bodies)
    made = None
    if found[-1].rate:
        made = plan(
            found[-1],
            arguments.target,
            utilisation=arguments.utilisation,
            spare=arguments.spare,
            cores=arguments.cores_per_replica,
            gpus=arguments.gpus_per_replica,
            comments=comments,
            prices=prices,
        )
    sys.stdout.write(table(found, made, comments) + "\n")
    valid = not any(f.limited for f in found)
    if arguments.json:
        command = shlex.join(["python", "-m", "loadtest.capacity", *(sys.argv[1:] if argv is None else argv)])
        about = {"command": command, "model": asdict(met[0][1]), "slo": asdict(slo), **traffic.described(arguments)}
        report.write_json(arguments.json, {**about, **result(found, made, prices, comments, valid)})
    return 3 if not valid else 0 if made else 1


def result(
    found: Sequence[Found], made: Plan | None, prices: Prices | None, comments: float, valid: bool
) -> dict[str, Any]:
    """The numbers of a result file."""
    first = found[0].rate
    return {
        **report.origin(),
        "valid": valid,
        "comments_per_request": comments,
        "capacity": [
            {
                "replicas": f.replicas,
                "requests_per_s": f.rate,
                "scaling": f.rate / (f.replicas * first) if first else None,
                "limited_by_generator": f.limited,
                "generator_cores": f.generator_cores,
                "probes": [asdict(p) for p in f.probes],
            }
            for f in found
        ],
        "prices": None if prices is None else asdict(prices),
        "plan": None if made is None else asdict(made),
    }


if __name__ == "__main__":
    sys.exit(main())
