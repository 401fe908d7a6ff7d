"""A closed-loop load generator: a number of clients, each of which sends again as soon as it has an answer.

It runs in processes of its own, so that what it costs can be told from what the server costs, and it says how busy it
was. It is Python: see :mod:`loadtest.connections` for what makes that fast enough, and :func:`ceiling` for how fast.
"""

from __future__ import annotations

import multiprocessing
import select
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from typing import Literal

from loadtest.connections import Connection, ConnectionFailed, GrpcConnection, HttpConnection
from serve.server import take_turns

DRAIN_S = 15.0
"""How long answers are waited for behind the run."""

MAX_FAILED = 200
"""A run without any success ends after so many failures."""


class GeneratorFailed(RuntimeError):
    """The load could not be put on the server at all."""


@dataclass(frozen=True)
class Load:
    """What to send where. Requests are sent in order, and over again.

    :param bodies: of the requests. :param comments: in each of them.
    :param clients: requests under way at the same time.
    :param connections: that the clients share; HTTP/1.1 has one for each client.
    :param warm_up_s: time before the measurement, under the same load.
    :param first: the request to begin with.
    """

    protocol: Literal["grpc", "http"]
    host: str
    port: int
    path: str
    bodies: Sequence[bytes] = field(repr=False)
    comments: Sequence[int] = field(repr=False)
    clients: int = 8
    connections: int = 2
    warm_up_s: float = 1.0
    seconds: float = 10.0
    first: int = 0


@dataclass
class Outcome:
    """What a run came to. Failures are counted over the whole run, everything else inside the measurement.

    :ivar latencies_ms: of the requests that were answered, in no order.
    :ivar cpu_s: of the generator.
    :ivar answers: the last body that answered a request, by the request's number.
    """

    seconds: float = 0.0
    requests: int = 0
    comments: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    answers: dict[int, bytes] = field(default_factory=dict)

    def add(self, other: Outcome) -> None:
        self.seconds = max(self.seconds, other.seconds)
        self.requests += other.requests
        self.comments += other.comments
        self.errors.update(other.errors)
        self.latencies_ms += other.latencies_ms
        self.cpu_s += other.cpu_s
        self.answers.update(other.answers)


class Driver:
    """One generator process's part of a load.

    :param begin: called when the measurement begins, ``end`` when it ends.
    """

    def __init__(self, load: Load, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self.load, self.begin, self.end = load, begin, end
        self.outcome = Outcome()
        self.next_request = load.first
        self.sent: dict[int, float] = {}  # when, by the number of a sending
        self.started_at = time.perf_counter()
        self.measuring = False
        self.poll = select.epoll()
        self.connections: dict[int, Connection] = {}
        self.times: dict[Connection, dict[int, list[float]]] = {}

    def run(self) -> Outcome:
        load = self.load
        count = load.clients if load.protocol == "http" else min(load.connections, load.clients)
        try:
            for i in range(count):
                share = load.clients // count + (1 if i < load.clients % count else 0)
                self._open(share)
            self._loop()
        finally:
            for connection in self.connections.values():
                connection.close()
            self.poll.close()
        return self.outcome

    def _open(self, clients: int) -> None:
        load = self.load
        kind = GrpcConnection if load.protocol == "grpc" else HttpConnection
        try:
            connection = kind(load.host, load.port, load.path, load.bodies)
        except OSError as error:
            raise GeneratorFailed(f"{load.host}:{load.port} cannot be reached ({error})") from None
        self.connections[connection.socket.fileno()] = connection
        self.times[connection] = {}
        self.poll.register(connection.socket.fileno(), select.EPOLLIN)
        for _ in range(clients):
            self._ask(connection)
        self._flush(connection)

    def _ask(self, connection: Connection) -> None:
        request = self.next_request
        self.next_request = (request + 1) % len(self.load.bodies)
        # the same request may be under way twice, where there are fewer than clients
        self.times[connection].setdefault(request, []).append(time.perf_counter())
        connection.ask(request)

    def _flush(self, connection: Connection) -> None:
        events = select.EPOLLIN if connection.flush() else select.EPOLLIN | select.EPOLLOUT
        self.poll.modify(connection.socket.fileno(), events)

    def _loop(self) -> None:
        start = self.started_at = time.perf_counter()
        begin_at, end_at = start + self.load.warm_up_s, start + self.load.warm_up_s + self.load.seconds
        cpu, began, sending = 0.0, start, True
        while True:
            now = time.perf_counter()
            if not self.measuring and sending and now >= begin_at:
                self.begin()
                self.measuring, began, cpu = True, time.perf_counter(), time.process_time()
                end_at = began + self.load.seconds
            if sending and now >= end_at:
                self.outcome.seconds = time.perf_counter() - began
                self.outcome.cpu_s = time.process_time() - cpu
                self.measuring = sending = False
                self.end()
            if not sending:
                left = sum(c.under_way for c in self.connections.values())
                if not left:
                    return
                if now > end_at + DRAIN_S:
                    self.outcome.errors[f"no answer within {DRAIN_S:g} s"] += left
                    return
            until = (end_at if self.measuring else begin_at) if sending else end_at + DRAIN_S
            for number, events in self.poll.poll(max(0.0, until - now) + 0.001):
                self._serve(self.connections[number], events, sending)

    def _serve(self, connection: Connection, events: int, sending: bool) -> None:
        try:
            if events & ~select.EPOLLOUT:
                answers = connection.receive()
                now = time.perf_counter()
                times = self.times[connection]
                for answer in answers:
                    took = now - times[answer.request].pop(0)
                    if answer.error is not None:
                        self._failed(answer.error)
                    else:
                        self.outcome.answers[answer.request] = answer.body
                        if self.measuring:
                            self.outcome.requests += 1
                            self.outcome.comments += self.load.comments[answer.request]
                            self.outcome.latencies_ms.append(took * 1000)
                    if sending:
                        self._ask(connection)
            self._flush(connection)
        except ConnectionFailed as error:
            lost = connection.under_way
            self.poll.unregister(connection.socket.fileno())
            del self.connections[connection.socket.fileno()], self.times[connection]
            connection.close()
            self._failed(str(error), max(lost, 1))
            if sending:
                self._open(max(lost, 1))

    def _failed(self, error: str, count: int = 1) -> None:
        self.outcome.errors[error] += count
        if not self.outcome.answers and self.outcome.errors.total() >= MAX_FAILED:
            raise GeneratorFailed(f"no request succeeded, and {self.outcome.errors.total()} failed: {error}")


def drive(
    load: Load, processes: int = 1, begin: Callable[[], None] | None = None, end: Callable[[], None] | None = None
) -> Outcome:
    """Put the load on the server, from so many processes; returns when the last answer is there.

    :param begin: called here, in this process, when the measurement begins; ``end`` when it ends.
    :raises GeneratorFailed: when nothing can be measured.
    """
    context = multiprocessing.get_context("spawn")
    parts = [
        replace(
            load,
            clients=load.clients // processes + (1 if i < load.clients % processes else 0),
            connections=max(1, load.connections // processes),
            first=(load.first + i * len(load.bodies) // processes) % len(load.bodies),
        )
        for i in range(min(processes, load.clients))
    ]
    pipes, workers = [], []
    try:
        for part in parts:
            here, there = context.Pipe()
            worker = context.Process(target=_work, args=(part, there), daemon=True)
            worker.start()
            there.close()
            pipes.append(here)
            workers.append(worker)
        return _collect(pipes, begin, end)
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.join(1)
            if worker.is_alive():
                worker.terminate()
            worker.join()
        for pipe in pipes:
            pipe.close()


def _work(load: Load, pipe: Pipe) -> None:
    take_turns()  # clients on other machines would throw nobody off a core, either
    try:
        pipe.send("ready")
        pipe.recv()
        pipe.send(Driver(load, lambda: pipe.send("begin"), lambda: pipe.send("end")).run())
    except GeneratorFailed as error:
        pipe.send(str(error))


def _collect(pipes: list[Pipe], begin: Callable[[], None] | None, end: Callable[[], None] | None) -> Outcome:
    """Start the processes at the same time, and gather what they say."""
    for pipe in pipes:
        _receive(pipe)
    for pipe in pipes:
        pipe.send("go")
    total, said, left = Outcome(), Counter[str](), list(pipes)
    while left:
        for ready in wait(left):
            pipe = pipes[pipes.index(ready)]  # type: ignore[arg-type]
            message = _receive(pipe)
            if isinstance(message, Outcome):
                total.add(message)
                left.remove(pipe)
            elif message in ("begin", "end"):
                said[message] += 1
                call = begin if message == "begin" else end
                if said[message] == 1 and call is not None:
                    call()
            else:
                raise GeneratorFailed(message)
    return total


def _receive(pipe: Pipe) -> Outcome | str:
    try:
        message: Outcome | str = pipe.recv()
    except EOFError:
        raise GeneratorFailed("the load generator's process ended without a word: see its traceback above") from None
    return message
