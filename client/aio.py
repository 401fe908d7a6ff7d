"""The asynchronous client."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Coroutine, Iterable, Sequence
from types import TracebackType
from typing import Any, TypeVar

import grpc
import grpc.aio

from client import wire
from client.base import BaseClient, Flight, Line, Steps, Turn, join, split
from client.coalesce import Queue, Waiting, common
from client.errors import InvalidInput, ToxicityError
from client.pool import Endpoint
from client.results import ModelInfo, Result

T = TypeVar("T")


class AsyncToxicityClient(BaseClient):
    """Scores texts on one or more Triton servers; see :class:`client.base.BaseClient` for the options.

    It belongs to the event loop that runs at the first call. Tasks share a client, and should: ``score`` joins their
    comments.
    """

    def _prepare(self) -> None:
        self._queue: Queue[_Waiting] = Queue(self.batching)
        self._running = 0
        self._idle: asyncio.Future[None] | None = None
        self._background: set[asyncio.Task[Any]] = set()

    async def classify(self, texts: Sequence[str], timeout: float | None = None) -> list[Result]:
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
        info = await self._run(self._info(call))
        parts = split(rows, info.max_batch_size)
        if len(parts) == 1:
            return await self._run(self._score(rows, call))
        results: list[list[Result]] = [[]] * len(parts)
        todo = iter(range(len(parts)))

        async def work() -> None:
            for k in todo:
                results[k] = await self._run(self._score([rows[i] for i in parts[k]], call.part()))

        await _all([work() for _ in range(min(self.in_flight, len(parts)))])
        return join(parts, results)

    async def score(self, text: str, timeout: float | None = None) -> Result:
        """The result of one text. Calls that tasks make at the same time share requests.

        A text that cannot be sent, a short timeout, or a cancelled task, is its own caller's business only.

        :raises ToxicityError: as :meth:`classify`.
        """
        call = self._begin(timeout)
        loop = asyncio.get_running_loop()
        entry = _Waiting(wire.encode_one(text, call), call, loop.create_future())
        first = self._queue.add(entry)
        if self._queue.full():
            self._dispatch(self._queue.take())
        elif first:
            if self._queue.under_way:
                loop.call_later(self.batching.delay_ms / 1000, self._flush)
            else:  # not before the tasks that are ready now have added theirs
                loop.call_soon(self._flush)
        late = loop.call_later(call.limit_s - call.waited_s(), entry.wake)
        try:
            await entry.woken
            return entry.outcome()
        finally:
            late.cancel()
            entry.gone = True

    def stream(self, texts: Iterable[str] | AsyncIterable[str], timeout: float | None = None) -> AsyncIterator[Result]:
        """The results of any number of texts, in order, as they come.

        Texts are read only as fast as results are taken: at most ``in_flight`` requests are under way. A server that
        is busy slows the stream down, within ``timeout``. Texts of an asynchronous source that pauses are sent without
        waiting for a full request.

        :param timeout: seconds for each request, not for the whole stream.
        """
        wire.check_texts(texts, self._begin(timeout))
        return self._stream(texts, timeout)

    async def info(self, timeout: float | None = None) -> ModelInfo:
        """Labels, thresholds and limits, read from the server once and again when a reply has another version."""
        return await self._run(self._info(self._begin(timeout)))

    async def wait_ready(self, timeout: float = 60.0) -> None:
        """Return as soon as the model can answer, on one of the servers at least.

        :raises Timeout: when it cannot within ``timeout`` seconds; the message says why.
        """
        await self._run(self._wait_ready(self._begin(timeout)))

    async def close(self, grace: float = 5.0) -> None:
        """Take no more calls, wait for those under way, and close the connections.

        :param grace: seconds to wait at most; calls that still wait then raise ClientClosed.
        """
        if self._closed:
            return
        self._closed = True
        while len(self._queue):
            self._dispatch(self._queue.take())
        if self._running and grace > 0:
            self._idle = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._idle], timeout=grace)
        self._shut = True
        for line in self._pool.channels():
            await line.channel.close(None)
        await _cancel(list(self._background))

    async def __aenter__(self) -> AsyncToxicityClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close(grace=0.0 if kind else 5.0)

    # --- waiting in the event loop

    async def _run(self, steps: Steps[T]) -> T:
        """Take the steps, waiting between them."""
        self._running += 1
        try:
            while True:
                turn, seconds = next(steps)
                if turn is None:
                    await asyncio.sleep(seconds or 0.0)
                else:
                    assert isinstance(turn, _Turn)
                    await turn.wait(seconds)
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            steps.close()
            self._running -= 1
            if not self._running and self._idle is not None and not self._idle.done():
                self._idle.set_result(None)

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _stream(self, texts: Iterable[str] | AsyncIterable[str], timeout: float | None) -> AsyncIterator[Result]:
        size = (await self.info(timeout)).max_batch_size
        slots = asyncio.Semaphore(self.in_flight)
        jobs: asyncio.Queue[asyncio.Task[list[Result]] | BaseException | None] = asyncio.Queue()
        tasks: set[asyncio.Task[Any]] = set()

        async def read() -> None:
            count = 0
            chunks = _chunks(texts, size, self.batching.delay_ms / 1000)
            try:
                while True:
                    await slots.acquire()  # given back when the results were taken: this bounds what is held
                    chunk = await anext(chunks, None)
                    if chunk is None:
                        break
                    call = self._begin(timeout, patient=True)
                    rows, error = wire.encode_until_bad(chunk, call, count)
                    count += len(chunk)
                    if rows:
                        task = asyncio.ensure_future(self._run(self._score(rows, call)))
                        tasks.add(task)
                        jobs.put_nowait(task)
                    if error is not None:
                        raise error
            except Exception as error:  # of the source, too
                jobs.put_nowait(error)
            else:
                jobs.put_nowait(None)
            finally:
                await chunks.aclose()

        reader = asyncio.ensure_future(read())
        try:
            while (job := await jobs.get()) is not None:
                if isinstance(job, BaseException):
                    raise job
                for result in await job:
                    yield result
                tasks.discard(job)
                slots.release()
        finally:
            await _cancel([reader, *tasks])

    # --- joining single comments

    def _flush(self) -> None:
        """Send what has waited long enough."""
        while self._queue.due():
            self._dispatch(self._queue.take())
        if len(self._queue) and self._queue.under_way < self.batching.in_flight:
            asyncio.get_running_loop().call_later(self.batching.delay_ms / 1000, self._flush)

    def _dispatch(self, batch: list[_Waiting]) -> None:
        if batch:
            self._spawn(self._deliver(batch))

    async def _deliver(self, batch: list[_Waiting]) -> None:
        try:
            await self._answer(batch)
        finally:
            self._queue.done()
            if self._latest is not None:
                self._queue.learn(self._latest.max_batch_size, self._latest.max_tokens)
            self._flush()

    async def _answer(self, batch: list[_Waiting]) -> None:
        """Score a batch and tell its callers. One that is refused is halved until the bad text is alone."""
        try:
            results = await self._run(self._score([entry.row for entry in batch], common(batch, self.url, self.model)))
        except InvalidInput as error:
            if len(batch) == 1:
                _settle(batch, error)
                return
            half = len(batch) // 2
            await self._answer(batch[:half])
            await self._answer(batch[half:])
        except ToxicityError as error:
            _settle(batch, error)
        except BaseException as error:
            closed = batch[0].call.closed() if self._shut else None
            _settle(batch, closed or batch[0].call.error(ToxicityError, f"the request broke: {error!r}"))
            raise
        else:
            for entry, result in zip(batch, results, strict=True):
                entry.answer(result)
                entry.wake()

    # --- gRPC

    def _open_lane(self, target: str) -> Line:
        if self._secure is not None:
            return Line(grpc.aio.secure_channel(target, self._secure, self._options))
        return Line(grpc.aio.insecure_channel(target, self._options))

    def _turn(self) -> Turn:
        return _Turn(self)

    def _probe(self, endpoint: Endpoint[Line]) -> None:
        if not self._shut:
            self._spawn(self._probed(endpoint))

    async def _probed(self, endpoint: Endpoint[Line]) -> None:
        request, arguments = self._probe_arguments()
        alive = False
        try:
            alive = (await self._pool.lane(endpoint).channel.methods["ModelReady"](request, **arguments)).ready
        except (grpc.RpcError, grpc.aio.UsageError, asyncio.CancelledError):
            pass  # it cannot answer, or the client was closed
        finally:
            self._pool.probed(endpoint, alive)


class _Turn(Turn):
    def __init__(self, client: AsyncToxicityClient) -> None:
        self._client = client
        self._blocking: tuple[Flight, Any, Any, float] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._landed = False

    def send(self, flight: Flight, method: str, request: Any, timeout_s: float, alone: bool) -> None:
        rpc = flight.lane.channel.methods[method]
        if alone:
            self._blocking = flight, rpc, request, timeout_s
            return
        task = self._client._spawn(self._fly(flight, rpc, request, timeout_s))
        task.add_done_callback(self._wake)
        flight.cancel = task.cancel

    def _wake(self, task: asyncio.Task[None]) -> None:
        self._landed = True
        if self._waiter is not None:
            _set(self._waiter)

    async def wait(self, seconds: float | None) -> None:
        if self._blocking is not None:
            blocking, self._blocking = self._blocking, None
            await self._fly(*blocking)
            return
        if not self._landed:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(seconds, _set, self._waiter) if seconds is not None else None
            try:
                await self._waiter
            finally:
                self._waiter = None
                if timer is not None:
                    timer.cancel()
        self._landed = False

    async def _fly(self, flight: Flight, rpc: Any, request: Any, timeout_s: float) -> None:
        try:
            flight.land(await rpc(request, **self._client._arguments(timeout_s)))
        except grpc.RpcError as error:
            flight.land(None, error.code().name, error.details())
        except grpc.aio.UsageError as error:  # the channel was closed meanwhile
            flight.land(None, "CANCELLED", str(error))
        except asyncio.CancelledError:
            if not self._client._shut:
                raise
            flight.land(None, "CANCELLED", "the channel was closed")  # by us: that is no cancelled task


class _Waiting(Waiting):
    __slots__ = ("woken",)

    def __init__(self, row: bytes, call: wire.Call, woken: asyncio.Future[None]) -> None:
        super().__init__(row, call)
        self.woken = woken

    def wake(self) -> None:
        _set(self.woken)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _settle(batch: list[_Waiting], error: ToxicityError) -> None:
    for entry in batch:
        entry.fail(error)
        entry.wake()


async def _all(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What all come to; when one fails the others are cancelled."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _cancel([task for task in tasks if not task.done()])


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.gather(*tasks, return_exceptions=True)


async def _chunks(
    texts: Iterable[str] | AsyncIterable[str], size: int, patience_s: float
) -> AsyncGenerator[list[str], None]:
    """Lists of ``size`` texts, shorter when an asynchronous source pauses for longer than ``patience_s``."""
    if not isinstance(texts, AsyncIterable):
        chunk = []
        for text in texts:
            chunk.append(text)
            if len(chunk) == size:
                yield chunk
                chunk = []
        if chunk:
            yield chunk
        return
    source, loop, until = texts.__aiter__(), asyncio.get_running_loop(), 0.0
    pending: deque[asyncio.Task[str]] = deque()
    chunk = []
    try:
        while True:
            if not pending:
                pending.append(asyncio.ensure_future(_next(source)))
            if chunk and not pending[0].done():
                await asyncio.wait(pending, timeout=max(0.0, until - loop.time()))
                if not pending[0].done():
                    yield chunk
                    chunk = []
            try:
                chunk.append(await pending[0])
            except StopAsyncIteration:
                break
            pending.popleft()
            if len(chunk) == 1:
                until = loop.time() + patience_s
            if len(chunk) == size:
                yield chunk
                chunk = []
    finally:
        await _cancel(list(pending))
    if chunk:
        yield chunk


async def _next(source: AsyncIterator[str]) -> str:
    return await source.__anext__()
