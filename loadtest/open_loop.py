"""Raw requests on a schedule: what the overload and soak tests send with.

Requests are serialized before the clock starts and sent over several channels, without the client's checks: a generator
that shares its machine with the server must cost little. Latency counts from when a request was due, not from when it
left, so that a generator that falls behind cannot hide it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType

import grpc

from client import wire
from loadtest.processes import stolen_s
from loadtest.slo import Sample, percentile

METHOD = "/inference.GRPCInferenceService/ModelInfer"
LATE_S = 0.1
"""A request that leaves so much after it was due was not offered at the rate that was asked for."""
REFUSED = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
"""The statuses of a server that is busy."""


@dataclass(frozen=True)
class Body:
    """A serialized request, and how many comments it holds."""

    raw: bytes
    comments: int


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
    """

    samples: list[Sample]
    start_s: float
    seconds: float
    late: int
    cpu: float
    stolen: float
    details: dict[str, str]

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


class Generator:
    """Several connections to one server, as an async context manager.

    :param timeout_s: gRPC deadline of each request.
    :param patience_s: a refused request is sent again, a little later each time, for so long; 0 gives up at once.
    """

    def __init__(self, url: str, *, channels: int = 4, timeout_s: float = 10.0, patience_s: float = 0.0) -> None:
        self.url, self.channels, self.timeout_s, self.patience_s = url, channels, timeout_s, patience_s
        self.again = 0
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Generator:
        self._calls = []
        for _ in range(self.channels):
            channel = await self._open.enter_async_context(grpc.aio.insecure_channel(self.url, wire.CHANNEL_OPTIONS))
            self._calls.append(channel.unary_unary(METHOD))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def closed(self, bodies: Iterator[Body], users: int, seconds: float) -> Sent:
        """So many users, each of whom sends the next request when the one before is answered."""
        phase = _Phase(time.perf_counter(), seconds)

        async def user(number: int) -> None:
            while (now_s := time.perf_counter()) < phase.start_s + seconds:
                await self._send(next(bodies), now_s, number, phase)
                if phase.samples[-1].error is not None:
                    await asyncio.sleep(0.02)  # who was refused does not ask again at once

        await asyncio.gather(*(user(number) for number in range(users)))
        phase.end()
        return phase.sent()

    async def open(
        self, bodies: Iterator[Body], schedule: Sequence[tuple[float, float]], rng: random.Random
    ) -> list[Sent]:
        """Requests at random moments (Poisson), whatever the answers.

        :param schedule: phases, one right behind the other, as requests a second and seconds.
        :returns: each phase, with the requests that were due in it.
        """
        phases, under_way, number = [], set(), 0
        start_s = time.perf_counter()
        for rate, seconds in schedule:
            phase = _Phase(start_s, seconds)
            phases.append(phase)
            start_s += seconds
            due_s = phase.start_s + rng.expovariate(rate)
            while due_s < start_s:
                if (wait_s := due_s - time.perf_counter()) > 0:
                    await asyncio.sleep(wait_s)
                elif number % 16 == 0:
                    await asyncio.sleep(0)  # behind schedule: without this no answer would be let in
                task = asyncio.create_task(self._send(next(bodies), due_s, number, phase))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                due_s += rng.expovariate(rate)
                number += 1
            await asyncio.sleep(max(0.0, start_s - time.perf_counter()))
            phase.end()
        await asyncio.gather(*under_way)
        return [phase.sent() for phase in phases]

    async def _send(self, body: Body, due_s: float, number: int, phase: _Phase) -> None:
        phase.late += time.perf_counter() - due_s > LATE_S
        call = self._calls[number % len(self._calls)]
        pause_s = 0.05
        while True:
            error: str | None = None
            try:
                await call(body.raw, timeout=self.timeout_s)
            except grpc.aio.AioRpcError as raised:
                error = raised.code().name
                phase.details.setdefault(error, " ".join((raised.details() or "").split())[:300])
            waited_s = time.perf_counter() - due_s
            if error not in REFUSED or waited_s + pause_s > self.patience_s:
                break
            self.again += 1
            await asyncio.sleep(pause_s)
            pause_s = min(1.0, pause_s * 2)
        phase.samples.append(Sample(due_s, time.perf_counter() - due_s, body.comments, error))


class _Phase:
    def __init__(self, start_s: float, seconds: float) -> None:
        self.samples: list[Sample] = []
        self.details: dict[str, str] = {}
        self.late = 0
        self.start_s, self.seconds = start_s, seconds
        self._before = time.process_time(), stolen_s()
        self.cpu = self.stolen = 0.0

    def end(self) -> None:
        passed_s = time.perf_counter() - self.start_s
        self.cpu, self.stolen = (
            (now - before) / passed_s
            for now, before in zip((time.process_time(), stolen_s()), self._before, strict=True)
        )

    def sent(self) -> Sent:
        return Sent(self.samples, self.start_s, self.seconds, self.late, self.cpu, self.stolen, self.details)
