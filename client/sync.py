"""The blocking client."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Any, TypeVar

import grpc

from client import wire
from client.base import BaseClient, Flight, Line, Steps, Turn, join, split
from client.coalesce import Queue, Waiting, common
from client.errors import InvalidInput, ToxicityError
from client.pool import Endpoint
from client.results import ModelInfo, Result

T = TypeVar("T")


class ToxicityClient(BaseClient):
    """Scores texts on one or more Triton servers; see :class:`client.base.BaseClient` for the options.

    Threads may share a client, and should: ``score`` joins their comments.
    """

    def _prepare(self) -> None:
        self._lock = threading.Lock()
        self._queue: Queue[_Waiting] = Queue(self.batching)
        self._executor: ThreadPoolExecutor | None = None
        self._running = 0
        self._idle = threading.Condition(self._lock)

    def classify(self, texts: Sequence[str], timeout: float | None = None) -> list[Result]:
        """A result for each text, in the same order.

        Lists longer than the server's ``max_batch_size`` are sorted by length and sent as several requests, some of
        them at once.

        :param timeout: seconds for the whole call; by default the client's.
        :raises InvalidInput: when ``texts`` is a bare string or holds something that is no text; nothing was sent then.
        :raises Timeout: see ``client.errors`` for this and the other failures. There are no partial results.
        """
        call = self._begin(timeout)
        rows = wire.encode(texts, call)
        if not rows:
            return []
        info = self._latest or self._run(self._read_info(call))
        parts = split(rows, info.max_batch_size)
        if len(parts) == 1:
            return self._run(self._score(rows, call))
        jobs = (self._score([rows[i] for i in part], call.part()) for part in parts)
        return join(parts, list(self._several_at_once(jobs)))

    def score(self, text: str, timeout: float | None = None) -> Result:
        """The result of one text. Calls that threads make at the same time share requests.

        A text that cannot be sent, or a short timeout, is its own caller's business only.

        :raises ToxicityError: as :meth:`classify`.
        """
        call = self._begin(timeout)
        entry = _Waiting(wire.encode_one(text, call), call)
        with self._lock:
            first = self._queue.add(entry)
            batch = self._queue.take() if self._queue.under_way == 0 or self._queue.full() else []
        if batch:
            self._dispatch(batch)
            first = True  # of those that are left, if it is
        try:
            if first and entry.waits and not entry.wait(min(self.batching.delay_ms / 1000, call.left_s())):
                self._flush()
            if not entry.wait(call.limit_s - call.waited_s()):
                call.request_id = entry.call.request_id
            return entry.outcome()
        finally:
            entry.gone = True
            if entry.waits and first:
                self._flush()

    def stream(self, texts: Iterable[str], timeout: float | None = None) -> Iterator[Result]:
        """The results of any number of texts, in order, as they come.

        Texts are read only as fast as results are taken: at most ``in_flight`` requests are under way. A server that
        is busy slows the stream down, within ``timeout``.

        :param timeout: seconds for each request, not for the whole stream.
        """
        wire.check_texts(texts, self._begin(timeout))
        return self._stream(iter(texts), timeout)

    def info(self, timeout: float | None = None) -> ModelInfo:
        """Labels, thresholds and limits, read from the server once and again when a reply has another version."""
        return self._run(self._info(self._begin(timeout)))

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Return as soon as the model can answer, on one of the servers at least.

        :raises Timeout: when it cannot within ``timeout`` seconds; the message says why.
        """
        self._run(self._wait_ready(self._begin(timeout)))

    def close(self, grace: float = 5.0) -> None:
        """Take no more calls, wait for those under way, and close the connections.

        :param grace: seconds to wait at most; calls that still wait then raise ClientClosed.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._flush(everything=True)
        with self._idle:
            self._idle.wait_for(lambda: not self._running, max(0.0, grace))
        self._shut = True
        for line in self._pool.channels():
            line.channel.close()
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> ToxicityClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(grace=0.0 if kind else 5.0)

    # --- waiting with threads

    def _run(self, steps: Steps[T]) -> T:
        """Take the steps, waiting between them."""
        with self._lock:
            self._running += 1
        try:
            while True:
                turn, seconds = next(steps)
                if turn is None:
                    time.sleep(seconds or 0.0)
                else:
                    assert isinstance(turn, _Turn)
                    turn.wait(seconds)
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            steps.close()
            with self._lock:
                self._running -= 1
                if not self._running:
                    self._idle.notify_all()

    def _submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        with self._lock:
            if self._executor is None:
                workers = max(self.in_flight, self.batching.in_flight) + 1
                self._executor = ThreadPoolExecutor(workers, "tritox")
        return self._executor.submit(work, *arguments)

    def _several_at_once(self, jobs: Iterable[Steps[T]]) -> Iterator[T]:
        """What the jobs come to, in order. One after the other is taken from ``jobs``, ``in_flight`` at once."""
        window: deque[Future[T]] = deque()
        try:
            for steps in jobs:
                if len(window) < self.in_flight - 1:
                    window.append(self._submit(self._run, steps))
                else:  # this thread works, too
                    done: Future[T] = Future()
                    done.set_result(self._run(steps))
                    window.append(done)
                while window and (len(window) >= self.in_flight or window[0].done()):
                    yield window.popleft().result()
            while window:
                yield window.popleft().result()
        finally:
            for future in window:
                future.cancel()

    def _stream(self, texts: Iterator[str], timeout: float | None) -> Iterator[Result]:
        size = self.info(timeout).max_batch_size
        failure: list[ToxicityError] = []

        def jobs() -> Iterator[Steps[list[Result]]]:
            read = 0
            while texts_of_one := list(islice(texts, size)):
                call = self._begin(timeout, patient=True)
                rows, error = wire.encode_until_bad(texts_of_one, call, read)
                read += len(texts_of_one)
                if rows:
                    yield self._score(rows, call)
                if error is not None:
                    failure.append(error)
                    return

        for results in self._several_at_once(jobs()):
            yield from results
        if failure:
            raise failure[0]

    # --- joining single comments

    def _flush(self, everything: bool = False) -> None:
        """Send what has waited long enough."""
        while True:
            with self._lock:
                ready = len(self._queue) > 0 if everything else self._queue.due()
                batch = self._queue.take() if ready else []
            if not batch:
                return
            self._dispatch(batch)

    def _dispatch(self, batch: list[_Waiting]) -> None:
        with self._lock:
            self._running += 1  # close() waits for it from now on
        try:
            self._submit(self._deliver, batch)
        except RuntimeError:  # the executor was shut down
            self._settle(batch, batch[0].call.closed())
            self._delivered()

    def _deliver(self, batch: list[_Waiting]) -> None:
        try:
            self._answer(batch)
        finally:
            self._delivered()

    def _delivered(self) -> None:
        with self._lock:
            self._queue.done()
            self._running -= 1
            if not self._running:
                self._idle.notify_all()
            if self._latest is not None:
                self._queue.learn(self._latest.max_batch_size, self._latest.max_tokens)
        self._flush()

    def _answer(self, batch: list[_Waiting]) -> None:
        """Score a batch and tell its callers. One that is refused is halved until the bad text is alone."""
        try:
            results = self._run(self._score([entry.row for entry in batch], common(batch, self.url, self.model)))
        except InvalidInput as error:
            if len(batch) == 1:
                self._settle(batch, error)
                return
            half = len(batch) // 2
            self._answer(batch[:half])
            self._answer(batch[half:])
        except ToxicityError as error:
            self._settle(batch, error)
        except BaseException as error:
            self._settle(batch, batch[0].call.error(ToxicityError, f"the request broke: {error!r}"))
            raise
        else:
            for entry, result in zip(batch, results, strict=True):
                entry.answer(result)
                entry.wake()

    @staticmethod
    def _settle(batch: list[_Waiting], error: ToxicityError) -> None:
        for entry in batch:
            entry.fail(error)
            entry.wake()

    # --- gRPC

    def _open_lane(self, target: str) -> Line:
        # Not tritonclient's InferenceServerClient: it closes its channel once more when it is deleted, which under
        # gevent miscounts the open channels and can hang the process at exit (grpcio 1.85).
        if self._secure is not None:
            return Line(grpc.secure_channel(target, self._secure, self._options))
        return Line(grpc.insecure_channel(target, self._options))

    def _turn(self) -> Turn:
        return _Turn(self)

    def _probe(self, endpoint: Endpoint[Line]) -> None:
        request, arguments = self._probe_arguments()
        if self._shut:
            return
        try:
            future = self._pool.lane(endpoint).channel.methods["ModelReady"].future(request, **arguments)
        except ValueError:  # the channel was closed meanwhile
            return

        def landed(done: Any) -> None:
            self._pool.probed(endpoint, done.code() is grpc.StatusCode.OK and done.result().ready)

        future.add_done_callback(landed)


class _Turn(Turn):
    def __init__(self, client: ToxicityClient) -> None:
        self._client = client
        self._landed: threading.Event | None = None
        self._blocking: tuple[Flight, Any, Any, float] | None = None

    def send(self, flight: Flight, method: str, request: Any, timeout_s: float, alone: bool) -> None:
        rpc = flight.lane.channel.methods[method]
        if alone:  # a call that blocks costs half as much CPU
            self._blocking = flight, rpc, request, timeout_s
            return
        landed = self._landed = self._landed or threading.Event()
        try:
            future = rpc.future(request, **self._client._arguments(timeout_s))
        except ValueError as error:  # the channel was closed meanwhile
            flight.land(None, "CANCELLED", str(error))
            landed.set()
            return

        def land(done: Any) -> None:
            code = done.code()
            if code is grpc.StatusCode.OK:
                flight.land(done.result())
            else:
                flight.land(None, code.name, done.details())
            landed.set()

        flight.cancel = future.cancel
        future.add_done_callback(land)

    def wait(self, seconds: float | None) -> None:
        if self._blocking is None:
            assert self._landed is not None
            self._landed.wait(seconds)
            self._landed.clear()
            return
        flight, rpc, request, timeout_s = self._blocking
        self._blocking = None
        try:
            flight.land(rpc(request, **self._client._arguments(timeout_s)))
        except grpc.RpcError as error:
            flight.land(None, error.code().name, error.details())
        except ValueError as error:  # the channel was closed meanwhile
            flight.land(None, "CANCELLED", str(error))


class _Waiting(Waiting):
    __slots__ = ("_lock",)

    def __init__(self, row: bytes, call: wire.Call) -> None:
        super().__init__(row, call)
        self._lock = threading.Lock()  # the cheapest thing that a thread can wait for with a limit
        self._lock.acquire()

    def wait(self, seconds: float) -> bool:
        """Whether it was answered; at once when it has been."""
        if self.result is not None or self.error is not None:
            return True
        return self._lock.acquire(timeout=max(0.0, seconds))

    def wake(self) -> None:
        self._lock.release()
