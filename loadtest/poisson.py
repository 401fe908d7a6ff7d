"""``python -m loadtest.poisson``: a fixed rate of arrivals at random moments, whatever the answers (an open loop).

People do not wait for one another: requests come as a Poisson process, and latency counts from when a request was due.
A server that stands still for a second is then seen to keep a second's requests waiting. Several processes share the
rate, and their histograms are added up. What they could not send in time is said, and makes the run INVALID.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import random
import selectors
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any

from client import ToxicityError
from loadtest import page, report, traffic
from loadtest.generator import GeneratorFailed
from loadtest.histogram import Histogram
from loadtest.open_loop import LATE_S, Body, Generator, Sent, body
from loadtest.overload import meet, positive
from loadtest.shapes import SHAPES, stages
from loadtest.slo import DEFAULT_PATH, Measured, Sample, judge, read_slo
from loadtest.tally import Tally

BODIES = 1024
"""Different requests; they are sent over and over."""
START_S = 0.2
"""From the word to go until the processes start, all at the same moment."""
MIN_SENT, MIN_IN_TIME = 0.98, 0.95
"""Of what was due: what must have left while the run lasted, and within ``LATE_S``. Otherwise the run is INVALID."""

Stages = Sequence[tuple[float, float]]
"""Requests a second and seconds, one stage behind the other."""


@dataclass
class Outcome:
    """What a run came to, of one process or of all together.

    :ivar seconds: of the measurement.
    :ivar due: requests that the schedule held. :ivar sent: those that left before the end. :ivar late: those that left
        over ``LATE_S`` after they were due; ``lateness_ms`` holds all.
    :ivar answered: requests, and comments in them, that were answered before the end: what rates are of.
    :ivar cores: that each of the generator's processes used.
    """

    seconds: float
    tally: Tally = field(default_factory=Tally)
    due: int = 0
    sent: int = 0
    late: int = 0
    lateness_ms: Histogram = field(default_factory=Histogram)
    answered: int = 0
    answered_comments: int = 0
    cores: list[float] = field(default_factory=list)
    stolen_cores: float = 0.0
    details: dict[str, str] = field(default_factory=dict)

    def add(self, other: Outcome) -> None:
        self.tally.merge(other.tally)
        self.lateness_ms.merge(other.lateness_ms)
        for name in ("due", "sent", "late", "answered", "answered_comments"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.cores += other.cores
        self.stolen_cores = max(self.stolen_cores, other.stolen_cores)
        self.details = other.details | self.details

    @property
    def offered_per_s(self) -> float:
        return self.due / self.seconds

    @property
    def sent_per_s(self) -> float:
        return self.sent / self.seconds

    @property
    def in_time(self) -> float:
        """The share of requests that left when they were due."""
        return 1 - self.late / self.due if self.due else 0.0

    def invalid(self) -> str | None:
        """Why this run says nothing of the server; ``None`` where it does."""
        remedy = "take more --processes, more comments in a request, or another machine"
        if not self.due:
            return "no request was due: run for longer, or at a higher rate"
        if self.sent < MIN_SENT * self.due:
            return (
                f"only {self.sent_per_s:.1f} of the {self.offered_per_s:.1f} requests/s that were due were sent, must "
                f"be {MIN_SENT:.0%}: {remedy}"
            )
        if self.in_time < MIN_IN_TIME:
            return (
                f"only {self.in_time:.1%} of the requests left within {LATE_S * 1000:g} ms, must be {MIN_IN_TIME:.0%}: "
                f"{remedy}"
            )
        return None

    def measured(self) -> Measured:
        """Rates are of what was answered before the end: a queue that is worked off later is no throughput."""
        return replace(
            self.tally.measured(),
            requests_per_s=self.answered / self.seconds,
            comments_per_s=self.answered_comments / self.seconds,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "offered_per_s": self.offered_per_s,
            "sent_per_s": self.sent_per_s,
            "sent_in_time": self.in_time,
            "lateness_p99_ms": self.lateness_ms.percentile(0.99),
            "generator_cores": self.cores,
            "stolen_cores": self.stolen_cores,
            "status_details": self.details,
        }


class Crew:
    """Generator processes, started once, for any number of runs; a context manager.

    :param bodies: what is sent, in an order of its own from each process.
    :param channels: connections to each server, from each process.
    """

    def __init__(
        self, bodies: Sequence[Body], *, processes: int = 1, channels: int = 4, timeout_s: float = 10.0, seed: int = 0
    ) -> None:
        self.bodies, self.processes, self.channels = bodies, processes, channels
        self.timeout_s, self.seed, self.runs = timeout_s, seed, 0

    def __enter__(self) -> Crew:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Pipe] = []
        self._workers: list[Any] = []
        for index in range(self.processes):
            here, there = context.Pipe()
            arguments = (there, self.bodies, self.channels, self.timeout_s, f"{self.seed} {index}")
            worker = context.Process(target=_work, args=arguments, daemon=True)
            worker.start()
            there.close()
            self._pipes.append(here)
            self._workers.append(worker)
        for pipe in self._pipes:
            _receive(pipe)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            pipe.close()  # at that they end
        for worker in self._workers:
            worker.join(1 if kind is None else 0)
            if worker.is_alive():
                worker.terminate()
            worker.join()

    def run(self, urls: Sequence[str], plan: Stages, warm_up_s: float = 0.0) -> Outcome:
        """Put the load on the servers; returns when each request is answered or given up.

        :param plan: the rates of all processes together. :param warm_up_s: at the first rate, before the measurement.
        :raises GeneratorFailed: when a server cannot be reached, or a process ends.
        """
        self.runs += 1
        share = [(rate / self.processes, seconds) for rate, seconds in plan]
        start_s = time.perf_counter() + START_S  # the machine's processes share this clock
        for pipe in self._pipes:
            pipe.send((list(urls), share, warm_up_s, start_s, self.runs))
        total, left = Outcome(sum(seconds for _, seconds in plan)), list(self._pipes)
        while left:
            for ready in wait(left):
                pipe = next(p for p in left if p is ready)
                said = _receive(pipe)
                if not isinstance(said, Outcome):
                    raise GeneratorFailed(str(said))
                total.add(said)
                left.remove(pipe)
        return total


def _receive(pipe: Pipe) -> object:
    try:
        return pipe.recv()
    except EOFError:
        raise GeneratorFailed("a generator's process ended without a word: see its traceback above") from None


def _work(pipe: Pipe, bodies: Sequence[Body], channels: int, timeout_s: float, seed: str) -> None:
    for each in bodies:
        _ = each.framed  # now, not during the run
    pipe.send("ready")
    while True:
        try:
            urls, plan, warm_up_s, start_s, run = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        rng = random.Random(f"{seed} {run}")
        order = rng.sample(bodies, len(bodies))
        # asyncio's own choice, epoll, wakes up a millisecond late
        loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        try:
            pipe.send(loop.run_until_complete(_drive(urls, order, plan, warm_up_s, start_s, channels, timeout_s, rng)))
        except OSError as error:
            pipe.send(f"{', '.join(urls)} cannot be reached: {error}")
        except KeyboardInterrupt:
            return
        finally:
            loop.close()


async def _drive(
    urls: Sequence[str],
    bodies: Sequence[Body],
    plan: Stages,
    warm_up_s: float,
    start_s: float,
    channels: int,
    timeout_s: float,
    rng: random.Random,
) -> Outcome:
    outcome = Outcome(sum(seconds for _, seconds in plan))
    begin_s = start_s + warm_up_s
    end_s = begin_s + outcome.seconds
    since_1970_s = time.time() - time.perf_counter()

    def record(sample: Sample) -> None:
        if sample.start_s < begin_s:
            return
        if sample.error is None and sample.start_s + sample.duration_s <= end_s:
            outcome.answered += 1
            outcome.answered_comments += sample.comments
        outcome.tally.add(replace(sample, start_s=sample.start_s + since_1970_s))

    schedule = ([(plan[0][0], warm_up_s)] if warm_up_s else []) + list(plan)
    async with Generator(urls, channels=channels, timeout_s=timeout_s, record=record) as generator:
        await asyncio.sleep(max(0.0, start_s - time.perf_counter()))
        sent = await generator.open(itertools.cycle(bodies), schedule, rng, start_s)
    for phase in sent[bool(warm_up_s) :]:
        _add_phase(outcome, phase)
    outcome.cores = [outcome.cores[0]]
    return outcome


def _add_phase(outcome: Outcome, phase: Sent) -> None:
    """Cores are averaged over the phases as they come."""
    weight = phase.seconds / outcome.seconds
    outcome.due += phase.due
    outcome.sent += phase.left
    outcome.late += phase.late
    outcome.lateness_ms.merge(phase.lateness_ms)
    outcome.cores = [sum(outcome.cores) + weight * phase.cpu]
    outcome.stolen_cores += weight * phase.stolen
    outcome.details = phase.details | outcome.details


def make_bodies(arguments: argparse.Namespace, texts: Sequence[str], model: str, most: int) -> list[Body]:
    """:raises ValueError: see :func:`loadtest.traffic.requests`."""
    return [body(each, model, arguments.timeout) for each in traffic.requests(texts, arguments, BODIES, most)]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Whom to send to, and from how many processes."""
    parser.add_argument("--url", action="append", help="host:port of a gRPC port; several servers take turns")
    parser.add_argument("--model", default="toxicity")
    parser.add_argument("--processes", type=traffic.whole, default=1, help="that share the rate")
    parser.add_argument("--channels", type=traffic.whole, default=4, help="connections to a server, of each process")
    parser.add_argument("--timeout", type=positive, default=10.0, help="seconds that a request may take")
    parser.add_argument("--slo", type=Path, default=DEFAULT_PATH, help="YAML file of objectives")
    parser.add_argument("--json", type=Path, help="file to write the result to")
    traffic.add_options(parser)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m loadtest.poisson",
        description="Requests at a fixed rate, at random moments, whatever the answers. Exits with 0 when all "
        "objectives are met, 1 when one is missed, 2 when the test could not run, 3 when the load could not be offered "
        "(INVALID).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--rate", type=positive, required=True, help="requests a second, at the peak of the shape")
    p.add_argument("--seconds", type=positive, default=30.0)
    p.add_argument("--shape", choices=SHAPES, default="steady", help="how the rate changes")
    p.add_argument("--warmup", type=positive, default=2.0, help="seconds before anything is measured")
    p.add_argument("--html", type=Path, help="file to write the report to")
    add_options(p)
    return p


def table(outcome: Outcome) -> str:
    """What was offered, and what it took."""
    busiest = max(outcome.cores, default=0.0)
    lateness = outcome.lateness_ms.percentile(0.99) or 0.0
    lines = [
        f"{outcome.offered_per_s:.1f} requests/s were due, {outcome.sent_per_s:.1f} were sent, "
        f"{outcome.answered / outcome.seconds:.1f} answered; 99% left within {lateness:.1f} ms",
        f"the generator took {sum(outcome.cores):.2f} cores in {len(outcome.cores)} "
        f"process{'es' if len(outcome.cores) > 1 else ''}, {busiest:.2f} in the busiest",
    ]
    lines += [f"{status}: {text}" for status, text in sorted(outcome.details.items())]
    if (reason := outcome.invalid()) is not None:
        lines.append(f"INVALID: {reason}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        slo = read_slo(arguments.slo)
        for file in filter(None, (arguments.json, arguments.html)):
            file.parent.mkdir(parents=True, exist_ok=True)  # fail now, not after the run
        texts = traffic.read_texts(arguments)
        met = [meet(url, arguments.model) for url in arguments.url or [None]]
        urls, model = [url for url, _ in met], met[0][1]
        bodies = make_bodies(arguments, texts, model.name, min(info.max_batch_size for _, info in met))
        plan = stages(arguments.shape, arguments.rate, arguments.seconds)
        options = {"processes": arguments.processes, "channels": arguments.channels, "seed": arguments.seed}
        with Crew(bodies, timeout_s=arguments.timeout, **options) as crew:
            outcome = crew.run(urls, plan, arguments.warmup)
    except (ValueError, OSError, ToxicityError, GeneratorFailed) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    measured = outcome.measured()
    verdicts = judge(slo, measured)
    valid, met_all = outcome.invalid() is None, all(v.met for v in verdicts)
    sys.stdout.write(f"{report.table(measured, verdicts)}\n{table(outcome)}\n")
    about = {
        "command": shlex.join(["python", "-m", "loadtest.poisson", *(sys.argv[1:] if argv is None else argv)]),
        "endpoint": ", ".join(urls),
        "model": asdict(model),
        "load": f"open loop (Poisson), {arguments.shape}, up to {arguments.rate:g} requests/s",
        "rate": arguments.rate,
        "shape": arguments.shape,
        "processes": arguments.processes,
        **traffic.described(arguments),
        "valid": valid,
        "invalid_reason": outcome.invalid(),
        "open_loop": outcome.to_json(),
    }
    result = report.result(measured, verdicts, met_all and valid, about) | report.distribution(outcome.tally)
    if arguments.json:
        report.write_json(arguments.json, result)
    if arguments.html:
        report.write_text(arguments.html, page.page(result))
    return 3 if not valid else 0 if met_all else 1


if __name__ == "__main__":
    sys.exit(main())
