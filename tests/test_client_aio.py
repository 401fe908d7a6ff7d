"""The asynchronous client against a stub server over real gRPC: as its blocking sibling, and streams."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

import grpc
import pytest
from test_client_sync import LABELS, Stub, abort, stub  # noqa: F401  (a fixture)

from client import (
    AsyncToxicityClient,
    ClientClosed,
    InvalidInput,
    Result,
    ServerUnavailable,
    Timeout,
    ToxicityClient,
)

T = TypeVar("T")


def run(stub: Stub, work: Callable[[AsyncToxicityClient], Awaitable[T]], **options: Any) -> T:  # noqa: F811
    async def go() -> T:
        async with AsyncToxicityClient(stub.grpc_url, **{"timeout": 10, **options}) as client:
            return await work(client)

    return asyncio.run(go())


def number(i: int) -> str:
    return f"{i % 1000 / 1000:.3f}"


def numbers(results: list[Result]) -> list[str]:
    return [f"{r.scores['toxic']:.3f}" for r in results]


def test_both_clients_have_the_same_face() -> None:
    def face(kind: type) -> dict[str, list[str]]:
        public = {name: member for name, member in inspect.getmembers(kind) if not name.startswith("_")}
        return {name: list(inspect.signature(member).parameters) for name, member in public.items()}

    assert face(ToxicityClient) == face(AsyncToxicityClient)
    assert inspect.signature(ToxicityClient.__init__) == inspect.signature(AsyncToxicityClient.__init__)


def test_the_order_of_a_long_list_is_kept_and_lengths_are_sorted(stub: Stub) -> None:  # noqa: F811
    texts = [number(i) + "0" * (i * 7 % 11) for i in range(150)]  # more digits, the same number
    results = run(stub, lambda client: client.classify(texts))
    assert numbers(results) == [number(i) for i in range(150)]
    assert sorted(r.inputs[0].shape[0] for r in stub.requests) == [22, 64, 64]
    spans = []
    for request in stub.requests:
        lengths = []
        data = request.raw_input_contents[0]
        while data:
            size = int.from_bytes(data[:4], "little")
            lengths.append(size)
            data = data[4 + size :]
        assert lengths == sorted(lengths, reverse=True)
        spans.append((lengths[0], lengths[-1]))
    spans.sort(reverse=True)
    assert all(low >= high for (_, low), (high, _) in zip(spans, spans[1:], strict=False))


def test_several_requests_of_a_list_are_under_way_at_once(stub: Stub) -> None:  # noqa: F811
    inside = most = 0

    def slow(request: Any, context: Any) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.1)
        inside -= 1

    stub.fault, stub.max_batch_size = slow, 1
    run(stub, lambda client: client.classify([number(i) for i in range(9)]), in_flight=3)
    assert most == 3


def test_results_tell_the_time_and_the_decisions(stub: Stub) -> None:  # noqa: F811
    stub.fault = lambda request, context: time.sleep(0.1)
    (result,) = run(stub, lambda client: client.classify(["0.7"]))
    assert result.decisions == dict.fromkeys(LABELS, True)
    assert 0.1 <= result.timing.request_s <= result.timing.total_s < 5
    assert (result.timing.queued_s, result.timing.tries) == (0.0, 1)
    assert result.request_id == stub.requests[-1].id


def test_errors_are_those_of_the_blocking_client(stub: Stub) -> None:  # noqa: F811
    async def work(client: AsyncToxicityClient) -> None:
        with pytest.raises(InvalidInput, match=r"texts\[1\] is a int"):
            await client.classify(["a", 3])  # type: ignore[list-item]
        stub.fault = abort(grpc.StatusCode.INVALID_ARGUMENT, "unexpected shape")
        with pytest.raises(InvalidInput, match="unexpected shape") as caught:
            await client.classify(["0.5"])
        assert (caught.value.endpoint, caught.value.tries) == (stub.grpc_url, 1)
        stub.fault = lambda request, context: time.sleep(1)
        with pytest.raises(Timeout, match="did not answer within 0.3 s"):
            await client.classify(["0.5"], timeout=0.3)

    run(stub, work)


def test_nobody_listens() -> None:
    async def go() -> None:
        async with AsyncToxicityClient("127.0.0.1:1") as client:
            with pytest.raises(ServerUnavailable, match="sent 4 times"):
                await client.classify(["0.5"])
            with pytest.raises(Timeout, match="not ready within 0.4 s: .*cannot be reached"):
                await client.wait_ready(0.4)

    asyncio.run(go())


def test_a_cancelled_call_is_given_up_on_the_server(stub: Stub) -> None:  # noqa: F811
    active: list[bool] = []

    def slow(request: Any, context: Any) -> None:
        deadline = time.monotonic() + 5
        while context.is_active() and time.monotonic() < deadline:
            time.sleep(0.02)
        active.append(context.is_active())

    async def work(client: AsyncToxicityClient) -> None:
        await client.classify(["0.5"])
        stub.fault = slow
        call = asyncio.ensure_future(client.classify(["0.5"]))
        await asyncio.sleep(0.3)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        while not active:
            await asyncio.sleep(0.02)

    run(stub, work)
    assert active == [False]


# --- streams


def test_a_stream_keeps_the_order_and_reads_no_further_than_it_must(stub: Stub) -> None:  # noqa: F811
    stub.max_batch_size = 8
    read = 0

    def source() -> Iterator[str]:
        nonlocal read
        for i in range(2000):
            read += 1
            yield number(i)

    async def work(client: AsyncToxicityClient) -> None:
        count = 0
        async for result in client.stream(source()):
            assert f"{result.scores['toxic']:.3f}" == number(count)
            count += 1
            if count == 20:
                await asyncio.sleep(0.3)
                assert read <= 20 + 8 * 4  # three requests under way, and the rest of one
        assert count == read == 2000

    run(stub, work, in_flight=3)


def test_a_source_that_pauses_is_answered_meanwhile(stub: Stub) -> None:  # noqa: F811
    async def work(client: AsyncToxicityClient) -> None:
        answered = asyncio.Event()

        async def source() -> AsyncIterator[str]:
            yield "0.1"
            await asyncio.wait_for(answered.wait(), 5)  # the first is answered before there is a second
            yield "0.2"

        seen = []
        async for result in client.stream(source()):
            seen.append(round(result.scores["toxic"], 3))
            answered.set()
        assert seen == [0.1, 0.2]

    run(stub, work)


def test_a_stream_ends_with_the_first_text_that_cannot_be_sent(stub: Stub) -> None:  # noqa: F811
    async def work(client: AsyncToxicityClient) -> None:
        with pytest.raises(InvalidInput, match="texts is a single str"):
            client.stream("hello")
        seen = []
        with pytest.raises(InvalidInput, match=r"texts\[2\] is a int"):
            async for result in client.stream(["0.1", "0.2", 3, "0.4"]):  # type: ignore[list-item]
                seen.append(result)
        assert numbers(seen) == ["0.100", "0.200"]

        async def broken() -> AsyncIterator[str]:
            yield "0.1"
            raise OSError("the disk is gone")

        with pytest.raises(OSError, match="the disk is gone"):
            [result async for result in client.stream(broken())]

    run(stub, work)


def test_a_stream_that_is_left_leaves_nothing_behind(stub: Stub) -> None:  # noqa: F811
    async def work(client: AsyncToxicityClient) -> None:
        stream = client.stream(number(i) for i in range(10_000))
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]
        assert client._running == 0
        assert len(asyncio.all_tasks()) == 1

    run(stub, work)


def test_a_busy_server_slows_a_stream_down_and_does_not_end_it(stub: Stub) -> None:  # noqa: F811
    refused = 0

    def busy(request: Any, context: Any) -> None:
        nonlocal refused
        if refused < 6:
            refused += 1
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    stub.fault = busy

    async def work(client: AsyncToxicityClient) -> list[Result]:
        return [result async for result in client.stream(["0.1"])]

    assert numbers(run(stub, work)) == ["0.100"]


# --- the end


def test_close_lets_calls_finish(stub: Stub) -> None:  # noqa: F811
    stub.fault = lambda request, context: time.sleep(0.3)

    async def go() -> None:
        client = AsyncToxicityClient(stub.grpc_url)
        calls = [asyncio.ensure_future(call) for call in (client.classify(["0.1"]), client.score("0.2"))]
        await asyncio.sleep(0.1)
        await client.close()
        await client.close()
        (first,), second = await asyncio.gather(*calls)
        assert numbers([first, second]) == ["0.100", "0.200"]
        for call in (client.classify(["0.1"]), client.score("0.1"), client.info(), client.wait_ready()):
            with pytest.raises(ClientClosed, match="the client is closed: make a new one"):
                await call

    asyncio.run(go())


def test_close_does_not_wait_longer_than_it_may(stub: Stub) -> None:  # noqa: F811
    stub.fault = lambda request, context: time.sleep(2)

    async def go() -> None:
        client = AsyncToxicityClient(stub.grpc_url)
        calls = [asyncio.ensure_future(call) for call in (client.classify(["0.1"]), client.score("0.2"))]
        await asyncio.sleep(0.3)
        start = time.monotonic()
        await client.close(grace=0.2)
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(each) for each in found] == [ClientClosed] * 2
        assert time.monotonic() - start < 1.5

    asyncio.run(go())
