"""Raw requests on a schedule: what the overload and soak tests send with.

Requests are serialized before the clock starts and sent over several connections of :mod:`loadtest.connections`: a
generator that shares its machine with the server must cost little. Latency counts from when a request was due, not from
when it left, so that a generator that falls behind cannot hide it.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType

import grpc

from client import Credentials, wire
from loadtest.connections import ConnectionFailed, GrpcConnection, framed
from loadtest.histogram import Histogram
from loadtest.processes import stolen_s
from loadtest.slo import Sample, percentile

METHOD = "/inference.GRPCInferenceService/ModelInfer"
LATE_S = 0.1
"""A request that leaves so much after it was due was not offered at the rate that was asked for."""
REFUSED = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
"""The statuses of a server that is busy."""
LOST = "CONNECTION_LOST"
"""Stands where there is no status."""
STATUSES = {status.value[0]: status.name for status in grpc.StatusCode}
SWEEP_S = 0.25
"""How often it is looked for requests that have waited too long."""


@dataclass(frozen=True)
class Body:
    """A serialized request, and how many comments it holds."""

    raw: bytes
    comments: int

    @cached_property
    def framed(self) -> bytes:
        """As it goes over the wire."""
        return framed(self.raw)


def body(texts: Sequence[str], model: str, timeout_s: float) -> Body:
    """:param timeout_s: what the request itself says that it is willing to wait."""
    call = wire.Call("", model, timeout_s)
    call.request_id = ""
    return Body(wire.infer_request(wire.encode(texts, call), call).SerializeToString(), len(texts))


@dataclass
class Sent:
    """What one phase came to. A sample's error is the name of its gRPC status.

    :param seconds: that the phase was to last; its last answers may have come later.
    :param late: requests that left over ``LATE_S`` after they were due; none in a closed loop.
    :param cpu: of this process, in cores.
    :param stolen: cores that the machine's host gave to others.
    :param details: a text of each status that was seen.
    :param due: requests that the schedule held. :param left: of these, those that left before the whole schedule was
        over, or not ``LATE_S`` after that.
    :param lateness_ms: how much later than they were due they left.
    """

    samples: list[Sample]
    start_s: float
    seconds: float
    late: int
    cpu: float
    stolen: float
    details: dict[str, str]
    due: int = 0
    left: int = 0
    lateness_ms: Histogram = field(default_factory=Histogram)

    @property
    def statuses(self) -> dict[str, int]:
        return dict(Counter(s.error or "OK" for s in self.samples))

    @property
    def good(self) -> list[Sample]:
        return [s for s in self.samples if s.error is None]

    @property
    def refused(self) -> list[Sample]:
        return [s for s in self.samples if s.error in REFUSED]

    @property
    def comments_per_s(self) -> float:
        """Comments that were answered while the phase lasted."""
        end_s = self.start_s + self.seconds
        return sum(s.comments for s in self.good if s.start_s + s.duration_s <= end_s) / self.seconds

    def ms(self, samples: Sequence[Sample], share: float) -> float | None:
        """A percentile of the latencies of some of the samples."""
        return percentile(sorted(s.duration_s * 1000 for s in samples), share)

    def to_json(self) -> dict[str, object]:
        """Numbers of the phase, for a result file."""
        return {
            "seconds": self.seconds,
            "requests": len(self.samples),
            "statuses": self.statuses,
            "status_details": self.details,
            "comments_per_s": self.comments_per_s,
            **{f"p{round(share * 100)}_ms": self.ms(self.good, share) for share in (0.5, 0.95, 0.99)},
            "refusal_p50_ms": self.ms(self.refused, 0.5),
            "refusal_p99_ms": self.ms(self.refused, 0.99),
            "sent_late": self.late,
            "generator_cores": self.cpu,
            "stolen_cores": self.stolen,
        }


Finish = Callable[[str | None, str], None]
"""Is told the status that a request failed with, or ``None``, and what the server said of it."""


class Generator:
    """Several connections to one server, as an async context manager; or to each of several, which take turns.

    :param timeout_s: how long an answer is waited for.
    :param patience_s: a refused request is sent again, a little later each time, for so long; 0 gives up at once.
    :param credentials: TLS, and a token.
    :param record: is given each sample, instead of the phase: for runs whose samples would fill the memory.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        channels: int = 4,
        timeout_s: float = 10.0,
        patience_s: float = 0.0,
        record: Callable[[Sample], None] | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self.urls = [url] if isinstance(url, str) else list(url)
        self.credentials = credentials
        self.channels, self.timeout_s, self.patience_s, self.record = channels, timeout_s, patience_s, record
        self.again = 0
        self._wires: list[_Wire] = []

    async def __aenter__(self) -> Generator:
        for url in self.urls * self.channels:
            host, _, port = url.rpartition(":")
            self._wires.append(_Wire(host.strip("[]"), int(port), self.timeout_s, self.credentials))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self._wires:
            each.close()

    async def closed(self, bodies: Iterator[Body], users: int, seconds: float) -> Sent:
        """So many users, each of whom sends the next request when the one before is answered."""
        phase = _Phase(time.perf_counter(), seconds)

        async def user(number: int) -> None:
            while (now_s := time.perf_counter()) < phase.start_s + seconds:
                answered: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
                self._send(next(bodies), now_s, number, phase, answered.set_result)
                if await answered is not None:
                    await asyncio.sleep(0.02)  # who was refused does not ask again at once

        await asyncio.gather(*(user(number) for number in range(users)))
        phase.end()
        return phase.sent()

    async def open(
        self,
        bodies: Iterator[Body],
        schedule: Sequence[tuple[float, float]],
        rng: random.Random,
        start_s: float | None = None,
    ) -> list[Sent]:
        """Requests at random moments (Poisson), whatever the answers.

        :param schedule: phases, one right behind the other, as requests a second and seconds.
        :param start_s: of the first, on ``time.perf_counter``'s clock; by default now.
        :returns: each phase, with the requests that were due in it.
        """
        phases, number, answered = [], 0, 0
        if start_s is None:
            start_s = time.perf_counter()
        end_s = start_s + sum(seconds for _, seconds in schedule)

        def done(error: str | None) -> None:
            nonlocal answered
            answered += 1

        for rate, seconds in schedule:
            phase = _Phase(start_s, seconds, end_s)
            phases.append(phase)
            start_s += seconds
            due_s = phase.start_s + rng.expovariate(rate)
            while due_s < start_s:
                if (wait_s := due_s - time.perf_counter()) > 0:
                    await asyncio.sleep(wait_s)
                elif number % 16 == 0:
                    await asyncio.sleep(0)  # behind schedule: without this no answer would be let in
                self._send(next(bodies), due_s, number, phase, done)
                due_s += rng.expovariate(rate)
                number += 1
            await asyncio.sleep(max(0.0, start_s - time.perf_counter()))
            phase.end()
        while answered < number:
            await asyncio.sleep(0.02)
        return [phase.sent() for phase in phases]

    def _send(self, body: Body, due_s: float, number: int, phase: _Phase, done: Callable[[str | None], object]) -> None:
        phase.leave(due_s)
        connection, pause_s = self._wires[number % len(self._wires)], 0.05

        def finish(error: str | None, detail: str) -> None:
            nonlocal pause_s
            now_s = time.perf_counter()
            if error is not None:
                phase.details.setdefault(error, " ".join(detail.split())[:300])
            if error in REFUSED and now_s - due_s + pause_s <= self.patience_s:
                self.again += 1
                asyncio.get_running_loop().call_later(pause_s, connection.ask, body.framed, finish)
                pause_s = min(1.0, pause_s * 2)
                return
            (self.record or phase.samples.append)(Sample(due_s, now_s - due_s, body.comments, error))
            done(error)

        connection.ask(body.framed, finish)


class _Wire:
    """One connection in the running event loop. One that is lost fails what is under way, and is made anew."""

    def __init__(self, host: str, port: int, timeout_s: float, credentials: Credentials | None = None) -> None:
        self.address, self.timeout_s, self.credentials = (host, port), timeout_s, credentials
        self.loop = asyncio.get_running_loop()
        self.under_way: dict[int, tuple[float, Finish]] = {}  # in the order in which they were sent
        self.asked = 0
        self.connection: GrpcConnection | None = GrpcConnection(host, port, METHOD, [], credentials)
        self.loop.add_reader(self.connection.socket, self.read)
        self.sweeping = self.loop.call_later(SWEEP_S, self.sweep)

    def ask(self, message: bytes, finish: Finish) -> None:
        try:
            if self.connection is None:
                self.connection = GrpcConnection(*self.address, METHOD, [], self.credentials)
                self.loop.add_reader(self.connection.socket, self.read)
        except OSError as error:
            finish(LOST, str(error))
            return
        self.asked += 1
        self.under_way[self.asked] = time.perf_counter(), finish
        self.connection.ask(self.asked, message)
        self.write()

    def write(self) -> None:
        assert self.connection is not None
        try:
            whole = self.connection.flush()
        except ConnectionFailed as error:
            self.lose(error)
            return
        if whole:
            self.loop.remove_writer(self.connection.socket)
        else:
            self.loop.add_writer(self.connection.socket, self.write)

    def read(self) -> None:
        assert self.connection is not None
        try:
            answers = self.connection.receive()
        except ConnectionFailed as error:
            self.lose(error)
            return
        for answer in answers:
            _, finish = self.under_way.pop(answer.request, (0.0, None))
            if finish is None:  # given up before
                continue
            if answer.error is None:
                finish(None, "")
            else:
                status = re.match(r"gRPC status (\d+): ", answer.error)
                finish(STATUSES.get(int(status[1]) if status else -1, "UNKNOWN"), answer.error)
        if self.connection is not None:
            self.write()

    def sweep(self) -> None:
        """Give up what has waited too long."""
        until_s = time.perf_counter() - self.timeout_s
        for number in [n for n, (sent_s, _) in self.under_way.items() if sent_s < until_s]:
            self.under_way.pop(number)[1]("DEADLINE_EXCEEDED", f"no answer within {self.timeout_s:g} s")
        self.sweeping = self.loop.call_later(SWEEP_S, self.sweep)

    def lose(self, error: Exception) -> None:
        if self.connection is not None:
            self.loop.remove_reader(self.connection.socket)
            self.loop.remove_writer(self.connection.socket)
            self.connection.close()
            self.connection = None
        lost, self.under_way = self.under_way, {}
        for _, finish in lost.values():
            finish(LOST, str(error))

    def close(self) -> None:
        self.sweeping.cancel()
        self.lose(ConnectionFailed("the generator ended"))


class _Phase:
    def __init__(self, start_s: float, seconds: float, end_s: float | None = None) -> None:
        self.samples: list[Sample] = []
        self.details: dict[str, str] = {}
        self.late = self.due = self.left = 0
        self.lateness_ms = Histogram()
        self.start_s, self.seconds = start_s, seconds
        self.end_s = start_s + seconds if end_s is None else end_s
        self._before = time.process_time(), stolen_s()
        self.cpu = self.stolen = 0.0

    def leave(self, due_s: float) -> None:
        now_s = time.perf_counter()
        self.due += 1
        self.late += now_s - due_s > LATE_S
        self.left += now_s <= self.end_s + LATE_S
        self.lateness_ms.add(1000 * (now_s - due_s))

    def end(self) -> None:
        passed_s = time.perf_counter() - self.start_s
        self.cpu, self.stolen = (
            (now - before) / passed_s
            for now, before in zip((time.process_time(), stolen_s()), self._before, strict=True)
        )

    def sent(self) -> Sent:
        return Sent(
            self.samples,
            self.start_s,
            self.seconds,
            self.late,
            self.cpu,
            self.stolen,
            self.details,
            self.due,
            self.left,
            self.lateness_ms,
        )
